"""Build, check or read one block, and find the missing blocks of a level.

One block is one call of ``build_block`` with frozen data, in a thread here or in a process of a
Dask cluster; running it twice is harmless.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pyramid_core.arrays import open_array, with_padding
from pyramid_core.direct import DirectArray, direct
from pyramid_core.errors import SourceError, StoppedError, tells_of_image
from pyramid_core.flight import BlockInput, run_blocks, stopped
from pyramid_core.grid import (
    Grid,
    Region,
    Shape,
    coarser_region,
    finer_region,
    multiply,
    region_shape,
    shift,
)
from pyramid_core.image import fill_scalar, same_bits
from pyramid_core.job import (
    BlockResult,
    LevelJob,
    level_job,
    refuse_other_build,
    this_process,
)
from pyramid_core.kernels import reduce_block
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.needs import needed_units, source_presence, target_presence, units_of
from pyramid_core.presence import Mask, Presence
from pyramid_core.remote import asked
from pyramid_core.stores import Storage, is_url, open_storage, shown
from pyramid_core.swollen import refuse_swollen
from pyramid_core.workers import in_flight, return_what_is_freed, warnings_heard

if TYPE_CHECKING:
    import zarr

log = logging.getLogger(__name__)

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
        voxels = _background(job, whole)
        voxels[inside] = voxels_inside
    padded = tuple(slice(r.start, r.start + n) for r, n in zip(region, whole, strict=True))

    refuse_other_build(job)

    def write() -> None:
        _opened(job.token, *job.target, padded=True)[padded] = voxels

    asked(shown(job.target[0]), write)


def _background(job: LevelJob, shape: Shape) -> Array:
    return np.full(shape, fill_scalar(job.fill, job.dtype))


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
            array = _opened(job.token, *job.source, padded=False)
            for tile in Grid(job.level.shape, job.level.tile).within(region):
                _read(job.source[0], array, tile)
        except Exception as error:
            if not tells_of_image(error):
                raise
            fault = _fault(error)
    seconds = time.perf_counter() - start
    return BlockResult(job.level.index, index, seconds, this_process(), not fault, fault)


def _read(location: str, array: zarr.Array[Any] | DirectArray, region: Region) -> Array:
    refuse_swollen(array, region)
    return asked(shown(location), lambda: np.asarray(array[region]))


def _read_stack(location: str, array: DirectArray, chunks: list[Region]) -> Array:
    refuse_swollen(array, *chunks)
    return asked(shown(location), lambda: array.stacked(chunks))


def _fault(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _is_stored(job: LevelJob, region: Region, expected: Array) -> bool:
    arrays: list[Callable[[], zarr.Array[Any] | DirectArray]] = [
        partial(_opened, job.token, *job.target, padded=False)
    ]
    if is_url(job.target[0]):
        # What differs may have been answered to be missing, so it is read again.
        arrays.append(partial(_opened_surely, job.token, *job.target))
    for opened in arrays:
        try:
            array = opened()
            stored = _read(job.target[0], array, region)
        except Exception as error:
            if not tells_of_image(error):
                raise
            return False  # a chunk that cannot be decoded is a wrong chunk
        if same_bits(expected, stored):
            return True
    return False


def compute_block(job: LevelJob, index: Shape, present: Mask | None) -> Array:
    """Return the voxels of one block."""
    level = job.level
    region = level.blocks.region(index)
    block = _background(job, region_shape(region))
    origin = tuple(axis.start for axis in region)
    first = _stored(job).touched(finer_region(region, level.step, job.finer_shape))

    def is_listed(stored: Region) -> bool:
        """Return whether the stored object that holds a region of the finer level was listed."""
        cell = _stored(job).touched(stored)
        return present is not None and bool(
            present[tuple(axis.start - f.start for axis, f in zip(cell, first, strict=True))]
        )

    def reduce_tile(tile: Region) -> None:
        if job.token in stopped:
            raise StoppedError("stopped")
        fine = finer_region(tile, level.step, job.finer_shape)
        regions = list(_stored(job).within(fine))
        listed = [stored for stored in regions if is_listed(stored)]
        if present is not None and job.skips:
            regions = listed
        if not regions:
            return
        source = _opened(job.token, *job.source, padded=False)
        stack: list[Region] = []
        if isinstance(source, DirectArray) and _can_stack(job, source, fine):
            stack = regions
            voxels = _read_stack(job.source[0], source, stack)
        else:
            voxels = _read(job.source[0], source, fine)
        for stored in listed:
            _make_sure(job, source.chunks, voxels[_place(stored, stack, fine)], stored)
        reduced = reduce_block(voxels, level.step, job.method)
        for part in stack or [fine]:
            place = coarser_region(_place(part, stack, fine), level.step, reduced.shape)
            made = coarser_region(part, level.step, level.shape)
            block[shift(made, origin)] = reduced[place]

    tiles = Grid(level.shape, level.tile).within(region)
    if level.tile_threads == 1:
        for tile in tiles:
            reduce_tile(tile)
    else:
        with ThreadPoolExecutor(level.tile_threads) as threads:
            for _ in threads.map(reduce_tile, tiles):
                pass
    return block


def _stored(job: LevelJob) -> Grid:
    return Grid(job.finer_shape, job.stored)


def _can_stack(job: LevelJob, source: DirectArray, fine: Region) -> bool:
    """Return whether the chunks of a tile can be read and reduced one on top of the other.

    So no chunk is taken apart into rows to lie beside another, and those of nothing but background
    are left out. It takes whole chunks, of which no window sticks out.
    """
    return not source.shards and all(
        axis.start % n == axis.stop % n == n % s == 0
        for axis, n, s in zip(fine, job.stored, job.level.step, strict=True)
    )


def _place(part: Region, stack: list[Region], fine: Region) -> Region:
    """Return where a region of the finer level lies in the voxels that were read."""
    if not stack:
        return shift(part, tuple(axis.start for axis in fine))
    rows, *others = region_shape(part)
    start = stack.index(part) * rows
    return (slice(start, start + rows), *(slice(0, n) for n in others))


def _make_sure(job: LevelJob, chunk: Shape, voxels: Array, region: Region) -> None:
    """See that what the listing showed was not read as background; put right what was.

    zarr returns fill for a chunk that is not found. So where a listed object, or of an object store
    a chunk of a listed shard, reads as nothing but fill, it is asked for by name, and read again;
    the first voxel settles it for nearly all.
    """
    away = is_url(job.source[0])
    start = tuple(axis.start for axis in region)
    parts = Grid(job.finer_shape, chunk).within(region) if away else [region]
    if any(_is_fill(job, voxels[shift(part, start)]) for part in parts):
        cell = tuple(axis.start for axis in _stored(job).touched(region))
        key, storage = _key(job, cell), _storage(job.token, job.source[0])
        if not storage.exists(key):
            msg = f"{key} was listed but could not be found when it was read"
            raise SourceError(msg)
        opened = _opened_surely if away else partial(_opened, padded=False)
        again = np.asarray(opened(job.token, *job.source)[region])
        if not same_bits(again, voxels):
            log.warning("%s was listed but read as nothing at first, so it was read again", key)
        voxels[...] = again


def _is_fill(job: LevelJob, voxels: Array) -> bool:
    fill = fill_scalar(job.fill, job.dtype).astype(voxels.dtype)
    first = voxels[(0,) * voxels.ndim]
    return first.tobytes() == fill.tobytes() and same_bits(
        voxels, np.broadcast_to(fill, voxels.shape)
    )


def _key(job: LevelJob, cell: Shape) -> str:
    storage = _storage(job.token, job.source[0])
    return Presence(storage, job.source[1], _stored(job), job.key_prefix, job.separator).key(cell)


@lru_cache(maxsize=32)
def _storage(token: str, location: str) -> Storage:  # noqa: ARG001 - the token keeps jobs apart
    return open_storage(location)


def _opened(token: str, location: str, path: str, *, padded: bool) -> zarr.Array[Any] | DirectArray:
    with _opening:  # else all threads that begin together would open it
        return _open(token, location, path, padded=padded)


@lru_cache(maxsize=32)
def _open(
    token: str,  # noqa: ARG001 - keeps jobs apart
    location: str,
    path: str,
    *,
    padded: bool,
) -> zarr.Array[Any] | DirectArray:
    array = open_array(open_storage(location), path, writable=padded)
    return direct(with_padding(array) if padded else array)


def _opened_surely(token: str, location: str, path: str) -> zarr.Array[Any]:
    with _opening:
        return _open_surely(token, location, path)


@lru_cache(maxsize=32)
def _open_surely(token: str, location: str, path: str) -> zarr.Array[Any]:  # noqa: ARG001 - the token keeps jobs apart
    return open_array(open_storage(location), path, surely=True)


_opening = threading.RLock()
"""zarr's configuration belongs to the process, so arrays are opened one at a time."""


@lru_cache(maxsize=32)
def _slots(token: str, slots: int) -> threading.BoundedSemaphore:  # noqa: ARG001 - the token keeps jobs apart
    return_what_is_freed()
    return threading.BoundedSemaphore(slots)


@contextmanager
def _slot(job: LevelJob) -> Iterator[None]:
    """Keep the blocks of one process within its memory, whatever threads a cluster gives it."""
    with _opening:
        slot = _slots(job.token, job.slots)
    with slot:
        yield


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
    found: int = 0
    """Blocks that were there before."""
    empty: int = 0
    """Blocks whose source holds no data, so that nothing is stored of them."""
    built: int = 0
    """Blocks that were built."""

    def __iter__(self) -> Iterator[BlockResult]:
        """Build the missing blocks."""
        job = level_job(self.plan, self.level)
        missing = self.missing(job)
        for result in run_blocks(build_block, missing, self.executor, self.in_flight):
            self.built += 1
            yield result

    def missing(self, job: LevelJob) -> Iterator[BlockInput]:
        """Yield the blocks that have source data and lack a stored object."""
        source = source_presence(job)
        target = target_presence(self.plan, self.level)
        for index in self.level.blocks:
            need, present = needed_units(self.plan, job, source, index)
            if not need.any():
                self.empty += 1
            elif (target.window(units_of(self.level, index)) | ~need).all():
                self.found += 1
            else:
                yield job, index, present


def run_level(plan: PyramidPlan, level: Level, executor: Executor) -> LevelRun:
    """Return a run of one level; iterate over it to build the missing blocks."""
    return LevelRun(plan, level, executor, in_flight(plan, executor))
