"""What a run leaves in the Prefect UI: progress, the table of levels, the picture, the report."""

from __future__ import annotations

import base64
import contextvars
import hashlib
import logging
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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

from pyramid_core.build import BuildResult, Progress
from pyramid_core.execute import LevelRun
from pyramid_core.grid import times
from pyramid_core.job import BlockResult
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.params import human
from pyramid_core.stores import is_url, same_place, shown

log = logging.getLogger("pyramid_core.flows")

UPDATE_SECONDS = 1.0
"""The progress of a level is told at most this often: an update costs the server 15 ms."""


def key_of(target: str, *parts: str) -> str:
    """Return the key of an image's artifacts: its history is that of the image, over all runs.

    >>> key_of("s3://bucket/Scan 1.ome.zarr", "report")
    'pyramid-scan-1-ome-zarr-report-3eefc06f'
    """
    name = target.rstrip("/").rpartition("/")[2]
    digest = hashlib.sha256(same_place(target).encode()).hexdigest()[:8]
    return "-".join(["pyramid", _slug(name)[:40], *map(_slug, parts), digest])


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
    told, ended = -1.0, False
    while not ended:
        now = done[0]
        try:
            if artifact is None:
                artifact = create_progress_artifact(now, key=key, description=description)
            elif now != told:
                update_progress_artifact(artifact, now)
            told = now
        except httpx.HTTPError as error:
            log.warning("Prefect's server cannot be told of the progress: %s", error)
        ended = stop.wait(UPDATE_SECONDS) and (told == done[0] or ended)


def show_picture(plan: PyramidPlan, picture: bytes) -> None:
    """Leave a PNG as an artifact that holds it whole, so no server of ours has to show it."""
    create_image_artifact(
        "data:image/png;base64," + base64.b64encode(picture).decode(),
        key=key_of(plan.target, "preview"),
        description=f"{plan.source.name}, from a coarse level",
    )


def show_result(result: BuildResult) -> None:
    """Leave the table of levels, the report and a link as artifacts of the run."""
    plan = result.plan
    link = shown(plan.target) if is_url(plan.target) else Path(plan.target).as_uri()
    create_table_artifact(
        level_rows(result),
        key=key_of(plan.target, "levels"),
        description=f"Levels of {plan.source.name}, and what building them took",
    )
    create_markdown_artifact(
        report(result), key=key_of(plan.target, "report"), description=f"Report on {link}"
    )
    create_link_artifact(
        link,
        link_text=shown(plan.target),
        key=key_of(plan.target, "image"),
        description=f"Where {plan.source.name} is",
    )


def plan_rows(plan: PyramidPlan) -> list[dict[str, Any]]:
    """Return the levels of an image and of its labels as the rows of a table."""
    return [
        {
            "image": image.source.name,
            "level": level.path,
            "shape": times(level.shape),
            "voxel size": times(level.scale),
            "chunks": times(level.chunks),
            "shards": times(level.shards),
            "objects": level.units.size,
            "bytes": image.size(level),
        }
        for image in plan.images
        for level in image.levels
    ]


def level_rows(result: BuildResult) -> list[dict[str, Any]]:
    """Return the rows of ``plan_rows`` with what building each level took."""
    took = {(level.image, level.level.path): level for level in result.levels}
    rows = plan_rows(result.plan)
    for row in rows:
        level = took.get((row["image"], row["level"]))
        row["seconds"] = round(level.seconds, 2) if level else "given"
        row["MB/s"] = round(level.rate / 1e6, 1) if level else ""
        row["blocks built"] = level.built if level else ""
        row["found finished"] = level.found if level else ""
        row["background"] = level.empty if level else ""
    return rows


def report(result: BuildResult) -> str:
    """Return the report of a build in Markdown: what it is, whether it is right, how to open it."""
    plan, place = result.plan, shown(result.plan.target)
    rows = level_rows(result)
    table = [
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows),
    ]
    checked = result.verification
    if checked is None:
        verdict = "It was there, finished; a sample of its blocks follows from the source."
    elif checked.mode == "none":
        verdict = "It was not verified (`verify` was none)."
    else:
        verdict = (
            f"**Right**, by `{checked.mode}`: {checked.blocks_checked:,} of {checked.blocks:,} "
            f"blocks were computed again and found equal, bit for bit."
        )
    return "\n".join(
        [
            f"# {plan.source.name}",
            f"`{place}` is an OME-Zarr {plan.ngff_version} image of {len(plan.levels)} levels.",
            f"{result.blocks_built:,} blocks were built and {result.blocks_found:,} found finished "
            f"in {result.seconds:.1f} s; {human(plan.cost.bytes_written)} before compression.",
            *("\n## Verification", verdict),
            *("\n## Levels", "", *table),
            *(["\n## Notes", *(f"- {note}" for note in plan.notes)] if plan.notes else []),
            *("\n## Open it", *_how_to_open(plan)),
        ]
    )


def _how_to_open(plan: PyramidPlan) -> list[str]:
    """Return a line each for napari, Neuroglancer and Python."""
    place = shown(plan.target)
    coarsest = plan.levels[-1].path
    if is_url(plan.target):
        layer, served = f"zarr://{place}/", ""
    else:
        folder, _, name = place.rpartition("/")
        layer = f"zarr://http://127.0.0.1:8080/{name}/"
        served = f"   # after: npx http-server --cors {shlex.quote(folder or '/')}"
    return [
        "```",
        f"napari:        napari --plugin napari-ome-zarr {shlex.quote(place)}",
        f"Neuroglancer:  {layer}{served}",
        f"Python:        zarr.open_array({place!r}, path={coarsest!r}, mode='r')",
        "```",
    ]
