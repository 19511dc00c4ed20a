"""Build, check or read one block, and find the missing blocks of a level.

One block is one call of ``build_block`` with frozen data, in a thread here or in a process of a
Dask cluster; running it twice is harmless.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pyramid_core.compute import background, compute_block
from pyramid_core.errors import tells_of_image
from pyramid_core.flight import BlockInput, run_blocks
from pyramid_core.grid import Grid, Region, Shape, multiply, region_shape
from pyramid_core.image import same_bits
from pyramid_core.job import BlockResult, LevelJob, building_job, refuse_other_build, this_process
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.needs import source_presence, stretches, target_presence, units_of
from pyramid_core.opened import open_ahead, opened, read, read_surely
from pyramid_core.presence import Mask, Presence
from pyramid_core.remote import asked, each
from pyramid_core.stores import is_url, shown
from pyramid_core.workers import in_flight, is_cluster, return_what_is_freed, warnings_heard

Array = np.ndarray[Any, Any]


def build_block(job: LevelJob, index: Shape, present: Mask | None) -> BlockResult:
    """Read, reduce and write one block; running it twice is harmless.

    Args:
        job: The level.
        index: The block in the level's grid of blocks.
        present: Which stored objects that the block is read from are there; None if nobody knows.
    """
    start = time.perf_counter()
    worker = this_process()
    away = worker != job.driver
    heard = warnings_heard() if away else ()
    with _slot(job):
        write_block(job, index, compute_block(job, index, present))
    heard += warnings_heard() if away else ()
    seconds = time.perf_counter() - start
    return BlockResult(job.level.index, index, seconds, worker, warnings=heard)


def write_block(job: LevelJob, index: Shape, voxels: Array) -> None:
    """Write the voxels of one block, padded with fill to whole write units."""
    level = job.level
    region = level.blocks.region(index)
    whole = multiply(region_shape(units_of(level, index)), level.write_unit)
    if voxels.shape != whole:
        inside, voxels_inside = tuple(slice(0, n) for n in voxels.shape), voxels
        voxels = background(job, whole)
        voxels[inside] = voxels_inside
    padded = tuple(slice(r.start, r.start + n) for r, n in zip(region, whole, strict=True))

    refuse_other_build(job)

    def write() -> None:
        opened(job.token, *job.target, padded=True)[padded] = voxels

    asked(shown(job.target[0]), write)


def check_block(job: LevelJob, index: Shape, present: Mask | None) -> BlockResult:
    """Compute one block again and compare it with what is stored, bit for bit.

    What cannot be decoded is a finding, here or of the finer level; what tells nothing of the image
    is raised.
    """
    start = time.perf_counter()
    region = job.level.blocks.region(index)
    equal, fault = False, ""
    with _slot(job):
        try:
            expected = compute_block(job, index, present)
        except Exception as error:
            if not tells_of_image(error):
                raise
            fault = _fault(error)
        else:
            equal = _is_stored(job, region, expected)
    seconds = time.perf_counter() - start
    return BlockResult(job.level.index, index, seconds, this_process(), equal, fault)


def read_block(job: LevelJob, index: Shape, present: Mask | None) -> BlockResult:  # noqa: ARG001 - a task's form
    """Decode one block and keep nothing of it; what cannot be decoded is a finding."""
    start = time.perf_counter()
    fault = ""
    region = job.level.blocks.region(index)
    with _slot(job):
        try:
            for tile in Grid(job.level.shape, job.level.tile).within(region):
                read(job.token, job.source, tile)
        except Exception as error:
            if not tells_of_image(error):
                raise
            fault = _fault(error)
    seconds = time.perf_counter() - start
    return BlockResult(job.level.index, index, seconds, this_process(), not fault, fault)


def _fault(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _is_stored(job: LevelJob, region: Region, expected: Array) -> bool:
    reads = [read]
    if is_url(job.target[0]):
        # What differs may have been answered to be missing, so it is read again.
        reads.append(read_surely)
    for way in reads:
        try:
            stored = way(job.token, job.target, region)
        except Exception as error:
            if not tells_of_image(error):
                raise
            return False  # a chunk that cannot be decoded is a wrong chunk
        if same_bits(expected, stored):
            return True
    return False


@lru_cache(maxsize=32)
def _slots(token: str, slots: int) -> threading.BoundedSemaphore:  # noqa: ARG001 - the token keeps jobs apart
    return_what_is_freed()
    return threading.BoundedSemaphore(slots)


@contextmanager
def _slot(job: LevelJob) -> Iterator[None]:
    """Keep the blocks of one process within its memory, whatever threads a cluster gives it."""
    with _making:
        slot = _slots(job.token, job.slots)
    with slot:
        yield


_making = threading.Lock()
"""Threads that begin together share one semaphore."""


@dataclass
class LevelRun:
    """One level being built: iterate to build its missing blocks, one result each.

    ``built``, ``found`` and ``empty`` count, as the run goes on, the blocks that were built, those
    that were finished before and those that hold nothing but background.
    """

    plan: PyramidPlan
    """The plan."""
    level: Level
    """The level."""
    executor: Executor
    """Where the blocks are built."""
    in_flight: int
    """Blocks that are begun at the same time."""
    source: Presence | None = None
    """What is stored of the finer level, where that was just listed."""
    found: int = 0
    """Blocks that were there before."""
    empty: int = 0
    """Blocks whose source holds no data, so that nothing is stored of them."""
    built: int = 0
    """Blocks that were built."""

    def __iter__(self) -> Iterator[BlockResult]:
        """Build the missing blocks."""
        job = building_job(self.plan, self.level)
        if not is_cluster(self.executor):
            places = [(job.source, False), (job.target, True)]
            away = is_url(job.source[0]) or is_url(job.target[0])
            each(lambda to: open_ahead(job.token, to[0], padded=to[1]), places, away=away)
        missing = self.missing(job)
        for result in run_blocks(build_block, missing, self.executor, self.in_flight):
            self.built += 1
            yield result

    def missing(self, job: LevelJob) -> Iterator[BlockInput]:
        """Yield the blocks that have source data and lack a stored object."""
        target = target_presence(self.plan, self.level)
        for part in stretches(self.plan, job, self.source or source_presence(job)):
            needed = part.any_unit(part.need)
            lacking = part.any_unit(part.need & ~target.window(part.units))
            self.empty += int(np.count_nonzero(~needed))
            self.found += int(np.count_nonzero(needed & ~lacking))
            for index in part.chosen(lacking):
                yield job, index, part.present_of(index)


def run_level(
    plan: PyramidPlan, level: Level, executor: Executor, source: Presence | None = None
) -> LevelRun:
    """Return a run of one level; iterate over it to build the missing blocks."""
    return LevelRun(plan, level, executor, in_flight(plan, executor), source)
