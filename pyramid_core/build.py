"""The whole story on one page."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from pyramid_core.execute import LevelRun, run_level
from pyramid_core.job import BlockResult
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.owner import Owner, own
from pyramid_core.params import PyramidParams
from pyramid_core.phantom import foreseen, is_vacant, plan_phantom, write_phantom
from pyramid_core.plan import plan_pyramid
from pyramid_core.reader import open_image
from pyramid_core.verify import Verification, gate, still_to_build
from pyramid_core.workers import open_executor
from pyramid_core.writer import commit, prepare, published, refresh

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
            else threads. Not a pool of forked processes: zarr's own threads do not survive a fork.
        progress: Called after every block.

    Raises:
        RequestError: If what is asked cannot be done; nothing was written.
        BuildError: If a block fails; what is finished stays.
        DefectError: If the gate finds the result wrong; it is not published, and the blocks that
            are wrong are removed, so that the next run builds them.
    """
    start = time.perf_counter()
    make_test_image(params, executor=executor)
    plan = plan_pyramid(open_image(params.source).info, params)
    targets = [image.target for image in plan.images]
    with own(*targets) as owner, open_executor(plan, executor) as workers:
        left = still_to_build(plan, workers)
        if left is None:
            refresh(plan)
            return BuildResult.published(plan, time.perf_counter() - start)
        prepare(plan)
        reports = []
        for image in plan.images:
            for level in image.written:
                owner.check()
                reports.append(build_level(image, level, workers, owner, progress))
        verification = gate(left, workers)
        owner.check()
        commit(plan)
    return BuildResult(plan, tuple(reports), time.perf_counter() - start, verification)


def make_test_image(params: PyramidParams, *, executor: Executor | None = None) -> None:
    """Write the test image that is asked for, if any; what is at the source is used as it is.

    Raises:
        RequestError: If there can be no such image.
    """
    if params.test_image != "none" and is_vacant(params.source):
        write_phantom(params.source, **_phantom(params), executor=executor)


def _phantom(params: PyramidParams) -> dict[str, Any]:
    """Return what is asked of the test image."""
    return {
        "kind": params.test_image,
        "shape": tuple(params.test_shape),
        "axes": params.axes,
        "voxel_size": tuple(params.voxel_size),
        "unit": params.unit or "micrometer",
        "ngff_version": params.ngff_version,
    }


def plan_build(params: PyramidParams) -> PyramidPlan:
    """Return the plan of what is asked, made sure that the target can take it; writes nothing.

    A test image that is not there yet is planned for as if it were.

    Raises:
        RequestError: If what is asked cannot be done.
    """
    if params.test_image != "none" and is_vacant(params.source):
        phantom, _ = plan_phantom(params.source, **_phantom(params))
        return plan_pyramid(foreseen(phantom), params)
    plan = plan_pyramid(open_image(params.source).info, params)
    published(plan)
    return plan


def build_level(
    plan: PyramidPlan,
    level: Level,
    workers: Executor,
    owner: Owner,
    progress: Progress | None = None,
) -> LevelReport:
    """Build the missing blocks of one level, as long as the target is ours."""
    start = time.perf_counter()
    run = run_level(plan, level, workers)
    for result in run:
        owner.check_beat()
        if progress is not None:
            progress(run, result)
    seconds = time.perf_counter() - start
    log.info("level %s of %s: %d blocks built, %d found finished, %d empty, %.1f s",
             level.path, plan.source.name, run.built, run.found, run.empty, seconds)  # fmt: skip
    return LevelReport(plan.source.name, level, run.built, run.found, run.empty, seconds)
