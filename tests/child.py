"""Servers of the tests, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).parent.parent


class Server(ThreadingHTTPServer):
    """Serves HTTP, to many who come at once too."""

    request_queue_size = 128  # who finds no place in the usual 5 comes again after a second


class Child(NamedTuple):
    """What is said to a process, and what it says."""

    said: IO[str]
    """Its standard input; the process ends when it is closed."""
    heard: IO[str]
    """Its standard output."""

    def address(self) -> str:
        """Return the address that a server prints when it has begun."""
        found = self.heard.readline().strip()
        assert found.startswith("http://"), "the server did not start"
        return found


@contextmanager
def running_child(module: str, *words: str) -> Iterator[Child]:
    """Run a module that ends when its input is closed: with the block, or by our death."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Child(process.stdin, process.stdout)
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
        process.stdout.close()
