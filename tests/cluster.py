"""A Dask cluster as an operator starts it: from the command line, in processes of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.service import ROOT, free_port


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``dask`` as the command line would, and end it."""
    argv = [sys.executable, "-m", "dask", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def wait_for_workers(address: str, count: int) -> None:
    """Wait until the scheduler listens and the workers have come."""
    from distributed import Client

    host, _, port = address.removeprefix("tcp://").partition(":")
    deadline = time.monotonic() + 60
    # By hand: a refused attempt of Dask's own leaves a socket to the garbage collector, which warns.
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline, f"no scheduler at {address}"
            time.sleep(0.1)
    with Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


@contextmanager
def running_scheduler() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Yield the address of a scheduler, and its process."""
    port = free_port()
    with running(
        *("scheduler", "--host", "127.0.0.1", "--port", str(port)),
        *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
    ) as process:
        yield f"tcp://127.0.0.1:{port}", process


@contextmanager
def running_cluster(folder: Path) -> Iterator[str]:
    """Yield the address of a scheduler with two workers of one thread."""
    with ExitStack() as stack:
        where, _ = stack.enter_context(running_scheduler())
        for number in range(2):
            stack.enter_context(
                running(
                    *("worker", where, "--nthreads", "1", "--no-nanny", "--no-dashboard"),
                    *("--local-directory", str(folder / str(number))),
                )
            )
        wait_for_workers(where, 2)
        yield where
