"""The voxels of one block: read in tiles, reduced, and put together."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from pyramid_core.direct import DirectArray
from pyramid_core.errors import SourceError, StoppedError
from pyramid_core.flight import stopped
from pyramid_core.grid import Grid, Region, Shape, finer_region, region_shape, shift
from pyramid_core.image import fill_scalar, same_bits
from pyramid_core.job import LevelJob
from pyramid_core.kernels import reduce_block
from pyramid_core.needs import finer_cells
from pyramid_core.opened import opened, read, read_surely, storage_of
from pyramid_core.presence import Mask, Presence
from pyramid_core.remote import asked
from pyramid_core.stores import is_url, shown

if TYPE_CHECKING:
    import zarr

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

Chunk = tuple[Shape, Region, bool]
"""A chunk by its place in the grid, the voxels of the level that it becomes, and whether it was
listed."""


def compute_block(job: LevelJob, index: Shape, present: Mask | None) -> Array:
    """Return the voxels of one block."""
    level = job.level
    region = level.blocks.region(index)
    block = background(job, region_shape(region))
    origin = tuple(axis.start for axis in region)
    stored = Grid(job.finer_shape, job.stored)
    first = tuple(axis.start for axis in finer_cells(job, index))

    def reduce_tile(tile: Region) -> None:
        if job.token in stopped:
            raise StoppedError("stopped")
        fine = finer_region(tile, level.step, job.finer_shape)
        cells = stored.touched(fine)
        skips = job.skips and present is not None
        listed = np.zeros(region_shape(cells), bool)
        if present is not None:
            listed = present[shift(cells, first)]
        if skips and not listed.any():
            return
        source = opened(job.token, *job.source, padded=False)
        if isinstance(source, DirectArray) and _can_stack(job, source, fine):
            chunks = _chunks(job, cells, listed)
            wanted = list(itertools.compress(chunks, listed.ravel()) if skips else chunks)
            for start in range(0, len(wanted), source.worthwhile):
                stack = wanted[start : start + source.worthwhile]
                for made, reduced in _reduced_stack(job, source, stack):
                    block[shift(made, origin)] = reduced
        else:
            block[shift(tile, origin)] = _reduced(job, source, fine, listed)

    tiles = Grid(level.shape, level.tile).within(region)
    if level.tile_threads == 1:
        for tile in tiles:
            reduce_tile(tile)
    else:
        with ThreadPoolExecutor(level.tile_threads) as threads:
            for _ in threads.map(reduce_tile, tiles):
                pass
    return block


def _can_stack(job: LevelJob, source: DirectArray, fine: Region) -> bool:
    """Return whether the chunks of a tile can be read and reduced one on top of the other.

    So no chunk is taken apart into rows to lie beside another, and those of nothing but background
    are left out. It takes whole chunks, of which no window sticks out.
    """
    return not source.shards and all(
        axis.start % n == axis.stop % n == n % s == 0
        for axis, n, s in zip(fine, job.stored, job.level.step, strict=True)
    )


def _chunks(job: LevelJob, cells: Region, listed: Mask) -> Iterator[Chunk]:
    """Yield the chunks of a range of the grid, of which no window sticks out."""
    ranges = [range(axis.start, axis.stop) for axis in cells]
    made = [
        [slice(i * n // s, (i + 1) * n // s) for i in axis]
        for axis, n, s in zip(ranges, job.stored, job.level.step, strict=True)
    ]
    places = itertools.product(*ranges), itertools.product(*made)
    return zip(*places, listed.ravel().tolist(), strict=True)


def _reduced_stack(
    job: LevelJob, source: DirectArray, stack: list[Chunk]
) -> Iterator[tuple[Region, Array]]:
    """Read chunks one on top of the other and reduce them so; yield what each becomes."""
    cells, made, listed = zip(*stack, strict=True)
    voxels = asked(shown(job.source[0]), lambda: source.stacked(cells))
    fill = _fill(job, voxels)
    for cell, there, chunk in zip(cells, listed, voxels, strict=True):
        if there and _is_fill(fill, chunk):
            _make_sure(job, cell, Grid(job.finer_shape, job.stored).region(cell), chunk)
    reduced = reduce_block(voxels.reshape(-1, *voxels.shape[2:]), job.level.step, job.method)
    yield from zip(made, reduced.reshape(len(made), *region_shape(made[0])), strict=True)


def _reduced(
    job: LevelJob, source: zarr.Array[Any] | DirectArray, fine: Region, listed: Mask
) -> Array:
    """Read a region of the finer level and reduce it."""
    voxels = read(job.token, job.source, fine)
    origin = tuple(axis.start for axis in fine)
    stored, chunks = Grid(job.finer_shape, job.stored), Grid(job.finer_shape, source.chunks)
    away, fill = is_url(job.source[0]), _fill(job, voxels)
    for cell, part, there in zip(
        stored.cells(fine), stored.within(fine), listed.ravel().tolist(), strict=True
    ):
        pieces = chunks.within(part) if away else [part]  # a shard is asked of in parts
        if there and any(_is_fill(fill, voxels[shift(piece, origin)]) for piece in pieces):
            _make_sure(job, cell, part, voxels[shift(part, origin)])
    return reduce_block(voxels, job.level.step, job.method)


def _make_sure(job: LevelJob, cell: Shape, region: Region, voxels: Array) -> None:
    """See that what a listing showed was not read as background; put right what was.

    zarr returns fill for a chunk that is not found. So where a listed object, or of an object store
    a chunk of a listed shard, reads as nothing but fill, it is asked for by name, and read again.

    Args:
        job: The level.
        cell: Place of the object in the grid.
        region: What was read of it.
        voxels: What that gave.
    """
    storage = storage_of(job.token, job.source[0])
    grid = Grid(job.finer_shape, job.stored)
    key = Presence(storage, job.source[1], grid, job.key_prefix, job.separator).key(cell)
    if not storage.exists(key):
        msg = f"{key} was listed but could not be found when it was read"
        raise SourceError(msg)
    again = read_surely(job.token, job.source, region)
    if not same_bits(again, voxels):
        log.warning("%s was listed but read as nothing at first, so it was read again", key)
        voxels[...] = again


def _fill(job: LevelJob, voxels: Array) -> Array:
    """Return the fill value in the very form of the voxels, be they of foreign byte order."""
    return np.asarray(fill_scalar(job.fill, job.dtype), voxels.dtype)


def _is_fill(fill: Array, voxels: Array) -> bool:
    """Return whether voxels are nothing but fill; the first settles it for nearly all."""
    first = voxels[(slice(0, 1),) * voxels.ndim]
    return first.tobytes() == fill.tobytes() and same_bits(
        voxels, np.broadcast_to(fill, voxels.shape)
    )


def background(job: LevelJob, shape: Shape) -> Array:
    """Return voxels of nothing but fill."""
    return np.full(shape, fill_scalar(job.fill, job.dtype))
