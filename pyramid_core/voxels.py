"""Compute the voxels of an image again and compare them, bit for bit, with what is stored."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from pyramid_core.audit import Finding
from pyramid_core.execute import check_block
from pyramid_core.flight import BlockInput, run_blocks
from pyramid_core.grid import Shape, coarser_region
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
from pyramid_core.presence import Mask, Presence
from pyramid_core.stores import join, open_storage
from pyramid_core.workers import in_flight

SAMPLE = 100
"""``sample`` computes one block in this many again, of large ones (shards, or blocks that are sent
to a cluster) one tile in this many, and of every level the first and the last that hold data."""


MOST_FINDINGS = 20
"""Of one level; a level that is lost as a whole must not fill the memory and the report."""


@dataclass(slots=True)
class Checked:
    """What computing the voxels of one image again found."""

    plan: PyramidPlan
    wrong: dict[int, dict[Shape, str]]
    """Per level, the blocks that are wrong, and why they could not be computed if so."""
    checked: int = 0
    """Blocks that were computed again."""
    in_part: bool = False
    """Whether of some of them only some tiles were."""


def check_voxels(
    plan: PyramidPlan, mode: VerifyMode, workers: Executor, source: Presence | None = None
) -> Checked:
    """Compute blocks of every level again and compare them.

    Always those where what is stored does not follow from what is stored of the finer level: a
    chunk that is missing, or one too many. Then the others, all or some of them.

    Args:
        plan: How the image was made.
        mode: Which of the others.
        workers: Where blocks are computed.
        source: What is stored of the source, where that was just listed; else it is listed.
    """
    found = Checked(plan, {level.index: {} for level in plan.written})
    jobs = _jobs(plan, mode)
    # The coarsest first: while they are computed, the large listings of the finest are made.
    chosen = itertools.chain.from_iterable(
        _chosen(found, job, source if job is jobs[0] else None, mode) for job in reversed(jobs)
    )
    cut = {job.level.index: job.level.blocks for job in jobs}
    for part in run_blocks(check_block, chosen, workers, in_flight(plan, workers)):
        if not part.equal:
            for index in plan.levels[part.level].blocks.cells(cut[part.level].region(part.index)):
                found.wrong[part.level][index] = part.fault
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


def _jobs(plan: PyramidPlan, mode: VerifyMode) -> list[LevelJob]:
    """Return a job per level, cut into what is checked at once: blocks, or tiles of large ones.

    All share the memory of a process, so its slots are those that the largest block leaves.
    """
    jobs = [level_job(plan, level) for level in plan.written]
    token, slots = uuid.uuid4().hex, min((job.slots for job in jobs), default=1)

    def cut(level: Level) -> Level:
        is_large = level.shards is not None or plan.dask_address is not None
        return replace(level, block=level.tile) if mode == "sample" and is_large else level

    return [replace(job, token=token, slots=slots, level=cut(job.level)) for job in jobs]


def _chosen(
    found: Checked, job: LevelJob, listed: Presence | None, mode: VerifyMode
) -> Iterator[BlockInput]:
    """Yield what of a level is computed again: cells of the grid by which the job cuts it."""
    level = found.plan.levels[job.level.index]
    source, grid = listed or source_presence(job), job.level.blocks
    dice = random.Random(f"{level.path} {level.shape} {level.blocks.size}")
    first, last, drawn_of_last = True, list[Shape](), list[Shape]()

    def need(part: Shape) -> tuple[Mask, Mask | None]:
        return needed_units(found.plan, job, source, part)

    def one_with_data(parts: Iterable[Shape]) -> list[Shape]:
        return list(itertools.islice((part for part in parts if need(part)[0].any()), 1))

    for index, holds_data, is_doubtful in _blocks(found.plan, level, job, source):
        parts = list(grid.cells(level.blocks.region(index)))
        drawn = parts if is_doubtful or mode == "full" else []
        if mode == "sample" and not drawn:
            drawn = dice.sample(parts, int(len(parts) / SAMPLE + dice.random()))
            if first:
                drawn = list({*drawn, *one_with_data(parts)})
        if holds_data:
            first, last, drawn_of_last = False, parts, drawn
        found.checked += bool(drawn)
        found.in_part |= 0 < len(drawn) < len(parts)
        yield from ((job, part, need(part)[1]) for part in drawn)
    for part in one_with_data(reversed(last)) if mode == "sample" else []:
        if part not in drawn_of_last:
            found.checked += not drawn_of_last
            found.in_part |= len(last) > 1
            yield job, part, need(part)[1]


def _blocks(
    plan: PyramidPlan, level: Level, job: LevelJob, source: Presence | None
) -> Iterator[tuple[Shape, bool, bool]]:
    """Yield the blocks of a level that hold data, or are doubtful: their index, and which."""
    whole, target = replace(job, level=level), target_presence(plan, level)
    # Where the source cannot be listed, neither can what was published beside it.
    if source is None or (source.is_full() and target.is_full()):
        yield from ((index, True, False) for index in level.blocks)
        return
    hollow = source.may_be_hollow() or target.may_be_hollow()
    for index in level.blocks:
        need, _ = needed_units(plan, whole, source, index)
        cells = units_of(level, index)
        is_doubtful = (need != target.window(cells)).any() or (
            hollow
            and (target.hollow(cells).any() or source.hollow(finer_cells(whole, index)).any())
        )
        if need.any() or is_doubtful:
            yield index, bool(need.any()), bool(is_doubtful)


def count_blocks(plan: PyramidPlan) -> int:
    """Return how many blocks all levels that a plan writes have."""
    return sum(level.blocks.size for level in plan.written)


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
            own |= set(level.blocks.cells(made))
        doomed[level.index] = own
    storage = open_storage(plan.target)
    for level in reversed(plan.written):
        presence = target_presence(plan, level)
        keys = [presence.key(cell) for index in sorted(doomed[level.index])
                for cell in level.units.cells(level.blocks.region(index))]  # fmt: skip
        storage.delete_objects(keys)
