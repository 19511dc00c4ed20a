"""Killed in the middle of a write: no torn object under a final name, and no leftover that stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pyramid_core import PyramidParams, build_pyramid
from pyramid_core.stores import open_storage
from tests.crash import ROOT, Driver, Run
from tests.images import blobs, write_base
from tests.service import until
from tests.stories import attributes, chunk_files, noise, tree, write_image

EDGE = 400
"""Voxels along each axis of one chunk of 64 MB, whose write takes long enough to be seen."""


def kill_half_way(start: Callable[[], Run], final: Path, size: int) -> int:
    """Kill a process while it writes a file; again from the start where the kill came too late.

    Returns:
        How many bytes of the file were written, under another name.
    """
    torn = final.with_name(f"{final.name}#1")
    for _ in range(30):
        run = start()
        while run.status() is None:
            if torn.exists() and torn.stat().st_size > 0:
                run.kill()
                break
        assert run.wait() in (0, -9), run.said
        if torn.exists() and 0 < torn.stat().st_size < size:
            return torn.stat().st_size
    pytest.fail(f"{final.name} was never seen half-written")


# --- torn -------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "chunk of v3": {"ngff_version": "0.5"},
    "chunk of v2": {"ngff_version": "0.4"},
    "shard": {"chunks": [EDGE // 4] * 3, "shards": [EDGE] * 3},
}


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of a single chunk, which is not compressed."""
    place = tmp_path_factory.mktemp("heavy") / "in.zarr"
    voxels = np.ones((EDGE,) * 3, "u1")
    return write_image(place, voxels, voxels.shape, compressors=None)


@pytest.mark.parametrize("way", WAYS)
def test_a_chunk_has_its_name_only_when_it_is_whole(
    way: str, driver: Driver, heavy: Path, tmp_path: Path
) -> None:
    """Killed half-way through 64 MB, a chunk or shard is not there; the next run writes it, and takes the half away."""
    asked = {"source": str(heavy), "compression": "none", "verify": "full", **WAYS[way]}
    calm, target = tmp_path / "calm" / "out.zarr", tmp_path / "out.zarr"
    driver.run(asked={**asked, "target": str(calm)})
    (chunk,) = chunk_files(calm / "0")
    final = target / chunk.relative_to(calm)

    def start() -> Run:
        shutil.rmtree(target, ignore_errors=True)
        return driver.start(asked={**asked, "target": str(target)})

    assert 0 < kill_half_way(start, final, chunk.stat().st_size) < EDGE**3
    assert not final.exists()
    assert attributes(target)["zarr-pyramid-flow"]["state"] == "building"
    driver.run(asked={**asked, "target": str(target)})
    assert tree(target) == tree(calm)


@pytest.mark.parametrize(("zarr_format", "document"), [(3, False), (2, True)])
def test_attributes_are_the_old_or_the_new(
    zarr_format: int, document: bool, driver: Driver, tmp_path: Path
) -> None:
    """Killed half-way through the record or the document, a group says what it said before; here with 30 MB of another program's words."""
    pristine = write_image(
        tmp_path / "pristine" / "in.zarr", noise((32, 32)), (8, 8), zarr_format=zarr_format
    )
    zarr.open_group(pristine).attrs["words"] = "word " * 6_000_000
    name = "zarr.json" if zarr_format == 3 else ".zattrs"
    asked = {"edges": "partial"}
    calm = shutil.copytree(pristine, tmp_path / "calm" / "in.zarr")
    driver.run(asked={**asked, "source": str(calm)})
    place = tmp_path / "place" / "in.zarr"
    before: dict[str, Any] = {}

    def start() -> Run:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(pristine, place)
        at = "document" if document else "creating"
        run = driver.start(
            asked={**asked, "source": str(place)}, hold=rf"{at} \| before \| put {name}"
        )
        until(run.is_held, "it is about to write")
        before.update(attributes(place))
        run.go()
        return run

    kill_half_way(start, place / name, (calm / name).stat().st_size)
    assert attributes(place) == before
    assert ("zarr-pyramid-flow" in before) == document
    driver.run(asked={**asked, "source": str(place)})
    assert tree(place.parent) == tree(calm.parent)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_test_image_goes_on_wherever_it_was_killed(
    version: str, driver: Driver, tmp_path: Path
) -> None:
    """After a kill at any of its steps, the same request ends with the same bytes."""
    asked = {"kind": "ramp", "shape": (20, 24), "chunks": (8, 8), "ngff_version": version}
    calm = tmp_path / "calm" / "a.zarr"
    steps = driver.run(phantom={**asked, "location": str(calm)}).steps
    assert len(steps) > 15
    for number in range(1, len(steps) + 1, 1 if version == "0.4" else 3):
        place = tmp_path / f"at {number}" / "a.zarr"
        order = {"phantom": {**asked, "location": str(place)}}
        assert driver.start(**order, die=".*", nth=number, linger=0.02).wait() == -9
        driver_run = driver.start(**order)
        if driver_run.wait() != 0:
            # Only once it is an image is the place taken.
            assert number > len(steps) - 4, f"{steps[number - 1]}: {driver_run.said}"
            assert "holds something already" in driver_run.said
            (place.parent / ".a.zarr.lock").unlink(missing_ok=True)
        assert tree(place.parent) == tree(calm.parent), steps[number - 1]


def test_a_chunk_of_a_test_image_has_its_name_only_when_it_is_whole(
    driver: Driver, tmp_path: Path
) -> None:
    """Killed half-way through 64 MB of noise, no chunk is there, and nobody takes it for an image."""
    shape = (8000, 8000)
    asked = {"kind": "random", "shape": shape, "chunks": shape, "dtype": "u1"}
    place = tmp_path / "a.zarr"
    final = place / "0" / "c" / "0" / "0"

    def start() -> Run:
        shutil.rmtree(place, ignore_errors=True)
        return driver.start(phantom={**asked, "location": str(place)})

    kill_half_way(start, final, 8000 * 8000)
    assert not final.exists()
    driver.run(phantom={**asked, "location": str(place)})
    assert final.is_file()
    assert [p for p in place.rglob("*") if "#" in p.name] == []


# --- leftovers --------------------------------------------------------------------------------

PARTIAL = f".{'0123456789abcdef' * 2}.partial"


def leave_halves(group: Path, bases: list[Path]) -> None:
    """Leave what obstore's and zarr's writers leave, beside every file that we may write."""
    for path in sorted(p for p in group.rglob("*") if p.is_file() and p.suffix != ".lock"):
        halves = [Path(f"{path}#1"), Path(f"{path}#12"), path.with_suffix(PARTIAL)]
        if any(path.is_relative_to(base) for base in bases):
            # Of a base that was given, nothing but what names its axes is ever written.
            halves = halves[:2] if path.name == "zarr.json" else []
        for half in halves:
            half.write_bytes(b"half")


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("point", ["level 2 .*", r"document \| before \| put .*"])
def test_halves_of_files_are_never_read_and_do_not_stay(
    in_place: bool, version: str, point: str, driver: Driver, tmp_path: Path
) -> None:
    """In the folders of levels, at the root, at the labels and deep among chunks they are cleaned away by the next run, also when that finds all finished."""
    voxels = noise((20, 24, 24))
    write_base(
        tmp_path / "a" / "in.zarr", voxels, version=version, labels={"cells": blobs(voxels.shape)}
    )
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    name = "in.zarr" if in_place else "out.zarr"
    calm, place = tmp_path / "a" / name, tmp_path / "b" / name

    def order(folder: str) -> dict[str, Any]:
        target = {} if in_place else {"target": str(tmp_path / folder / name)}
        source = str(tmp_path / folder / "in.zarr")
        asked = {"edges": "partial", "ngff_version": version, "chunks": [8] * 3, **target}
        return {"asked": {"source": source, **asked}}

    driver.run(**order("a"))
    assert driver.start(**order("b"), die=point).wait() == -9
    bases = [group / "0" for group in (place, place / "labels" / "cells")] if in_place else []
    given = [tree(base) for base in bases]
    leave_halves(place, bases)
    left = [p for p in place.rglob("*") if "#" in p.name or p.name.endswith("partial")]
    assert len(left) > 10
    assert driver.run(**order("b")).result["found"] > 0
    assert tree(place.parent) == tree(calm.parent)
    assert [tree(base) for base in bases] == given


def test_halves_are_not_listed_and_so_never_read(tmp_path: Path) -> None:
    """A listing shows neither; a key of a chunk is a number, and no more."""
    place = write_image(tmp_path / "in.zarr", noise((20, 24)), (8, 8))
    build_pyramid(PyramidParams(source=str(place), edges="partial"))
    before = {item.key for item in open_storage(str(place)).listing("1")}
    leave_halves(place, [place / "0"])
    after = {item.key for item in open_storage(str(place)).listing("1")}
    assert {key for key in after - before if "#" in key} == set()
    result = build_pyramid(PyramidParams(source=str(place), edges="partial"))
    assert result.blocks_built == 0
    assert result.verification is None


# --- from outside -----------------------------------------------------------------------------


@pytest.mark.flow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("front", ["pyramid build", "python flows/pyramid.py"])
def test_what_a_user_types_goes_on_after_kill_9(front: str, tmp_path: Path) -> None:
    """The command is killed while it builds; the same command again ends with the same bytes, and says how much it found."""
    source = write_image(tmp_path / "in.zarr", noise((64, 96, 96)), (8, 8, 8))
    script = ["-m", "pyramid_core.cli", "build"] if front.startswith("pyramid") else []
    script = script or [str(ROOT / "flows" / "pyramid.py")]
    target = tmp_path / "out.zarr"
    argv = [sys.executable, *script, str(source), "--edges", "partial", "--memory-limit", "60kB"]
    (tmp_path / "home").mkdir()  # Prefect's hidden server does not start without one
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
        "HOME": str(tmp_path / "home"),
        "PREFECT_HOME": str(tmp_path / "home" / ".prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "280",
        "PYTHONPATH": str(ROOT),
    }
    command = [*argv, "--target", str(target)]
    with (tmp_path / "said").open("wb") as said:
        first = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=said, stderr=said, start_new_session=True
        )
    try:
        chunks = target / "0" / "c"
        until(
            lambda: first.poll() is not None or len(list(chunks.glob("*/*/*"))) > 40, "a block", 300
        )
        assert first.poll() is None, (tmp_path / "said").read_text()
        first.kill()
        assert first.wait() == -9
    finally:
        kill_session(first.pid)  # Prefect's hidden server outlives it for a while
    assert attributes(target)["zarr-pyramid-flow"]["state"] == "building"
    finished = {p: p.stat().st_ino for p in chunks.glob("*/*/*") if "#" not in p.name}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    again = [p for p, inode in finished.items() if p.stat().st_ino != inode]
    assert len(finished) > 40
    assert len(again) < len(finished) / 2
    build_pyramid(
        PyramidParams(source=str(source), target=str(tmp_path / "calm" / "out.zarr"),
                      edges="partial", memory_limit="60kB")
    )  # fmt: skip
    assert tree(target) == tree(tmp_path / "calm" / "out.zarr")
    assert not (tmp_path / ".out.zarr.lock").exists()


def kill_session(session: int) -> None:
    """End what a process that was killed has left of its session."""

    def left() -> list[int]:
        found = []
        for place in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = place.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(place.parent.name))
        return found

    for pid in left():
        os.kill(pid, 9)
    until(lambda: not left(), "nothing of the session is left")
    time.sleep(0.1)
