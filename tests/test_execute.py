"""The story of the blocks: the same bytes wherever they run, each chunk read once, a failure told."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pyramid_core import PyramidParams, execute, flight, open_image, plan_pyramid, verify_pyramid
from pyramid_core import opened as opening
from pyramid_core.build import build_level, build_pyramid
from pyramid_core.direct import DirectArray
from pyramid_core.errors import (
    BuildError,
    DefectError,
    LocationError,
    StoppedError,
    TargetError,
)
from pyramid_core.job import building_job
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.owner import Owner
from pyramid_core.writer import prepare
from tests.stories import (
    Shape,
    assert_pyramid,
    attributes,
    build,
    chunk_files,
    document,
    identities,
    noise,
    steps_of,
    tree,
    write_image,
)

# --- the same bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "shards"), [("0.4", []), ("0.5", []), ("0.5", [32, 32, 32])])
def test_the_bytes_do_not_depend_on_workers_nor_on_blocks(
    tmp_path: Path, shards: list[int], version: str
) -> None:
    """One, two and eight workers and several memory limits cut the work differently, and write one tree."""
    source = write_image(tmp_path / "in.zarr", noise((61, 70, 96)), (16, 16, 16))
    trees, cuts = [], set()
    for number, (workers, memory) in enumerate(
        [(1, "2GB"), (2, "2GB"), (8, "2GB"), (1, "1MB"), (2, "1MB"), (8, "8MB")]
    ):
        target = tmp_path / f"{number}.zarr"
        result = build(
            source,
            target,
            shards=shards,
            ngff_version=version,
            workers=workers,
            memory_limit=memory,
            verify="sample",
        )
        trees.append(tree(target))
        levels = result.plan.levels
        cuts.add(tuple((level.block, level.tile, level.tile_threads) for level in levels))
    assert len(cuts) >= 3
    assert trees[1:] == trees[:-1]


def test_any_executor_will_do(tmp_path: Path) -> None:
    """The seam is concurrent.futures.Executor: a pool of the caller's gives the same bytes, in any order."""

    class Backwards(Executor):
        """Runs what was submitted last first, when the caller waits."""

        def __init__(self) -> None:
            self._pool = ThreadPoolExecutor(1)
            self._waiting: list[tuple[Future[Any], Any]] = []

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            self._waiting.append((future, lambda: fn(*args, **kwargs)))
            self._pool.submit(self._run_last)
            return future

        def _run_last(self) -> None:
            future, call = self._waiting.pop()
            if future.set_running_or_notify_cancel():
                future.set_result(call())

    source = write_image(tmp_path / "in.zarr", noise((64, 64)), (8, 8))
    asked = {"step": [2, 2], "memory_limit": "20kB", "edges": "partial"}
    build(source, tmp_path / "a.zarr", **asked)
    params = PyramidParams(source=str(source), target=str(tmp_path / "b.zarr"), **asked)
    build_pyramid(params, executor=Backwards())
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


# --- counted operations -----------------------------------------------------------------------


class Counting(DirectArray):
    """An array that notes which of its chunks are touched by each access."""

    def __init__(self, array: Any, cell: Shape):
        super().__init__(array._array)
        self._cell = cell
        self.reads: list[Shape] = []
        self.writes: list[Shape] = []
        self.stacks = 0

    def __getitem__(self, region: tuple[slice, ...]) -> Any:
        self.reads += self._cells(region)
        return super().__getitem__(region)

    def stacked(self, cells: Sequence[Shape]) -> Any:
        self.reads += cells
        self.stacks += 1
        return super().stacked(cells)

    def __setitem__(self, region: tuple[slice, ...], voxels: Any) -> None:
        for axis, cell in zip(region, self._cell, strict=True):
            assert axis.start % cell == axis.stop % cell == 0, "a part of a write unit is written"
        self.writes += self._cells(region)
        super().__setitem__(region, voxels)

    def _cells(self, region: tuple[slice, ...]) -> list[Shape]:
        ranges = [
            range(axis.start // cell, -(-axis.stop // cell))
            for axis, cell in zip(region, self._cell, strict=True)
        ]
        return [
            tuple(r[i] for r, i in zip(ranges, index, strict=True))
            for index in np.ndindex(*map(len, ranges))
        ]


def planned(source: Path, target: Path | None, **asked: Any) -> PyramidPlan:
    """Return a plan of what was asked, prepared at its target."""
    where = None if target is None else str(target)
    params = PyramidParams(source=str(source), target=where, edges="partial", **asked)
    plan = plan_pyramid(open_image(str(source)).info, params)
    prepare(plan)
    return plan


@pytest.mark.parametrize(
    ("shape", "chunks", "asked"),
    [
        ((64, 64, 64), (16, 16, 16), {}),
        ((61, 67, 59), (16, 16, 16), {}),  # a rest along every axis
        ((61, 67, 59), (16, 16, 16), {"memory_limit": "1MB"}),  # smaller blocks
        ((61, 67, 59), (16, 16, 16), {"shards": [32, 32, 32], "memory_limit": "2MB"}),
        ((60, 60), (5, 7), {"step": [3, 2]}),  # chunks that the step does not divide
        ((40, 96), (8, 8), {"workers": 8}),  # workers share the tiles of a block
        # Blocks grow by twos to a worthwhile size, but chunks of 48 are three units of 16.
        ((192, 192, 192), (48, 48, 48), {"chunks": [16, 16, 16]}),
    ],
)
def test_each_chunk_is_read_once_and_each_unit_is_written_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: Shape,
    chunks: Shape,
    asked: dict[str, Any],
) -> None:
    """Of the level that is reduced every chunk, and of the level that is made every write unit; the target is not read."""
    source = write_image(tmp_path / "in.zarr", noise(shape), chunks)
    plan = planned(source, tmp_path / "out.zarr", workers=asked.pop("workers", 2), **asked)
    with ThreadPoolExecutor(4) as threads:
        for level in plan.levels:
            read, written = counted(monkeypatch, plan, level, threads)
            finer = plan.finer(level)
            cells = list(
                np.ndindex(*(-(-n // c) for n, c in zip(finer.shape, finer.chunks, strict=True)))
            )
            assert level.reads == 1
            assert sorted(read.reads) == cells
            assert sorted(written.writes) == list(level.units)
            assert (read.writes, written.reads) == ([], [])
            if not any(n % c for n, c in zip(finer.shape, finer.chunks, strict=True)):
                # Whole chunks are read one on top of the other, for that costs least.
                assert (read.stacks > 0) == (finer.shards is None)


@pytest.mark.parametrize("fit", [1, 3, 100])
def test_how_many_chunks_fit_in_a_cache_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: int
) -> None:
    """However few are reduced one on top of the other, the files are the same, byte for byte."""
    voxels = noise((64, 64, 64))
    voxels[:16, 16:32] = 0  # chunks that are not stored, so that stacks have gaps
    source = write_image(tmp_path / "in.zarr", voxels, (16, 16, 16), fill_value=0)
    for chunk in source.glob("0/c/0/1/*"):
        chunk.unlink()
    build(source, tmp_path / "a.zarr")
    monkeypatch.setattr("pyramid_core.direct._CACHED", fit * 16**3 * 2)
    result = build(source, tmp_path / "b.zarr")
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")
    assert_pyramid(tmp_path / "b.zarr", steps_of(result), "mean")


def counted(
    monkeypatch: pytest.MonkeyPatch, plan: PyramidPlan, level: Level, executor: Executor
) -> tuple[Counting, Counting]:
    """Build one level; return the finer and the coarser array with what was done to them."""
    opened = opening._open
    arrays: dict[bool, Counting] = {}

    def open_counted(token: str, location: str, path: str, *, padded: bool) -> Any:
        cell = level.write_unit if padded else plan.finer(level).chunks
        return arrays.setdefault(
            padded, Counting(opened(token, location, path, padded=padded), cell)
        )

    monkeypatch.setattr(opening, "_open", open_counted)
    build_level(plan, level, executor, Owner())
    monkeypatch.undo()
    return arrays[False], arrays[True]


def test_the_plan_says_how_often_a_chunk_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where blocks must split chunks, as often as the plan has said before, and not once more."""
    source = write_image(tmp_path / "in.zarr", noise((60, 60)), (20, 20))
    plan = planned(
        source, tmp_path / "out.zarr", chunks=[6, 7], step=[2, 2], memory_limit="4kB", workers=1
    )
    level = plan.levels[0]
    assert level.reads > 1
    with ThreadPoolExecutor(1) as threads:
        read, written = counted(monkeypatch, plan, level, threads)
    blocks = {cell: read.reads.count(cell) for cell in set(read.reads)}
    assert len(blocks) == 9
    assert sum(blocks.values()) / 9 == pytest.approx(level.reads)
    assert sorted(written.writes) == list(level.units)


def test_planning_reads_no_chunk_and_writes_nothing(tmp_path: Path) -> None:
    """A plan is made from metadata alone: chunks that cannot be decoded do not matter to it."""
    source = write_image(tmp_path / "in.zarr", noise((64, 64)), (8, 8))
    for chunk in chunk_files(source / "0"):
        chunk.write_bytes(b"no zstd")
    before = tree(tmp_path)
    params = PyramidParams(source=str(source), target=str(tmp_path / "out.zarr"))
    assert len(plan_pyramid(open_image(str(source)).info, params).levels) == 4
    assert tree(tmp_path) == before


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_chunk_that_cannot_be_decoded_ends_the_build(
    tmp_path: Path, zarr_format: int, in_place: bool
) -> None:
    """The error names level, region and cause; nothing is published, and the target is plainly unfinished."""
    source = write_image(
        tmp_path / "in.zarr",
        noise((32, 32)),
        (8, 8),
        zarr_format=zarr_format,
        chunk_key_encoding={"name": "default" if zarr_format == 3 else "v2", "separator": "/"},
    )
    torn = source / "0" / ("c/1/2" if zarr_format == 3 else "1/2")
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    target = None if in_place else tmp_path / "out.zarr"
    asked = {"memory_limit": "3kB", "workers": 1, "step": [2, 2]}
    with pytest.raises(BuildError) as error:
        build(source, target, **asked)
    said = re.fullmatch(
        r"level (\d), voxels \[(.*):(.*), (.*):(.*)\]: \w+Error: .+", str(error.value)
    )
    assert said is not None
    level, top, bottom, left, right = map(int, said.groups())
    assert level == (1 if in_place else 0)
    corner = (4, 8) if in_place else (8, 16)
    assert top <= corner[0] < bottom
    assert left <= corner[1] < right
    built = target or source
    assert attributes(built)["zarr-pyramid-flow"]["state"] == "building"
    assert "multiscales" not in document(built)
    assert not verify_pyramid(str(built), "none").ok
    torn.write_bytes(whole)
    os.utime(torn, ns=(1, 1))  # repaired, by a file of another time
    with pytest.raises(TargetError, match="source, which has changed"):
        build(source, target, **asked)
    result = build(source, target, existing="replace", **asked)
    assert_pyramid(built, steps_of(result), "mean")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_folder_where_a_chunk_should_be_is_refused(tmp_path: Path, zarr_format: int) -> None:
    """Among chunks that are there, one that is no file is not background, and nothing is begun."""
    source = write_image(tmp_path / "in.zarr", noise((32, 32)), (8, 8), zarr_format=zarr_format)
    spoiled = chunk_files(source / "0")[5]
    spoiled.unlink()
    spoiled.mkdir()
    with pytest.raises(LocationError, match=r"1 is a folder where chunks are stored; remove it"):
        build(source, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


class Meddling(ThreadPoolExecutor):
    """Does something to the files before the first block runs."""

    def __init__(self, meddle: Any):
        super().__init__(1)
        self._meddle = meddle

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        meddle, self._meddle = self._meddle, lambda: None
        meddle()
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize(
    ("zarr_format", "dtype", "fill"),
    [(2, "u2", 0), (3, "u2", 0), (2, ">u2", 3), (2, ">f4", np.nan), (3, "f8", np.nan)],
)
def test_a_chunk_that_was_listed_and_is_gone_is_never_background(
    tmp_path: Path, zarr_format: int, dtype: str, fill: float
) -> None:
    """Where zarr would give the fill value, we give an error that names the object."""
    voxels = noise((32, 32), dtype)
    source = write_image(
        tmp_path / "in.zarr", voxels, (8, 8), zarr_format=zarr_format, fill_value=fill
    )
    gone = chunk_files(source / "0")[5]
    params = PyramidParams(source=str(source), target=str(tmp_path / "out.zarr"))
    with Meddling(gone.unlink) as executor, pytest.raises(BuildError, match="listed but") as error:
        build_pyramid(params, executor=executor)
    assert str(gone.relative_to(source)) in str(error.value)
    assert "ome" not in attributes(tmp_path / "out.zarr")


@pytest.mark.parametrize("verify", ["sample", "full"])
def test_a_source_that_changes_during_the_build_is_not_published(
    tmp_path: Path, verify: str
) -> None:
    """The gate compares the listing of the source with that of the start."""
    source = write_image(tmp_path / "in.zarr", noise((32, 32)), (8, 8))
    array: Any = zarr.open_group(source)["0"]

    def change() -> None:
        array[:8, :8] = 77

    params = PyramidParams(source=str(source), target=str(tmp_path / "out.zarr"), verify=verify)
    with Meddling(change) as executor, pytest.raises(DefectError, match="source has changed"):
        build_pyramid(params, executor=executor)
    assert "ome" not in attributes(tmp_path / "out.zarr")


def test_a_block_that_the_gate_finds_wrong_is_built_again(tmp_path: Path) -> None:
    """Voxels that were changed behind our back are not published; the next run builds just that block."""
    source = write_image(tmp_path / "in.zarr", noise((64, 64)), (8, 8))
    asked = {
        "memory_limit": "5kB",
        "verify": "full",
        "step": [2, 2],
        "max_levels": 2,
        "edges": "partial",
    }
    params = PyramidParams(source=str(source), target=str(tmp_path / "out.zarr"), **asked)
    others = tmp_path / "others.zarr"
    build(source, others, **asked)

    def spoil(run: Any, block: Any) -> None:
        if run.level.index == 1 and block.index == (0, 0):
            shutil.copy(
                others / "1" / "c" / "1" / "1", tmp_path / "out.zarr" / "1" / "c" / "0" / "0"
            )

    with pytest.raises(DefectError, match="are not those that mean gives"):
        build_pyramid(params, progress=spoil)
    assert "ome" not in attributes(tmp_path / "out.zarr")
    result = build_pyramid(params)
    assert result.blocks_built == 1
    assert tree(tmp_path / "out.zarr") == tree(others)


@pytest.mark.parametrize("left", ["another plan", "published"])
def test_a_worker_that_outlives_its_run_writes_nothing_to_the_target_of_another(
    tmp_path: Path, left: str
) -> None:
    """A block of a run that was killed cannot come between those of the build that replaced it."""
    source = write_image(tmp_path / "in.zarr", noise((32, 32)), (8, 8))
    plan = planned(source, tmp_path / "out.zarr")
    job = dataclasses.replace(building_job(plan, plan.levels[1]), driver="a host that died:1")
    assert execute.build_block(job, (0, 0), None).index == (0, 0)
    replaced = {"method": "max", "existing": "replace"} if left == "another plan" else {}
    build(source, tmp_path / "out.zarr", **replaced)
    before = identities(tmp_path)
    with pytest.raises(StoppedError, match="no longer built by this run"):
        execute.build_block(job, (0, 0), None)
    assert identities(tmp_path) == before


class Lost(Executor):
    """What is left of a Dask cluster once touch with its scheduler is lost."""

    class _Client:
        status = "running"

        def nthreads(self) -> dict[str, int]:
            """Return one worker with two threads."""
            return {"worker": 2}

    def __init__(self, loss: str) -> None:
        self.loss = loss
        self._client = self._Client()
        self._futures: list[Future[Any]] = []

    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        """Take a block, of which nothing will be told; or refuse, as a client that is closed."""
        if self._client.status == "closed":
            raise RuntimeError("Client is closed. Can't send update-graph message.")
        if self.loss == "its result is lost":
            self._futures.append(Future())
            self._futures[-1].set_result(None)
        else:
            self._client.status = "connecting" if self.loss == "never told" else "closed"
        return Future()


@pytest.mark.parametrize("loss", ["never told", "refused", "its result is lost"])
def test_a_scheduler_that_is_lost_as_blocks_are_handed_over_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """Dask never tells of blocks that are handed over while it has no connection, nor of one whose result it lost; the build ends all the same, in words."""
    monkeypatch.setattr(flight, "_LOOK_AGAIN", 0.01)
    source = write_image(tmp_path / "in.zarr", noise((64, 64, 64)), (8, 8, 8))
    params = PyramidParams(source=str(source), target=str(tmp_path / "out.zarr"))
    with pytest.raises(BuildError, match="level 0: the Dask scheduler was lost; start one, then"):
        build_pyramid(params, executor=Lost(loss))


class Killed(ThreadPoolExecutor):
    """Stands for a cluster one of whose workers died while it wrote a chunk, and left half of it."""

    _futures: tuple[()] = ()

    def __init__(self, half: Path) -> None:
        super().__init__(2)
        self._client = Lost._Client()
        self._half = half

    def submit(self, *words: Any, **options: Any) -> Future[Any]:
        """Run a block, and leave half of another."""
        self._half.parent.mkdir(parents=True, exist_ok=True)
        self._half.write_bytes(b"half")
        return super().submit(*words, **options)


def test_what_a_killed_worker_left_half_written_is_not_published(tmp_path: Path) -> None:
    """The blocks of a worker that died run elsewhere, and its temporary files are gone before the commit."""
    source = write_image(tmp_path / "in.zarr", noise((64, 64)), (16, 16))
    build(source, tmp_path / "calm.zarr")
    half = tmp_path / "out.zarr" / "0" / "c" / "1" / "1#1"
    params = PyramidParams(source=str(source), target=str(tmp_path / "out.zarr"))
    with Killed(half) as executor:
        build_pyramid(params, executor=executor)
    assert tree(tmp_path / "out.zarr").keys() == tree(tmp_path / "calm.zarr").keys()


def test_stored_chunks_of_nothing_but_fill_are_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Many writers store background; it is looked at twice, and said of it is nothing."""
    array = zarr.create_array(
        str(tmp_path / "in.zarr"), name="0", shape=(64, 64), chunks=(16, 16), dtype="u2",
        config={"write_empty_chunks": True}, zarr_format=3,
    )  # fmt: skip
    array[...] = 0
    assert len(chunk_files(tmp_path / "in.zarr" / "0")) == 16
    build(tmp_path / "in.zarr", tmp_path / "out.zarr")
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_metadata_that_is_torn_between_levels_is_told_with_the_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays are opened ahead of the blocks; what is wrong with one is said as its block would."""
    group = zarr.open_group(tmp_path / "x.zarr", mode="w")
    group.create_array("0", data=np.zeros((64, 64), "u2") + 7, chunks=(16, 16))
    run_level = execute.run_level

    def tear(plan: PyramidPlan, level: Level, *given: Any) -> Any:
        if level.index == 2:
            (tmp_path / "x.zarr/2/zarr.json").write_text('{"zarr_format": 3,')
        return run_level(plan, level, *given)

    monkeypatch.setattr("pyramid_core.build.run_level", tear)
    with pytest.raises(BuildError, match=r"^level 2, voxels .*2/zarr.json is not JSON"):
        build_pyramid(
            PyramidParams(source=str(tmp_path / "x.zarr"), step=[2, 2], unit="micrometer")
        )
