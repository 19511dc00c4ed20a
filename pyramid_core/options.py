"""The options of the command line, generated from ``PyramidParams``: nothing is written twice."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

from pyramid_core.errors import RequestError
from pyramid_core.params import PyramidParams, parse_params
from pyramid_core.shell import QUIET, USUAL, VERBOSE, WRONG

_WIDEST, _NARROW = 100, 79
"""Columns of help: longer lines are hard to read, and the brief one fits on the usual terminal."""

_COLUMN = 26
"""Where the texts begin."""


class _Layout(argparse.RawDescriptionHelpFormatter):
    """Help with examples as they are written, and lists shown once."""

    def __init__(self, prog: str, **options: Any) -> None:
        width = min(_WIDEST, shutil.get_terminal_size().columns - 1)
        super().__init__(prog, **{"max_help_position": _COLUMN, "width": width, **options})

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        is_list = action.nargs == "+" and isinstance(action.metavar, str)
        return str(action.metavar) if is_list else super()._format_args(action, default_metavar)


class _Help(argparse.Action):
    """``-h`` fits on a screen, ``--help`` says all."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002 - argparse's form
        values: str | Sequence[Any] | None,  # noqa: ARG002
        option_string: str | None = None,
    ) -> None:
        for action in parser._actions if option_string == "-h" else ():
            action.help = _first_clause(action.help or "")
            if str(action.metavar).startswith("{"):  # the choices alone, in one line
                default = action.help.rpartition(" [")[1:]
                action.help = str(action.metavar)[1:-1].replace(",", ", ") + "".join(default)
                action.metavar = action.dest.rpartition("_")[2].upper()
        parser.print_help()
        parser.exit()


def _first_clause(text: str) -> str:
    """Return the beginning of a help that can stand alone, with the default at its end.

    >>> _first_clause("What happens there, like so: trim drops it. And more. [exact]")
    'What happens there, like so [exact]'
    >>> _first_clause("Location of the image, like /data/scan.zarr or s3://bucket/scan.zarr")
    'Location of the image'
    """
    said, bracket, default = text.partition(" [")
    said = re.split(r"[:.;](?=\s|$)", said)[0]
    if len(said + bracket + default) > _NARROW - _COLUMN:
        said = said.partition(", like ")[0]
    return said + bracket + default


class Parser(argparse.ArgumentParser):
    """A parser whose help fits on a screen, and whose errors are one message."""

    def __init__(self, *, examples: Sequence[str], **options: Any) -> None:
        options = {"allow_abbrev": False, "formatter_class": _Layout, "add_help": False, **options}
        super().__init__(epilog="\n  ".join(["examples:", *examples]), **options)
        self.add_argument("-h", "--help", action=_Help, nargs=0,
                          help="show help, in brief by -h, in full by --help")  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Print the message and where help is; end with status 2."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(WRONG)


def add_params(parser: argparse.ArgumentParser) -> None:
    """Add an option for every field of ``PyramidParams``; the texts are those of the fields."""
    parser.add_argument("source_", nargs="?", metavar="SOURCE", help=argparse.SUPPRESS)
    for name, field in PyramidParams.model_fields.items():
        default = "" if field.is_required() or field.default in (None, "", []) else field.default
        text = ",".join(map(str, default)) if isinstance(default, list) else str(default)
        is_list = isinstance(field.default, list)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            nargs="+" if is_list else None,
            metavar="N,N,N" if is_list else _metavar(name, field.annotation),
            help=(field.description or "") + (f" [{text}]" if text else ""),
        )


def _metavar(name: str, annotation: Any) -> str:
    choices = [a for a in get_args(annotation) if isinstance(a, str)]
    return "{" + ",".join(choices) + "}" if choices else name.rpartition("_")[2].upper()


def add_saying(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how much is printed, and in which form."""
    much = parser.add_mutually_exclusive_group()
    much.add_argument("-q", "--quiet", dest="say", action="store_const", const=QUIET,
                      help="print only what is wrong")  # fmt: skip
    much.add_argument("-v", "--verbose", dest="say", action="store_const", const=VERBOSE,
                      help="print more, and what libraries warn of")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    parser.set_defaults(say=USUAL)


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
    if arguments.source is None:
        arguments.source = _taken_by_a_list(arguments)
    for name in PyramidParams.model_fields:
        value = getattr(arguments, name, None)
        if value is not None:
            values[name] = " ".join(value) if isinstance(value, list) else value
    if "source" not in values:
        msg = "name the image: pyramid build SOURCE, or --source SOURCE"
        raise RequestError(msg)
    return parse_params(values)


def _taken_by_a_list(arguments: argparse.Namespace) -> str | None:
    """Return the source that argparse took for the last number of ``--step 2 2 2 scan.zarr``."""
    lists = [name for name, f in PyramidParams.model_fields.items() if isinstance(f.default, list)]
    for values in filter(None, (getattr(arguments, name) for name in lists)):
        if len(values) > 1 and not re.fullmatch(r"[\d.,x]+", values[-1]):
            return str(values.pop())
    return None
