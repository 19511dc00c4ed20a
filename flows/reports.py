"""What a run leaves in the Prefect UI: progress, the table of levels, the picture, the report."""

from __future__ import annotations

import base64
import contextvars
import hashlib
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from pyramid_core.build import BuildResult, LevelReport, Progress
from pyramid_core.errors import printable
from pyramid_core.execute import LevelRun
from pyramid_core.grid import times
from pyramid_core.job import BlockResult
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.opening import ways_to_open
from pyramid_core.params import human
from pyramid_core.stores import same_place, shown

log = logging.getLogger("pyramid_core.flows")

UPDATE_SECONDS = 1.0
"""The progress of a level is told at most this often: an update costs the server 15 ms."""


def key_of(target: str, *parts: str) -> str:
    """Return the key of an image's artifacts: its history is that of the image, over all runs.

    >>> key_of("s3://bucket/Scan 1.ome.zarr", "report")
    'pyramid-scan-1-ome-zarr-report-acb413ca'
    """
    place = same_place(shown(target))  # without passwords; a key is seen by all
    digest = hashlib.sha256(place.encode()).hexdigest()[:8]
    name = place.rpartition("/")[2][:40]
    return "-".join(["pyramid", *map(_slug, (name, *parts)), digest])


def _slug(text: str) -> str:
    """Return what a key may hold of a text: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "image"


@contextmanager
def progress_of(plan: PyramidPlan, level: Level) -> Iterator[Progress]:
    """Show the progress of a level in the UI while the block runs.

    A thread tells the server, so that a slow or absent server never holds the blocks up; what it
    could not tell is told with the next update.
    """
    key = key_of(plan.target, "level", level.path)
    text = f"{plan.source.name} level {level.path}, {times(level.shape)}"
    done, stop = [0.0], threading.Event()
    # The thread needs the context of the run: without, it would look for a server of its own.
    context = contextvars.copy_context()
    teller = threading.Thread(
        target=context.run, args=(_tell, key, text, done, stop), name="progress"
    )
    teller.start()

    def count(run: LevelRun, result: BlockResult) -> None:  # noqa: ARG001 - progress's form
        done[0] = round(100.0 * (run.built + run.found + run.empty) / level.blocks.size, 1)

    try:
        yield count
        done[0] = 100.0
    finally:
        stop.set()
        teller.join()


def _tell(key: str, description: str, done: list[float], stop: threading.Event) -> None:
    artifact: Any = None  # Prefect types its functions as if they might be coroutines
    told, is_last, has_warned = -1.0, False, False
    while not is_last:
        is_last, now = stop.is_set(), done[0]  # in this order: once stopped, nothing is done
        try:
            if artifact is None:
                artifact = create_progress_artifact(now, key=key, description=description)
            elif now != told:
                update_progress_artifact(artifact, now)
            told = now
        except httpx.HTTPError as error:
            if not has_warned:
                log.warning("Prefect's server cannot be told of the progress: %s", error)
            has_warned = True
        if not is_last:
            stop.wait(UPDATE_SECONDS)


def show_picture(plan: PyramidPlan, picture: bytes) -> None:
    """Leave a PNG as an artifact that holds it whole, so no server of ours has to show it."""
    create_image_artifact(
        _url(picture),
        key=key_of(plan.target, "preview"),
        description=f"{shown(plan.target)} and its levels",
    )


def _url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def show_plan(plan: PyramidPlan) -> None:
    """Leave the table of levels before anything is built, for runs that are long, or that fail."""
    create_table_artifact(
        _rows(plan, ()),
        key=key_of(plan.target, "levels"),
        description=f"As planned: {plan.headline}",
    )


def show_result(result: BuildResult, picture: bytes | None = None) -> None:
    """Leave the table of levels, the report and a link as artifacts of the run."""
    plan = result.plan
    told = key_of(plan.target, "report")
    create_table_artifact(
        level_rows(result),
        key=key_of(plan.target, "levels"),
        description=f"Levels of {plan.source.name}, and what building them took",
    )
    create_markdown_artifact(
        report(result, picture),
        key=told,
        description=f"Report on {shown(plan.target)}",
    )
    # A page may not open a folder or a bucket; the report says how to.
    create_link_artifact(
        f"/v2/artifacts/key/{told}",
        link_text=shown(plan.target),
        key=key_of(plan.target, "image"),
        description=f"Where {plan.source.name} is; the link leads to how it is opened",
    )


def level_rows(result: BuildResult) -> list[dict[str, Any]]:
    """Return the levels of an image and of its labels as a table: what they are and what they took.

    What people look for comes first, since a page shows half of it without scrolling.
    """
    return _rows(result.plan, result.levels)


def _rows(plan: PyramidPlan, levels: tuple[LevelReport, ...]) -> list[dict[str, Any]]:
    """Return the table; *levels* are those that were built, none before."""
    took = iter(levels)  # in the order of the rows, without the bases that were given
    rows = []
    for image in plan.images:
        for level in image.levels:
            row: dict[str, Any] = {"image": image.source.name} if plan.labels else {}
            row |= {"level": level.path, "shape": times(level.shape)}
            row |= _took(next(took, None)) if level in image.written else _took(None, "given")
            row |= {
                "voxel size": times(level.scale),
                "chunks": times(level.chunks),
                "shards": times(level.shards),
                "objects": level.units.size,
                "bytes": image.size(level),
            }
            rows.append(row)
    return rows


def _took(level: LevelReport | None, instead: str = "") -> dict[str, Any]:
    """Return what building a level took, or what is said where it was not built."""
    return {
        "seconds": round(level.seconds, 2) if level else instead,
        "MB/s": round(level.rate / 1e6, 1) if level else "",
        "blocks built": level.built if level else "",
        "found finished": level.found if level else "",
        "background": level.empty if level else "",
    }


def report(result: BuildResult, picture: bytes | None = None) -> str:
    """Return the report of a build in Markdown: what it is, whether it is right, how to open it."""
    plan, place = result.plan, shown(result.plan.target)
    found = f" and {result.blocks_found:,} found finished" if result.blocks_found else ""
    return "\n".join(
        [
            f"# {plain(plan.source.name)}",
            f"`{place}` is an OME-Zarr {plan.ngff_version} image of {len(plan.levels)} levels.",
            f"{result.blocks_built:,} blocks were built{found} in {result.seconds:.1f} s; "
            f"{human(plan.cost.bytes_written)} before compression.",
            *([f"Its source: {_source(result)}."] if result.source else []),
            *(["", f"![{plain(plan.source.name)}]({_url(picture)})"] if picture else []),
            *("\n## Verification", result.verdict),
            *("\n## Levels", "", *_table(result)),
            *(["\n## Notes", *(f"- {plain(note)}" for note in plan.notes)] if plan.notes else []),
            *("\n## Open it", *_how_to_open(plan)),
        ]
    )


def _source(result: BuildResult) -> str:
    """Return how the source looked when the build began, in the words of its record."""
    return ", ".join(f"{name} {value}" for name, value in result.source.items())


def plain(text: object) -> str:
    r"""Return a text of somebody else as Markdown that shows it, in one line, and does nothing.

    >>> plain("my_scan <script> | [x](y)\n# z")
    'my_scan &lt;script&gt; &#124; &#91;x&#93;(y) # z'
    """
    signs = {ord(c): f"&#{ord(c)};" for c in "|[]`"} | {ord("<"): "&lt;", ord(">"): "&gt;"}
    return " ".join(printable(text).replace("&", "&amp;").translate(signs).split())


def _table(result: BuildResult) -> list[str]:
    """Return the levels as a table of Markdown that is narrow enough for the page."""
    columns = ["level", "shape", "voxel size", "MB", "blocks built", "found finished", "seconds"]
    columns = [*(["image"] if result.plan.labels else []), *columns, "MB/s"]
    rows = [{**row, "MB": round(row["bytes"] / 1e6, 3)} for row in level_rows(result)]
    lines = [columns, ["---"] * len(columns), *([plain(row[c]) for c in columns] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _how_to_open(plan: PyramidPlan) -> list[str]:
    """Return how each program opens the image."""
    return [f"{way.program}: {plain(way.how)}\n{_code(way.code)}" for way in ways_to_open(plan)]


def _code(line: str) -> str:
    return f"\n```\n{line}\n```\n"
