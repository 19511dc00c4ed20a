"""A cancel ends the process of a run in time, whatever a codec still does in it.

Prefect stops a run by SIGTERM, which the task that runs meets as an exception; the core then waits
for the blocks in flight. A codec cannot be interrupted and may take longer than Prefect waits: it
would kill the process after half a minute, and leave what that has started.
"""

from __future__ import annotations

import signal
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.states import Crashed

from pyramid_core.shell import before_end, end_at_once, end_later, hurry, is_hasty

GRACE_SECONDS = 8.0
"""How long blocks in flight, and a local Dask cluster, may take to end after a cancel."""

REPORT_SECONDS = 3.0
"""How long a server may take to hear of the task that is ended with its process."""


@contextmanager
def ended_in_time() -> Iterator[None]:
    """End this process a few seconds after SIGTERM, unless the block has ended by then.

    All writes are atomic and the death of the process frees the target, so a run goes on from
    there; processes of a local Dask cluster end with the one that has started them.
    """
    usual: Any = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    timers: list[threading.Timer] = []

    def stop(number: int, frame: types.FrameType | None) -> None:
        if is_hasty():  # the script of somebody at a shell, who waits
            signal.signal(number, end_at_once)
            hurry(number)
        elif not timers:
            # Known here alone: a signal is handled in the context of the task that it meets.
            before_end.append(partial(_report, runtime.task_run.id, _image_of_sweep()))
            timers.append(end_later(number, GRACE_SECONDS))
        usual(number, frame)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)
        for timer in timers:
            timer.cancel()


def _image_of_sweep() -> UUID | None:
    """Return the flow run that is inside of another, if any; ``runtime`` would ask the server."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run.id if run and run.parent_task_run_id else None


def _report(task_run: str | None, flow_run: UUID | None) -> None:
    """Tell the server of what ends here; else it would be shown as running for ever.

    The run itself is told of by Prefect, but of a sweep that is the sweep, not its image.
    """
    telling = threading.Thread(target=_tell, args=(task_run, flow_run), daemon=True)
    telling.start()
    telling.join(REPORT_SECONDS)


def _tell(task_run: str | None, flow_run: UUID | None) -> None:
    state: Any = Crashed(message="Stopped while a block was in a codec, which waits for nobody.")
    with suppress(Exception), get_client(sync_client=True) as client:
        if task_run is not None:
            client.set_task_run_state(UUID(task_run), state, force=True)
        if flow_run is not None:
            client.set_flow_run_state(flow_run, state, force=True)
