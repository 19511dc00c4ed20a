"""The whole story on one page."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from pyramid_core.execute import BlockResult, LevelRun, open_executor, run_level
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.owner import own
from pyramid_core.params import PyramidParams
from pyramid_core.plan import plan_pyramid
from pyramid_core.reader import open_image
from pyramid_core.verify import Verification, gate, is_complete
from pyramid_core.writer import commit, is_published, prepare

log = logging.getLogger(__name__)

Progress = Callable[[LevelRun, BlockResult], None]
"""Told of every block that is done."""


@dataclass(frozen=True, slots=True)
class LevelReport:
    """What building one level took."""

    image: str
    """Name of the image, or of its label image."""
    level: Level
    """The level."""
    built: int
    """Blocks that were built."""
    found: int
    """Blocks that were there before."""
    empty: int
    """Blocks that hold nothing but background."""
    seconds: float
    """Time it took."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build did."""

    plan: PyramidPlan
    """What was to be built."""
    levels: tuple[LevelReport, ...]
    """What each level took."""
    seconds: float
    """Time it took."""
    verification: Verification | None
    """What the gate found; None without one, or where the image was published before."""

    @property
    def blocks_built(self) -> int:
        """Blocks that were built by this run."""
        return sum(level.built for level in self.levels)

    @property
    def blocks_found(self) -> int:
        """Blocks that were there before."""
        return sum(level.found for level in self.levels)

    @staticmethod
    def published(plan: PyramidPlan, seconds: float) -> BuildResult:
        """Return the result of a build that found the image there, finished."""
        levels = tuple(
            LevelReport(image.source.name, level, 0, level.blocks.size, 0, 0.0)
            for image in plan.images
            for level in image.written
        )
        return BuildResult(plan, levels, seconds, None)


def build_pyramid(
    params: PyramidParams, *, executor: Executor | None = None, progress: Progress | None = None
) -> BuildResult:
    """Build what is asked, or what is missing of it, verify it, and publish it.

    Run it again after a crash: it does what is missing and ends with the same bytes.

    Args:
        params: What is asked.
        executor: Where blocks are built; by default as ``params`` say, else an active Dask client,
            else threads.
        progress: Called after every block.

    Raises:
        RequestError: If what is asked cannot be done; nothing was written.
        BuildError: If a block fails; what is finished stays.
        DefectError: If the gate finds the result wrong; it is not published, and the blocks that
            are wrong are removed, so that the next run builds them.
    """
    start = time.perf_counter()
    plan = plan_pyramid(open_image(params.source).info, params)
    with own(plan.target) as owner, open_executor(plan, executor) as workers:
        if is_published(plan) and is_complete(plan, workers):
            return BuildResult.published(plan, time.perf_counter() - start)
        prepare(plan)
        reports = []
        for image in plan.images:
            for level in image.written:
                owner.check()
                reports.append(build_level(image, level, workers, progress))
        verification = gate(plan, workers)
        owner.check()
        commit(plan)
    return BuildResult(plan, tuple(reports), time.perf_counter() - start, verification)


def plan_build(params: PyramidParams) -> PyramidPlan:
    """Return the plan of what is asked, made sure that the target can take it; writes nothing.

    Raises:
        RequestError: If what is asked cannot be done.
    """
    plan = plan_pyramid(open_image(params.source).info, params)
    is_published(plan)
    return plan


def build_level(
    plan: PyramidPlan, level: Level, workers: Executor, progress: Progress | None = None
) -> LevelReport:
    """Build the missing blocks of one level."""
    start = time.perf_counter()
    run = run_level(plan, level, workers)
    for result in run:
        if progress is not None:
            progress(run, result)
    seconds = time.perf_counter() - start
    log.info("level %s of %s: %d blocks built, %d found finished, %d empty, %.1f s",
             level.path, plan.source.name, run.built, run.found, run.empty, seconds)  # fmt: skip
    return LevelReport(plan.source.name, level, run.built, run.found, run.empty, seconds)
