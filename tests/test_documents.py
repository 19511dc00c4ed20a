"""The parts of a document: contrast that viewers can use, and input that nobody vouches for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyramid_core import PyramidParams, build_pyramid, verify_pyramid
from pyramid_core.contrast import _together, contrast_window
from pyramid_core.errors import LocationError
from pyramid_core.ngff import Multiscales, parse_multiscales
from tests.hostile import broken, changes, json_values
from tests.images import write_base
from tests.stories import Array, document, noise

Window = tuple[float, float, float, float]

WINDOWS: list[tuple[Any, str, Window]] = [
    ([0, 10, 20, 30], "u1", (0.0, 0.0, 30.0, 255.0)),
    ([-5, 5], "i2", (-32768.0, -5.0, 5.0, 32767.0)),
    ([3, 4000], "u4", (3.0, 3.0, 4000.0, 4000.0)),
    ([7] * 9, "u2", (0.0, 7.0, 8.0, 65535.0)),
    ([255] * 9, "u1", (0.0, 255.0, 256.0, 256.0)),
    ([-1.5, math.nan, math.inf, 2.5], "f4", (-1.5, -1.5, 2.5, 2.5)),
    ([math.nan, -math.inf], "f8", (0.0, 0.0, 1.0, 1.0)),
    ([True, False], "?", (0.0, 0.0, 1.0, 1.0)),
    ([], "u2", (0.0, 0.0, 1.0, 1.0)),
    ([2**64 - 1] * 2, "u8", (1.8446744073709552e19, 1.8446744073709552e19,
                             1.8446744073709556e19, 1.8446744073709556e19)),
    ([-(2**63), 2**63 - 1], "i8", (-9.223372036854775808e18, -9.223372036854775808e18,
                                   9.223372036854775808e18, 9.223372036854775808e18)),
    # One voxel in a million does not decide, but there is an end above the start.
    ([0] * 9999 + [500], "u4", (0.0, 0.0, 500.0, 500.0)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("chunks", "shards", "most"),
    [
        ((64, 64, 64), None, 32),  # half a megabyte each
        ((256, 256, 128), None, 1),  # 17 MB each, of 32
        ((128, 128, 128), None, 7),
        ((8, 8, 8), (1024, 1024, 1024), 1),  # the index of a shard has 34 MB
    ],
)
def test_chunks_that_are_looked_at_together_take_no_more_than_the_sample(
    chunks: Any, shards: Any, most: int
) -> None:
    """Of an object store many are fetched at once, and each is decoded whole."""
    array = zarr.create_array(
        zarr.storage.MemoryStore(), shape=(1024,) * 3, chunks=chunks, shards=shards, dtype="u2"
    )
    assert _together(array) == most


@pytest.mark.parametrize(("voxels", "dtype", "window"), WINDOWS)
def test_contrast_by_hand(voxels: Any, dtype: str, window: Window) -> None:
    """Min, start, end, max of small cases, as a person would choose them."""
    assert contrast_window(np.array(voxels, dtype)) == window


DTYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", ">u2", ">f4"]


@settings(max_examples=300, deadline=None)
@example(np.full(3, np.finfo("f8").max))
@example(np.full(3, np.finfo("f8").min))
@example(np.full(2, 5e-324))
@example(np.array([np.finfo("f8").min, np.finfo("f8").max]))
@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_side=0, max_dims=3, max_side=5))
    )
)
def test_a_contrast_window_is_finite_and_ascending(voxels: Array) -> None:
    """Whatever the voxels are: min <= start < end <= max, and the same again the next time."""
    low, start, end, high = window = contrast_window(voxels)
    assert all(type(v) is float and math.isfinite(v) for v in window)
    assert low <= start < end <= high
    assert contrast_window(voxels.copy()) == window
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    if finite.size and voxels.dtype.kind != "b":
        assert low <= float(finite.min())
        assert high >= float(finite.max())


def good(version: str) -> dict[str, Any]:
    """Return the attributes of a small, right image."""
    entry = {
        "name": "scan",
        "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"],
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [2.0**level, 2.0**level]},
                    {"type": "translation", "translation": [0.0, 0.5]},
                ],
            }
            for level in range(2)
        ],
        "metadata": {"method": "pyramid_core.kernels.reduce_block", "kwargs": {"method": "mean"}},
    }
    window = {"min": 0, "start": 1, "end": 2, "max": 3}
    channel = {"label": "a", "color": "00FF00", "window": window}
    document = {"multiscales": [entry], "omero": {"channels": [channel]}}
    if version == "0.4":
        entry["version"] = "0.4"
        return document
    return {"ome": {"version": "0.5", **document}}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["0.4", "0.5"]), changes)
def test_a_hostile_document_is_read_or_refused(version: str, changes: Any) -> None:
    """Whatever stands in it: a result with finite sizes, or the one error that says why."""
    read_or_refused(broken(good(version), changes))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["ome", "multiscales", "omero", "version"]), json_values))
def test_hostile_attributes_are_read_or_refused(attributes: dict[str, Any]) -> None:
    """Any JSON may stand in the attributes of a group."""
    read_or_refused(attributes)


def read_or_refused(attributes: dict[str, Any]) -> None:
    before = json.dumps(attributes)
    try:
        found = parse_multiscales(attributes)
    except LocationError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
    else:
        assert found is None or is_sound(found)
    assert json.dumps(attributes) == before


def is_sound(found: Multiscales) -> bool:
    n = len(found.axes)
    sizes = [value for d in found.datasets for value in (*d.scale, *d.translation)]
    windows = [channel.window for channel in found.channels if channel.window is not None]
    return (
        all(len(d.scale) == len(d.translation) == n for d in found.datasets)
        and all(min(d.scale) > 0 for d in found.datasets)
        and all(map(math.isfinite, [*sizes, *(v for window in windows for v in window)]))
        and not any(".." in d.path.split("/") or d.path.startswith("/") for d in found.datasets)
    )


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_right_document_is_read(version: str) -> None:
    """What the fuzzed documents start from is right, so they reach every line."""
    found = parse_multiscales(good(version))
    assert found is not None
    assert (found.version, found.name, len(found.datasets)) == (version, "scan", 2)
    assert found.datasets[1].scale == (2.0, 2.0)
    assert found.channels[0].window == (0, 1, 2, 3)
    assert found.identity == {"method": "mean"}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_transformations_of_the_whole_image_are_folded_in(version: str) -> None:
    """Scale and translation that come after those of a level: x 3, then + 1."""
    attributes = good(version)
    entry = attributes.get("ome", attributes)["multiscales"][0]
    entry["coordinateTransformations"] = [
        {"type": "scale", "scale": [3.0, 1.0]},
        {"type": "translation", "translation": [1.0, 0.0]},
    ]
    found = parse_multiscales(attributes)
    assert found is not None
    assert [d.scale for d in found.datasets] == [(3.0, 1.0), (6.0, 2.0)]
    assert [d.translation for d in found.datasets] == [(1.0, 0.5), (1.0, 0.5)]


def in_place(tmp_path: Path, version: str, more: dict[str, Any]) -> Path:
    """Build in place an image whose document holds more than ours would."""
    place = write_base(tmp_path / "x.zarr", noise((20, 20)), version=version, axes="yx", more=more)
    build_pyramid(PyramidParams(source=str(place), edges="partial"))
    return place


WINDOW = {"min": 0, "start": 1, "end": 2, "max": 3}
CHANNEL = {"label": "DAPI", "color": "0000FF", "window": WINDOW}
OMEROS: list[tuple[Any, str, str]] = [
    (None, "scan", "FFFFFF"),
    ([1], "scan", "FFFFFF"),
    ({"id": None, "channels": [CHANNEL]}, "DAPI", "0000FF"),
    ({"channels": ["red"]}, "channel 0", "00FF00"),
    ({"channels": [CHANNEL, CHANNEL]}, "scan", "FFFFFF"),
    ({"channels": [{**CHANNEL, "color": "#ff0000"}]}, "DAPI", "FF0000"),
    ({"channels": [{**CHANNEL, "window": {}}]}, "DAPI", "0000FF"),
    ({"channels": [{**CHANNEL, "window": {**WINDOW, "end": -1}}]}, "DAPI", "0000FF"),
]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(("omero", "label", "color"), OMEROS)
def test_a_broken_omero_is_mended(
    tmp_path: Path, version: str, omero: Any, label: str, color: str
) -> None:
    """What an image said wrongly of its channels does not stop a build, nor is it published."""
    place = in_place(tmp_path, version, {"omero": omero})
    channels = document(place)["omero"]["channels"]
    assert [(c["label"], c["color"]) for c in channels] == [(label, color)]
    assert verify_pyramid(str(place), mode="none").ok


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_attributes_that_are_no_json_are_refused(tmp_path: Path, version: str) -> None:
    """An image in place whose own attributes hold NaN is an error that says so; none is lost."""
    with pytest.raises(LocationError, match="are not JSON"):
        in_place(tmp_path, version, {"mine": math.nan})
    assert math.isnan(document(tmp_path / "x.zarr")["mine"])
    assert [p.name for p in (tmp_path / "x.zarr").iterdir() if p.is_dir()] == ["0"]
