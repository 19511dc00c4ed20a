"""The tasks of the flow: each calls one function of the core."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from prefect import Task, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from prefect.tasks import exponential_backoff

from flows import reports
from pyramid_core.build import LevelReport, make_test_image, plan_build
from pyramid_core.build import build_level as build_level_of
from pyramid_core.errors import PyramidError, RequestError, is_transient
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.owner import Owner
from pyramid_core.params import PyramidParams, parse_params
from pyramid_core.presence import Presence
from pyramid_core.preview import render_preview
from pyramid_core.stores import shown
from pyramid_core.verify import Verification, gate
from pyramid_core.writer import Finished, commit


def _is_transient(task: Task[..., object], run: TaskRun, state: State) -> bool:  # noqa: ARG001 - Prefect's form
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


_RETRIES: Any = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _is_transient,
}
"""For tasks that build or verify: a store may hang up, and what is finished stays."""


def _is_news(record: logging.LogRecord) -> bool:
    """Pass over what Prefect's engine says once more of an error that was told: its traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], PyramidError))


def failed(error: PyramidError) -> State:
    """Return the state of a run that ends with an error of the core: its message, in one line.

    Raised, it would be a screen of traceback that tells a user nothing more.
    """
    logging.getLogger("prefect.flow_runs").addFilter(_is_news)
    line = " ".join(part.strip() for part in str(error).splitlines())
    return Failed(message=line, data=error)


def _of_source() -> str:
    """Return the name of a task run before there is a plan; locations may hold passwords."""
    given = runtime.task_run.parameters
    source = given["params"].source if "params" in given else given["parameters"]["source"]
    return f"{runtime.task_run.task_name} {shown(str(source))}"


@task(cache_policy=NO_CACHE, task_run_name=_of_source)
def validate(parameters: dict[str, Any]) -> PyramidParams | State:
    """Check each value, divisibility per level and axis, data type, target and memory.

    Writes nothing; returns what is asked as the other tasks take it.
    """
    try:
        params = parse_params(parameters)
        plan_build(params)
    except RequestError as error:
        return failed(error)
    return params


@task(cache_policy=NO_CACHE, task_run_name=_of_source)
def create_test_image(params: PyramidParams) -> None:
    """Write the test image that is asked for, if nothing is at the source."""
    make_test_image(params)


@task(cache_policy=NO_CACHE, task_run_name=_of_source)
def plan(params: PyramidParams) -> PyramidPlan:
    """Decide all that will be written and what it costs, and leave that as a table."""
    found = plan_build(params)
    reports.show_plan(found)
    return found


@task(cache_policy=NO_CACHE, task_run_name="{plan.source.name} level {level.path}", **_RETRIES)
def build_level(
    plan: PyramidPlan, level: Level, workers: Executor, owner: Owner, source: Presence | None
) -> LevelReport:
    """Build the missing blocks of one level; a retry does only what is left."""
    with reports.progress_of(plan, level) as progress:
        return build_level_of(plan, level, workers, owner, source, progress)


@task(cache_policy=NO_CACHE, task_run_name="verify {plan.source.name}", **_RETRIES)
def verify(plan: PyramidPlan, workers: Executor) -> Verification:
    """Compute voxels again and compare them, before anyone can see the image."""
    return gate(plan, workers)


@task(cache_policy=NO_CACHE, task_run_name="publish {plan.source.name}")
def write_multiscales_metadata(plan: PyramidPlan, audited: Sequence[Finished]) -> None:
    """Publish: write the NGFF multiscales document, last, as it was audited."""
    commit(plan, audited)


@task(cache_policy=NO_CACHE, task_run_name="preview {plan.source.name}")
def preview(plan: PyramidPlan) -> bytes:
    """Draw the image from a coarse level, leave the picture as an artifact and return the PNG."""
    picture = render_preview(plan.target, width=600)
    reports.show_picture(plan, picture)
    return picture
