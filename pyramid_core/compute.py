"""The voxels of one block: read in tiles, reduced, and put together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from pyramid_core.direct import DirectArray
from pyramid_core.errors import SourceError, StoppedError
from pyramid_core.flight import stopped
from pyramid_core.grid import Grid, Region, Shape, coarser_region, finer_region, region_shape, shift
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

Part = tuple[Region, bool]
"""A region that lies in one stored object, and whether the object was listed."""


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
        if present is None:
            listed = np.zeros(region_shape(cells), bool)
        else:
            listed = present[shift(cells, first)]
        parts = [
            (part, there)
            for part, there in zip(stored.within(fine), listed.ravel().tolist(), strict=True)
            if there or present is None or not job.skips
        ]
        if parts:
            for made, reduced in _reduced(job, tile, fine, parts):
                block[shift(made, origin)] = reduced

    tiles = Grid(level.shape, level.tile).within(region)
    if level.tile_threads == 1:
        for tile in tiles:
            reduce_tile(tile)
    else:
        with ThreadPoolExecutor(level.tile_threads) as threads:
            for _ in threads.map(reduce_tile, tiles):
                pass
    return block


def _reduced(
    job: LevelJob, tile: Region, fine: Region, parts: list[Part]
) -> Iterator[tuple[Region, Array]]:
    """Read and reduce a tile, which is made of *fine*; yield regions of the level and voxels."""
    source = opened(job.token, *job.source, padded=False)
    if isinstance(source, DirectArray) and _can_stack(job, source, fine):
        many = source.worthwhile
        for start in range(0, len(parts), many):
            yield from _reduced_stack(job, source, parts[start : start + many])
        return
    voxels = read(job.token, job.source, fine)
    origin = tuple(axis.start for axis in fine)
    views = [voxels[shift(part, origin)] for part, _ in parts]
    _make_sure(job, source, parts, views)
    yield tile, reduce_block(voxels, job.level.step, job.method)


def _reduced_stack(
    job: LevelJob, source: DirectArray, parts: list[Part]
) -> Iterator[tuple[Region, Array]]:
    """Read chunks one on top of the other and reduce them so; yield what each becomes."""
    chunks, level = [chunk for chunk, _ in parts], job.level
    voxels = asked(shown(job.source[0]), lambda: source.stacked(chunks))
    _make_sure(job, source, parts, voxels.reshape(len(chunks), *job.stored))
    reduced = reduce_block(voxels, level.step, job.method)
    made = [coarser_region(chunk, level.step, level.shape) for chunk in chunks]
    yield from zip(made, reduced.reshape(len(made), *region_shape(made[0])), strict=True)


def _can_stack(job: LevelJob, source: DirectArray, fine: Region) -> bool:
    """Return whether the chunks of a tile can be read and reduced one on top of the other.

    So no chunk is taken apart into rows to lie beside another, and those of nothing but background
    are left out. It takes whole chunks, of which no window sticks out.
    """
    return not source.shards and all(
        axis.start % n == axis.stop % n == n % s == 0
        for axis, n, s in zip(fine, job.stored, job.level.step, strict=True)
    )


def _make_sure(
    job: LevelJob,
    source: zarr.Array[Any] | DirectArray,
    parts: list[Part],
    views: Iterable[Array],
) -> None:
    """See that what a listing showed was not read as background; put right what was.

    zarr returns fill for a chunk that is not found. So where a listed object, or of an object store
    a chunk of a listed shard, reads as nothing but fill, it is asked for by name, and read again;
    the first voxel settles it for nearly all.

    Args:
        job: The level.
        source: The array that is reduced.
        parts: What was read of it.
        views: The voxels of each part.
    """
    away = is_url(job.source[0])
    fill = np.asarray(fill_scalar(job.fill, job.dtype), source.dtype)
    for (region, listed), voxels in zip(parts, views, strict=True):
        if not listed:
            continue
        start = tuple(axis.start for axis in region)
        chunks = Grid(job.finer_shape, source.chunks).within(region) if away else [region]
        if any(_is_fill(fill, voxels[shift(chunk, start)]) for chunk in chunks):
            cell = tuple(axis.start for axis in Grid(job.finer_shape, job.stored).touched(region))
            key, storage = _key(job, cell), storage_of(job.token, job.source[0])
            if not storage.exists(key):
                msg = f"{key} was listed but could not be found when it was read"
                raise SourceError(msg)
            again = read_surely(job.token, job.source, region)
            if not same_bits(again, voxels):
                log.warning("%s was listed but read as nothing at first, so it was read again", key)
                voxels[...] = again


def _is_fill(fill: Array, voxels: Array) -> bool:
    first = voxels[(slice(0, 1),) * voxels.ndim]
    return first.tobytes() == fill.tobytes() and same_bits(
        voxels, np.broadcast_to(fill, voxels.shape)
    )


def _key(job: LevelJob, cell: Shape) -> str:
    storage = storage_of(job.token, job.source[0])
    grid = Grid(job.finer_shape, job.stored)
    return Presence(storage, job.source[1], grid, job.key_prefix, job.separator).key(cell)


def background(job: LevelJob, shape: Shape) -> Array:
    """Return voxels of nothing but fill."""
    return np.full(shape, fill_scalar(job.fill, job.dtype))
