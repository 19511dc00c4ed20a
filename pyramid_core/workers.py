"""Where blocks are built: any ``concurrent.futures.Executor``; threads, or a Dask cluster."""

from __future__ import annotations

import ctypes
import logging
import platform
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any

from pyramid_core.errors import ClusterError
from pyramid_core.model import PyramidPlan


@contextmanager
def open_executor(plan: PyramidPlan, executor: Executor | None = None) -> Iterator[Executor]:
    """Yield where blocks are built: as given, a Dask cluster as asked or active, else threads.

    Raises:
        ClusterError: If the scheduler cannot be reached.
    """
    if executor is not None:
        yield executor
    elif plan.dask_address == "local":
        from distributed import Client, LocalCluster

        with ExitStack() as stack:
            with _undisturbed():
                cluster = LocalCluster(
                    n_workers=plan.workers,
                    threads_per_worker=1,
                    dashboard_address=None,
                    preload=[__name__],
                    # Its http port is opened all the same; 8787 may be taken by another cluster.
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                )
                stack.enter_context(cluster)
                client = stack.enter_context(Client(cluster, set_as_default=False))
            yield client.get_executor(pure=False)
    elif plan.dask_address is not None:
        from distributed import Client

        try:
            # Not the caller's own default: a client that fails would leave Dask's settings changed.
            client = Client(plan.dask_address, timeout=5, set_as_default=False)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            msg = f"no Dask scheduler answers at {plan.dask_address}: {reason}"
            raise ClusterError(msg) from error
        with _quiet("distributed.client"), _quiet("tornado.application"), client:
            _wait_for_worker(client, plan.dask_address)
            yield client.get_executor(pure=False)
    else:
        with default_executor(plan.workers) as found:
            yield found


@contextmanager
def default_executor(workers: int) -> Iterator[Executor]:
    """Yield an active Dask client's executor, else threads."""
    if (client := active_client()) is not None:
        yield client.get_executor(pure=False)
    else:
        with ThreadPoolExecutor(workers, thread_name_prefix="block") as threads:
            yield threads


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger quiet: of a scheduler that is lost, it tells tracebacks beside our error."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hear of a signal only at the end of the block: a cluster half started cannot be closed."""
    came: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (_STOPPING if is_main else ())
        if callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for stopping, handler in before.items():
            signal.signal(stopping, handler)
        if came:
            signal.raise_signal(came[0])


_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def dask_setup(worker: object) -> None:  # noqa: ARG001 - Dask's form
    """Leave signals to the process that builds; called by Dask in those that ``local`` starts.

    A terminal sends Ctrl-C to all of them; workers that die of it are started again without end.
    """
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _wait_for_worker(client: Any, address: str) -> None:
    """Wait for the first worker of a cluster that is still starting."""
    try:
        client.wait_for_workers(1, timeout=60)
    except TimeoutError as error:
        msg = f"the Dask scheduler at {address} has had no worker for a minute; start one"
        raise ClusterError(msg) from error


def active_client() -> Any:
    """Return the Dask client that the caller has made the current one, if any."""
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        return None


def warnings_heard() -> tuple[str, ...]:
    """Return what this process has warned of since the last call; the first begins to listen.

    For a worker in another process: its warnings reach nobody but its own console, so they are
    taken along with the blocks. Python tells of each warning of a place in the code once.
    """
    taken: list[str] = []
    with suppress(IndexError):  # not by its length: other threads take from it too
        while True:
            taken.append(_heard().popleft())
    return tuple(taken)


@cache
def return_what_is_freed() -> None:
    """Let the C library give large buffers back to the system as soon as they are freed.

    Left to itself, glibc comes to keep up to 64 MB of them for each of many threads: chunks of
    34 MB, in gzip, took 541 MB where 201 MB were planned, and take 348 MB with this.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**23)
        libc.mallopt(_TRIM_THRESHOLD, 2**25)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of malloc.h."""


@cache
def _heard() -> deque[str]:
    heard: deque[str] = deque(maxlen=100)
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage().split("\n")[0])  # type: ignore[method-assign] # the handler's one job
    logging.captureWarnings(True)
    for name in ("py.warnings", "pyramid_core"):
        logging.getLogger(name).addHandler(handler)
    return heard


def in_flight(plan: PyramidPlan, executor: Executor) -> int:
    """Return how many blocks are begun at the same time.

    A few per worker hide the hand-over; on a cluster that others share, no more than was asked.
    """
    if not is_cluster(executor):
        return 2 * plan.workers
    threads = sum(executor._client.nthreads().values())  # type: ignore[attr-defined] # Dask's
    return plan.max_workers or max(2, 2 * threads)


def is_cluster(executor: Executor) -> bool:
    """Return whether blocks run on a Dask cluster."""
    return hasattr(executor, "_client")  # of distributed's own executor


def is_lost(executor: Executor) -> bool:
    """Return whether the connection to the scheduler of a Dask cluster is gone.

    While Dask tries to connect again, all that was begun is lost already.
    """
    return is_cluster(executor) and executor._client.status != "running"  # type: ignore[attr-defined] # Dask's


def all_ended(executor: Executor) -> bool:
    """Return whether all that a Dask cluster was given has ended, told or not."""
    if not is_cluster(executor):
        return False
    return all(future.done() for future in list(executor._futures))  # type: ignore[attr-defined] # Dask's
