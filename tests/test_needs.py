"""Which blocks have source data: many are looked at in one go, and each as if it were alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_core import needs
from pyramid_core.grid import Grid, Region, Shape, ceil_div, multiply
from pyramid_core.image import Codec, ImageInfo
from pyramid_core.job import LevelJob, level_job
from pyramid_core.model import PyramidPlan
from pyramid_core.needs import just, stretch, stretches
from pyramid_core.params import PyramidParams
from pyramid_core.plan import plan_pyramid
from pyramid_core.presence import Mask


class Listed:
    """What a listing has found."""

    def __init__(self, cells: Mask):
        self.cells = cells

    def listed(self, cells: Region) -> Mask:
        return self.cells[cells]


AXIS = st.fixed_dictionaries(
    {
        "extent": st.integers(1, 30),
        "step": st.integers(1, 3),
        "stored": st.integers(1, 7),
        "unit": st.integers(1, 5),
        "units": st.integers(1, 3),
    }
)
CASES = st.lists(AXIS, min_size=2, max_size=3)


def job_of(axes: list[dict[str, int]]) -> tuple[PyramidPlan, LevelJob]:
    """Return a plan, and a level of it with the geometry that is asked for."""
    info = ImageInfo(
        location="/nowhere.zarr", path="0", in_group=True, shape=(64,) * len(axes), dtype="|u1",
        chunks=(8,) * len(axes), shards=None, fill=0, zarr_format=3, key_prefix="c", separator="/",
        codec=Codec("zstd", 0), axes=(), scale=(1.0,) * len(axes), translation=(0.0,) * len(axes),
        name="nowhere",
    )  # fmt: skip
    plan = plan_pyramid(info, PyramidParams(source="/nowhere.zarr", target="/else.zarr"))
    finer, step, stored, unit, units = (
        tuple(axis[name] for axis in axes) for name in ("extent", "step", "stored", "unit", "units")
    )
    level = replace(
        plan.levels[1], shape=ceil_div(finer, step), chunks=unit, shards=None, step=step,
        block=multiply(unit, units),
    )  # fmt: skip
    job = replace(level_job(plan, plan.levels[1]), level=level, finer_shape=finer, stored=stored)
    return plan, job


def touches(job: LevelJob, voxel: Shape) -> Shape:
    """Return the stored object that a voxel of the finer level lies in."""
    return tuple(v // n for v, n in zip(voxel, job.stored, strict=True))


def read_for(job: LevelJob, region: Region) -> set[Shape]:
    """Return the stored objects that hold any voxel of the windows of a region, one by one."""
    fine = [
        range(axis.start * s, min(axis.stop * s, n))
        for axis, s, n in zip(region, job.level.step, job.finer_shape, strict=True)
    ]
    return {touches(job, voxel) for voxel in itertools.product(*fine)}


@given(CASES, st.randoms(use_true_random=False), st.sampled_from([1, 8, 2**16]))
def test_what_many_blocks_need_is_what_each_needs(
    axes: list[dict[str, int]], dice: Any, at_once: int
) -> None:
    """For all geometry: windows and units that stick out, objects that lie under two units."""
    plan, job = job_of(axes)
    level, cells = job.level, Grid(job.finer_shape, job.stored)
    there = {cell for cell in cells if dice.random() < 0.3}
    mask = np.zeros(cells.counts, bool)
    for cell in there:
        mask[cell] = True
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(needs, "_AT_ONCE", at_once)
        parts = list(stretches(plan, job, Listed(mask)))  # type: ignore[arg-type] # all it asks for
    for part in parts:
        needed, touched = part.any_unit(part.need), part.any_cell(mask[part.cells])
        blocks = list(part.chosen(np.ones_like(needed)))
        seen += blocks
        for block, is_needed, is_touched in zip(blocks, needed.flat, touched.flat, strict=True):
            region = level.blocks.region(block)
            read = read_for(job, region)
            assert is_touched == bool(read & there)
            units = {unit for unit in level.units.cells(region)
                     if read_for(job, level.units.region(unit)) & there}  # fmt: skip
            assert is_needed == bool(units)
            origin = tuple(axis.start for axis in part.units)
            for unit in level.units.cells(region):
                at = tuple(u - o for u, o in zip(unit, origin, strict=True))
                assert part.need[at] == (unit in units)
            present = part.present_of(block)
            assert present is not None
            first = tuple(map(min, zip(*read, strict=True)))
            assert {
                tuple(int(i) + o for i, o in zip(at, first, strict=True))
                for at in np.argwhere(present)
            } == read & there
            assert present.size == len(read)
    assert seen == list(level.blocks)


@given(CASES, st.randoms(use_true_random=False), st.data())
def test_a_tile_that_cuts_write_units_needs_what_lies_below_it(
    axes: list[dict[str, int]], dice: Any, data: Any
) -> None:
    """The gate looks at tiles of large blocks, which begin and end inside of shards."""
    plan, job = job_of(axes)
    tile = tuple(data.draw(st.integers(1, n)) for n in job.level.shape)
    job = replace(job, level=replace(job.level, block=tile))
    mask = np.zeros(Grid(job.finer_shape, job.stored).counts, bool)
    for cell in Grid(job.finer_shape, job.stored):
        mask[cell] = dice.random() < 0.3
    there = {tuple(map(int, cell)) for cell in np.argwhere(mask)}
    for index in job.level.blocks:
        part = stretch(plan, job, Listed(mask), just(index))  # type: ignore[arg-type] # as above
        read = read_for(job, job.level.blocks.region(index))
        assert part.need.any() == bool(read & there)
        assert part.present is not None
        assert np.count_nonzero(part.present) == len(read & there)
        for unit, is_needed in zip(
            job.level.units.cells(job.level.blocks.region(index)), part.need.flat, strict=True
        ):
            inside = tuple(
                slice(max(a.start, b.start), min(a.stop, b.stop))
                for a, b in zip(
                    job.level.units.region(unit), job.level.blocks.region(index), strict=True
                )
            )
            assert is_needed == bool(read_for(job, inside) & there)


@given(CASES)
def test_where_background_does_not_give_background_or_nothing_is_known_every_unit_is_needed(
    axes: list[dict[str, int]],
) -> None:
    """So nothing is left out on a guess."""
    plan, job = job_of(axes)
    nothing = np.zeros(Grid(job.finer_shape, job.stored).counts, bool)
    for part in stretches(replace(plan, background=None), job, Listed(nothing)):  # type: ignore[arg-type] # as above
        assert part.need.all()
        assert part.present is not None
        assert not part.present.any()
    for part in stretches(plan, job, None):
        assert part.need.all()
        assert part.present is None
        assert part.present_of(next(part.chosen(part.any_unit(part.need)))) is None
