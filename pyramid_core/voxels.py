"""Compute the voxels of an image again and compare them, bit for bit, with what is stored."""

from __future__ import annotations

import itertools
import math
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from pyramid_core.audit import Finding
from pyramid_core.execute import check_block
from pyramid_core.flight import BlockInput, run_blocks
from pyramid_core.grid import Shape, ceil_div, coarser_region
from pyramid_core.job import LevelJob, level_job
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.needs import Stretch, just, source_presence, stretch, stretches, target_presence
from pyramid_core.opened import open_ahead
from pyramid_core.params import VerifyMode
from pyramid_core.presence import Presence
from pyramid_core.remote import each
from pyramid_core.stores import is_url, join, open_storage
from pyramid_core.workers import in_flight, is_cluster

SAMPLE = 100
"""``sample`` computes one block in this many again, of large ones (shards, or blocks that are sent
to a cluster) one tile in this many, and of every level the first and the last that hold data."""


_AHEAD = 64
"""Blocks that are found before the first of them is computed again."""

_MOST_CELLS = 2**16
"""Stored objects that they may be read from in all, but for one block of more."""

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
    listed = _listed(plan, jobs, source)
    chosen = itertools.chain.from_iterable(
        _chosen(found, job, *around, mode)
        for job, around in zip(jobs, itertools.pairwise(listed), strict=True)
    )
    # Before the first block: beside threads that decode, listing and opening take twice as long.
    ahead = _some(chosen)
    chosen = itertools.chain(ahead, chosen)
    if not is_cluster(workers):
        places = {(job.token, at) for job, _, _ in ahead for at in (job.source, job.target)}
        away = is_url(plan.target) or is_url(plan.source.location)
        each(lambda place: open_ahead(*place), list(places), away=away)
    cut = {job.level.index: job.level.blocks for job in jobs}
    for part in run_blocks(check_block, chosen, workers, in_flight(plan, workers)):
        if not part.equal:
            for index in plan.levels[part.level].blocks.cells(cut[part.level].region(part.index)):
                found.wrong[part.level][index] = part.fault
    if mode == "sample" and any(found.wrong.values()):
        # Where a sample finds something, nothing of the rest can be taken on trust.
        return check_voxels(plan, "full", workers)
    return found


def _some(blocks: Iterator[BlockInput]) -> list[BlockInput]:
    """Return the first few blocks, of which what is known of their sources is small."""
    some, cells = list[BlockInput](), 0
    for block in blocks:
        some.append(block)
        cells += 0 if block[2] is None else block[2].size
        if len(some) == _AHEAD or cells > _MOST_CELLS:
            break
    return some


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
        part = stretch(plan, job, source, just(index))
        if fault or (target.window(part.units) & ~part.need).any():
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


def _listed(
    plan: PyramidPlan, jobs: list[LevelJob], source: Presence | None
) -> list[Presence | None]:
    """Return what is stored of the source and of each level; None for what cannot be listed.

    Each is listed once: what a level is compared with is what the next one is made of.
    """
    if not jobs:
        return []
    finer = [source_presence(job) for job in jobs]
    last = target_presence(plan, plan.written[-1]) if finer[-1] else None
    return [source or finer[0], *finer[1:], last]


def _chosen(
    found: Checked, job: LevelJob, source: Presence | None, target: Presence | None,
    mode: VerifyMode,
) -> Iterator[BlockInput]:  # fmt: skip
    """Yield what of a level is computed again: cells of the grid by which the job cuts it."""
    level, grid = found.plan.levels[job.level.index], job.level.blocks
    each = math.prod(ceil_div(level.block, grid.cell))
    dice = random.Random(f"{level.path} {level.shape} {level.blocks.size}")
    first, last, drawn_of_last = True, None, list[Shape]()

    def parts_of(index: Shape) -> list[Shape]:
        return list(grid.cells(level.blocks.region(index))) if each > 1 else [index]

    def look(part: Shape) -> Stretch:
        return stretch(found.plan, job, source, just(part))

    def one_with_data(parts: list[Shape]) -> list[Shape]:
        if each == 1:
            return parts
        return list(itertools.islice((part for part in parts if look(part).need.any()), 1))

    def asked(part: Shape, around: Stretch | None) -> BlockInput:
        if around is not None and each == 1:
            return job, part, around.present_of(part)
        return job, part, look(part).present

    for block in _blocks(found.plan, replace(job, level=level), source, target):
        index, holds_data, is_doubtful, around = block
        drawn = list[Shape]()
        is_whole = is_doubtful or mode == "full"
        many = int(each / SAMPLE + dice.random()) if mode == "sample" else 0
        if is_whole or many or (first and mode == "sample"):
            parts = parts_of(index)
            drawn = parts if is_whole else dice.sample(parts, min(many, len(parts)))
            if first and not is_whole:
                drawn = list({*drawn, *one_with_data(parts)})
            found.checked += bool(drawn)
            found.in_part |= 0 < len(drawn) < len(parts)
        if holds_data:
            first, last, drawn_of_last = False, (index, around), drawn
        yield from (asked(part, around) for part in drawn)
    if mode != "sample" or last is None:
        return
    parts = parts_of(last[0])
    for part in one_with_data(parts[::-1]):
        if part not in drawn_of_last:
            found.checked += not drawn_of_last
            found.in_part |= len(parts) > 1
            yield asked(part, last[1])


def _blocks(
    plan: PyramidPlan, job: LevelJob, source: Presence | None, target: Presence | None
) -> Iterator[tuple[Shape, bool, bool, Stretch | None]]:
    """Yield the blocks of a level that hold data, or are doubtful: their index, and which.

    And the stretch that a block is one of, where that is known.
    """
    if source is None or target is None:
        yield from ((index, True, False, None) for index in job.level.blocks)
        return
    for part in stretches(plan, job, source):
        needed = part.any_unit(part.need)
        doubtful = part.any_cell(source.hollow(part.cells)) | part.any_unit(
            (part.need != target.window(part.units)) | target.hollow(part.units)
        )
        chosen = needed | doubtful
        for index, holds_data, is_doubtful in zip(
            part.chosen(chosen), needed[chosen].tolist(), doubtful[chosen].tolist(), strict=True
        ):
            yield index, holds_data, is_doubtful, part


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
