"""Build what an inbox holds and has no pyramid of; run it on a schedule, as often as you like."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from prefect import flow, runtime, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed, Failed

from flows.form import takes
from flows.limits import bounded_runs, is_begun_again
from flows.pyramid import build_pyramid
from flows.reports import key_of
from flows.tasks import failed
from pyramid_core.build import plan_build
from pyramid_core.changes import Change, last_change
from pyramid_core.errors import LocationError, PyramidError, RequestError, TargetBusyError
from pyramid_core.inbox import Found, find_images
from pyramid_core.owner import own
from pyramid_core.params import PyramidParams, SweepParams, parse_sweep_params
from pyramid_core.reader import open_image
from pyramid_core.stores import shown, split

log = logging.getLogger("pyramid_core.flows")

POLL_SECONDS = 5.0
"""How often runs that were handed to a deployment are asked whether they have ended."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image of the inbox."""

    image: str
    """Its location."""
    pyramid: str
    """Where its pyramid is."""
    outcome: str
    """finished, foreign, built, failed, refused, busy, being written, or to build."""
    note: str
    """Why, in a few words."""
    seconds: float = 0.0
    """Time that it took."""


_OURS = "sweep:{}"
"""Tag of a run that was handed over, with the id of the sweep's own run."""

FAULTS = ("failed", "refused")
"""The outcomes that make a sweep fail, at its end."""


def _run_name() -> str:
    return f"sweep of {shown(str(runtime.flow_run.parameters['inbox']))}"


@flow(name="sweep", flow_run_name=_run_name, persist_result=False)
@takes(SweepParams)
def sweep_inbox(**parameters: Any) -> list[Outcome] | State:
    """Find every image below a location and build those that have no finished pyramid.

    Images that are finished, and whose source has not changed since, are passed over. One image
    that fails does not stop the others; the run fails at its end.
    """
    logging.getLogger("pyramid_core").setLevel(logging.INFO)
    try:
        with bounded_runs():
            params = parse_sweep_params(parameters)
            if is_begun_again():
                _end_former_images()
            outcomes = list(_sweep(params))
    except PyramidError as error:
        return failed(error)
    create_table_artifact(
        [asdict(outcome) for outcome in outcomes],
        key=key_of(params.inbox, "sweep"),
        description=f"Images below {shown(params.inbox)}: {_counted(outcomes)}",
    )
    log.info("swept %s: %s", shown(params.inbox), _counted(outcomes))
    faults = [outcome for outcome in outcomes if outcome.outcome in FAULTS]
    if faults:
        first = f"{faults[0].image}: {faults[0].note}"
        return Failed(message=f"{len(faults)} of {len(outcomes)} images failed; the first, {first}")
    return outcomes


def _end_former_images() -> None:
    """Call crashed what this run had begun before it was killed.

    Prefect knows the image runs of a sweep by their order alone, and would go on with one that is
    still called running under the name and the parameters of another image.
    """
    unfinished = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(runtime.flow_run.id)]),
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(not_any_=list(TERMINAL_STATES)),
        ),
    )
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=unfinished):
            lost: Any = Crashed(message="The sweep that built it was lost and begun again.")
            client.set_flow_run_state(run.id, lost, force=True)


def _look_name() -> str:
    return f"look through {shown(runtime.task_run.parameters['params'].inbox)}"


@task(cache_policy=NO_CACHE, task_run_name=_look_name)
def look_for_images(params: SweepParams) -> list[Found] | State:
    """Find the images, and say from their metadata what became of each."""
    try:
        return find_images(params.inbox, params.outbox, compare_objects=params.compare_objects)
    except LocationError as error:
        return failed(error)


def _sweep(params: SweepParams) -> Iterator[Outcome]:
    """Build what there is to build, what may still be written last; yield what became of each."""
    if params.deployment:
        _check_deployment(params.deployment)
    looked: Any = look_for_images(params, return_state=True)
    found: list[Found] = looked.result()
    states = Counter(image.state for image in found)
    log.info("%s holds %s", shown(params.inbox), _listed(states) or "no image")
    build = _hand_over if params.deployment else _build_here
    settled: list[Found] = []
    unsettled: list[tuple[Found, Change]] = []
    for image in found:
        if image.state in ("finished", "foreign", "refused"):
            yield _outcome(image, image.state, image.note)
        elif params.dry_run:
            yield _foreseen(params, image)
        else:
            change = _change(image)
            if isinstance(change, str):
                yield _outcome(image, "failed", change)
            elif _is_old(change, params.settle_seconds):
                settled.append(image)
            else:
                unsettled.append((image, change))
    seen = time.monotonic()
    yield from build(params, settled)
    if unsettled:
        time.sleep(max(0.0, seen + params.settle_seconds - time.monotonic()))
    calm = [image for image, change in unsettled if _change(image) == change]
    yield from build(params, calm)
    for image, _ in unsettled:
        if image not in calm:
            yield _outcome(image, "being written", "it still changes; the next sweep looks again")


def _change(image: Found) -> Change | str:
    """Return how a source looks now, or why it cannot be looked at."""
    try:
        return last_change(image.source)
    except (PyramidError, OSError) as error:
        return str(error)


def _is_old(change: Change, seconds: float) -> bool:
    """Return whether nothing was written for so long; a store's clock may differ from ours."""
    limit = datetime.now(UTC) - timedelta(seconds=seconds)
    return change.newest is not None and change.newest <= limit


def _build_here(params: SweepParams, images: Iterable[Found]) -> Iterator[Outcome]:
    """Build one image after another in this process, so that a cancel reaches what runs."""
    for image in images:
        start = time.perf_counter()
        asked = _asked_now(params, image)
        if isinstance(asked, Outcome):
            yield asked
            continue
        state: Any = build_pyramid(**asked.model_dump(), return_state=True)
        seconds = time.perf_counter() - start
        if state.is_completed():
            result = state.result()
            note = f"{result.blocks_built:,} blocks built, {result.blocks_found:,} found finished"
            yield _outcome(image, "built", note, seconds)
        else:
            error = state.result(raise_on_failure=False)
            outcome = "refused" if isinstance(error, RequestError) else "failed"
            outcome = "busy" if isinstance(error, TargetBusyError) else outcome
            yield _outcome(image, outcome, state.message or state.name, seconds)


def _asked_now(params: SweepParams, image: Found) -> PyramidParams | Outcome:
    """Return what to ask of a build, or why there is none: another sweep may be here as well.

    What it has published meanwhile would be replaced else, and built twice.
    """
    asked = params.params(image.source, image.target)
    if image.state == "new":
        resumed = {"existing": "resume"} if asked.existing == "replace" else {}
        return asked.model_copy(update=resumed)
    try:
        if image.target is None:  # what was found may be the base alone; the pyramid is its group
            place, outbox = open_image(image.source).info.location, None
        else:
            place, outbox = image.source, split(image.target)[0]
        with own(image.target or place):
            pass
        (now, *_) = find_images(place, outbox, compare_objects=params.compare_objects)
    except TargetBusyError as error:
        return _outcome(image, "busy", str(error))
    except (PyramidError, OSError):
        return asked  # the build says what is wrong
    if now.state == "finished":
        return _outcome(image, "finished", "it was built since this sweep began")
    return asked


def _check_deployment(name: str) -> None:
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(name)
    except (ObjectNotFound, ValueError) as error:
        msg = f"there is no deployment {name}; `prefect deployment ls` names those that there are"
        raise RequestError(msg) from error


def _hand_over(params: SweepParams, images: Iterable[Found]) -> Iterator[Outcome]:
    """Let a deployment build each image, on the machines of its work pool; wait for all."""
    runs: dict[UUID, Found] = {}
    ours: set[UUID] = set()
    start = time.perf_counter()
    with _cancelled_with_us(ours):
        for image in images:
            asked = _asked_now(params, image)
            if isinstance(asked, Outcome):
                yield asked
                continue
            run = _run_for(str(params.deployment), image, asked)
            runs[run.id] = image
            if _OURS.format(runtime.flow_run.id) in run.tags:
                ours.add(run.id)
        while runs:
            for number in list(runs):
                state = _state(number)
                if state is not None and state.is_final():
                    outcome = "built" if state.is_completed() else "failed"
                    note = state.message or f"run {number} of {params.deployment}"
                    seconds = time.perf_counter() - start
                    ours.discard(number)
                    yield _outcome(runs.pop(number), outcome, note, seconds)
            if runs:
                time.sleep(POLL_SECONDS)


def _run_for(deployment: str, image: Found, asked: PyramidParams) -> FlowRun:
    """Return the run that builds an image as it is now: of another sweep, if one is on its way.

    The server takes a key but once, whoever asks. What has ended without the image being there is
    asked for anew, by the next number.
    """
    said = repr((deployment, image.source, image.target, _change(image)))
    digest = hashlib.sha256(said.encode()).hexdigest()
    keys = (f"{digest}-{number}" for number in itertools.count())
    key, run = next((key, run) for key in keys if not _has_ended(run := _run_of(key)))
    made: Any = run or run_deployment(
        deployment,
        parameters=_filled_in(asked.model_dump()),
        timeout=0,
        tags=[_OURS.format(runtime.flow_run.id)],
        idempotency_key=key,
    )
    return cast("FlowRun", made)


def _run_of(key: str) -> FlowRun | None:
    named = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
    with get_client(sync_client=True) as client:
        return next(iter(client.read_flow_runs(flow_run_filter=named)), None)


def _has_ended(run: FlowRun | None) -> bool:
    return run is not None and run.state is not None and run.state.is_final()


def _filled_in(asked: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as the form sends them: all, or the deployment's own would count."""
    form = inspect.signature(build_pyramid.fn).parameters
    return {name: form[name].default if v is None else v for name, v in asked.items()}


def _state(run: UUID) -> State | None:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run).state


@contextmanager
def _cancelled_with_us(runs: set[UUID]) -> Iterator[None]:
    """Cancel the runs of ours that have not ended, if this one is stopped."""
    try:
        yield
    except BaseException:
        with get_client(sync_client=True) as client:
            for number in runs:
                client.set_flow_run_state(number, Cancelling(message="its sweep was stopped"))
        raise


def _foreseen(params: SweepParams, image: Found) -> Outcome:
    """Return what a dry run says of an image: what would be built, or why it cannot be."""
    try:
        plan = plan_build(params.params(image.source, image.target))
    except PyramidError as error:
        return _outcome(image, "refused", str(error))
    return _outcome(image, "to build", f"{image.state}; {plan.headline}")


def _outcome(image: Found, outcome: str, note: str, seconds: float = 0.0) -> Outcome:
    place = shown(image.target or "")
    line = " ".join(note.split())
    if outcome not in ("finished", "foreign"):
        log.log(logging.ERROR if outcome in FAULTS else logging.INFO, "%s: %s, %s",
                shown(image.source), outcome, line)  # fmt: skip
    return Outcome(shown(image.source), place, outcome, line, round(seconds, 1))


def _counted(outcomes: list[Outcome]) -> str:
    return _listed(Counter(outcome.outcome for outcome in outcomes)) or "none"


def _listed(counts: Counter[Any]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
