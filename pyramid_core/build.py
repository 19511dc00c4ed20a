"""The whole story on one page."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pyramid_core.errors import GO_ON, BuildError, LocationError, system_errors
from pyramid_core.execute import LevelRun, run_level
from pyramid_core.grid import times
from pyramid_core.job import BlockResult
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.owner import Owner, own
from pyramid_core.params import PyramidParams, human
from pyramid_core.phantom import foreseen, is_vacant, plan_phantom, write_phantom
from pyramid_core.plan import plan_pyramid
from pyramid_core.presence import Presence
from pyramid_core.reader import open_image
from pyramid_core.stores import open_storage, shown
from pyramid_core.verify import Verification, gate, still_to_build
from pyramid_core.workers import is_cluster, open_executor
from pyramid_core.writer import Finished, commit, delete_temporary, prepare, published, refresh

log = logging.getLogger(__name__)
ending = logging.getLogger(f"{__name__}.ending")
"""Tells what a command line says again in its summary, so it leaves these lines out."""

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
    size: int
    """Voxels of the whole level, in bytes before compression."""

    @property
    def rate(self) -> float:
        """Bytes of voxels that were built per second, before compression; 0 if none were."""
        share = self.built / self.level.blocks.size
        return self.size * share / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        """Return what the log says of the level."""
        speed = f", {human(self.rate)}/s" if self.built else ""
        return (
            f"level {self.level.path} of {self.image}: {times(self.level.shape)}, "
            f"{human(self.size)}; {self.built:,} blocks built, {self.found:,} found finished, "
            f"{self.empty:,} empty, {self.seconds:.1f} s{speed}"
        )


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
    source: dict[str, Any] = field(default_factory=dict)
    """How the source looked when the build began, as its record says it; empty where the image was
    published before."""

    @property
    def blocks_built(self) -> int:
        """Blocks that were built by this run."""
        return sum(level.built for level in self.levels)

    @property
    def blocks_found(self) -> int:
        """Blocks that were there before."""
        return sum(level.found for level in self.levels)

    @property
    def verdict(self) -> str:
        """Whether the image was verified, in one sentence."""
        checked = self.verification
        if checked is None:
            return "It was there, finished; blocks computed again follow from the source."
        if checked.mode == "none":
            return "It was not verified (verify was none)."
        return (
            f"Verified ({checked.mode}): {checked.counted} were computed again and found equal, "
            f"bit for bit."
        )


@dataclass(frozen=True, slots=True)
class Steps:
    """What a build consists of; a flow gives tasks that call the same functions."""

    build_level: Callable[[PyramidPlan, Level, Executor, Owner, Presence | None], LevelReport]
    """Builds the missing blocks of one level; of the first, it is told what the source has."""
    verify: Callable[[PyramidPlan, Executor], Verification]
    """The gate."""
    publish: Callable[[PyramidPlan, Sequence[Finished]], None]
    """Writes the document that makes it an image, as the gate has audited it."""


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
    make_test_image(params, executor=executor)
    plan = plan_pyramid(open_image(params.source).info, params)
    steps = Steps(partial(build_level, progress=progress), gate, commit)
    return run_plan(plan, steps, executor=executor)


def run_plan(plan: PyramidPlan, steps: Steps, *, executor: Executor | None = None) -> BuildResult:
    """Build what is missing of a plan by the steps given; raises what ``build_pyramid`` does."""
    start = time.perf_counter()
    targets = [image.target for image in plan.images]
    place = shown(plan.target)
    with (
        own(*targets) as owner,
        open_executor(plan, executor) as workers,
        system_errors(BuildError, f"{place} could not be finished", GO_ON),
    ):
        with system_errors(LocationError, f"{place} cannot be built"):
            left = still_to_build(plan, workers)
        log.info("%s", plan.headline)
        for note in plan.notes:
            ending.info("note: %s", note)
        if left is None:
            refresh(plan)
            ending.info(
                "%s is there, finished; blocks computed again follow from the source",
                shown(plan.target),
            )
            return BuildResult(plan, _found(plan), time.perf_counter() - start, None)
        looks = prepare(plan)
        source = looks[0].told
        reports = []
        for image in plan.images:
            listed = looks.pop(0).presence  # not kept, since it takes memory
            for level in image.written:
                owner.check()
                reports.append(steps.build_level(image, level, workers, owner, listed))
                listed = None
        verification = steps.verify(left, workers)
        if verification.mode != "none":
            ending.info("verified: %s", verification.verdict)
        owner.check()
        if is_cluster(workers):  # one that was killed has left half an object behind
            for image in plan.images:
                delete_temporary(image, open_storage(image.target))
        steps.publish(plan, verification.audited)
    seconds = time.perf_counter() - start
    ending.info("published %s after %.1f s", shown(plan.target), seconds)
    return BuildResult(plan, tuple(reports), seconds, verification, source)


def _found(plan: PyramidPlan) -> tuple[LevelReport, ...]:
    """Return what is said of an image that was there, finished."""
    return tuple(
        LevelReport(image.source.name, level, 0, level.blocks.size, 0, 0.0, image.size(level))
        for image in plan.images
        for level in image.written
    )


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
    with system_errors(LocationError, f"{shown(plan.target)} cannot be built"):
        published(plan)
    return plan


def build_level(
    plan: PyramidPlan,
    level: Level,
    workers: Executor,
    owner: Owner,
    source: Presence | None = None,
    progress: Progress | None = None,
) -> LevelReport:
    """Build the missing blocks of one level, as long as the target is ours."""
    start = time.perf_counter()
    run = run_level(plan, level, workers, source)
    warned: set[str] = set()
    for result in run:
        owner.check_beat()
        for warning in result.warnings:
            if warning not in warned:
                log.warning("on %s: %s", result.worker, warning)
        warned.update(result.warnings)
        if progress is not None:
            progress(run, result)
    seconds = time.perf_counter() - start
    report = LevelReport(
        plan.source.name, level, run.built, run.found, run.empty, seconds, plan.size(level)
    )
    log.info("%s", report)
    return report
