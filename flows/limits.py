"""Courtesies of Prefect: two runs on one image wait for each other, and a store is not overrun.

The guard is the core's own (``pyramid_core.owner``). These limits let a second run wait where it
would be refused, and let an operator bound how many images are built at once. So a server that
cannot be reached, or has forgotten who holds a slot, never stops a build.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from flows.reports import key_of
from flows.server import is_own
from pyramid_core.build import BuildResult
from pyramid_core.errors import StoppedError, TargetBusyError
from pyramid_core.model import PyramidPlan

log = logging.getLogger("pyramid_core.flows")

STORE_LIMIT = "pyramid-store"
"""A global concurrency limit of this name, made in the UI, bounds the images built at once."""

WAIT_SECONDS = 600.0
"""How long a run waits for another one of the same image before the core's guard decides."""

BUSY_SECONDS = 5.0
"""How often a run that was picked up looks whether its former self has let the image go."""

ASK_SECONDS = 2.0
"""How often a run that waits asks for a slot."""

LEASE_SECONDS = 60.0
"""A slot is free this long after its holder was killed; the shortest that Prefect takes."""

MOST_RUNS = 10
"""A run that crashed is begun again this often at most: what kills it each time would go on."""

_begun_again: ContextVar[bool] = ContextVar("begun_again", default=False)

_UNREACHABLE = (httpx.HTTPError, ConcurrencySlotAcquisitionError)


@contextmanager
def bounded_runs() -> Iterator[None]:
    """Give up a run that has crashed too often; within the block, know if it was begun before.

    Raises:
        StoppedError: If it has.
    """
    if runtime.flow_run.run_count > MOST_RUNS:
        msg = f"this run was begun {MOST_RUNS} times and did not end; run it anew to go on"
        raise StoppedError(msg)
    known = _begun_again.set(is_begun_again() or runtime.flow_run.run_count > 1)
    try:
        yield
    finally:
        _begun_again.reset(known)


def is_begun_again() -> bool:
    """Return whether this run, or the sweep that it is part of, was begun before.

    Then its former self may not have ended yet, or be killed and hold a slot a little longer.
    """
    return _begun_again.get()


def when_free(build: Callable[[], BuildResult]) -> BuildResult:
    """Build; a run that was picked up waits for its former self, which may not have ended yet.

    A server that was away calls runs crashed that go on for some minutes.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return build()
        except TargetBusyError as error:
            if not is_begun_again() or time.monotonic() > deadline:
                raise
            log.info("%s", error)
        time.sleep(BUSY_SECONDS)


@contextmanager
def limits(plan: PyramidPlan) -> Iterator[None]:
    """Hold the slot of this image, and one of the store's where an operator has set that limit."""
    if is_own():
        yield
        return
    held: list[str] = []
    with ExitStack() as slots:
        try:
            # Else a run that was picked up would wait for itself.
            for name in [] if is_begun_again() else [key_of(i.target) for i in plan.images]:
                with get_client(sync_client=True) as client:
                    client.upsert_global_concurrency_limit_by_name(name, 1)
                if _hold(slots, name, WAIT_SECONDS):
                    held.append(name)
            # Last: who waits for an image must not keep others from the store.
            _hold(slots, STORE_LIMIT, None)
        except _UNREACHABLE as error:
            log.warning("built without waiting for others: %s", error)
        try:
            yield
        finally:
            try:
                slots.close()
                for name in held:
                    _drop(name)
            except _UNREACHABLE as error:
                log.warning("a slot was not given back, so others wait for its lease: %s", error)


def _drop(name: str) -> None:
    """Delete the limit of an image that nobody builds: a page of thousands would help no operator.

    A run that waits for it then goes on without, after the one that held it.
    """
    limit = _read(name)
    if limit is not None and limit.active_slots == 0:
        # Another run may have deleted it in between.
        with suppress(ObjectNotFound), get_client(sync_client=True) as client:
            client.delete_global_concurrency_limit_by_name(name)


def _read(name: str) -> GlobalConcurrencyLimitResponse | None:
    """Return a limit, or None where there is none of that name."""
    try:
        with get_client(sync_client=True) as client:
            return client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        return None


def _hold(slots: ExitStack, name: str, seconds: float | None) -> bool:
    """Hold a slot as soon as one is free; return False where none was in so many seconds."""
    start, waits = time.monotonic(), False
    while (limit := _read(name)) is not None:
        # Looked at first: Prefect prints an error for each slot that it cannot give.
        if limit.active_slots < limit.limit and _take(slots, name):
            return True
        if not waits:
            log.info("other runs hold the limit %s; this one waits", name)
        waits = True
        if seconds is not None and time.monotonic() > start + seconds:
            log.warning(
                "%s was not free within %s s; the lock beside the image decides", name, seconds
            )
            break
        time.sleep(ASK_SECONDS)
    return False


def _take(slots: ExitStack, name: str) -> bool:
    """Hold a slot if one is free now; Prefect's own wait for one is deaf to a cancel."""
    asked = concurrency(
        name, max_retries=0, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False
    )
    try:
        slots.enter_context(asked)
    except ConcurrencySlotAcquisitionError as error:
        answer = getattr(error.__cause__, "response", None)
        if answer is None or answer.status_code != httpx.codes.LOCKED:
            raise
        return False
    return True
