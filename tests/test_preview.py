"""The preview as a person sees it: the PNG is decoded by Pillow, and pixels are looked for."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from zarr.storage import LocalStore

from pyramid_core import preview, views
from pyramid_core.cli import main
from pyramid_core.errors import LocationError, RequestError, SourceError, TargetError
from pyramid_core.preview import render_preview, write_preview
from tests.images import Pyramids, change_document, read_attributes, write_base
from tests.stories import Array, Shape, build, chunk_files, noise, tree

RED = (255, 0, 0)
LIGHT = (230, 232, 236)
PAGE = (22, 24, 29)
ACCENT = (255, 196, 87)

Box = tuple[int, int, int, int]


def pixels(png: bytes) -> Array:
    """Return the picture as rows, columns and red, green, blue."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def omero(*colors: str, start: float = 0, end: float = 100) -> dict[str, Any]:
    """Return channels of these colours, all of one contrast."""
    window = {"min": start, "start": start, "end": end, "max": end}
    channels = [{"label": f"dye {c}", "color": c, "window": window} for c in colors]
    return {"omero": {"channels": channels}}


def runs(line: Any) -> list[tuple[int, int]]:
    """Return first and last plus one of each run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(line, int), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def boxes(mask: Array, left: int = 0, top: int = 0) -> list[Box]:
    """Return left, top, width, height of the parts that empty rows or columns keep apart."""
    rows, columns = runs(mask.any(axis=1)), runs(mask.any(axis=0))
    if len(rows) == 1 and len(columns) == 1:
        (a, b), (c, d) = rows[0], columns[0]
        return [(left + c, top + a, d - c, b - a)]
    found = []
    for a, b in rows:
        for c, d in columns if len(rows) == 1 else [(0, mask.shape[1])]:
            if mask[a:b, c:d].any():
                found += boxes(mask[a:b, c:d], left + c, top + a)
    return found


def red_boxes(png: bytes) -> list[Box]:
    """Return the red rectangles, views first; but not the sample of the colour beside its name."""
    picture = pixels(png)
    red = (picture[..., 0] == 255) & (picture != ACCENT).any(axis=-1)
    return [box for box in boxes(red) if box[2:] != (10, 10)]


def cell(png: bytes, box: Box, index: tuple[int, int], shape: tuple[int, int]) -> tuple[int, ...]:
    """Return the colour in the middle of a voxel, of as many rows and columns as *shape* says."""
    left, top, width, height = box
    row = top + int((index[0] + 0.5) * height / shape[0])
    column = left + int((index[1] + 0.5) * width / shape[1])
    return tuple(map(int, pixels(png)[row, column]))


def two_channels(shape: Shape, own: Array) -> Array:
    """Return a channel that is bright everywhere, to find the views by, and another."""
    return np.stack([np.full(shape, 100), own]).astype(own.dtype)


def test_three_views_show_a_voxel_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The axis x to the right, y down; seen along x, z to the right; seen along y, z down."""
    monkeypatch.setattr(views, "DENSE", 1.0)  # the channel that frames the views is bright
    own = np.zeros((5, 7, 9), "u1")
    own[1, 5, 2] = 100
    place = write_base(
        tmp_path / "a.zarr", two_channels(own.shape, own), axes="czyx", more=omero("FF0000", "0000FF"),
    )  # fmt: skip
    png = render_preview(str(place))
    xy, zy, xz = red_boxes(png)
    magenta = (255, 0, 255)
    assert [i for i in np.ndindex(7, 9) if cell(png, xy, i, (7, 9)) == magenta] == [(5, 2)]
    assert [i for i in np.ndindex(7, 5) if cell(png, zy, i, (7, 5)) == magenta] == [(5, 1)]
    assert [i for i in np.ndindex(5, 9) if cell(png, xz, i, (5, 9)) == magenta] == [(1, 2)]


@pytest.mark.parametrize(
    ("shape", "scale", "beside"),
    [
        ((6, 10, 20), (4.0, 2.0, 1.0), True),  # 24 x 20 x 20: side by side
        ((2, 40, 40), (1.0, 0.5, 0.5), False),  # 2 x 20 x 20: what is seen along y, below
        ((3, 3, 40), (1.0, 1.0, 1.0), False),
        ((4, 40, 3), (1.0, 1.0, 1.0), True),
    ],
)
@pytest.mark.parametrize("width", [400, 900])
def test_views_have_the_aspect_of_the_volume(
    tmp_path: Path, shape: Shape, scale: tuple[float, ...], beside: bool, width: int
) -> None:
    """As many pixels per micrometre in every view and direction, and views that fill the width."""
    voxels = np.full((1, *shape), 100, "u1")
    place = write_base(
        tmp_path / "a.zarr", voxels, axes="czyx", scale=(1.0, *scale), more=omero("FF0000")
    )
    found = red_boxes(render_preview(str(place), width=width))
    assert len(found) == 3
    xy, zy, xz = found
    z, y, x = (n * s for n, s in zip(shape, scale, strict=True))
    per = sum(xy[2:] + zy[2:] + xz[2:]) / (2 * (x + y + z))
    for (_, _, w, h), (right, down) in ((xy, (x, y)), (zy, (z, y)), (xz, (x, z))):
        assert (w, h) == pytest.approx((right * per, down * per), abs=1.01)
    assert (abs(2 * xz[1] + xz[3] - 2 * xy[1] - xy[3]) <= 1) == beside  # one middle line
    assert zy[1] == xy[1]
    assert max(box[0] + box[2] for box in found) <= width - 20 + 1
    assert pixels(render_preview(str(place), width=width)).shape[1] == width


def test_of_a_long_stack_z_goes_to_the_right_in_two_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is seen along y lies below what is seen along x, plane by plane, and fills the width."""
    monkeypatch.setattr(views, "DENSE", 1.0)
    own = np.zeros((40, 3, 4), "u1")
    own[30, 0, 3] = 100
    place = write_base(
        tmp_path / "a.zarr", two_channels(own.shape, own), axes="czyx", more=omero("FF0000", "0000FF")
    )  # fmt: skip
    png = render_preview(str(place))
    xy, zy, zx = red_boxes(png)
    assert (zy[0], zy[2]) == (zx[0], zx[2])
    assert (xy[0], zx[0] + zx[2]) == (20, 880)
    magenta = (255, 0, 255)
    assert [i for i in np.ndindex(3, 40) if cell(png, zy, i, (3, 40)) == magenta] == [(0, 30)]
    assert [i for i in np.ndindex(4, 40) if cell(png, zx, i, (4, 40)) == magenta] == [(3, 30)]


@pytest.mark.parametrize(("share", "seen"), [(12, "slice"), (8, "maximum")])
def test_a_volume_that_is_dense_is_shown_by_its_middle_slices(
    tmp_path: Path, share: int, seen: str
) -> None:
    """Of 100 planes a few are bright, and the middle one dark: black in the slice, else white."""
    own = np.zeros((100, 40, 40), "u1")
    own[:share] = 100
    place = write_base(tmp_path / "a.zarr", own[None], axes="czyx", more=omero("FF0000"))
    squares = [box for box in red_boxes(render_preview(str(place))) if box[2] == box[3]]
    assert bool(squares) is (seen == "maximum")


def test_hot_pixels_do_not_set_the_contrast(tmp_path: Path) -> None:
    """One in 7000 is full; their share grows eight times per level by mean, so it is read finely."""
    voxels = noise((48, 96, 96), "u1").astype("u2") + 300
    voxels.reshape(-1)[::7001] = 65535
    place = write_base(tmp_path / "a.zarr", voxels, chunks=(24, 24, 24))
    build(place)
    (channel,) = read_attributes(place)["ome"]["omero"]["channels"]
    assert channel["window"]["end"] < 600


def test_the_scale_bar_has_the_unit_that_a_person_would_write() -> None:
    """A number from 1 to below 1000; a unit without SI prefix, or none, stays."""
    asked = [(2000, "micrometer"), (0.5, "micrometer"), (20, "centimeter"), (1000, "nanometer"),
             (5, "angstrom"), (50, "angstrom"), (0.5, "inch"), (5000, ""),
             (2000, "meter"), (0.2, "megameter"), (5, "decimeter"), (0.02, "picometer")]  # fmt: skip
    assert [preview._length(*one) for one in asked] == [
        "2 mm", "500 nm", "200 mm", "1 um", "5 angstrom", "5 nm", "0.5 inch", "5000 (no unit)",
        "2 km", "200 km", "500 mm", "20 fm",
    ]  # fmt: skip


def test_a_plane_is_one_view_and_fills_the_width(tmp_path: Path) -> None:
    """Of 20 by 40 micrometres, at 860 pixels."""
    voxels = np.full((1, 10, 80), 100, "u1")
    place = write_base(
        tmp_path / "a.zarr", voxels, axes="cyx", scale=(1.0, 2.0, 0.5), more=omero("FF0000")
    )
    assert [box[2:] for box in red_boxes(render_preview(str(place)))] == [(860, 430)]


@pytest.mark.parametrize(
    ("columns", "width", "bar"),
    [
        (200, 900, 172),  # 100 um on 860 pixels: of 40 at most, 20 um
        (30, 900, 287),  # 15 um on 860 pixels: of 6 at most, 5 um
        (200, 600, 112),  # 100 um on 560 pixels: 20 um
        (500, 600, 112),  # 250 um: of 99.99999999999999 at most, whose logarithm is 2, 50 um
    ],
)
def test_the_scale_bar_is_as_long_as_it_says(
    tmp_path: Path, columns: int, width: int, bar: int
) -> None:
    """One, two or five times a power of ten, and at most 2/5 of the view."""
    voxels = np.zeros((10, columns), "u1")
    place = write_base(tmp_path / "a.zarr", voxels, axes="yx", scale=(0.5, 0.5))
    light = (pixels(render_preview(str(place), width=width)) == LIGHT).all(axis=-1)
    lengths = [max((b - a for a, b in runs(row)), default=0) for row in light]
    assert max(lengths) == bar
    assert lengths.count(bar) == 4


def test_channels_add_up_in_their_colours_and_contrast(tmp_path: Path) -> None:
    """Start is dark, end is bright, beyond them nothing changes, and between it is in proportion."""
    own = np.array([[-50, 20, 50, 80, 900]], "i2")
    place = write_base(
        tmp_path / "a.zarr", two_channels(own.shape, own), axes="cyx",
        more=omero("FF0000", "0080FF", start=20, end=80),
    )  # fmt: skip
    png = render_preview(str(place))
    (box,) = red_boxes(png)
    seen = [cell(png, box, (0, i), (1, 5)) for i in range(5)]
    assert seen == [RED, RED, (255, 64, 128), (255, 128, 255), (255, 128, 255)]


def test_nan_is_black_and_infinities_are_the_ends(tmp_path: Path) -> None:
    """A voxel that is no number takes no light from the other channel."""
    own = np.array([[0, np.nan, np.inf, -np.inf, np.nan, 50]], "f4")
    voxels = two_channels(own.shape, own)
    voxels[0, 0, 1] = np.nan
    place = write_base(
        tmp_path / "a.zarr", voxels, axes="cyx", more=omero("FF0000", "0000FF"), chunks=(1, 1, 6)
    )
    png = render_preview(str(place))
    boxed = red_boxes(png)
    box = (boxed[0][0], boxed[0][1], boxed[-1][0] + boxed[-1][2] - boxed[0][0], boxed[0][3])
    seen = [cell(png, box, (0, i), (1, 6)) for i in range(6)]
    assert seen == [RED, (0, 0, 0), (255, 0, 255), RED, RED, (255, 0, 128)]


def test_a_projection_passes_over_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another voxel on the way has a number, that is seen."""
    monkeypatch.setattr(views, "DENSE", 1.0)
    own = np.full((2, 1, 2), np.nan, "f8")
    own[1, 0, 0] = 100
    place = write_base(
        tmp_path / "a.zarr", two_channels(own.shape, own), axes="czyx", more=omero("FF0000", "0000FF")
    )  # fmt: skip
    png = render_preview(str(place))
    xy = red_boxes(png)[0]
    assert [cell(png, xy, (0, i), (1, 2)) for i in (0, 1)] == [(255, 0, 255), RED]


def label_cells(png: bytes, shape: tuple[int, int]) -> list[tuple[int, ...]]:
    """Return the colours of a plane of labels; its first and last column hold labels."""
    picture = pixels(png)
    height = 860 * shape[0] // shape[1]
    colored = np.ptp(picture[92 : 92 + height].astype(int), axis=-1) > 60
    box = (int(np.flatnonzero(colored.any(axis=0))[0]), 92, 860, height)
    return [cell(png, box, (0, i), shape) for i in range(shape[1])]


def test_labels_have_a_colour_each_and_the_background_is_black(tmp_path: Path) -> None:
    """The same number has the same colour; numbers that a float cannot tell apart differ too."""
    ids = np.array([[1, 0, 2, 3, 2**63 + 1, 2**63 + 2, 1, 700]], "u8")
    place = write_base(tmp_path / "a.zarr", ids, axes="yx", chunks=(1, 8), more={"image-label": {}})
    seen = label_cells(render_preview(str(place)), (1, 8))
    assert seen[1] == (0, 0, 0)
    assert seen[0] == seen[6]
    assert len(set(seen)) == 7
    assert all(max(color) > 150 for i, color in enumerate(seen) if i != 1)


def test_a_label_has_the_colour_that_the_image_says(tmp_path: Path) -> None:
    """The others keep theirs; a colour that is said wrongly is passed over."""
    ids = np.array([[3, 0, 4, 5, 3]], "u4")
    colors = [{"label-value": 3, "rgba": [10, 200, 30, 255]}, {"label-value": 4, "rgba": "red"}]
    seen = []
    for name, more in (("said", {"colors": colors}), ("unsaid", {})):
        place = write_base(tmp_path / f"{name}.zarr", ids, axes="yx", chunks=(1, 5),
                           more={"image-label": more})  # fmt: skip
        seen.append(label_cells(render_preview(str(place)), (1, 5)))
    assert seen[0] == [(10, 200, 30), *seen[1][1:4], (10, 200, 30)]


def test_labels_are_shown_as_slices_and_never_blended(tmp_path: Path) -> None:
    """A maximum of numbers says nothing: in the middle slice lies 5, above and below it 9."""
    ids = np.full((5, 200, 200), 9, "i4")
    ids[2] = 5
    ids[2, 51:149, 51:149] = 6
    place = write_base(tmp_path / "a.zarr", ids, chunks=(5, 200, 200), more={"image-label": {}})
    five, six, nine = (tuple(views._label_colors(np.array([i]))[0]) for i in (5, 6, 9))
    in_the_views = pixels(render_preview(str(place)))[95:350]
    colors = Counter(tuple(color) for color in in_the_views.reshape(-1, 3))
    assert set(colors) == {five, six, nine, PAGE}
    assert colors[nine] * 20 < colors[five]  # it is seen from the side alone


def test_what_was_made_by_mode_is_labels(tmp_path: Path) -> None:
    """Who reduces whole numbers by mode says that they are no intensities."""
    source = write_base(tmp_path / "a.zarr", noise((64, 64), "u2"), axes="yx", chunks=(32, 32))
    for method, colorful in (("mode", True), ("mean", False)):
        build(source, tmp_path / f"{method}.zarr", method=method)
        picture = pixels(render_preview(str(tmp_path / f"{method}.zarr"), width=400)).astype(int)
        assert bool((np.ptp(picture, axis=-1) > 100).sum() > 10_000) is colorful


def test_floats_are_intensities_whatever_the_image_says(tmp_path: Path) -> None:
    """The numbers of labels are whole; what is said wrongly is drawn all the same."""
    voxels = np.array([[np.nan, 1.5], [0, 2]], "f4")
    place = write_base(tmp_path / "a.zarr", voxels, axes="yx", more={"image-label": {}})
    assert pixels(render_preview(str(place))).shape[1] == 900


def test_the_first_time_point_is_shown(tmp_path: Path) -> None:
    """The second is brighter."""
    voxels = np.zeros((2, 1, 4, 4), "u1")
    voxels[0] = 100
    place = write_base(tmp_path / "a.zarr", voxels, axes="tcyx", more=omero("FF0000"))
    assert len(red_boxes(render_preview(str(place)))) == 1
    voxels[0], voxels[1] = 0, 100
    place = write_base(tmp_path / "b.zarr", voxels, axes="tcyx", more=omero("FF0000"))
    assert red_boxes(render_preview(str(place))) == []


def test_the_levels_are_drawn_to_scale(tmp_path: Path) -> None:
    """Each is half as wide as the one before it, and read from the store itself."""
    source = write_base(
        tmp_path / "a.zarr", np.full((1, 64, 64), 100, "u1"), axes="cyx", chunks=(1, 16, 16),
        more=omero("FF0000"),
    )  # fmt: skip
    build(source)
    png = render_preview(str(source))
    _, *small = red_boxes(png)
    first = small[0][2]
    assert len(small) == 3  # 64, 32 and 16 voxels
    assert [box[2] for box in small] == pytest.approx([first / 2**i for i in range(3)], abs=0.51)
    assert len({box[1] + box[3] for box in small}) == 1
    zarr.open_array(source / "2")[...] = 0
    assert len(red_boxes(render_preview(str(source)))) == 3


def spoil(array: Path) -> None:
    """Make every chunk of a level unreadable."""
    for path in chunk_files(array):
        path.write_bytes(b"no chunk")


def test_a_level_as_large_as_the_view_is_read_and_none_that_is_finer(tmp_path: Path) -> None:
    """On 400 pixels a plane of 1024 is shown by its level of 512, which is longer than 270."""
    source = write_base(tmp_path / "a.zarr", noise((1024, 1024), "u1"), axes="yx", chunks=(64, 64))
    build(source)
    before = render_preview(str(source), width=400)
    spoil(source / "0")
    assert render_preview(str(source), width=400) == before
    spoil(source / "1")
    with pytest.raises(SourceError, match=r"a\.zarr/1 cannot be read"):
        render_preview(str(source), width=400)


def count_reads(monkeypatch: pytest.MonkeyPatch, most: int) -> list[str]:
    """Return a list that gets the level of each chunk that is read; *most* bytes may be."""
    reads: list[str] = []
    get = LocalStore.get

    async def counted(self: LocalStore, key: str, *args: Any, **options: Any) -> Any:
        if "/c/" in key:
            reads.append(key.split("/")[0])
        return await get(self, key, *args, **options)

    monkeypatch.setattr(LocalStore, "get", counted)
    monkeypatch.setattr(views, "MOST_BYTES", most)
    return reads


def test_what_is_read_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 262,144, 32,768, 4,096 and 512 bytes, those from the second on fit in 40,000."""
    source = write_base(tmp_path / "a.zarr", noise((64, 64, 64), "u1"), chunks=(8, 8, 8))
    build(source)
    reads = count_reads(monkeypatch, 40_000)
    render_preview(str(source))
    assert Counter(reads) == {"1": 64, "2": 8, "3": 1}
    reads.clear()
    monkeypatch.setattr(views, "MOST_BYTES", 37_000)
    render_preview(str(source))
    assert Counter(reads) == {"2": 8, "3": 1}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_a_picture_of_a_huge_pyramid_takes_little_memory(tmp_path: Path) -> None:
    """Of 180 GB, with a level of 44 MB to be shown: under 200 MB, and what builds is not loaded."""
    levels = [(str(k), 4480 >> k) for k in range(7)]
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    for path, n in levels:
        array = group.create_array(
            path, shape=(n,) * 3, chunks=(70,) * 3, dtype="u2", dimension_names=list("zyx")
        )
        if n <= 280:
            array[...] = noise((n,) * 3, "u2")
    datasets = [
        {"path": p, "coordinateTransformations": [{"type": "scale", "scale": [4480 / n] * 3}]}
        for p, n in levels
    ]
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    said: Any = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    group.attrs["ome"] = said
    code = (
        "import pathlib, re, sys\n"
        "from pyramid_core.cli import main\n"
        f"main(['preview', {str(tmp_path / 'a.zarr')!r}, '-o', {str(tmp_path / 'a.png')!r}])\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print('numba' in sys.modules, re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, peak = done.stdout.split()[-2:]
    assert loaded == "False"
    assert 90e6 < int(peak) * 1024 < 200e6


def test_of_a_large_image_without_levels_the_middle_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole chunks, no more than may be read; what lies further out is not seen."""
    voxels = np.zeros((2, 64, 64, 64), "u1")
    voxels[:, 24:40, 24:40, 24:40] = 100
    place = write_base(
        tmp_path / "a.zarr", voxels, axes="czyx", chunks=(1, 8, 8, 8), more=omero("FF0000", "00FF00")
    )  # fmt: skip
    reads = count_reads(monkeypatch, 10_000)
    picture = pixels(render_preview(str(place)))
    assert len(reads) == 2 * 2**3  # chunks of 512 bytes
    yellow = (picture == (255, 255, 0)).all(axis=-1)
    found = [box for box in boxes(yellow) if box[2] > 100]
    assert len(found) == 3
    assert all(yellow[y : y + h, x : x + w].all() for x, y, w, h in found)


def test_a_chunk_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its size, what may be read, and what to do."""
    place = write_base(tmp_path / "a.zarr", noise((20, 50)), axes="yx", chunks=(20, 50))
    count_reads(monkeypatch, 1999)
    with pytest.raises(LocationError, match=r"20x50, 2 kB each; .* at most 2 kB; build coarser"):
        render_preview(str(place))


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u1", "<i2", ">i2", "u4", "i8", "u8", "f2", "f4", ">f8"]
)
@pytest.mark.parametrize("kind", ["constant", "noise", "extreme"])
def test_any_type_is_drawn(tmp_path: Path, dtype: str, kind: str) -> None:
    """Also what is constant, or reaches from end to end of the type."""
    own = np.dtype(dtype)
    if kind == "extreme" and own.kind != "b":
        limits = np.finfo(own) if own.kind == "f" else np.iinfo(own)
        ends = [limits.min, limits.max] + [np.nan, np.inf, -np.inf] * (own.kind == "f")
        voxels = np.resize(np.array(ends, own), (3, 4, 5))
    else:
        voxels = np.full((3, 4, 5), 1, own) if kind == "constant" else noise((3, 4, 5), dtype)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=voxels)
    assert pixels(render_preview(str(tmp_path / "a.zarr"), width=400)).shape[1] == 400


@pytest.mark.parametrize("shape", [(1, 1), (2, 900), (900, 2), (1, 30, 30), (400, 2, 3), (1,) * 5])
def test_any_shape_is_drawn(tmp_path: Path, shape: Shape) -> None:
    """However long and thin; a bare array too."""
    zarr.create_array(tmp_path / "a.zarr", data=noise(shape, "u1"))
    assert pixels(render_preview(str(tmp_path / "a.zarr"))).shape[1] == 900


@pytest.mark.parametrize(
    "name",
    "plane-0.4 stack-0.5-sharded movie-0.5 channels-0.4-inplace thin-0.5 coloured-0.5".split(),
)
def test_any_pyramid_is_drawn(pyramids: Pyramids, name: str) -> None:
    """Of 2 to 5 axes, either version, sharded or not; its labels and each of its levels as well."""
    place = pyramids.place(name)
    once = render_preview(str(place), width=400)
    assert once == render_preview(str(place), width=400)
    assert render_preview(str(place / "0"), width=400) == once  # the base stands for its image
    assert render_preview(str(place / "1"), width=400) != once
    for label in sorted((place / "labels").glob("[a-z]*[!n]")):
        assert pixels(render_preview(str(label), width=400)).shape[1] == 400


def test_the_same_image_in_a_zip_and_over_http_gives_the_same_bytes(
    pyramids: Pyramids, tmp_path: Path, served: str
) -> None:
    """Nothing of the place, the time or the machine is in the picture."""
    place = pyramids.place("movie-0.5")
    once = render_preview(str(place))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path in sorted(place.rglob("*")):
            file.write(path, path.relative_to(place))
    shutil.copytree(place, tmp_path / "b.zarr")
    assert render_preview(str(tmp_path / "a.zip")) == once
    assert render_preview(f"{served}/b.zarr") == once


@pytest.mark.s3
def test_an_image_in_a_bucket_gives_the_same_bytes(pyramids: Pyramids, bucket: str) -> None:
    """As the same image on a disk."""
    from pyramid_core.stores import open_storage

    place = pyramids.place("movie-0.5")
    storage = open_storage(f"{bucket}/a.zarr")
    for path in place.rglob("*"):
        if path.is_file():
            storage.write(str(path.relative_to(place)), path.read_bytes())
    assert render_preview(f"{bucket}/a.zarr") == render_preview(str(place))


def test_a_picture_of_noise_is_small_enough_for_a_page(tmp_path: Path) -> None:
    """The worst that there is, in three colours, at the width of the flow's artifact."""
    voxels = noise((3, 600, 600), "u1")
    place = write_base(
        tmp_path / "a.zarr", voxels, axes="cyx", chunks=(3, 600, 600),
        more=omero("FF0000", "00FF00", "0000FF", end=200),
    )  # fmt: skip
    assert 100_000 < len(render_preview(str(place), width=600)) < 260_000


@pytest.mark.parametrize("name", ["scan\nof\ttoday", "图像", "x" * 10_000, "\x07\x1b[2J", "é"])
def test_any_name_is_drawn(tmp_path: Path, name: str) -> None:
    """Shortened where it is too long, and on one line; the height of the picture stays."""
    place = write_base(tmp_path / "a.zarr", noise((8, 8)), axes="yx")
    height = pixels(render_preview(str(place))).shape[0]
    change_document(place, lambda document: document["multiscales"][0].update(name=name))
    assert pixels(render_preview(str(place))).shape[0] == height


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    """Each with what was asked or found."""
    place = write_base(tmp_path / "a.zarr", noise((8, 8)), axes="yx", chunks=(4, 4))
    with pytest.raises(RequestError, match="100 pixels wide was asked for; 400 to 4000"):
        render_preview(str(place), width=100)
    with pytest.raises(LocationError, match="nothing was found there"):
        render_preview(str(tmp_path / "none.zarr"))
    zarr.create_array(tmp_path / "line.zarr", data=np.arange(5))
    with pytest.raises(LocationError, match="2 to 5 axes"):
        render_preview(str(tmp_path / "line.zarr"))
    build(place)
    zarr.create_array(place / "1", data=np.zeros((2, 2, 2)), overwrite=True)
    with pytest.raises(LocationError, match="level 1 has 3 axes, the document names 2"):
        render_preview(str(place))


def test_a_file_that_is_no_picture_is_never_replaced(tmp_path: Path) -> None:
    """Nor is anything put into an image."""
    place = write_base(tmp_path / "a.zarr", noise((8, 8)), axes="yx")
    before = tree(place)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for path, reason in ((notes, "is no PNG"), (tmp_path / "none" / "a.png", "no folder"), (tmp_path, "is no PNG"), (place, "lies in the image"),
                         (place / "a.png", "lies in the image")):  # fmt: skip
        with pytest.raises(TargetError, match=reason):
            write_preview(str(place), path)
    assert (notes.read_text(), tree(place)) == ("mine", before)
    (tmp_path / "a.png").write_bytes(render_preview(str(place), width=400))
    assert write_preview(str(place), tmp_path / "a.png") == tmp_path / "a.png"
    assert (tmp_path / "a.png").read_bytes() == render_preview(str(place))


def test_the_command_writes_beside_the_user_and_prints_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """NAME.png in the current folder, or what is asked; the image stays as it is."""
    place = write_base(tmp_path / "data" / "scan.ome.zarr", noise((8, 8)), axes="yx")
    before = tree(place)
    monkeypatch.chdir(tmp_path)
    assert main(["preview", "data/scan.ome.zarr"]) == 0
    assert main(["preview", "data/scan.ome.zarr", "-o", "mine.png"]) == 0
    assert capsys.readouterr().out.splitlines() == ["scan.png", "mine.png"]
    assert Path("scan.png").read_bytes() == Path("mine.png").read_bytes()
    assert main(["preview", "nothing.zarr"]) == 2
    assert "nothing was found there" in capsys.readouterr().err
    assert tree(place) == before
