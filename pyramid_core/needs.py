"""Which write units of a block have source data, and which are stored: both known from listings."""

from __future__ import annotations

import numpy as np

from pyramid_core.grid import Grid, Region, Shape, finer_region, region_shape, shift
from pyramid_core.job import LevelJob
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.presence import Mask, Presence
from pyramid_core.stores import open_storage


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


def needed_units(
    plan: PyramidPlan, job: LevelJob, source: Presence | None, index: Shape
) -> tuple[Mask, Mask | None]:
    """Return which write units of a block have source data, and what of the source is stored.

    Where a window of background does not give background, or the source cannot be listed, every
    unit is needed.
    """
    level = job.level
    region = level.blocks.region(index)
    counts = region_shape(level.units.touched(region))
    stored = Grid(job.finer_shape, job.stored)
    if source is None:
        return np.ones(counts, bool), None
    cells = finer_cells(job, index)
    # Of the source, an object of zero bytes is damage that reading it will show, not background.
    present = source.listed(cells)
    if plan.background is None or present.all():
        return np.ones(counts, bool), present
    need = np.zeros(counts, bool)
    if not present.any():
        return need, present
    origin = tuple(axis.start for axis in cells)
    for unit, part in zip(np.ndindex(*counts), level.units.within(region), strict=True):
        fine = finer_region(part, level.step, job.finer_shape)
        need[unit] = present[shift(stored.touched(fine), origin)].any()
    return need, present
