"""The command ``pyramid``, which hears Ctrl-C while the command line itself is imported."""

from __future__ import annotations

import os
import signal


def main() -> int:
    """Import the command line, run it, and return its exit status."""
    before = signal.signal(signal.SIGINT, _end)
    from pyramid_core.cli import main as run

    signal.signal(signal.SIGINT, before)  # the command line minds it from here on
    return run()


def _end(*_: object) -> None:
    """End in one line; nothing is done yet."""
    os.write(2, b"pyramid: stopped by Ctrl-C; run the same again to go on\n")
    os._exit(130)
