"""Wrong voxels are found wherever they are, and kept from readers; looking changes nothing."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pyramid_core import PyramidParams, build_pyramid, layout, verify, verify_pyramid, voxels
from pyramid_core.build import BuildResult
from pyramid_core.errors import BuildError, DefectError
from pyramid_core.model import PyramidPlan
from tests.images import STACK, blobs, change, read_attributes, write_base
from tests.stories import chunk_files, document, noise, tree

CODECS: dict[str, dict[str, Any]] = {
    "zstd": {},
    "raw": {"compression": "none"},
    "sharded": {"shards": [8, 16, 16]},
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pyramids in place with one label image, levels 0 to 3, per codec and version."""
    places = {}
    for version in ("0.4", "0.5"):
        for codec, asked in CODECS.items():
            if codec == "sharded" and version == "0.4":
                continue
            place = tmp_path_factory.mktemp("verified") / "image.zarr"
            options: dict[str, Any] = {"labels": {"cells": blobs((12, 24, 40))}}
            if codec == "raw":
                options["compressors"] = None
            write_base(place, noise((12, 24, 40)), version=version, **STACK, **options)
            build_pyramid(PyramidParams(source=str(place), edges="partial", **asked))
            places[f"{codec}-{version}"] = place
    return places


def copy(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place, tmp_path / "image.zarr"))


def flip(files: list[Path]) -> None:
    """Flip one bit in the middle of the first chunk, where its voxels are."""
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 16
    files[0].write_bytes(content)


def truncate(files: list[Path]) -> None:
    files[0].write_bytes(files[0].read_bytes()[:-3])


def swap(files: list[Path]) -> None:
    first, second = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(second)
    files[1].write_bytes(first)


def delete(files: list[Path]) -> None:
    files[0].unlink()


def empty(files: list[Path]) -> None:
    files[0].write_bytes(b"")


def zero(files: list[Path]) -> None:
    files[0].write_bytes(bytes(len(files[0].read_bytes())))


def lose(files: list[Path]) -> None:
    """Zero all chunks of a level, as a lost disk does."""
    for file in files:
        file.write_bytes(bytes(len(file.read_bytes())))


DEFECTS: list[Callable[[list[Path]], None]] = [flip, truncate, swap, delete, empty, zero, lose]
LEVELS = ["1", "2", "3", "labels/cells/1", "labels/cells/2", "labels/cells/3"]
PLACES = [
    *(("zstd-0.5", level) for level in LEVELS),
    *(("zstd-0.4", level) for level in ("1", "labels/cells/3")),
    *(("raw-0.4", level) for level in ("3", "labels/cells/1")),
    *(("raw-0.5", level) for level in ("2", "labels/cells/1")),
    *(("sharded-0.5", level) for level in ("1", "labels/cells/1")),
]


@pytest.mark.parametrize(("made", "level"), PLACES)
def test_full_finds_every_kind_of_wrong_chunk(
    built: dict[str, Path], tmp_path: Path, made: str, level: str
) -> None:
    """A chunk whose bytes are not those that were written is an error, named by its level."""
    place = copy(built[made], tmp_path)
    for defect in DEFECTS:
        files = chunk_files(place / level)
        if defect is swap and len(files) < 2:
            continue
        before = {file: file.read_bytes() for file in files}
        defect(files)
        found = verify_pyramid(str(place), mode="full")
        said = [f.where for f in found.findings if f.severity == "error"]
        assert level in said, f"{defect.__name__}: {found}"
        for file, content in before.items():
            file.write_bytes(content)
    assert verify_pyramid(str(place), mode="full").findings == ()


@pytest.mark.parametrize("made", ["zstd-0.4", "zstd-0.5", "raw-0.5", "sharded-0.5"])
def test_full_checks_every_block_of_image_and_labels(built: dict[str, Path], made: str) -> None:
    """What is right is said to be right, and every block of both images was computed again."""
    found = verify_pyramid(str(built[made]), mode="full")
    assert (found.ok, found.findings, found.blocks_checked, found.blocks) == (True, (), 6, 6)
    assert len(found.levels) == 8


def test_a_level_of_another_image_is_found(built: dict[str, Path], tmp_path: Path) -> None:
    """A level that is whole and right, but of another image of the same shape, is an error."""
    place = copy(built["zstd-0.5"], tmp_path)
    other = write_base(tmp_path / "other.zarr", noise((12, 24, 40), seed=1), **STACK)
    build_pyramid(PyramidParams(source=str(other), edges="partial"))
    shutil.rmtree(place / "2")
    shutil.copytree(other / "2", place / "2")
    found = verify_pyramid(str(place), mode="full")
    assert {f.where for f in found.findings} == {"2", "3"}


@pytest.mark.parametrize("made", ["zstd-0.4", "sharded-0.5"])
def test_a_level_0_that_changed_after_the_build_is_found(
    built: dict[str, Path], tmp_path: Path, made: str
) -> None:
    """Levels that show an earlier state of the image are wrong, though nobody touched them."""
    place = copy(built[made], tmp_path)
    zarr.open_array(place / "0", mode="r+")[3:5, 20:, 30:] = 0
    found = verify_pyramid(str(place), mode="full")
    assert {f.where for f in found.findings} == {"1"}


def test_a_level_0_that_cannot_be_read_is_a_finding(built: dict[str, Path], tmp_path: Path) -> None:
    """A broken chunk of the base is named as the reason; no traceback ends the verification."""
    place = copy(built["zstd-0.5"], tmp_path)
    truncate(chunk_files(place / "0"))
    found = verify_pyramid(str(place), mode="full")
    assert [f.where for f in found.findings] == ["1"]
    assert "because the finer level cannot be read" in found.findings[0].message


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a block be one chunk, as in an image that is much larger than a test's."""
    monkeypatch.setattr(layout, "_WORTHWHILE", 0)
    monkeypatch.setattr(voxels, "SAMPLE", 10**9)


def sparse(tmp_path: Path, version: str = "0.5") -> Path:
    """Return a pyramid of 16, 8 and 4 chunks per axis; the right half is background."""
    voxels = noise((128, 128))
    voxels[:, 64:] = 0
    place = write_base(tmp_path / "sparse.zarr", voxels, version=version, axes="yx", chunks=(8, 8))
    build_pyramid(PyramidParams(source=str(place), max_levels=3, unit="micrometer"))
    return place


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("mode", ["sample", "none"])
def test_a_missing_chunk_is_always_found(tmp_path: Path, version: str, mode: Any) -> None:
    """The listing shows what is missing, so no dice decide: neither first nor last, yet found."""
    place = sparse(tmp_path, version)
    chunk(place, 1, "2/1").unlink()
    found = verify_pyramid(str(place), mode=mode)
    # What a sample finds makes it look at everything: level 2 does not follow from what is left.
    expected = ["error: 1: voxels [16:24, 8:16] are not those that mean gives"]
    if mode != "none":
        expected += ["error: 2: voxels [8:16, 0:8] are not those that mean gives"]
    assert [str(f) for f in found.findings] == expected


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("content", ["copied", "nothing"])
@pytest.mark.parametrize("mode", ["sample", "full"])
def test_a_chunk_too_many_is_always_found(tmp_path: Path, content: str, mode: Any) -> None:
    """Where the finer level holds nothing, a chunk is an error, also one of zero bytes."""
    place = sparse(tmp_path)
    extra = chunk(place, 1, "2/6")
    extra.write_bytes(chunk(place, 1, "2/1").read_bytes() if content == "copied" else b"")
    found = verify_pyramid(str(place), mode=mode)
    said = "error: 1: voxels [16:24, 48:56] are not those that mean gives"
    assert str(found.findings[0]) == said


@pytest.mark.usefixtures("small_blocks")
def test_background_is_not_read(tmp_path: Path) -> None:
    """Of 64 + 16 blocks, the half that holds nothing is not computed again; a sample takes the first and last of the others."""
    place = str(sparse(tmp_path))
    checked = [
        verify_pyramid(place, mode=mode).blocks_checked for mode in ("full", "sample", "none")
    ]
    assert checked == [40, 4, 0]
    assert verify_pyramid(place, mode="full").blocks == 80


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("voxel", "is_found"), [((0, 7), True), ((127, 120), True), ((7, 8), False)]
)
def test_a_sample_of_shards_is_one_of_their_tiles(
    tmp_path: Path, voxel: tuple[int, int], is_found: bool
) -> None:
    """The first and the last tile of those that hold data are always drawn; all by ``full``."""
    place = write_base(
        tmp_path / "a.zarr", noise((256, 256)), version="0.5", axes="yx", chunks=(8, 8)
    )
    build_pyramid(PyramidParams(source=str(place), max_levels=2, shards=[64, 64]))
    right = verify_pyramid(str(place), mode="sample")
    assert (right.ok, right.counted) == (True, "parts of 2 of 4 blocks")
    zarr.open_array(place / "1", mode="r+")[voxel] = 1
    assert verify_pyramid(str(place), mode="sample").ok is not is_found
    full = verify_pyramid(str(place), mode="full")
    assert (full.ok, full.counted) == (False, "4 of 4 blocks")


@pytest.mark.usefixtures("small_blocks")
def test_of_many_wrong_blocks_the_first_are_named(tmp_path: Path) -> None:
    """A lost level is told in 20 lines and the number of the others."""
    place = sparse(tmp_path)
    lose(chunk_files(place / "1"))
    said = [f.message for f in verify_pyramid(str(place), mode="full").findings if f.where == "1"]
    assert len(said) == 21
    assert said[-1] == "12 more blocks are wrong"


def chunk(place: Path, level: int, key: str) -> Path:
    prefix = "" if (place / ".zgroup").exists() else "c/"
    return place / str(level) / f"{prefix}{key}"


@pytest.mark.parametrize("mode", ["full", "sample", "none"])
@pytest.mark.parametrize("defect", [None, truncate])
def test_verification_changes_nothing(
    built: dict[str, Path], tmp_path: Path, mode: Any, defect: Any
) -> None:
    """Not a byte of an image differs afterwards, be it right or wrong, nor is a file left."""
    place = copy(built["zstd-0.5"], tmp_path)
    if defect is not None:
        defect(chunk_files(place / "1"))
    before = tree(tmp_path)
    verify_pyramid(str(place), mode=mode)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_image_of_a_peer_is_verified_for_structure(tmp_path: Path, version: str) -> None:
    """An image by ome-zarr itself is right in structure; its voxels nobody can compute again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ome_zarr.format import FormatV04, FormatV05
        from ome_zarr.writer import write_image

        place = tmp_path / "peer.zarr"
        chosen = FormatV04() if version == "0.4" else FormatV05()
        group = zarr.open_group(place, mode="w", zarr_format=chosen.zarr_format)
        write_image(
            noise((8, 32, 32)), group, axes="zyx", fmt=chosen, scale={"z": 2.0, "y": 0.5, "x": 0.5},
            axes_units={"z": "micrometer", "y": "micrometer", "x": "micrometer"},
            scale_factors=[{"z": 1, "y": 2, "x": 2}, {"z": 1, "y": 4, "x": 4}],
        )  # fmt: skip
    found = verify_pyramid(str(place), mode="full")
    assert found.ok, found
    assert (found.blocks_checked, found.blocks) == (0, 0)
    assert "voxels were not computed again: the document does not say how" in str(found)
    change(place / ("s1/.zarray" if version == "0.4" else "s1/zarr.json"), shorten)
    assert not verify_pyramid(str(place), mode="full").ok


def shorten(metadata: dict[str, Any]) -> None:
    metadata["shape"][1] -= 3


def broken_gate(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[], object]
) -> pytest.MonkeyPatch:
    """Break the target between the last block and the gate, once."""

    def gate(plan: PyramidPlan, workers: Any) -> Any:
        monkeypatch.setattr("pyramid_core.build.gate", verify.gate)
        break_it()
        return verify.gate(plan, workers)

    monkeypatch.setattr("pyramid_core.build.gate", gate)
    return monkeypatch


def go(tmp_path: Path, mode: Any = "full") -> BuildResult:
    """Build 8 x 8, 4 x 4 and 2 x 2 blocks at another place."""
    source = tmp_path / "source.zarr"
    if not source.exists():
        write_base(source, noise((64, 64)), axes="yx", chunks=(8, 8))
    target = str(tmp_path / "target.zarr")
    asked = PyramidParams(source=str(source), target=target, max_levels=3, verify=mode, workers=1)
    return build_pyramid(asked)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("defect", [flip, truncate, swap, delete, empty, zero])
def test_the_gate_keeps_a_wrong_block_from_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: Callable[[list[Path]], None]
) -> None:
    """An error, nothing is published, and the next build does just that block and publishes."""
    target = tmp_path / "target.zarr"
    wrong = [chunk(target, 2, "1/0"), chunk(target, 2, "1/1")]
    broken_gate(monkeypatch, partial(defect, wrong))
    with pytest.raises(DefectError, match=r"2: voxels \[8:16, 0:8\] are not those that mean gives"):
        go(tmp_path)
    assert "multiscales" not in document(target)
    assert read_attributes(target)["zarr-pyramid-flow"]["state"] == "building"
    assert not wrong[0].exists()
    assert len(chunk_files(target / "2")) == (2 if defect is swap else 3)
    again = go(tmp_path)
    assert again.blocks_built == (2 if defect is swap else 1)
    assert len(document(target)["multiscales"][0]["datasets"]) == 3
    assert verify_pyramid(str(target), mode="full").ok


@pytest.mark.usefixtures("small_blocks")
def test_what_was_made_of_a_wrong_block_is_built_again_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coarser voxel may have been made of the wrong ones, so it goes with them, and no other."""
    target = tmp_path / "target.zarr"
    broken_gate(monkeypatch, partial(flip, [chunk(target, 1, "3/1")]))
    with pytest.raises(DefectError):
        go(tmp_path)
    gone = [chunk(target, 1, "3/1"), chunk(target, 2, "1/0")]
    assert [path.exists() for path in gone] == [False, False]
    assert [len(chunk_files(target / level)) for level in "012"] == [64, 15, 3]
    assert go(tmp_path).blocks_built == 2
    assert verify_pyramid(str(target), mode="full").ok


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("defect", [flip, truncate])
def test_the_gate_by_sample_finds_the_cause_of_what_it_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: Callable[[list[Path]], None]
) -> None:
    """A block that is not drawn, but one drawn is made of it, is found, removed and built again."""
    target = tmp_path / "target.zarr"
    cause = chunk(target, 1, "0/1")
    broken_gate(monkeypatch, partial(defect, [cause]))
    with pytest.raises(DefectError, match=r"1: voxels \[0:8, 8:16\] are not those"):
        go(tmp_path, "sample")
    assert not cause.exists()
    go(tmp_path, "sample")
    assert verify_pyramid(str(target), mode="full").ok


@pytest.mark.usefixtures("small_blocks")
def test_the_gate_refuses_a_source_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of the source replaced during the build keeps the image from being published."""
    source = tmp_path / "source.zarr"
    new = np.full((8, 8), 7, "u2")

    def replace() -> None:
        zarr.open_array(source / "0", mode="r+")[:8, :8] = new

    broken_gate(monkeypatch, replace)
    with pytest.raises(DefectError, match="the source has changed while the image was built"):
        go(tmp_path, "sample")
    assert "multiscales" not in document(tmp_path / "target.zarr")


def test_a_store_that_fails_for_a_moment_is_no_defect(
    built: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may work a moment later is an error to try again, never a reason to remove a block."""

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("the line is down")

    monkeypatch.setattr("pyramid_core.compute.reduce_block", fail)
    with pytest.raises(BuildError, match="the line is down"):
        verify_pyramid(str(built["zstd-0.5"]), mode="full")


def test_what_is_found_ahead_of_the_check_is_bounded() -> None:
    """Few blocks, and fewer where each is read from many objects."""
    job: Any = None
    none, few, many = None, np.ones(8, bool), np.ones(2**15, bool)
    for mask, count in ((none, 64), (few, 64), (many, 3)):
        blocks = iter([(job, (n,), mask) for n in range(100)])
        assert len(voxels._some(blocks)) == count
        assert next(blocks)[1] == (count,)  # nothing was lost
