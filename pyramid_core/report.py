"""A report on a build as one HTML file: it opens from disk, asks no network, and runs no script."""

from __future__ import annotations

import time
from contextlib import suppress
from importlib import resources
from pathlib import Path

from pyramid_core import sections
from pyramid_core.build import BuildResult
from pyramid_core.errors import PyramidError
from pyramid_core.files import refuse_place, write_whole
from pyramid_core.histogram import contrast_of
from pyramid_core.markup import Markup, tag
from pyramid_core.params import PyramidParams
from pyramid_core.preview import render_preview
from pyramid_core.sections import Seen
from pyramid_core.stores import open_storage
from pyramid_core.version import VERSION

_GENERATOR = "zarr-pyramid-flow"

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What the browser may load and run: nothing but what stands in the page."""

_MOST_OBJECTS = 100_000
"""Objects of a level that are listed to tell how much it takes where it is stored."""


def look_at(result: BuildResult) -> Seen:
    """Return what is to be seen of an image; it was built, so what cannot be seen is no failure."""
    place, picture, contrast, trouble = result.plan.target, None, None, ""
    try:
        picture, contrast = render_preview(place), contrast_of(place)
    except (PyramidError, OSError) as error:
        trouble = str(error)
    stored = {}
    for image in result.plan.images:
        for level in image.levels:
            if level.units.size <= _MOST_OBJECTS:
                with suppress(PyramidError, OSError):
                    objects = open_storage(image.target).listing(level.path)
                    stored[image.target, level.path] = sum(item.size for item in objects)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return Seen(picture, contrast, stored, trouble, when)


def render_report(result: BuildResult, seen: Seen) -> str:
    """Return the report on a build as a page of HTML.

    Args:
        result: What the build did.
        seen: What is to be seen of the image, as ``look_at`` returns it.
    """
    plan = result.plan
    css = resources.files("pyramid_core").joinpath("report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=f"{_GENERATOR} {VERSION}"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{plan.source.name}: image pyramid"),
        tag("style", Markup(css)),
    )
    has_bars = seen.contrast is not None and seen.contrast.histograms
    body = tag(
        "body",
        sections.header(result, seen),
        sections.picture(plan, seen),
        sections.levels(plan, seen),
        *([sections.contrast(seen.contrast)] if seen.contrast and has_bars else []),
        sections.building(result),
        sections.verification(result),
        sections.asked(plan),
        sections.opening(plan),
        sections.provenance(plan),
        tag("footer", f"Written by {_GENERATOR} {VERSION}, {seen.when}", class_="quiet small"),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def write_report(result: BuildResult, path: str | Path) -> Path:
    """Write the report on a build into a file; an earlier report is replaced, nothing else is.

    Args:
        result: What the build did.
        path: The file.

    Raises:
        TargetError: If the file would lie in an image or in no folder, or is there and no report.
        PlaceError: If it cannot be written.

    Example:
        >>> import tempfile
        >>> from pyramid_core import PyramidParams, build_pyramid
        >>> folder = tempfile.mkdtemp()
        >>> asked = PyramidParams(source=f"{folder}/a.zarr", test_image="ramp", test_shape=[80, 80])
        >>> write_report(build_pyramid(asked), f"{folder}/a.html").name
        'a.html'
    """
    path = Path(path)
    _refuse(path, [result.plan.source.location, result.plan.target])
    write_whole(path, render_report(result, look_at(result)).encode())
    return path


def refuse_report(path: str | Path, params: PyramidParams) -> None:
    """Refuse a place for a report before anything is built, as ``write_report`` does after.

    Raises:
        TargetError: If there can be no report.
    """
    _refuse(Path(path), [params.source, *([params.target] if params.target else [])])


def _refuse(path: Path, locations: list[str]) -> None:
    ours = f'<meta name="generator" content="{_GENERATOR} '.encode()
    refuse_place(path, locations, "report of ours", lambda begin: ours in begin)
