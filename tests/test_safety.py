"""What must never happen: a base that is lost, or voxels of one source taken for another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import pyramid_core.execute as execute
import pyramid_core.opened as opening
from pyramid_core import PyramidParams, build_pyramid, open_image, verify_pyramid
from pyramid_core.build import BuildResult
from pyramid_core.errors import BuildError, DefectError, LocationError, PlanError, TargetError
from tests.stories import build, chunk_files, noise, tree, write_image

STEP = {"step": [2, 2], "chunks": [8, 8], "workers": 1}


def document(place: Path, *paths: str) -> None:
    """Give a group a document that names paths, each half as fine as the one before."""
    datasets: Any = [
        {
            "path": path,
            "coordinateTransformations": [
                {"type": "scale", "scale": [2.0**k, 2.0**k]},
                {"type": "translation", "translation": [(2.0**k - 1) / 2] * 2},
            ],
        }
        for k, path in enumerate(paths)
    ]
    axes: Any = [{"name": name, "type": "space"} for name in "yx"]
    entry: Any = {"axes": axes, "datasets": datasets}
    zarr.open_group(place).attrs["ome"] = {"version": "0.5", "multiscales": [entry]}


def params(source: Path, target: Path | None = None, **asked: Any) -> PyramidParams:
    where = None if target is None else str(target)
    return PyramidParams(source=str(source), target=where, **{**STEP, "edges": "partial", **asked})


@pytest.mark.parametrize("existing", ["resume", "replace"])
@pytest.mark.parametrize("paths", [("1",), ("1", "2")])
def test_a_base_with_the_name_of_a_level_is_not_written_over(
    tmp_path: Path, existing: Any, paths: tuple[str, ...]
) -> None:
    """An image whose full resolution was dropped begins at 1, where our level 1 would go."""
    place = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8))
    (place / "0").rename(place / "1")
    if "2" in paths:
        shutil.copytree(place / "1", place / "2")
    document(place, *paths)
    before = tree(tmp_path)
    with pytest.raises(PlanError, match=r"the base is called '1'.*--target"):
        build_pyramid(params(place, existing=existing))
    assert tree(tmp_path) == before


def test_another_array_in_an_image_is_not_built_over_its_base(tmp_path: Path) -> None:
    """In place, replace deletes the levels of its own image, and never those of a neighbour."""
    place = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8))
    build_pyramid(params(place))
    zarr.open_group(place).create_array("seg", data=noise((32, 32)), chunks=(8, 8))
    before = tree(tmp_path)
    with pytest.raises(PlanError, match="--target"):
        build_pyramid(params(place / "seg", existing="replace"))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("path", [".", "./0", "0/", "0//", "a/../0"])
def test_a_path_has_one_spelling(tmp_path: Path, path: str) -> None:
    """A document that names the base in two ways cannot have it deleted under the other."""
    place = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8))
    document(place, "0", path)
    before = tree(tmp_path)
    with pytest.raises(LocationError, match="leads out of the image"):
        build_pyramid(params(place, existing="replace"))
    assert tree(tmp_path) == before


def test_running_again_does_not_wear_the_gate_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a sample finds one wrong block, all that are wrong are found and removed."""
    monkeypatch.setattr("pyramid_core.layout._WORTHWHILE", 1)
    source = write_image(tmp_path / "a.zarr", noise((128, 128)), (8, 8))
    target = tmp_path / "b.zarr"
    real = execute.write_block

    def spoil(job: Any, index: Any, voxels: Any) -> None:
        wrong = job.level.index == 1 and sum(index) % 3 == 0
        real(job, index, voxels + 1 if wrong else voxels)

    monkeypatch.setattr(execute, "write_block", spoil)
    with pytest.raises(DefectError):
        build_pyramid(params(source, target))
    monkeypatch.setattr(execute, "write_block", real)
    build_pyramid(params(source, target))
    assert verify_pyramid(str(target), "full").ok


@pytest.mark.parametrize("in_place", [True, False])
def test_a_finished_image_of_another_source_is_not_taken_for_the_answer(
    tmp_path: Path, in_place: bool
) -> None:
    """Same shape, same request, other voxels: refused, with the remedy; replace then is right."""
    source = write_image(tmp_path / "a.zarr", noise((32, 32), seed=1), (8, 8))
    target = None if in_place else tmp_path / "b.zarr"
    build_pyramid(params(source, target))
    zarr.open_array(source / "0")[...] = noise((32, 32), seed=2)
    with pytest.raises(TargetError, match=r"does not follow from this source.*--existing replace"):
        build_pyramid(params(source, target))
    build_pyramid(params(source, target, existing="replace", verify="full"))
    assert verify_pyramid(str(target or source), "full").ok


def test_a_chunk_of_the_source_of_no_bytes_is_damage(tmp_path: Path) -> None:
    """It was listed, so it is read, and that fails: it is no background."""
    source = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8))
    for chunk in chunk_files(source / "0"):
        chunk.write_bytes(b"")
    with pytest.raises(BuildError, match="level 1"):
        build_pyramid(params(source))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_level_of_an_unfinished_build_is_no_source(tmp_path: Path, in_place: bool) -> None:
    """What a killed build has written so far cannot be opened as an image; its base can."""
    source = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8))
    built = source if in_place else tmp_path / "b.zarr"
    build(source, None if in_place else built, step=[2, 2])
    file = built / "zarr.json"
    group = json.loads(file.read_text())
    paths = [d["path"] for d in group["attributes"].pop("ome")["multiscales"][0]["datasets"]]
    record = {"state": "building", "in_place": in_place, "plan": {"paths": paths}, "source": ""}
    group["attributes"]["zarr-pyramid-flow"] = record
    file.write_text(json.dumps(group))
    with pytest.raises(LocationError, match="not finished"):
        open_image(str(built / "1"))
    if in_place:
        assert open_image(str(built / "0")).info.shape == (32, 32)
    else:
        with pytest.raises(LocationError, match="not finished"):
            open_image(str(built / "0"))


def test_a_chunk_that_is_missed_once_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store says not found, then finds it: what was read meanwhile is not taken for fill."""
    source = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8))
    real = opening._open
    missed: list[Any] = []

    class Forgetful:
        """An array that reads as fill, once."""

        def __init__(self, array: Any):
            self._array = array

        def __getattr__(self, name: str) -> Any:
            return getattr(self._array, name)

        def __getitem__(self, region: Any) -> Any:
            voxels = self._array[region]
            if missed:
                return voxels
            missed.append(region)
            return np.zeros_like(voxels)

    def opened(token: str, location: str, path: str, *, padded: bool) -> Any:
        array = real(token, location, path, padded=padded)
        return Forgetful(array) if path == "0" else array

    monkeypatch.setattr(opening, "_open", opened)
    result: BuildResult = build_pyramid(params(source))
    assert missed
    assert result.blocks_built > 0
    monkeypatch.undo()
    assert verify_pyramid(str(source), "full").ok


def test_a_crash_between_the_document_and_its_copy_is_mended(tmp_path: Path) -> None:
    """Zarr v2 keeps the copy in an object of its own; the next run brings it up to date."""
    source = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8), zarr_format=2)
    zarr.consolidate_metadata(source)
    stale = (source / ".zmetadata").read_bytes()
    build_pyramid(params(source))
    fresh = (source / ".zmetadata").read_bytes()
    assert fresh != stale
    (source / ".zmetadata").write_bytes(stale)
    assert build_pyramid(params(source)).blocks_built == 0
    assert json.loads((source / ".zmetadata").read_bytes()) == json.loads(fresh)


def test_what_else_a_document_says_stays(tmp_path: Path) -> None:
    """A second multiscales entry of the base's document outlives a build in place."""
    place = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8))
    document(place, "0")
    group = zarr.open_group(place)
    ome: Any = group.attrs["ome"]
    other = {**ome["multiscales"][0], "name": "other"}
    group.attrs["ome"] = {**ome, "multiscales": [*ome["multiscales"], other]}
    build_pyramid(params(place))
    after: Any = zarr.open_group(place).attrs["ome"]
    assert [e.get("name") for e in after["multiscales"]] == ["a", "other"]


def test_two_sources_that_cannot_be_listed_do_not_mix(tmp_path: Path, served: str) -> None:
    """Over plain http the location stands for the source: going on from another is refused."""
    for name, seed in (("a.zarr", 1), ("b.zarr", 2)):
        write_image(tmp_path / name, noise((32, 32), seed=seed), (8, 8))
    target = tmp_path / "t.zarr"
    first = PyramidParams(source=f"{served}/a.zarr", target=str(target), **STEP)
    calls: list[Any] = []

    def stop(run: Any, result: Any) -> None:
        calls.append((run, result))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_pyramid(first, progress=stop)
    assert calls
    second = PyramidParams(source=f"{served}/b.zarr", target=str(target), **STEP)
    with pytest.raises(TargetError, match="the source, which has changed"):
        build_pyramid(second)


def test_a_base_that_was_given_is_not_deleted_by_a_build_from_elsewhere(tmp_path: Path) -> None:
    """An image that was built in place holds raw data: replace from another source is refused."""
    place = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8))
    build_pyramid(params(place))
    other = write_image(tmp_path / "b.zarr", noise((32, 32), seed=2), (8, 8))
    before = tree(tmp_path)
    with pytest.raises(TargetError, match="was given, not made by us"):
        build_pyramid(params(other, place, existing="replace"))
    assert tree(tmp_path) == before


def test_labels_that_are_not_listed_are_no_surprise_at_the_end(tmp_path: Path) -> None:
    """In place, an image that no validator would take is refused before anything is written."""
    place = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8))
    write_image(place / "labels", noise((32, 32)), (8, 8))
    before = tree(tmp_path)
    with pytest.raises(PlanError, match="labels/ holds 0 but has no list"):
        build_pyramid(params(place))
    assert tree(tmp_path) == before
    build_pyramid(params(place, tmp_path / "b.zarr"))
    assert verify_pyramid(str(tmp_path / "b.zarr"), "full").ok
