"""Courtesies of Prefect: two runs on one image wait for each other, and a store is not overrun.

The guard is the core's own (``pyramid_core.owner``). These limits let a second run wait where it
would be refused, and let an operator bound how many images are built at once. So a server that
cannot be reached, or has forgotten who holds a slot, never stops a build.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.reports import key_of
from pyramid_core.model import PyramidPlan

log = logging.getLogger("pyramid_core.flows")

STORE_LIMIT = "pyramid-store"
"""A global concurrency limit of this name, made in the UI, bounds the images built at once."""

WAIT_SECONDS = 600.0
"""How long a run waits for another one of the same image before the core's guard decides."""

LEASE_SECONDS = 60.0
"""A slot is free this long after its holder was killed; the shortest that Prefect takes."""

_UNREACHABLE = (httpx.HTTPError, ConcurrencySlotAcquisitionError)


@contextmanager
def limits(plan: PyramidPlan) -> Iterator[None]:
    """Hold the slot of this image, and one of the store's where an operator has set that limit."""
    # A hidden server is this run's own. And a run that crashed and was picked up again would wait
    # for itself: its slot is leased a little longer.
    if not PREFECT_API_URL.value() or runtime.flow_run.run_count > 1:
        yield
        return
    with ExitStack() as slots:
        try:
            if _is_set(STORE_LIMIT):
                _hold(slots, STORE_LIMIT, None)
            for image in plan.images:
                name = key_of(image.target)
                with get_client(sync_client=True) as client:
                    client.upsert_global_concurrency_limit_by_name(name, 1)
                _hold(slots, name, WAIT_SECONDS)
        except _UNREACHABLE as error:
            log.warning("built without waiting for others: %s", error)
        try:
            yield
        finally:
            try:
                slots.close()
            except _UNREACHABLE as error:
                log.warning("a slot was not given back, so others wait for its lease: %s", error)


def _is_set(name: str) -> bool:
    try:
        with get_client(sync_client=True) as client:
            client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        return False
    return True


def _hold(slots: ExitStack, name: str, seconds: float | None) -> None:
    """Hold a slot, as soon as one is free; after so many seconds go on without."""
    for wait in (2.0, seconds):
        try:
            slots.enter_context(
                concurrency(
                    name,
                    timeout_seconds=wait,
                    lease_duration=LEASE_SECONDS,
                    raise_on_lease_renewal_failure=False,
                )
            )
            return
        except TimeoutError:
            log.info("other runs hold the limit %s; this one waits", name)
    log.warning("%s was not free within %.0f s; the lock beside the image decides", name, seconds)
