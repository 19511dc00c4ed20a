"""Compute the voxels of an image again and compare them, bit for bit, with what is stored."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

from pyramid_core.audit import Finding
from pyramid_core.execute import check_block
from pyramid_core.flight import run_blocks
from pyramid_core.grid import Region, Shape, coarser_region
from pyramid_core.job import LevelJob, level_job
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.needs import (
    finer_cells,
    needed_units,
    source_presence,
    target_presence,
    units_of,
)
from pyramid_core.params import VerifyMode
from pyramid_core.presence import Mask
from pyramid_core.stores import join, open_storage
from pyramid_core.workers import in_flight

SAMPLE = 50
"""``sample`` computes one block in this many again, and of every level the first and the last that
hold data."""


MOST_FINDINGS = 20
"""Of one level; a level that is lost as a whole must not fill the memory and the report."""


@dataclass(slots=True)
class Checked:
    """What computing the voxels of one image again found."""

    plan: PyramidPlan
    wrong: dict[int, dict[Shape, str]]
    """Per level, the blocks that are wrong, and why they could not be computed if so."""
    checked: int = 0


def check_voxels(plan: PyramidPlan, mode: VerifyMode, workers: Executor) -> Checked:
    """Compute blocks of every level again and compare them.

    Always those where what is stored does not follow from what is stored of the finer level: a
    chunk that is missing, or one too many. Then the others, all or some of them.
    """
    found = Checked(plan, {level.index: {} for level in plan.written})
    for level in plan.written:
        _check_blocks(found, level, workers, mode)
    if mode == "sample" and any(found.wrong.values()):
        # Where a sample finds something, nothing of the rest can be taken on trust.
        return check_voxels(plan, "full", workers)
    return found


def only_lacks(found: Checked) -> bool:
    """Return whether nothing but chunks that are missing makes the blocks wrong.

    Not so where more is stored than the source has, or where the source itself cannot be read:
    then building again would lose what is there.
    """
    plan = found.plan
    first = plan.written[0]  # what is coarser can be made again of it
    job = level_job(plan, first)
    source, target = source_presence(job), target_presence(plan, first)
    for index, fault in found.wrong[first.index].items():
        need, _ = needed_units(plan, job, source, index)
        if fault or (target.window(units_of(first, index)) & ~need).any():
            return False
    return True


def _check_blocks(found: Checked, level: Level, workers: Executor, mode: VerifyMode) -> None:
    """Check those blocks of one level that the mode asks for."""
    plan = found.plan
    job = level_job(plan, level)
    chosen = _chosen(plan, level, job, mode)
    for block in run_blocks(job, check_block, chosen, workers, in_flight(plan, workers)):
        found.checked += 1
        if not block.equal:
            found.wrong[level.index][block.index] = block.fault


def _chosen(
    plan: PyramidPlan, level: Level, job: LevelJob, mode: VerifyMode
) -> Iterator[tuple[Shape, Mask | None]]:
    source, target = source_presence(job), target_presence(plan, level)
    dice = random.Random(f"{level.path} {level.shape} {level.blocks.size}")
    first, last = True, None
    for index in level.blocks:
        need, present = needed_units(plan, job, source, index)
        cells = units_of(level, index)
        drawn = dice.random() < 1 / SAMPLE or first
        # Where the source cannot be listed, neither can what was published beside it.
        doubtful = source is not None and (
            (need != target.window(cells)).any()
            or target.hollow(cells).any()
            or source.hollow(finer_cells(job, index)).any()
        )
        if doubtful or (need.any() and (mode == "full" or (mode == "sample" and drawn))):
            yield index, present
            last = None
        elif need.any():
            last = (index, present)
        first = first and not need.any()
    if mode == "sample" and last is not None:
        yield last


def count_blocks(plan: PyramidPlan) -> int:
    """Return how many blocks all levels that a plan writes have."""
    return sum(level.blocks.size for level in plan.written)


def _cells(region: Region) -> Iterator[Shape]:
    return itertools.product(*(range(axis.start, axis.stop) for axis in region))


def voxel_findings(found: Checked, root: str) -> Iterator[Finding]:
    """Say which blocks are wrong; of many, the first few."""
    plan = found.plan
    inside = plan.target[len(root) :].strip("/")
    for level in plan.written:
        wrong = found.wrong[level.index]
        where = join(inside, level.path) if inside else level.path
        for index in sorted(wrong)[:MOST_FINDINGS]:
            region = ", ".join(f"{a.start}:{a.stop}" for a in level.blocks.region(index))
            fault = wrong[index]
            what = (
                f"cannot be computed again, because the finer level cannot be read: {fault}"
                if fault
                else f"are not those that {plan.method} gives"
            )
            yield Finding("error", where, f"voxels [{region}] {what}")
        if len(wrong) > MOST_FINDINGS:
            yield Finding("error", where, f"{len(wrong) - MOST_FINDINGS:,} more blocks are wrong")


def remove_wrong(found: Checked) -> None:
    """Delete the stored objects of wrong blocks, so that the next run builds them.

    What is coarser may have been made of them, so that goes too. The coarsest go first: after a
    stop in between, the gate still finds the cause.
    """
    plan = found.plan
    doomed: dict[int, set[Shape]] = {}
    for level in plan.written:
        # Where only the finer level could not be read, nothing is known against the block.
        own = {index for index, fault in found.wrong[level.index].items() if not fault}
        for index in doomed.get(level.index - 1, ()):
            finer = plan.levels[level.index - 1].blocks.region(index)
            made = coarser_region(finer, level.step, level.shape)
            own |= set(_cells(level.blocks.touched(made)))
        doomed[level.index] = own
    storage = open_storage(plan.target)
    for level in reversed(plan.written):
        presence = target_presence(plan, level)
        keys = [presence.key(cell) for index in sorted(doomed[level.index])
                for cell in _cells(units_of(level, index))]  # fmt: skip
        storage.delete_objects(keys)
