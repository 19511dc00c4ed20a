"""Run a task on many blocks, a bounded number at a time, on any ``concurrent.futures.Executor``.

A window of a few blocks per worker is in flight, so nothing here grows with the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    wait,
)

from pyramid_core.errors import GO_ON, BuildError, reason_and_remedy
from pyramid_core.grid import Shape
from pyramid_core.job import BlockResult, LevelJob
from pyramid_core.presence import Mask
from pyramid_core.workers import all_ended, is_cluster, is_lost

stopped: set[str] = set()
"""Tokens of jobs that shall end; seen by the threads of this process only."""

Task = Callable[[LevelJob, Shape, Mask | None], BlockResult]

BlockInput = tuple[LevelJob, Shape, Mask | None]
"""What a task is given: a level, the index of a block of it, and which of the stored objects that
the block is read from are there; None if nobody knows."""

Pending = dict[Future[BlockResult], tuple[LevelJob, Shape]]


def run_blocks(
    task: Task, blocks: Iterator[BlockInput], executor: Executor, in_flight: int
) -> Iterator[BlockResult]:
    """Run a task on blocks, a bounded number at a time; yield each result as it comes.

    Raises:
        BuildError: If a block fails; names level, region and cause. The blocks that run are
            waited for, the others are not begun.
    """
    pending: Pending = {}
    try:
        for job, index, present in blocks:
            pending[_submit(executor, task, job, index, present)] = job, index
            if len(pending) >= in_flight:
                yield from _finished(pending, executor)
        while pending:
            yield from _finished(pending, executor)
    finally:
        tokens = {job.token for job, _ in pending.values()}
        stopped.update(tokens)
        # Dask calls a block cancelled that its worker goes on with; it must end before the target
        # is let go. A lost worker's blocks run elsewhere.
        if not is_cluster(executor):
            for future in pending:
                future.cancel()
        _wait(set(pending), executor, ALL_COMPLETED)
        stopped.difference_update(tokens)


_LOOK_AGAIN, _SILENT = 1.0, 120
"""Seconds after which a wait for blocks looks whether their scheduler is still there, and how often
it may find them all done with nothing told of them. Of blocks that are handed over just when it is
lost, or whose result it loses, Dask's executor never tells anything (distributed 2026.1)."""


def _wait(
    pending: set[Future[BlockResult]], executor: Executor, until: str
) -> set[Future[BlockResult]]:
    """Return the blocks that are done; none if touch with a cluster was lost meanwhile."""
    silent = 0
    while True:
        done, rest = wait(pending, _LOOK_AGAIN, until)
        if not rest or (done and until == FIRST_COMPLETED):
            return done
        silent = silent + 1 if all_ended(executor) else 0
        if is_lost(executor) or silent == _SILENT:
            return set()


def _submit(
    executor: Executor, task: Task, job: LevelJob, index: Shape, present: Mask | None
) -> Future[BlockResult]:
    try:
        return executor.submit(task, job, index, present)
    except Exception as error:
        if not is_lost(executor):
            raise
        raise _lost(job) from error


def _lost(job: LevelJob) -> BuildError:
    return BuildError(f"level {job.level.path}: the Dask scheduler was lost; start one{GO_ON}")


def _finished(pending: Pending, executor: Executor) -> Iterator[BlockResult]:
    done = _wait(set(pending), executor, FIRST_COMPLETED)
    if not done:
        raise _lost(next(iter(pending.values()))[0])
    for future in done:
        job, index = pending.pop(future)
        try:
            result = future.result()
        except Exception as error:
            region = job.level.blocks.region(index)
            at = ", ".join(f"{axis.start}:{axis.stop}" for axis in region)
            if isinstance(error, CancelledError):  # Dask's words for it are none
                raise _lost(job) from error
            cause = str(error).split("\n")[0][:300] or type(error).__name__
            cause = reason_and_remedy(error, GO_ON) or f"{type(error).__name__}: {cause}"
            msg = f"level {job.level.path}, voxels [{at}]: {cause}"
            raise BuildError(msg) from error
        yield result
