"""The tasks of the flow: each calls one function of the core."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from pyramid_core.build import LevelReport, make_test_image, plan_build
from pyramid_core.build import build_level as build_level_of
from pyramid_core.errors import is_transient
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.owner import Owner
from pyramid_core.params import PyramidParams
from pyramid_core.verify import Verification, gate
from pyramid_core.writer import commit


def _is_transient(task: Task[..., object], run: TaskRun, state: State) -> bool:  # noqa: ARG001 - Prefect's form
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


_RETRIES: Any = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _is_transient,
}
"""For tasks that move voxels: a store may hang up, and what is finished stays."""


@task(cache_policy=NO_CACHE)
def validate(params: PyramidParams) -> PyramidPlan:
    """Check divisibility per level and axis, data type, target and memory; return the plan."""
    return plan_build(params)


@task(cache_policy=NO_CACHE)
def create_test_image(params: PyramidParams) -> None:
    """Write the test image that is asked for, if nothing is at the source."""
    make_test_image(params)


@task(cache_policy=NO_CACHE, task_run_name="level {level.path}", **_RETRIES)
def build_level(plan: PyramidPlan, level: Level, workers: Executor, owner: Owner) -> LevelReport:
    """Build the missing blocks of one level; a retry does only what is left."""
    return build_level_of(plan, level, workers, owner)


@task(cache_policy=NO_CACHE, **_RETRIES)
def verify(plan: PyramidPlan, workers: Executor) -> Verification:
    """Compute voxels again and compare them, before anyone can see the image."""
    return gate(plan, workers)


@task(cache_policy=NO_CACHE)
def write_multiscales_metadata(plan: PyramidPlan) -> None:
    """Publish: write the NGFF multiscales document, last."""
    commit(plan)
