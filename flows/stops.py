"""A cancel ends the process of a run in time, whatever a codec still does in it.

Prefect stops a run by SIGTERM, which the task that runs meets as an exception; the core then waits
for the blocks in flight. A codec cannot be interrupted and may take longer than Prefect waits: it
would kill the process after half a minute, and leave what that has started.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.states import Crashed

from pyramid_core.shell import SIGNALS, before_end, end_at_once, end_later, is_hasty

GRACE_SECONDS = 8.0
"""How long blocks in flight, and a local Dask cluster, may take to end after a cancel."""

REPORT_SECONDS = 3.0
"""How long a server may take to hear of the task that is ended with its process."""


@contextmanager
def ended_in_time() -> Iterator[None]:
    """End this process a few seconds after SIGTERM, unless the block has ended by then.

    All writes are atomic and the death of the process frees the target, so a run goes on from
    there; processes of a local Dask cluster end with the one that has started them.

    The signal is overheard by a thread; its handler stays Prefect's, since Prefect takes a cancel
    for a crash where another has taken its place (prefect.utilities.engine.capture_sigterm).
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    told, heard = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(heard, run), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.close()
        listener.join()


def _listen(heard: socket.socket, run: FlowRun) -> None:
    """Read the numbers of the signals that come, until the other end is closed."""
    timer: threading.Timer | None = None
    hasty = is_hasty()  # the script of somebody at a shell, who waits
    with heard:
        while numbers := heard.recv(64):
            for number in numbers:
                if timer is None and number == signal.SIGTERM and hasty:
                    timer = end_later(number)
                elif timer is None and number == signal.SIGTERM:
                    before_end.append(partial(_report, run))
                    timer = end_later(number, GRACE_SECONDS)
                elif timer is not None and hasty and number in SIGNALS:
                    end_at_once(number, None)
    # Of a script it is not called off: a thread in a codec holds up Python's own end too.
    if timer is not None and not hasty:
        timer.cancel()


def _report(run: FlowRun) -> None:
    """Tell the server of what ends here; else it would be shown as running for ever.

    The run itself is told of by Prefect, but of a sweep that is the sweep, not its image.
    """
    telling = threading.Thread(target=_tell, args=(run,), daemon=True)
    telling.start()
    telling.join(REPORT_SECONDS)


def _tell(run: FlowRun) -> None:
    said = "Stopped while a block was in a codec, which waits for nobody."
    state: State[None] = Crashed(message=said)
    running = TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING]))
    with suppress(Exception), get_client(sync_client=True) as client:
        for task_run in client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
            task_run_filter=TaskRunFilter(state=running),
        ):
            client.set_task_run_state(task_run.id, state, force=True)
        if run.parent_task_run_id is not None:
            client.set_flow_run_state(run.id, state, force=True)
