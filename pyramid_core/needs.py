"""Which write units of blocks have source data, and which are stored: both known from listings.

Many blocks are looked at in one go, so that those of nothing but background cost next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyramid_core.grid import Grid, Region, Shape, finer_region, multiply, pieces, region_shape
from pyramid_core.job import LevelJob
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.presence import Mask, Presence
from pyramid_core.stores import open_storage

_AT_ONCE = 2**16
"""Stored objects of the finer level that are looked at in one go."""

Ranges = list[tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]]
"""Per axis, where each of a row of things starts, and where it stops."""


def source_presence(job: LevelJob) -> Presence | None:
    """Return what is stored of the array that is reduced; None if it cannot be listed."""
    storage = open_storage(job.source[0])
    if not storage.listable:
        return None
    grid = Grid(job.finer_shape, job.stored)
    return Presence(storage, job.source[1], grid, job.key_prefix, job.separator)


def target_presence(plan: PyramidPlan, level: Level) -> Presence:
    """Return what is stored of a level that this plan writes."""
    prefix = "c" if plan.zarr_format == 3 else ""
    return Presence(open_storage(plan.target), level.path, level.units, prefix, "/")


def units_of(level: Level, index: Shape) -> Region:
    """Return the range of write units that a block consists of."""
    return level.units.touched(level.blocks.region(index))


def finer_cells(job: LevelJob, index: Shape) -> Region:
    """Return the range of stored objects that a block is read from."""
    fine = finer_region(job.level.blocks.region(index), job.level.step, job.finer_shape)
    return Grid(job.finer_shape, job.stored).touched(fine)


def just(index: Shape) -> Region:
    """Return the range that holds one block."""
    return tuple(slice(i, i + 1) for i in index)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A range of the blocks of a level, and what a listing tells of what they are made of."""

    blocks: Region
    """The range, in the level's grid of blocks."""
    units: Region
    """The write units that the blocks consist of."""
    cells: Region
    """The stored objects of the finer level that they are read from."""
    unit_ranges: Ranges
    """Of each block, which of the write units."""
    cell_ranges: Ranges
    """Of each block, which of the stored objects."""
    need: Mask
    """Which of the write units have source data, as far as the blocks cover them."""
    present: Mask | None
    """Which of the stored objects are there; None if nobody knows."""

    def any_unit(self, units: Mask) -> Mask:
        """Return of which blocks any write unit is set."""
        return _any(units, self.unit_ranges)

    def any_cell(self, cells: Mask) -> Mask:
        """Return of which blocks any stored object that they are read from is set."""
        return _any(cells, self.cell_ranges)

    def chosen(self, blocks: Mask) -> Iterator[Shape]:
        """Yield the index of each block that is set, in C order."""
        start = [axis.start for axis in self.blocks]
        yield from map(tuple, (np.argwhere(blocks) + start).tolist())

    def present_of(self, index: Shape) -> Mask | None:
        """Return which of the stored objects are there that one block is read from."""
        if self.present is None:
            return None
        at = [i - axis.start for i, axis in zip(index, self.blocks, strict=True)]
        return self.present[
            tuple(
                slice(first[i], last[i])
                for i, (first, last) in zip(at, self.cell_ranges, strict=True)
            )
        ]


def stretches(plan: PyramidPlan, job: LevelJob, source: Presence | None) -> Iterator[Stretch]:
    """Yield the blocks of a level in C order, many at once."""
    level = job.level
    cells = multiply(level.block, level.step)
    each = max(
        math.prod(-(-n // c) for n, c in zip(cells, job.stored, strict=True)),
        math.prod(-(-n // c) for n, c in zip(level.block, level.write_unit, strict=True)),
    )
    for blocks in pieces(level.blocks.counts, _AT_ONCE // each):
        yield stretch(plan, job, source, blocks)


def stretch(plan: PyramidPlan, job: LevelJob, source: Presence | None, blocks: Region) -> Stretch:
    """Return what is known of a range of blocks, or of tiles by which a job cuts a level.

    Where a window of background does not give background, or the source cannot be listed, every
    unit is needed.
    """
    level = job.level
    of_blocks = _regions(level.blocks, blocks)
    units, unit_ranges = _touched(of_blocks, level.write_unit)
    cells, cell_ranges = _touched(_finer(of_blocks, job), job.stored)
    # Of the source, an object of zero bytes is damage that reading it will show, not background.
    present = None if source is None else source.listed(cells)
    need = np.ones(region_shape(units), bool)
    if plan.background is not None and present is not None and not present.all():
        of_units = _within(of_blocks, _regions(level.units, units))
        _, below = _touched(_finer(of_units, job), job.stored)
        need = _any(present, below)
    return Stretch(blocks, units, cells, unit_ranges, cell_ranges, need, present)


def _regions(grid: Grid, cells: Region) -> Ranges:
    """Return the voxels of each cell of a range, as ``Grid.region`` does of one."""
    starts = [
        np.arange(axis.start, axis.stop) * n for axis, n in zip(cells, grid.cell, strict=True)
    ]
    return [
        (start, np.minimum(start + cell, n))
        for start, cell, n in zip(starts, grid.cell, grid.shape, strict=True)
    ]


def _within(whole: Ranges, regions: Ranges) -> Ranges:
    """Return the parts of regions that lie in a row of others: a tile may cut a unit."""
    return [
        (np.maximum(start, first[0]), np.minimum(stop, last[-1]))
        for (first, last), (start, stop) in zip(whole, regions, strict=True)
    ]


def _finer(regions: Ranges, job: LevelJob) -> Ranges:
    """Return the voxels that each region is made of, as ``finer_region`` does of one."""
    return [
        (start * s, np.minimum(stop * s, n))
        for (start, stop), s, n in zip(regions, job.level.step, job.finer_shape, strict=True)
    ]


def _touched(regions: Ranges, cell: Shape) -> tuple[Region, Ranges]:
    """Return the range of cells that regions touch, and of each which of them."""
    ranges = [(start // c, -(-stop // c)) for (start, stop), c in zip(regions, cell, strict=True)]
    whole = tuple(slice(int(start[0]), int(stop[-1])) for start, stop in ranges)
    return whole, [
        (start - axis.start, stop - axis.start)
        for (start, stop), axis in zip(ranges, whole, strict=True)
    ]


def _any(mask: Mask, ranges: Ranges) -> Mask:
    """Return for each range whether anything in it is set."""
    for axis, (start, stop) in enumerate(ranges):
        ends = np.stack((start, stop), axis=-1).ravel()
        padded = np.concatenate((mask, mask.take([-1], axis)), axis)  # a stop has to be an index
        mask = np.logical_or.reduceat(padded, ends, axis).take(range(0, len(ends), 2), axis)
    return mask
