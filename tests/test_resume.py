"""The story of a build that was killed, repeated, changed or refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zarr

from pyramid_core import PyramidParams, build_pyramid, verify_pyramid
from pyramid_core.errors import TargetError
from pyramid_core.model import PyramidPlan
from tests.stories import (
    assert_pyramid,
    attributes,
    build,
    chunk_files,
    document,
    identities,
    noise,
    paths,
    steps_of,
    tree,
    write_image,
)

ROOT = Path(__file__).parent.parent

KILLED = """
import json, os, signal, sys
from pyramid_core import PyramidParams, build_pyramid

done = 0
def progress(run, block):
    global done
    done += 1
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

build_pyramid(PyramidParams(**json.loads(sys.argv[1])), progress=progress)
"""


def build_and_die(blocks: int, **asked: Any) -> None:
    """Build in a process that is killed after a number of blocks."""
    argv = [sys.executable, "-c", KILLED, json.dumps(asked), str(blocks)]
    assert subprocess.run(argv, cwd=ROOT, check=False).returncode == -9


class EndedError(Exception):
    """Stands for whatever ends a build from outside."""


def build_and_stop(**asked: Any) -> None:
    """Build in this process until the first block is done: a record and a few blocks stay."""

    def stop(*_: Any) -> None:
        raise EndedError

    with pytest.raises(EndedError):
        build_pyramid(PyramidParams(**asked), progress=stop)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An image whose levels have many blocks under a small memory limit."""
    return write_image(tmp_path / "in.zarr", noise((44, 48, 48)), (8, 8, 8))


def request(source: Path, target: Path | None, **options: Any) -> dict[str, Any]:
    """Ask for many small blocks, so that a kill leaves some of them."""
    return {
        "source": str(source),
        "target": None if target is None else str(target),
        "edges": "partial",
        "memory_limit": "100kB",
        "workers": 2,
        **options,
    }


def again(asked: dict[str, Any], **options: Any) -> Any:
    """Build what was asked in this process."""
    asked = {**asked, **options}
    source, target = Path(asked.pop("source")), asked.pop("target")
    return build(source, None if target is None else Path(target), **asked)


def block_of(key: str, plan: PyramidPlan) -> tuple[int, ...]:
    """Return level and index of the block that an object belongs to."""
    path, _, *cell = key.split("/")
    level = plan.levels[int(path)]
    numbers = zip(map(int, cell), level.write_unit, level.block, strict=True)
    return (level.index, *(index * unit // block for index, unit, block in numbers))


# --- killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_place", "shards", "share"),
    [
        (False, [], 0.1),  # in the copy
        (False, [16, 16, 16], 0.8),  # in a coarser level
        (True, [], 0.1),
        (True, [16, 16, 16], 0.6),
    ],
)
def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, source: Path, in_place: bool, shards: list[int], share: float
) -> None:
    """Only what is missing is built, nothing that was there is written again, and the tree is that of a build left alone."""
    calm = shutil.copytree(source, tmp_path / "calm" / "in.zarr")
    calm_target = None if in_place else tmp_path / "calm" / "out.zarr"
    total = again(request(calm, calm_target, shards=shards)).blocks_built
    asked = request(source, None if in_place else tmp_path / "out.zarr", shards=shards)
    blocks = max(1, int(total * share))
    build_and_die(blocks, **asked)
    built = source if in_place else tmp_path / "out.zarr"
    assert attributes(built)["zarr-pyramid-flow"]["state"] == "building"
    before = {k: v for k, v in identities(built).items() if "/c/" in k and "#" not in k}
    result = again(asked)
    assert blocks <= result.blocks_found < total
    assert result.blocks_built + result.blocks_found == total
    # The worker that was killed may have written some chunks of its block; that one is repeated.
    after = identities(built)
    again_written = {block_of(key, result.plan) for key in before if after[key] != before[key]}
    assert len(again_written) <= 2
    assert tree(built) == tree(calm_target or calm)


def test_what_was_deleted_of_a_finished_image_is_built_again(tmp_path: Path, source: Path) -> None:
    """A published image that lost chunks gets those back, and no other is written."""
    asked = request(source, tmp_path / "out.zarr", verify="sample")
    again(asked)
    whole = tree(tmp_path / "out.zarr")
    lost = (
        chunk_files(tmp_path / "out.zarr" / "1")[5:7] + chunk_files(tmp_path / "out.zarr" / "2")[:1]
    )
    for path in lost:
        path.unlink()
    before = identities(tmp_path / "out.zarr")
    result = again(asked)
    assert 1 <= result.blocks_built <= 3
    assert tree(tmp_path / "out.zarr") == whole
    after = identities(tmp_path / "out.zarr")
    kept = [key for key in before if "/c/" in key]
    # A block may hold several chunks; those beside a lost one are written again, the same bytes.
    changed = {block_of(key, result.plan) for key in kept if after[key] != before[key]}
    spoiled = {block_of(str(p.relative_to(tmp_path / "out.zarr")), result.plan) for p in lost}
    assert changed <= spoiled


@pytest.mark.parametrize("in_place", [False, True])
def test_a_level_that_lost_all_its_chunks_is_built_again(
    tmp_path: Path, source: Path, in_place: bool
) -> None:
    """What is coarser says nothing against it: that is made again of it."""
    asked = request(source, None if in_place else tmp_path / "out.zarr", verify="sample")
    again(asked)
    built = source if in_place else tmp_path / "out.zarr"
    whole = tree(built)
    for path in chunk_files(built / "1"):
        path.unlink()
    assert again(asked).blocks_built > 0
    assert tree(built) == whole


def test_an_object_of_no_bytes_is_taken_for_missing(tmp_path: Path, source: Path) -> None:
    """What a power loss leaves of a chunk is built again."""
    asked = request(source, tmp_path / "out.zarr")
    again(asked)
    whole = tree(tmp_path / "out.zarr")
    chunk_files(tmp_path / "out.zarr" / "1")[3].write_bytes(b"")
    assert again(asked).blocks_built == 1
    assert tree(tmp_path / "out.zarr") == whole


def test_temporary_files_of_a_killed_writer_are_removed(tmp_path: Path, source: Path) -> None:
    """No other object stays in the group."""
    asked = request(source, tmp_path / "out.zarr")
    build_and_stop(**asked)
    chunk = chunk_files(tmp_path / "out.zarr" / "0")[0]
    (chunk.parent / f"{chunk.name}#1").write_bytes(b"half")
    (chunk.parent / f"{chunk.name}.0123456789abcdef.partial").write_bytes(b"half")
    again(asked)
    left = [p for p in (tmp_path / "out.zarr").rglob("*") if "#" in p.name or "partial" in p.name]
    assert left == []


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("verify", ["none", "sample", "full"])
def test_a_published_image_is_left_alone(
    tmp_path: Path, source: Path, in_place: bool, verify: str
) -> None:
    """A second run builds nothing and writes nothing, not even the same bytes."""
    asked = request(source, None if in_place else tmp_path / "out.zarr", verify=verify)
    again(asked)
    before = identities(tmp_path)
    result = again(asked)
    assert (result.blocks_built, result.verification) == (0, None)
    assert identities(tmp_path) == before


# --- refused ----------------------------------------------------------------------------------


def test_a_source_that_changed_is_not_mixed_with_what_was_built(
    tmp_path: Path, source: Path
) -> None:
    """Going on with other voxels is refused, and starting over is asked for by name."""
    asked = request(source, tmp_path / "out.zarr")
    build_and_stop(**asked)
    array: Any = zarr.open_group(source)["0"]
    array[:8, :8, :8] = 0
    before = tree(tmp_path / "out.zarr")
    with pytest.raises(
        TargetError, match=r"the source, which has changed since.*--existing replace"
    ):
        again(asked)
    assert tree(tmp_path / "out.zarr") == before
    result = again(asked, existing="replace", verify="full")
    assert_pyramid(tmp_path / "out.zarr", steps_of(result), "mean")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"method": "max"}, "method ('mean', now 'max')"),
        ({"chunks": [16, 8, 8]}, "chunks ("),
        ({"compression": "lz4"}, "codec ("),
        ({"voxel_size": [1.0, 1.0, 2.0]}, "voxel_size ("),
        ({"max_levels": 2}, "steps ("),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_plan_is_refused_by_the_fields_that_differ(
    tmp_path: Path, source: Path, change: dict[str, Any], names: str, finished: bool
) -> None:
    """Neither an unfinished build nor a finished image is mixed with another request."""
    asked = request(source, tmp_path / "out.zarr", max_levels=3)
    if finished:
        again(asked)
    else:
        build_and_stop(**asked)
    before = identities(tmp_path)
    with pytest.raises(TargetError) as error:
        again(asked, **change)
    assert names in str(error.value)
    assert "existing replace" in str(error.value)
    assert identities(tmp_path) == before


@pytest.mark.parametrize(
    "change", [{"workers": 1}, {"memory_limit": "2GB"}, {"verify": "full"}, {"existing": "replace"}]
)
def test_what_leaves_the_voxels_alone_does_not_hinder_going_on(
    tmp_path: Path, source: Path, change: dict[str, Any]
) -> None:
    """Workers, memory and the gate may differ from run to run; an unfinished build of the same is no other."""
    asked = request(source, tmp_path / "out.zarr")
    build_and_stop(**asked)
    result = again(asked, **change)
    assert_pyramid(tmp_path / "out.zarr", steps_of(result), "mean")
    assert "zarr-pyramid-flow" not in attributes(tmp_path / "out.zarr")


@pytest.mark.parametrize("finished", [False, True])
def test_existing_fail_refuses_what_is_there(tmp_path: Path, source: Path, finished: bool) -> None:
    """With existing=fail nothing that is there is touched."""
    asked = request(source, tmp_path / "out.zarr", existing="fail")
    if finished:
        again(asked)
    else:
        build_and_stop(**asked)
    before = identities(tmp_path)
    with pytest.raises(TargetError, match="holds"):
        again(asked)
    assert identities(tmp_path) == before


@pytest.mark.parametrize("existing", ["resume", "replace", "fail"])
def test_an_array_that_no_document_names_is_never_deleted(
    tmp_path: Path, source: Path, existing: str
) -> None:
    """A name that something else has taken is refused, whatever is asked."""
    zarr.open_group(source).create_array("2", shape=(3,), dtype="u1")
    before = identities(tmp_path)
    with pytest.raises(TargetError, match="something at 2"):
        again(request(source, None, existing=existing))
    assert identities(tmp_path) == before


@pytest.mark.parametrize("existing", ["resume", "replace"])
def test_something_else_at_the_target_is_never_touched(
    tmp_path: Path, source: Path, existing: str
) -> None:
    """A folder of other files, and a group with other members, are refused."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    zarr.open_group(tmp_path / "group.zarr", mode="w").create_array("mine", shape=(3,), dtype="u1")
    before = identities(tmp_path)
    for name in ("notes", "group.zarr"):
        with pytest.raises(TargetError, match="holds something"):
            again(request(source, tmp_path / name, existing=existing))
    assert identities(tmp_path) == before


# --- replaced ---------------------------------------------------------------------------------


@pytest.mark.parametrize("versions", [("0.5", "0.4"), ("0.4", "0.5"), ("0.5", "0.5")])
def test_replace_leaves_only_the_new_image(
    tmp_path: Path, source: Path, versions: tuple[str, str]
) -> None:
    """What another request built elsewhere is gone, and the tree is that of a fresh build."""
    target = tmp_path / "out.zarr"
    again(request(source, target, ngff_version=versions[0], method="max"))
    asked = request(source, target, ngff_version=versions[1], max_levels=2, verify="full")
    again(asked, existing="replace")
    again({**asked, "target": str(tmp_path / "fresh.zarr")})
    assert tree(target) == tree(tmp_path / "fresh.zarr")
    assert verify_pyramid(str(target), "full").ok


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_replace_in_place_keeps_the_base(tmp_path: Path, zarr_format: int) -> None:
    """Levels are deleted and built anew beside a base of which no chunk changes."""
    source = write_image(tmp_path / "in.zarr", noise((32, 40)), (8, 8), zarr_format=zarr_format)
    base = tree(source / "0")
    again(request(source, None, method="max"))
    after_first = tree(source / "0")
    again(request(source, None, method="min", max_levels=2, existing="replace", verify="full"))
    assert paths(source) == ["0", "1"]
    assert not (source / "2").exists()
    assert tree(source / "0") == after_first
    changed = {key for key in base if base[key] != after_first[key]}
    assert changed == ({"zarr.json"} if zarr_format == 3 else set())
    assert_pyramid(source, [(2, 2)], "min")


def test_of_the_base_only_dimension_names_are_completed(tmp_path: Path) -> None:
    """NGFF 0.5 demands dimension_names; where the base has them, not a byte changes."""
    source = write_image(tmp_path / "in.zarr", noise((32, 40)), (8, 8))
    before = json.loads((source / "0" / "zarr.json").read_text())
    again(request(source, None))
    after = json.loads((source / "0" / "zarr.json").read_text())
    assert {k for k in after if after[k] != before.get(k)} == {"dimension_names"}
    assert after["dimension_names"] == ["y", "x"]
    named = write_image(tmp_path / "b.zarr", noise((32, 40)), (8, 8), dimension_names=["y", "x"])
    base = identities(named / "0")
    again(request(named, None))
    assert identities(named / "0") == base


def test_a_replace_that_was_killed_goes_on_clearing(tmp_path: Path, source: Path) -> None:
    """A run that finds the state ``clearing`` deletes what is left of the old image, and builds."""
    target = tmp_path / "out.zarr"
    again(request(source, target, chunks=[16, 16, 16]))
    asked = request(source, target, max_levels=2, existing="replace")
    old = attributes(target)
    again({**asked, "target": str(tmp_path / "fresh.zarr"), "existing": "resume"})
    build_and_stop(**{**asked, "target": str(tmp_path / "half.zarr"), "existing": "resume"})
    record = attributes(tmp_path / "half.zarr")["zarr-pyramid-flow"]
    doomed = [dataset["path"] for dataset in old["ome"]["multiscales"][0]["datasets"]]
    metadata = json.loads((target / "zarr.json").read_text())
    metadata["attributes"] = {
        "zarr-pyramid-flow": {**record, "state": "clearing", "delete": doomed}
    }
    (target / "zarr.json").write_text(json.dumps(metadata))
    again(asked, existing="resume")
    assert tree(target) == tree(tmp_path / "fresh.zarr")


def test_in_place_the_document_of_the_base_is_never_lost(source: Path) -> None:
    """While the build is unfinished, the image can be opened with its own voxel size, at level 0."""
    again(request(source, None, voxel_size=[3.0, 2.0, 2.0], unit="micrometer"))
    asked = request(source, None, method="max", existing="replace")
    build_and_stop(**asked)
    entry = document(source)["multiscales"][0]
    assert [dataset["path"] for dataset in entry["datasets"]] == ["0"]
    assert entry["datasets"][0]["coordinateTransformations"][0]["scale"] == [3.0, 2.0, 2.0]
    again({**asked, "existing": "resume"})
    scale = document(source)["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]
    assert scale["scale"] == [3.0, 2.0, 2.0]
