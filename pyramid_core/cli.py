"""The command line: ``pyramid plan | build | verify | preview | phantom``, without Prefect.

The options are generated from ``PyramidParams``; nothing is written twice. Exit status: 0 done;
1 it failed, or ``verify`` found defects; 2 what was asked is wrong; 130 and 143 stopped by Ctrl-C
and SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from pyramid_core.errors import PyramidError, RequestError, printable, reason_and_remedy
from pyramid_core.params import PHANTOM_KINDS, PyramidParams, VerifyMode, human, parse_params
from pyramid_core.version import VERSION

if TYPE_CHECKING:
    from pyramid_core.build import BuildResult, Progress
    from pyramid_core.execute import LevelRun
    from pyramid_core.job import BlockResult

DONE, FAILED, WRONG = 0, 1, 2


class _Stopped(BaseException):
    """A signal came: unwind as for Ctrl-C, so that running blocks end and the target is let go."""


_SIGNALS = {
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

before_end: list[Callable[[], object]] = []
"""What is done before a process is ended in the middle: with what it has started, say."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one message, without a screen of usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and where help is; end with status 2."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(WRONG)


class _Printable(logging.Formatter):
    """Formats what is logged so that no name in it moves the cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def add_params(parser: argparse.ArgumentParser) -> None:
    """Add an option for every field of ``PyramidParams``; the texts are those of the fields."""
    parser.add_argument("source_", nargs="?", metavar="SOURCE", help="same as --source")
    for name, field in PyramidParams.model_fields.items():
        default = "" if field.is_required() or field.default in (None, "", []) else field.default
        text = ",".join(map(str, default)) if isinstance(default, list) else str(default)
        is_list = isinstance(field.default, list)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            nargs="+" if is_list else None,
            metavar=_metavar(field.annotation, is_list=is_list),
            help=(field.description or "") + (f" [{text}]" if text else ""),
        )


def _metavar(annotation: Any, *, is_list: bool) -> str:
    choices = [a for a in get_args(annotation) if isinstance(a, str)]
    if choices:
        return "{" + ",".join(choices) + "}"
    return "N,N,N" if is_list else "VALUE"


def given_params(arguments: argparse.Namespace, **defaults: Any) -> PyramidParams:
    """Return the parameters that a command line gives, with other defaults where it is silent.

    Raises:
        RequestError: If one is wrong, or the source is missing.
    """
    values = dict(defaults)
    if arguments.source_ is not None:
        if arguments.source is not None:
            msg = "the source is named twice; give SOURCE or --source"
            raise RequestError(msg)
        arguments.source = arguments.source_
    for name in PyramidParams.model_fields:
        value = getattr(arguments, name, None)
        if value is not None:
            values[name] = " ".join(value) if isinstance(value, list) else value
    if "source" not in values:
        msg = "name the image: pyramid build SOURCE, or --source SOURCE"
        raise RequestError(msg)
    return parse_params(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if _OF_TRACKERS not in sys.warnoptions:
        sys.warnoptions.append(_OF_TRACKERS)  # handed on to them
    return guarded(lambda: int(given.run(given)), parser.prog, hasty=True)


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
        for number, (_, usual) in _SIGNALS.items()
        if signal.getsignal(number) == usual  # nohup has SIGHUP ignored
    }
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
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: types.FrameType | None) -> None:  # noqa: ARG001 - signal's form
    raise KeyboardInterrupt if number == signal.SIGINT else _Stopped(number)


def _stop_then_end(number: int, frame: types.FrameType | None) -> None:
    for each in _SIGNALS:
        if signal.getsignal(each) == _stop_then_end:
            signal.signal(each, _end)
    # Not called off when the work has ended: a thread in a codec holds up Python's own end too.
    timer = threading.Timer(GRACE_SECONDS, _end_late, (number,))
    timer.daemon = True
    timer.start()
    _stop(number, frame)


def _end(number: int, frame: types.FrameType | None) -> None:  # noqa: ARG001 - signal's form
    """End at once, at the second signal; as after a kill, what is there is whole."""
    for do in before_end:
        do()
    _say_last("pyramid: ended at once; run the same again to go on")
    os._exit(128 + number)


def _end_late(number: int) -> None:
    """End some seconds after the first signal, like the second."""
    for do in before_end:
        do()
    _say_last(f"pyramid: {_said_of(number)}")
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
    return f"stopped by {_SIGNALS[signal.Signals(number)][0]}; run the same again to go on"


def _fail(name: str, error: object, status: int) -> int:
    # The terminal may be gone, or who reads it.
    with contextlib.suppress(OSError):
        print(printable(f"{name}: {error}"), file=sys.stderr, flush=True)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pyramid",
        description="Build exact image pyramids from Zarr, published as OME-Zarr.",
        epilog="example: pyramid build scan.zarr --edges partial",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"zarr-pyramid-flow {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, run, text in (
        ("plan", _plan, "say what would be built and what it costs; writes nothing"),
        ("build", _build, "build what is asked, or what is missing of it; verify; publish"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_params(command)
        command.set_defaults(run=run)
    text = "check an OME-Zarr image, ours or another program's; changes nothing"
    verify = commands.add_parser("verify", help=text, description=text, allow_abbrev=False)
    verify.add_argument("location", metavar="LOCATION")
    verify.add_argument("--verify", choices=get_args(VerifyMode), default="sample", dest="mode",
                        help="which blocks are computed again [sample]")  # fmt: skip
    verify.set_defaults(run=_verify)
    text = "draw an image and its levels as a PNG; reads coarse levels, never all of a large one"
    preview = commands.add_parser("preview", help=text, description=text, allow_abbrev=False)
    preview.add_argument("location", metavar="LOCATION")
    preview.add_argument("-o", "--output", metavar="PREVIEW.png",
                         help="the file; an earlier PNG is replaced [NAME.png]")  # fmt: skip
    preview.set_defaults(run=_preview)
    text = "write a test image"
    phantom = commands.add_parser("phantom", help=text, description=text, allow_abbrev=False)
    phantom.add_argument("location", metavar="LOCATION")
    phantom.add_argument("--test-image", choices=PHANTOM_KINDS, default="blobs", dest="kind",
                         help="what it shows [blobs]")  # fmt: skip
    phantom.add_argument("--test-shape", nargs="+", default=["256,256,256"], metavar="N,N,N",
                         dest="shape", help="its shape [256,256,256]")  # fmt: skip
    phantom.set_defaults(run=_phantom)
    return parser


def _plan(arguments: argparse.Namespace) -> int:
    from pyramid_core.build import plan_build

    print(printable(plan_build(given_params(arguments))))
    return DONE


def _build(arguments: argparse.Namespace) -> int:
    params = given_params(arguments)
    from pyramid_core.build import build_pyramid

    with shown_progress() as progress:
        result = build_pyramid(params, progress=progress)
    print(printable(summary(result)))
    return DONE


def _verify(arguments: argparse.Namespace) -> int:
    from pyramid_core.verify import verify_pyramid

    verification = verify_pyramid(arguments.location, arguments.mode)
    print(printable(verification))
    return DONE if verification.ok else FAILED


def _preview(arguments: argparse.Namespace) -> int:
    from pyramid_core.preview import write_preview
    from pyramid_core.reader import image_name

    name = arguments.output or f"{image_name(arguments.location)}.png"
    print(printable(write_preview(arguments.location, name)))
    return DONE


def _phantom(arguments: argparse.Namespace) -> int:
    shape = parse_params({"source": "-", "test_shape": " ".join(arguments.shape)}).test_shape
    from pyramid_core.phantom import write_phantom

    info = write_phantom(arguments.location, kind=arguments.kind, shape=tuple(shape))
    print(f"{info.location}: {arguments.kind}, {'x'.join(map(str, info.shape))}, {info.dtype}")
    return DONE


def summary(result: BuildResult) -> str:
    """Return what a person wants to know at the end, with what to do next."""
    plan = result.plan
    lines = [
        f"{plan.target}: {len(plan.levels)} levels, {result.blocks_built:,} blocks built, "
        f"{result.blocks_found:,} found finished, {result.seconds:.1f} s, "
        f"{human(plan.cost.bytes_written)} before compression"
    ]
    if result.verification is not None and result.verification.mode != "none":
        checked = result.verification
        lines.append(
            f"verified: {checked.blocks_checked:,} of {checked.blocks:,} blocks computed again "
            f"and found equal, bit for bit"
        )
    elif result.verification is None:
        lines.append("it was there, finished; blocks computed again follow from the source")
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join([*lines, f"next: pyramid verify {shlex.quote(plan.target)}"])


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress | None]:
    """Show progress while the block runs: a bar on a terminal, else a line per level."""
    if not sys.stderr.isatty():
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("%(message)s"))
        logger = logging.getLogger("pyramid_core")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield None
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("blocks"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[tuple[str, str], Any] = {}

        def advance(run: LevelRun, result: BlockResult) -> None:  # noqa: ARG001 - progress's form
            key = (run.plan.target, run.level.path)
            if key not in tasks:
                text = f"{run.plan.source.name} level {run.level.path}"
                tasks[key] = bar.add_task(text, total=run.level.blocks.size)
            done = run.built + run.found + run.empty
            bar.update(tasks[key], completed=done)

        yield advance


if __name__ == "__main__":
    sys.exit(main())
