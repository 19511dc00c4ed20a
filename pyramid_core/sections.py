"""The sections of a report: what a build gave, as markup."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import numpy as np

from pyramid_core.build import BuildResult, LevelReport
from pyramid_core.drawing import draw_histogram, draw_level, scale_of
from pyramid_core.grid import Shape, times
from pyramid_core.histogram import Contrast, Histogram
from pyramid_core.markup import Markup, tag
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.opening import ways_to_open
from pyramid_core.params import UNIT_SYMBOLS, human
from pyramid_core.stores import shown
from pyramid_core.version import VERSION

_LIBRARIES = ("numpy", "numba", "zarr", "zarrs", "numcodecs", "obstore")

_SYMBOLS = {name: symbol for symbol, name in reversed(UNIT_SYMBOLS.items())}
_SYMBOLS |= {"micrometer": "\u00b5m", "angstrom": "\u00c5"}

_GIVEN = "given, so not written"
"""What is said of the base of a build in place."""

_METHODS = {
    "mean": "the mean of each window",
    "median": "the median of each window, the lower of two in the middle",
    "mode": "the commonest value of each window",
    "min": "the smallest value of each window",
    "max": "the largest value of each window",
    "stride": "the first voxel of each window",
}

_EDGES = {
    "exact": "refused where they stick out",
    "partial": "of the voxels that there are",
    "trim": "dropped where they stick out",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a report shows of an image that was built, beside what the build told."""

    picture: bytes | None
    """A PNG of it; None where none could be drawn."""
    contrast: Contrast | None
    """How its brightness is spread; None where its voxels could not be read."""
    stored: dict[tuple[str, str], int]
    """Bytes that levels take where they are stored, by target and path; those that were counted."""
    trouble: str
    """Why something is not shown; empty if all is."""
    when: str
    """Date and time."""


def by(numbers: tuple[float, ...] | None) -> str:
    r"""Return numbers per axis as print has them.

    >>> by((64, 1.5)) == "64 \u00d7 1.5"
    True
    """
    return times(numbers).replace("x", " \u00d7 ")


def took(seconds: float) -> str:
    """Return a time as a person reads it.

    >>> took(0.0412), took(2.345), took(75.2), took(7500)
    ('41 ms', '2.3 s', '1 min 15 s', '2 h 5 min')
    """
    if seconds < 0.5:
        return f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def header(result: BuildResult, seen: Seen) -> Markup:
    """Return the name of the image, whether it is right, and its numbers."""
    plan, checked = result.plan, result.verification
    is_proven = checked is None or checked.mode != "none"
    count = len(plan.levels)
    stored = human(sum(seen.stored.values())) if len(seen.stored) == len(_sizes(plan)) else "-"
    figures = {
        "level" if count == 1 else "levels": f"{count}",
        "of voxels": human(sum(_sizes(plan))),
        "stored": stored,
        "blocks built": f"{result.blocks_built:,}",
        "found finished": f"{result.blocks_found:,}",
        "time taken": took(result.seconds),
    }
    return tag(
        "header",
        tag("h1", plan.source.name),
        tag(
            "p",
            f"{by(plan.levels[0].shape)} {np.dtype(plan.dtype).name}, OME-Zarr {plan.ngff_version}",
            class_="quiet",
        ),
        tag("p", tag("code", shown(plan.target)), class_="quiet"),
        tag("p", result.verdict, class_="verdict good" if is_proven else "verdict"),
        tag(
            "dl",
            *(tag("div", tag("dt", name), tag("dd", value)) for name, value in figures.items()),
            class_="figures",
        ),
    )


def _sizes(plan: PyramidPlan) -> list[int]:
    return [image.size(level) for image in plan.images for level in image.levels]


def picture(plan: PyramidPlan, seen: Seen) -> Markup:
    """Return the picture, or why there is none."""
    if seen.picture is None:
        return tag("p", f"No picture could be drawn: {seen.trouble}", class_="quiet picture")
    return tag(
        "figure",
        tag(
            "img",
            src=f"data:image/png;base64,{base64.b64encode(seen.picture).decode()}",
            alt=f"{plan.source.name} seen along its axes, and its levels",
        ),
        class_="picture",
    )


def levels(plan: PyramidPlan, seen: Seen) -> Markup:
    """Return the levels to scale, and as a table."""
    unit = next((axis.unit for axis in plan.axes[::-1] if axis.unit), "")
    names = "".join(axis.name for axis in plan.axes)
    symbol = _SYMBOLS.get(unit, unit)
    is_sharded = any(level.shards for image in plan.images for level in image.levels)
    head = [
        *("level", f"shape ({names})", f"voxel ({symbol})" if unit else "voxel", "chunks"),
        *(["shards"] if is_sharded else []),
        *("objects", "of voxels", "stored"),
    ]
    rows = []
    for image in plan.images:
        for level in image.levels:
            stored = seen.stored.get((image.target, level.path))
            row = [level.path, by(level.shape), by(level.scale), by(level.chunks)]
            row += [by(level.shards)] if is_sharded else []
            row += [f"{level.units.size:,}", human(image.size(level))]
            rows.append((image, [*row, "-" if stored is None else human(stored)]))
    return tag(
        "section",
        tag("h2", "Levels"),
        _drawing(plan),
        tag(
            "p",
            "Each box is a level, as large as it is in voxels beside the others. "
            "Lines part its chunks, stronger ones its shards, where there is room for them.",
            class_="quiet small",
        ),
        _table(plan, head, rows),
    )


def _drawing(plan: PyramidPlan) -> Markup:
    def zyx(values: Shape) -> Shape:
        own = [v for v, axis in zip(values, plan.axes, strict=True) if axis.type == "space"]
        return (*(1,) * (3 - len(own)), *own)

    def item(level: Level) -> Markup:
        shards = zyx(level.shards) if level.shards else None
        box = draw_level(zyx(level.shape), zyx(level.chunks), shards, scale)
        return tag("li", box, tag("b", f"Level {level.path}"), by(level.shape))

    scale = scale_of(zyx(plan.levels[0].shape))
    return tag("ul", *map(item, plan.levels), class_="levels")


def _table(plan: PyramidPlan, head: list[str], rows: list[tuple[PyramidPlan, list[str]]]) -> Markup:
    """Return rows under a head, and those of each label image under where it lies.

    A narrow page shows a row as a card, whose cells tell what they are.
    """
    lines, current = [], plan
    for image, row in rows:
        if image is not current:
            place = image.target.removeprefix(plan.target).strip("/")
            name = tag("th", place, colspan=len(head), class_="image", scope="rowgroup")
            lines.append(tag("tr", name))
        current = image
        cells = [
            tag("td", cell, data_label=label)
            for label, cell in zip(head[1:], row[1:], strict=False)
        ]
        if len(row) < len(head):
            cells = [tag("td", row[1], colspan=len(head) - 1, class_="given")]
        first = tag("th", tag("span", "level ", class_="narrow"), row[0], scope="row")
        lines.append(tag("tr", first, *cells))
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    return tag("table", tag("thead", top), tag("tbody", *lines))


def contrast(found: Contrast) -> Markup:
    """Return a histogram per channel, with the window that viewers are told."""
    return tag(
        "section",
        tag("h2", "Contrast"),
        *(_histogram(one, is_only=len(found.histograms) == 1) for one in found.histograms),
        tag(
            "p",
            f"How many voxels of level {found.level} ({by(found.shape)}) are how bright, on a "
            f"logarithmic scale. Viewers are told to show the marked range from black to full.",
            class_="quiet small under",
        ),
    )


def _histogram(histogram: Histogram, *, is_only: bool) -> Markup:
    start, end = histogram.window
    name = tag("p", tag("i", style=f"background:{histogram.color}"), histogram.name)
    return tag(
        "figure",
        *([] if is_only else [name]),
        draw_histogram(histogram),
        tag(
            "figcaption",
            tag("span", _short(histogram.low)),
            tag("b", f"{_short(start)} to {_short(end)}"),
            tag("span", _short(histogram.high)),
        ),
        class_="contrast",
    )


def _short(number: float) -> str:
    return f"{number:.0f}" if float(number).is_integer() and abs(number) < 1e7 else f"{number:.4g}"


def building(result: BuildResult) -> Markup:
    """Return what building each level took."""
    head = ["level", "blocks", "built", "found finished", "background", "time", "per second"]
    reports, rows = iter(result.levels), []
    for image in result.plan.images:
        for level in image.levels:
            row = _took(next(reports)) if level in image.written else [_GIVEN]
            rows.append((image, [level.path, *row]))
    return tag("section", tag("h2", "Building"), _table(result.plan, head, rows))


def _took(report: LevelReport) -> list[str]:
    return [
        f"{report.level.blocks.size:,}",
        f"{report.built:,}",
        f"{report.found:,}",
        f"{report.empty:,}",
        took(report.seconds) if report.built else "-",
        f"{human(report.rate)}" if report.built else "-",
    ]


def verification(result: BuildResult) -> Markup:
    """Return what the gate looked at and found."""
    checked = result.verification
    findings = checked.findings if checked else ()
    lines = [tag("li", str(finding), class_=finding.severity) for finding in findings]
    return tag(
        "section",
        tag("h2", "Verification"),
        tag("p", result.verdict),
        tag(
            "p",
            tag("code", f"pyramid verify {shlex.quote(shown(result.plan.target))} --verify full"),
            " computes all of it again.",
            class_="quiet",
        ),
        *([tag("ul", *lines, class_="notes")] if lines else []),
    )


def asked(plan: PyramidPlan) -> Markup:
    """Return what was asked, with what was chosen where nothing was."""
    steps = [by(level.step) for level in plan.levels[1:]]
    if len(steps) > 1 and len(set(steps)) == 1:
        steps = [f"{steps[0]} each time"]
    codec = plan.codec
    place = "the source, in place" if plan.in_place else shown(plan.target)
    facts = {
        "Source": shown(plan.source.location),
        "Target": place,
        "Steps": ", then ".join(steps) or "none; one level is enough",
        "Method": f"{plan.method}: {_METHODS[plan.method]}",
        "Windows at edges": f"{plan.edges}: {_EDGES[plan.edges]}",
        "Codec": " ".join(filter(None, [codec.name, codec.cname, codec.shuffle])),
        "Existing image": plan.existing,
        "Verify": plan.verify,
        "Memory limit": f"{human(plan.memory_limit)} per process",
        "Workers": "on Dask" if plan.dask_address else f"{plan.workers} threads",
    }
    notes = [tag("li", note) for note in plan.notes]
    return tag(
        "section",
        tag("h2", "What was asked"),
        _facts(facts),
        *([tag("ul", *notes, class_="notes")] if notes else []),
    )


def _facts(facts: dict[str, str]) -> Markup:
    pairs = [part for key, value in facts.items() for part in (tag("dt", key), tag("dd", value))]
    return tag("dl", *pairs, class_="facts")


def opening(plan: PyramidPlan) -> Markup:
    """Return how to open the image, program by program."""
    parts: Iterator[Markup] = (
        part
        for way in ways_to_open(plan)
        for part in (tag("h3", way.program), tag("p", way.how, class_="quiet small"),
                     tag("pre", tag("code", way.code)))
    )  # fmt: skip
    return tag("section", tag("h2", "Open it"), *parts)


def provenance(plan: PyramidPlan) -> Markup:
    """Return by which versions the image was made, and its identity."""
    said = json.dumps(plan.identity(), sort_keys=True)
    facts = {
        "zarr-pyramid-flow": VERSION,
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in _LIBRARIES},
        "Identity": hashlib.sha256(said.encode()).hexdigest(),
    }
    text = (
        "The identity is a digest of all that decides the voxels and their layout: the same "
        "request, by the same versions, gives the same bytes."
    )
    return tag(
        "section",
        tag("h2", "Provenance"),
        _facts(facts),
        tag("p", text, class_="quiet small under"),
        tag("details", tag("summary", "What the identity is of"), tag("pre", tag("code", said))),
    )
