"""``pyramid verify`` takes any image, says level by level what it found, and changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import zarr

from pyramid_core import PyramidParams, build_pyramid, verify_pyramid
from pyramid_core.cli import main
from pyramid_core.errors import LocationError
from tests.images import STACK, blobs, change_document, write_base
from tests.stories import chunk_files, noise, reduced

VOXELS = noise((16, 32, 32))


def ours(place: Path, version: str = "0.5") -> None:
    labels = {"cells": blobs(VOXELS.shape)}
    write_base(place, VOXELS, version=version, **STACK, labels=labels)
    build_pyramid(PyramidParams(source=str(place), workers=1, memory_limit="1MB"))


def ours_04(place: Path) -> None:
    ours(place, "0.4")


def ome_zarr(place: Path) -> None:
    """Let ome-zarr write it, with units."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ome_zarr.writer import write_image

        group = zarr.open_group(place, mode="w", zarr_format=3)
        write_image(
            VOXELS, group, axes="zyx", scale={"z": 2.0, "y": 0.5, "x": 0.5},
            axes_units={"z": "micrometer", "y": "micrometer", "x": "micrometer"},
            scale_factors=[{"z": 1, "y": 2, "x": 2}, {"z": 1, "y": 4, "x": 4}],
            storage_options={"chunks": (8, 16, 16)},
        )  # fmt: skip


def ngff_zarr(place: Path) -> None:
    peer = pytest.importorskip("ngff_zarr")
    units = dict.fromkeys("zyx", "micrometer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = peer.to_ngff_image(VOXELS, dims=["z", "y", "x"], axes_units=units)
        levels = peer.to_multiscales(image, scale_factors=[2], chunks=16)
        peer.to_ngff_zarr(str(place), levels, version="0.4")


def tensorstore(place: Path) -> None:
    """Arrays by TensorStore, and a document by hand."""
    ts = pytest.importorskip("tensorstore")
    write_base(place, VOXELS, **STACK)
    shutil.rmtree(place / "0")
    for path, voxels in (("0", VOXELS), ("1", reduced(VOXELS, (1, 2, 2), "mean"))):
        ts.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{place / path}/"},
                "metadata": {
                    "shape": list(voxels.shape),
                    "data_type": "uint16",
                    "dimension_names": ["z", "y", "x"],
                    "chunk_grid": {
                        "name": "regular",
                        "configuration": {"chunk_shape": [8, 16, 16]},
                    },
                },
            },
            create=True,
        ).result()[...] = voxels
    file = place / "zarr.json"
    node = json.loads(file.read_text())
    datasets = node["attributes"]["ome"]["multiscales"][0]["datasets"]
    kinds = [{"type": "scale", "scale": [2.0, 1.0, 1.0]},
             {"type": "translation", "translation": [10.0, 0.25, -3.75]}]  # fmt: skip
    datasets.append({"path": "1", "coordinateTransformations": kinds})
    file.write_text(json.dumps(node))


IMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "ours": (ours, "is right"),
    "ours of 0.4": (ours_04, "is right"),
    "ome-zarr": (ome_zarr, "can be read"),
    "ngff-zarr": (ngff_zarr, ""),
    "TensorStore": (tensorstore, "can be read"),
}
"""What makes an image, and the verdict; of some peers' documents we have something to say."""

every_image = pytest.mark.parametrize("name", IMAGES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The images, each made once; nobody may change one."""
    places: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in places:
            places[name] = tmp_path_factory.mktemp("any") / "image.zarr"
            IMAGES[name][0](places[name])
        return places[name]

    return make


def everything(place: Path) -> dict[str, tuple[int, int, int, int]]:
    """Return of every file and folder what a write, a rename or a change of rights would change."""
    return {
        str(path.relative_to(place)): (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        for path in [place, *place.rglob("*")]
        for s in [path.stat()]
    }


def arrays(place: Path) -> list[Path]:
    found = [p.parent for p in place.rglob("zarr.json") if '"array"' in p.read_text()]
    return sorted(found + [p.parent for p in place.rglob(".zarray")])


@every_image
@pytest.mark.parametrize("mode", ["none", "sample", "full"])
def test_looking_at_any_image_changes_nothing(
    made: Callable[[str], Path], name: str, mode: Any
) -> None:
    """No file or folder is written, made, renamed or touched."""
    place = made(name)
    before = everything(place.parent)
    found = verify_pyramid(str(place), mode)
    assert everything(place.parent) == before
    if mode != "none":
        assert IMAGES[name][1] in found.verdict, found


@every_image
def test_each_level_is_told_of(
    made: Callable[[str], Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line per level with shape and chunks, and the status says whether there is an error."""
    place = made(name)
    status = main(["verify", str(place), "--verify", "full"])
    said = capsys.readouterr().out
    for array in arrays(place):
        shape = "x".join(map(str, zarr.open_array(array, mode="r").shape))
        assert f"{array.name}: {shape}, chunks of " in said
    assert status == ("error: " in said)


@every_image
def test_full_decodes_every_level_of_every_image(
    made: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Of each level of each image, a chunk in the middle that is cut off is an error."""
    place = tmp_path / "image.zarr"
    shutil.copytree(made(name), place)
    before = {str(finding) for finding in verify_pyramid(str(place), "full").findings}
    for array in arrays(place):
        file = chunk_files(array)[len(chunk_files(array)) // 2]
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        after = {str(finding) for finding in verify_pyramid(str(place), "full").findings}
        assert after - before, file
        file.write_bytes(content)


def test_what_could_not_be_proven_is_said(made: Callable[[str], Path]) -> None:
    """Of a peer's image the verdict does not claim that its levels follow from level 0."""
    found = verify_pyramid(str(made("ome-zarr")), "full")
    files = sum(len(chunk_files(array)) for array in arrays(made("ome-zarr")))
    assert (found.blocks_checked, found.decoded) == (0, files)
    assert "whether levels follow from level 0 is not known" in str(found)
    assert "is right" not in found.verdict


def test_the_rest_of_level_0_that_no_level_shows_is_decoded_too(tmp_path: Path) -> None:
    """Trimmed voxels are in no level, and a lone level 0 has no other: full reads them all the same."""
    for number, (shape, levels) in enumerate([((20, 20), 2), ((16, 16), 1)]):
        place = write_base(tmp_path / f"{number}.zarr", noise(shape), axes="yx", chunks=(4, 4))
        asked: dict[str, Any] = {"step": [8, 8], "max_levels": levels, "edges": "trim"}
        build_pyramid(PyramidParams(source=str(place), **asked))
        assert verify_pyramid(str(place), "full").findings == ()
        last = chunk_files(place / "0")[-1]
        last.write_bytes(last.read_bytes()[:-1])
        found = verify_pyramid(str(place), "full")
        assert [finding.where for finding in found.findings] == ["0"]
        assert "cannot be decoded" in found.findings[0].message


def test_a_broken_document_does_not_hide_broken_chunks(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    """Where one level is missing, the chunks of the others are decoded all the same."""
    place = tmp_path / "image.zarr"
    shutil.copytree(made("ours"), place)
    shutil.rmtree(place / "1")
    chunk_files(place / "0")[3].write_bytes(b"")
    found = verify_pyramid(str(place), "full")
    assert {finding.where for finding in found.findings} >= {"1", "0"}


def test_the_image_is_named_to_whom_names_one_of_its_arrays(
    made: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """An array is no image; the one that it belongs to is."""
    place = made("ours")
    for path, image in (("0", place), ("labels/cells/1", place / "labels/cells")):
        assert main(["verify", str(place / path)]) == 2
        assert f"belongs to the image {image}, so give that" in capsys.readouterr().err


GROUPS: dict[str, tuple[dict[str, Any], str]] = {
    "plate": ({"plate": {"wells": [{"path": "B/3"}]}}, "is a plate of several images.*/B/3/0"),
    "well": ({"well": {"images": [{"path": "1"}]}}, "is a well of several images.*/1"),
    "bioformats2raw": ({"bioformats2raw.layout": 3}, "several images.*/0"),
    "broken plate": ({"plate": 7}, "is a plate.*/A/1/0"),
}


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_holds_images_is_no_image(
    tmp_path: Path, kind: str, zarr_format: Literal[2, 3]
) -> None:
    """A plate, a well and a series are named, with one of their images to give."""
    document, says = GROUPS[kind]
    attributes: Any = document if zarr_format == 2 else {"ome": {"version": "0.5", **document}}
    zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=zarr_format, attributes=attributes)
    with pytest.raises(LocationError, match=says):
        verify_pyramid(str(tmp_path / "x.zarr"))


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3"])
def test_an_older_version_is_named(
    tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image before 0.4 is an image that we cannot hold against anything: status 1, and why."""
    group = zarr.open_group(tmp_path / "x.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=noise((8, 8)))
    group.attrs["multiscales"] = [{"version": version, "datasets": [{"path": "0"}]}]
    assert main(["verify", str(tmp_path / "x.zarr")]) == 1
    assert f"says version '{version}'; 0.4 and 0.5 are understood" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["nothing", "a folder of files", "a file"])
def test_what_is_no_image_ends_with_2(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, no traceback, and nothing is made there."""
    place = tmp_path / "x.zarr"
    if what == "a folder of files":
        place.mkdir()
        (place / "notes.txt").write_text("hello")
    elif what == "a file":
        place.write_text("hello")
    before = sorted(tmp_path.rglob("*"))
    assert main(["verify", str(place)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["ours", "ome-zarr"])
def test_a_zip_and_a_server_hold_images_too(
    made: Callable[[str], Path], name: str, tmp_path: Path, served: str
) -> None:
    """The same verdict as of the folder, and the archive keeps its bytes and its time."""
    shutil.copytree(made(name), tmp_path / "image.zarr")
    with zipfile.ZipFile(tmp_path / "image.zip", "w") as file:
        for path in sorted(made(name).rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(made(name)).as_posix())
    before = everything(tmp_path)
    for place in (str(tmp_path / "image.zip"), f"{served}/image.zarr"):
        found = verify_pyramid(place, "full")
        assert found.ok, found
        assert IMAGES[name][1] in found.verdict
        # Over http nothing can be listed; in a zip, labels cannot be named as a location.
        assert len(found.levels) >= len(arrays(made(name)))
    assert everything(tmp_path) == before


@pytest.mark.s3
@pytest.mark.parametrize("name", ["ours", "ome-zarr"])
def test_an_object_store_is_not_written_to(
    made: Callable[[str], Path], name: str, bucket: str
) -> None:
    """Key, size, etag and time of every object stay, and damage is found there too."""
    import obstore

    store: Any = obstore.store.from_url(bucket, client_options={"allow_http": True})
    for path in made(name).rglob("*"):
        if path.is_file():
            obstore.put(store, f"x/{path.relative_to(made(name)).as_posix()}", path.read_bytes())

    def listed() -> list[tuple[Any, ...]]:
        metas = [meta for batch in obstore.list(store) for meta in batch]
        return sorted((m["path"], m["size"], m["e_tag"], m["last_modified"]) for m in metas)

    before = listed()
    found = verify_pyramid(f"{bucket}/x", "full")
    assert IMAGES[name][1] in found.verdict
    assert listed() == before
    key = chunk_files(arrays(made(name))[-1])[0].relative_to(made(name)).as_posix()
    content = bytes(obstore.get(store, f"x/{key}").bytes())
    obstore.put(store, f"x/{key}", content[:-1])
    assert not verify_pyramid(f"{bucket}/x", "full").ok


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Let this process be nobody for a while; to whom else rights are denied, they are already."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@every_image
def test_the_right_to_read_is_enough(made: Callable[[str], Path], name: str) -> None:
    """An image of someone else, who lets nobody write, is verified in full."""
    verify_pyramid(str(made(name)), "full")  # nobody may not be able to import what this needs
    folder = Path(tempfile.mkdtemp())
    try:
        place = Path(shutil.copytree(made(name), folder / "image.zarr"))
        for path in [folder, place, *place.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = everything(folder)
        with unprivileged():
            with pytest.raises(PermissionError):
                (place / "x").write_text("x")
            found = verify_pyramid(str(place), "full")
        assert IMAGES[name][1] in found.verdict
        assert everything(folder) == before
    finally:
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("mode", ["sample", "full"])
def test_a_scale_whose_ratio_is_no_number_is_a_finding(
    tmp_path: Path, version: str, mode: Literal["sample", "full"]
) -> None:
    """The smallest float there is, of level 0: how many times it the next one is, no float tells."""
    ours(tmp_path / "x.zarr", version)

    def shrink(document: dict[str, Any]) -> None:
        dataset = document["multiscales"][0]["datasets"][0]
        dataset["coordinateTransformations"][0]["scale"][0] = 5e-324

    change_document(tmp_path / "x.zarr", shrink)
    found = verify_pyramid(str(tmp_path / "x.zarr"), mode)
    assert not found.ok
    assert any("is inf times 5e-324" in finding.message for finding in found.findings)
