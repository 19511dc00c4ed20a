"""A command and its shell: exit statuses, signals, errors in one line, colours on a terminal."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

from pyramid_core.errors import PyramidError, RequestError, printable, reason_and_remedy

DONE, FAILED, WRONG = 0, 1, 2

QUIET, USUAL, VERBOSE = 0, 1, 2
"""How much a command says beside its answer."""

COLORS = {"red": 31, "green": 32}


class _Stopped(BaseException):
    """A signal came: unwind as for Ctrl-C, so that running blocks end and the target is let go."""


SIGNALS = {
    signal.SIGINT: ("Ctrl-C", signal.default_int_handler),
    signal.SIGTERM: ("SIGTERM", signal.SIG_DFL),
    signal.SIGHUP: ("SIGHUP", signal.SIG_DFL),
}
"""What stops a command: its name, and who handles it where nobody has asked for something else."""

GRACE_SECONDS = 4.0
"""How long the blocks in flight may go on after a first signal: a codec cannot be interrupted, and
takes 14 s for a chunk of 512^3 in gzip."""

_OF_TRACKERS = "ignore:resource_tracker:UserWarning"
"""What multiprocessing's own process would say beside our line: that it tidied up after Dask."""

_last_word = threading.Lock()
"""Taken by whoever prints the one line of a command that was stopped."""

_hasty = threading.Event()
"""Set while a command runs whose process is ours to end."""

before_end: list[Callable[[], object]] = []
"""What is done before a process is ended in the middle: telling a server of it, say."""


def guarded(run: Callable[[], int], name: str, *, hasty: bool = False) -> int:
    """Run a command; turn what goes wrong into one message and an exit status.

    Args:
        run: The command; returns its exit status.
        name: Its name.
        hasty: The process is ours to end: at once by a second signal, and ``GRACE_SECONDS`` after
            the first, whatever still runs then.
    """
    before = {
        number: signal.signal(number, _stop_then_end if hasty else _stop)
        for number, (_, usual) in SIGNALS.items()
        if signal.getsignal(number) == usual  # nohup has SIGHUP ignored
    }
    if hasty:
        _hasty.set()
    try:
        return run()
    except RequestError as error:
        return _fail(name, error, WRONG)
    except PyramidError as error:
        return _fail(name, error, FAILED)
    except BrokenPipeError:
        # Who reads what we print has enough of it, like head; keep Python from saying so at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _fail(name, reason_and_remedy(error) or error, FAILED)
    except Exception as error:
        if number := signal_behind(error):
            return _stopped(name, number)
        # Errors of the object-store client, which need not be imported to be told.
        if type(error).__module__.partition(".")[0] != "obstore":
            raise
        from pyramid_core.remote import told

        said = reason_and_remedy(error) or told(error, "an object store")
        return _fail(name, said, FAILED)
    except KeyboardInterrupt:
        return _stopped(name, signal.SIGINT)
    except _Stopped as stopped:
        return _stopped(name, stopped.args[0])
    finally:
        _hasty.clear()
        if hasty:
            atexit.register(_hush)
        for number, handler in before.items():
            signal.signal(number, handler)


def is_hasty() -> bool:
    """Return whether a command runs whose process is ours to end."""
    return _hasty.is_set()


def _hush() -> None:
    """Keep from the terminal what is told of reads that zarr left behind, at a damaged chunk."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")


def signal_behind(error: BaseException | None) -> int:
    """Return the signal that an error came of, else 0: Prefect may fail on its way out of one.

    >>> error = ValueError("Task run is not set")
    >>> error.__context__ = KeyboardInterrupt()
    >>> signal_behind(error), signal_behind(ValueError())
    (2, 0)
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return int(signal.SIGINT)
        if isinstance(error, _Stopped):
            return int(error.args[0])
        if type(error).__name__ == "TerminationSignal":  # Prefect's, which the core never imports
            return int(error.signal)  # type: ignore[attr-defined] # of Prefect's
        error = error.__cause__ or error.__context__
    return 0


def _stop(number: int, frame: types.FrameType | None) -> None:  # noqa: ARG001 - signal's form
    raise KeyboardInterrupt if number == signal.SIGINT else _Stopped(number)


def _stop_then_end(number: int, frame: types.FrameType | None) -> None:
    """End this process soon after a first signal, whatever still runs; at a second, at once."""
    for each in SIGNALS:
        if signal.getsignal(each) == _stop_then_end:
            signal.signal(each, end_at_once)
    end_later(number)  # and not called off: a thread in a codec holds up Python's own end too
    _stop(number, frame)


def end_later(number: int, seconds: float = GRACE_SECONDS) -> threading.Timer:
    """End this process so long after a signal, whatever still runs then."""
    timer = threading.Timer(seconds, _end_saying, (_said_of(number), number))
    timer.daemon = True
    timer.start()
    return timer


def end_at_once(number: int, frame: types.FrameType | None) -> None:  # noqa: ARG001 - signal's form
    """End at the second signal; as after a kill, what is there is whole."""
    _end_saying("ended at once; run the same again to go on", number)


def _end_saying(said: str, number: int) -> None:
    for do in before_end:
        do()
    _say_last(f"pyramid: {said}")
    os._exit(128 + number)


def _say_last(line: str) -> None:
    if _last_word.acquire(blocking=False):
        shown = "\n\x1b[?25h" if os.isatty(2) else ""  # below the bar, which had hidden the cursor
        with contextlib.suppress(OSError):
            os.write(2, f"{shown}{line}\n".encode())


def _stopped(name: str, number: int) -> int:
    if _last_word.acquire(blocking=False):
        _fail(name, _said_of(number), FAILED)
    return 128 + number


def _said_of(number: int) -> str:
    return f"stopped by {SIGNALS[signal.Signals(number)][0]}; run the same again to go on"


def _fail(name: str, error: object, status: int) -> int:
    # The terminal may be gone, or who reads it.
    with contextlib.suppress(OSError):
        head = painted(f"{name}:", "red", sys.stderr)
        print(f"{head} {printable(error)}", file=sys.stderr, flush=True)
    return status


def painted(text: str, color: str, stream: TextIO) -> str:
    """Return a text in a colour where a terminal shows it, and https://no-color.org is respected.

    >>> import io
    >>> painted("right", "green", io.StringIO())
    'right'
    """
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if is_plain or not stream.isatty() else f"\x1b[{COLORS[color]}m{text}\x1b[0m"


@contextlib.contextmanager
def silent_libraries(say: int) -> Iterator[None]:
    """Keep what libraries warn of from the terminal, unless much is to be said or -W asks for it.

    Nothing that they warn of is for who builds a pyramid: what is, is an error or a note of ours.
    """
    if say == VERBOSE or [option for option in sys.warnoptions if option != _OF_TRACKERS]:
        yield
        return
    if _OF_TRACKERS not in sys.warnoptions:
        sys.warnoptions.append(_OF_TRACKERS)  # handed on to processes that are started
    logger, sink = logging.getLogger("py.warnings"), logging.NullHandler()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(sink)
    # Not by a filter: a filter of warnings holds for one thread at a time.
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logger.removeHandler(sink)
        logger.propagate = propagates
