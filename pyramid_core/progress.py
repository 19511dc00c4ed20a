"""What a build shows while it runs: a bar on a terminal, else a line per level."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyramid_core.errors import printable
from pyramid_core.shell import QUIET, VERBOSE

if TYPE_CHECKING:
    from pyramid_core.build import Progress
    from pyramid_core.execute import LevelRun
    from pyramid_core.job import BlockResult


class _Printable(logging.Formatter):
    """Formats what is logged so that no name in it moves the cursor."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def is_news(record: logging.LogRecord) -> bool:
    """Return whether the summary at the end does not say the same again."""
    return record.name != "pyramid_core.build.ending"


@contextlib.contextmanager
def shown_progress(say: int) -> Iterator[Progress | None]:
    """Show progress on standard error while the block runs.

    Args:
        say: How much; a quiet build shows none, a verbose one every line of the log, with its time.
    """
    if say == QUIET:
        yield None
    elif say == VERBOSE or not sys.stderr.isatty():
        with _log(say):
            yield None
    else:
        with _bar() as progress:
            yield progress


@contextlib.contextmanager
def _log(say: int) -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(asctime)s %(message)s" if say == VERBOSE else "%(message)s"))
    if say != VERBOSE:
        handler.addFilter(is_news)
    logger = logging.getLogger("pyramid_core")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
               TextColumn("blocks"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[tuple[str, str], Any] = {}

        def advance(run: LevelRun, result: BlockResult) -> None:  # noqa: ARG001 - progress's form
            key = (run.plan.target, run.level.path)
            if key not in tasks:
                text = printable(f"{run.plan.source.name} level {run.level.path}")
                tasks[key] = bar.add_task(text, total=run.level.blocks.size)
            done = run.built + run.found + run.empty
            bar.update(tasks[key], completed=done)

        yield advance
