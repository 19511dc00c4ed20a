"""Where commands begin: Ctrl-C is one line, while the imports still take their time."""

from __future__ import annotations

import os
import signal
import sys
import types

STOPPED = 130
"""Exit status after Ctrl-C."""


def main() -> int:
    """Run ``pyramid`` and return its exit status."""
    mind_ctrl_c("pyramid")
    from pyramid_core import cli

    leave_ctrl_c()
    try:
        return cli.main()
    except KeyboardInterrupt:  # while the words are read; a command that runs minds it itself
        _say("pyramid")
        return STOPPED


def mind_ctrl_c(name: str) -> None:
    """End in one line at Ctrl-C, until ``leave_ctrl_c``: nothing is done yet but imports."""

    def end(number: int, frame: types.FrameType | None) -> None:  # noqa: ARG001 - signal's form
        _say(name)
        os._exit(STOPPED)

    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # what is ignored stays so
        signal.signal(signal.SIGINT, end)


def leave_ctrl_c() -> None:
    """Let Ctrl-C be an exception again, unless it is ignored."""
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _say(name: str) -> None:
    os.write(2, f"{name}: stopped by Ctrl-C; run the same again to go on\n".encode())


if __name__ == "__main__":
    sys.exit(main())
