"""The report on a build: it tells what happened, escapes what it is told, and opens anywhere."""

from __future__ import annotations

import base64
import io
import math
import re
import shlex
import socket
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyramid_core.build import BuildResult
from pyramid_core.cli import main
from pyramid_core.drawing import draw_level, window_of
from pyramid_core.errors import PlaceError, TargetError
from pyramid_core.histogram import contrast_of, count
from pyramid_core.markup import markup, tag
from pyramid_core.opening import ways_to_open
from pyramid_core.params import human
from pyramid_core.report import look_at, render_report, write_report
from pyramid_core.sections import Seen, by
from pyramid_core.version import VERSION
from tests.images import OMERO, write_base
from tests.stories import build, noise, read, tree, write_image

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x1b[2J\u202e"
"""A name that would do something on a page, or on a terminal."""


class Page(HTMLParser):
    """A report as its reader gets it: elements with their attributes, tables, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data

    def named(self, name: str, kind: str = "") -> list[dict[str, str | None]]:
        return [a for n, a in self.elements if n == name and (not kind or a.get("class") == kind)]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """What building an image of two channels, with labels, in place gave; all of it verified."""
    voxels = noise((2, 2, 12, 40, 48), "u1")
    ids = np.ones((12, 40, 48), "u1")
    place = write_base(
        tmp_path_factory.mktemp("report") / "day 1" / "scan.zarr", voxels, axes="tczyx",
        scale=(3.0, 1.0, 2.0, 0.5, 0.5), chunks=(1, 1, 8, 16, 16), more={"omero": OMERO},
        labels={"cells": ids},
    )  # fmt: skip
    return build(place, verify="full")


@pytest.fixture(scope="module")
def seen(result: BuildResult) -> Seen:
    """What is to be seen of it."""
    return look_at(result)


@pytest.fixture(scope="module")
def page(result: BuildResult, seen: Seen) -> Page:
    """The report on it."""
    return Page(render_report(result, seen))


# What it tells.


def test_the_report_tells_the_levels_and_what_building_them_took(
    result: BuildResult, page: Page
) -> None:
    """Shape, voxel, chunks, objects and bytes of each; blocks and time; of the labels too."""
    place = Path(result.plan.target)
    expected = []
    for group in (place, place / "labels" / "cells"):
        for path in ("0", "1", "2", "3"):
            array = read(group / path)
            stored = sum(p.stat().st_size for p in (group / path).rglob("*") if p.is_file())
            expected.append([by(array.shape), human(array.nbytes), human(stored)])
    rows = [row for row in page.rows if len(row) == 7]
    head, levels = rows[0], rows[1:9]
    assert head == ["level", "shape (tczyx)", "voxel (\u00b5m)", "chunks", "objects", "of voxels", "stored"]  # fmt: skip
    assert [[row[1], row[5], row[6]] for row in levels] == expected
    assert [row[2] for row in levels[:3]] == [
        by((3, 1, 2, 0.5, 0.5)), by((3, 1, 2, 1, 1)), by((3, 1, 2, 2, 2)),
    ]  # fmt: skip
    assert levels[0][3:5] == [by((1, 1, 8, 16, 16)), "72"]
    head, *building = rows[9:]
    assert head == ["level", "blocks", "built", "found finished", "background", "time", "per second"]  # fmt: skip
    assert [row[1:5] for row in building] == [
        [str(r.level.blocks.size), str(r.built), str(r.found), str(r.empty)] for r in result.levels
    ]
    assert sum(row[1] == "given, so not written" for row in page.rows if len(row) == 2) == 2
    assert [row for row in page.rows if len(row) == 1] == [["labels/cells"]] * 2


def test_the_report_tells_the_verdict_the_versions_and_the_identity(
    result: BuildResult, page: Page
) -> None:
    """What was proven, what was asked, and by which program."""
    assert result.verdict.startswith("Verified (full): ")
    for words in (
        result.verdict, "mean: the mean of each window", "partial: of the voxels that there are",
        "2 GB per process", f"zarr-pyramid-flow{VERSION}", f"numpy{np.__version__}",
    ):  # fmt: skip
        assert words in page.text
    assert re.search(r"Identity[0-9a-f]{64}", page.text)


def test_the_report_shows_the_picture_and_the_window_of_each_channel(page: Page) -> None:
    """A PNG that stands in the page; a histogram per channel, with the window that omero says."""
    (picture,) = page.named("img")
    header, _, content = str(picture["src"]).partition(",")
    assert header == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).width == 900
    for words in ("DAPI", "3 to 90", "GFP", "5 to 80"):
        assert words in page.text
    assert len(page.named("path", "bars")) == 2


def test_levels_are_drawn_to_scale() -> None:
    """The front of a level of half the shape is half as wide and high; its lines part the chunks."""
    fronts = []
    for shape in ((64, 100, 200), (32, 50, 100)):
        drawn = Page(draw_level(shape, (32, 50, 50), (64, 100, 100), 0.5))
        points = [
            tuple(map(float, p.split(",")))
            for p in str(drawn.named("polygon")[0]["points"]).split()
        ]
        (left, top), (right, bottom) = points[0], points[2]
        fronts.append((right - left, bottom - top))
        lines = [str(drawn.named("path", k)[0]["d"]).count("M") for k in ("chunks",)]
        assert lines == [(200 // 50 - 1) + 1 + 1] if shape[0] == 64 else [1]
    assert fronts == [(100.0, 50.0), (50.0, 25.0)]


def test_a_plane_is_drawn_flat_and_a_small_level_can_be_seen() -> None:
    """No top and no side; a side of less than a pixel is drawn as wide as a line."""
    drawn = Page(draw_level((1, 100, 3), (1, 10, 3), None, 0.1))
    assert [a["class"] for a in drawn.named("polygon")] == ["front"]
    assert drawn.named("svg")[0]["width"] == "3.5"
    assert drawn.named("path") == []


def test_a_report_without_a_picture_says_why(result: BuildResult) -> None:
    """The image is published, whatever can be seen of it: the rest of the report is there."""
    gone = replace(result, plan=replace(result.plan, target="/nowhere/scan.zarr"))
    sight = look_at(gone)
    page = Page(render_report(gone, sight))
    assert sight.picture is None
    assert page.named("img") == []
    assert "No picture could be drawn: " in page.text
    assert "/nowhere/scan.zarr" in page.text
    assert result.verdict in page.text


def test_the_report_on_an_image_that_was_there_says_so(tmp_path: Path) -> None:
    """Nothing built, all found; no rate where there was no time. One that was not verified says that."""
    source = write_image(tmp_path / "a.zarr", noise((32, 32)), (16, 16))
    build(source)
    again = build(source, verify="sample")
    page = Page(render_report(again, look_at(again)))
    assert page.text.count("It was there, finished; blocks computed again follow") == 2
    assert [row[1:] for row in page.rows if row[0] == "1"][1] == [
        "1",
        "0",
        "1",
        "0",
        "-",
        "-",
    ]
    unverified = build(source, tmp_path / "b.zarr")
    page = Page(render_report(unverified, look_at(unverified)))
    assert "It was not verified" in page.text
    assert page.named("p", "verdict good") == []


# What it must not do.


def test_nothing_that_metadata_says_does_anything_on_the_page(
    result: BuildResult, seen: Seen
) -> None:
    """Names, notes, places and channels are shown as they are: as text."""
    plan = result.plan
    assert seen.contrast is not None
    contrast = replace(
        seen.contrast,
        level=HOSTILE,
        histograms=tuple(replace(h, name=HOSTILE) for h in seen.contrast.histograms),
    )
    bad = replace(
        plan,
        source=replace(plan.source, name=HOSTILE, location=f"/data/{HOSTILE}"),
        target=f"/data/{HOSTILE}",
        levels=tuple(replace(level, path=HOSTILE) for level in plan.levels),
        axes=tuple(replace(axis, unit=HOSTILE) for axis in plan.axes),
        notes=(HOSTILE,),
    )
    sight = Seen(None, contrast, {}, HOSTILE, HOSTILE)
    html = render_report(replace(result, plan=bad), sight)
    page = Page(html)
    allowed = set("""
        html head meta title style body header h1 h2 h3 p code pre dl div dt dd section ul li b i
        span table thead tbody tr th td figure figcaption svg polygon path rect details summary
        footer
    """.split())  # fmt: skip
    assert {name for name, _ in page.elements} <= allowed
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 10
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", html)


def test_markup_escapes_all_that_is_none() -> None:
    """Children and attributes; what is markup already stays."""
    assert markup("<", tag("b", "&", title='">')) == '&lt;<b title="&quot;&gt;">&amp;</b>'


def test_the_report_tells_no_secret_and_no_host(result: BuildResult, seen: Seen) -> None:
    """Neither a password nor a signature of a location, nor where the blocks were built."""
    plan = result.plan
    secret = replace(
        plan,
        source=replace(plan.source, location="https://me:hunter2@host/a.zarr?signature=hush"),
        target="s3://me:hunter2@bucket/b.zarr?signature=hush",
        dask_address="tcp://node7:8786",
    )
    html = render_report(replace(result, plan=secret), seen)
    assert "https://host/a.zarr" in html
    assert "s3://bucket/b.zarr" in html
    for word in ("hunter2", "hush", "node7"):
        assert word not in html
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", Page(html).text)


def test_the_page_may_load_nothing(page: Page) -> None:
    """No script, no link, no source but the picture in it; the browser is told to refuse the rest."""
    assert {name for name, _ in page.elements} & {
        "script",
        "link",
        "iframe",
        "a",
        "object",
    } == set()
    policies = [a["content"] for a in page.named("meta") if "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


# Where it is written.


def test_only_an_earlier_report_is_replaced(result: BuildResult, tmp_path: Path) -> None:
    """A page of somebody else, a PNG or a folder stays; so does what nobody could replace whole."""
    place = tmp_path / "a.html"
    assert write_report(result, place) == place
    first = place.read_bytes()
    assert write_report(result, place) == place
    place.write_bytes(first)
    (tmp_path / ".a.html.partial").mkdir()
    with pytest.raises(PlaceError, match=r"a\.html cannot be written"):
        write_report(result, place)
    assert place.read_bytes() == first
    for name, content in (("b.html", b"<!doctype html><p>mine"), ("c.png", b"\x89PNG")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TargetError, match="is no report of ours, so it is not replaced"):
            write_report(result, tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    with pytest.raises(TargetError, match="there is no folder"):
        write_report(result, tmp_path / "none" / "a.html")


def test_a_wrong_place_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the source, in the target that is not there yet, through a link, over somebody's page."""
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.zarr", noise((16, 16)), (8, 8))
    (tmp_path / "link").symlink_to("a.zarr")
    (tmp_path / "mine.html").write_text("mine")
    before = tree(tmp_path)
    for place in ("a.zarr/r.html", "a.zarr/0/r.html", "link/r.html", "b.zarr/r.html", "mine.html"):
        words = ["build", "a.zarr", "--target", "b.zarr", "--report", place]
        assert main(words) == 2
        assert capsys.readouterr().err.startswith(f"pyramid: {place} ")
    assert tree(tmp_path) == before


def test_a_report_is_written_where_one_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only then: nothing is put beside a user's data unasked."""
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.zarr", noise((16, 16)), (8, 8))
    assert main(["build", "a.zarr"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    capsys.readouterr()
    assert main(["build", "a.zarr", "--report", "r.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report:  r.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "r.html"]
    assert "It was there, finished" in (tmp_path / "r.html").read_text()


# Histograms.

COUNTS: list[tuple[Any, str, tuple[float, float], tuple[float, float], list[int]]] = [
    # voxels, data type, window; range, counts of the bars that hold something
    ([0, 1, 1, 3], "u1", (0, 3), (0, 4), [1, 2, 1]),
    ([-2, 0, 0], "i2", (-1, 1), (-2, 2), [1, 2]),
    ([True, False, True], "?", (0, 1), (0, 2), [1, 2]),
    # Two numbers in each bar, so none is twice as high as its neighbours.
    (list(range(200)), "u1", (0, 199), (0, 200), [2] * 100),
    ([0.0, math.nan, math.inf, 1.0], "f4", (0, 1), (0.0, 1.0), [1, 1]),
    ([math.nan], "f8", (0, 1), (0.0, 1.0), []),
    ([-1.7e308, 1.7e308], "f8", (-1.0, 1.0), (-1.7e308, 1.7e308), [1, 1]),
    ([2**64 - 1, 0], "u8", (0, 5), (0.0, 2.0**64), [1, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("voxels", "dtype", "window", "ends", "counts"), COUNTS)
def test_a_histogram_by_hand(
    voxels: Any, dtype: str, window: Any, ends: Any, counts: list[int]
) -> None:
    """Range and bars of small cases; voxels that are no number are in none; the window is inside."""
    found = count(np.array(voxels, dtype), "a", "#ffffff", window)
    assert (found.low, found.high) == ends
    assert [n for n in found.counts if n] == counts
    start, end = window_of(found)
    assert 0 <= start <= end <= 1


def test_the_histogram_is_that_of_a_coarse_level(result: BuildResult) -> None:
    """Each channel of its first time point: as many voxels of each value as NumPy counts."""
    found = contrast_of(result.plan.target)
    level = read(Path(result.plan.target) / found.level)
    for channel, histogram in enumerate(found.histograms):
        values = level[0, channel].reshape(-1)
        expected, _ = np.histogram(
            values, np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
        )
        assert histogram.counts == tuple(expected)
        assert sum(histogram.counts) == values.size
    labels = contrast_of(f"{result.plan.target}/labels/cells")
    assert labels.histograms == ()


# How to open the image.


def way(result: BuildResult, program: str) -> str:
    (code,) = [way.code for way in ways_to_open(result.plan) if way.program == program]
    return code


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "u8", ">f4", "f2", "f8"])
def test_what_paraview_is_given_is_a_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """The code writes a header and the voxels that it describes, x first, little-endian."""
    voxels = (noise((6, 10, 8)) % 2 if dtype == "?" else noise((6, 10, 8))).astype(dtype)
    source = write_base(
        tmp_path / "it's a scan.zarr", voxels, scale=(2.0, 0.5, 0.25), translation=(1.0, 0.0, 7.0)
    )
    monkeypatch.chdir(tmp_path)
    exec(way(build(source), "ParaView"), {})
    lines = (tmp_path / "scan-0.mhd").read_text().splitlines()
    header = dict(line.split(" = ") for line in lines)
    kinds = {"MET_UCHAR": "u1", "MET_SHORT": "<i2", "MET_ULONG_LONG": "<u8",
             "MET_FLOAT": "<f4", "MET_DOUBLE": "<f8"}  # fmt: skip
    found = np.fromfile(header["ElementDataFile"], kinds[header["ElementType"]])
    assert np.array_equal(found, voxels.reshape(-1).astype(found.dtype))
    assert (header["DimSize"], header["ElementSpacing"]) == ("8 10 6", "0.25 0.5 2")
    assert (header["Offset"], header["NDims"]) == ("7 0 1", "3")


def test_the_first_volume_of_many_goes_to_paraview(
    result: BuildResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of time points and channels the first ones, since a MetaImage is one volume."""
    monkeypatch.chdir(tmp_path)
    exec(way(result, "ParaView"), {})
    expected = read(Path(result.plan.target) / "0")[0, 0]
    assert np.array_equal(np.fromfile("scan-0.raw", "u1"), expected.reshape(-1))


def test_the_other_ways_open_the_image(result: BuildResult) -> None:
    """Python gives the coarsest level; a shell takes a path with a space as one word."""
    space: dict[str, Any] = {}
    *imports, last = way(result, "Python").splitlines()
    exec("\n".join(imports), space)
    level = eval(last, space)
    place = Path(result.plan.target)
    assert np.array_equal(level[...], read(place / "3"))
    assert shlex.split(way(result, "napari")) == [
        "napari",
        "--plugin",
        "napari-ome-zarr",
        str(place),
    ]
    assert shlex.split(way(result, "Neuroglancer")) == ["pyramid", "view", str(place)]


def test_an_image_in_a_bucket_is_opened_by_its_url(result: BuildResult) -> None:
    """Neuroglancer anywhere reads s3:// itself, so the source of its layer is told too."""
    remote = replace(result.plan, target="s3://bucket/day/a.zarr")
    napari, neuroglancer, _, python = ways_to_open(remote)
    assert napari.code == "napari --plugin napari-ome-zarr s3://bucket/day/a.zarr"
    assert neuroglancer.code == "pyramid view s3://bucket/day/a.zarr"
    assert neuroglancer.how.endswith(" zarr://s3://bucket/day/a.zarr/")
    assert "zarr.open_array('s3://bucket/day/a.zarr', path='3', mode='r')" in python.code


# In a browser.

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def opened(chromium: Any, result: BuildResult, tmp_path_factory: Any) -> Iterator[Any]:
    """Opens the report from disk; it may neither complain nor ask for anything else."""
    place = write_report(result, tmp_path_factory.mktemp("page") / "report.html")
    complaints: list[str] = []
    contexts = []

    def open_page(viewport: dict[str, int], scheme: str) -> Any:
        contexts.append(chromium.new_context(viewport=viewport, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        requests: list[str] = []
        page.goto(place.as_uri())
        asked = [url for url in requests if not url.startswith("data:image/png;base64,")]
        assert asked == [place.as_uri()]
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def brightness(page: Any) -> Any:
    """Return the brightness of the pixels of a page, 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L"))


@pytest.mark.browser
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE, {"width": 320, "height": 600}], ids=["desktop", "phone", "small"])  # fmt: skip
def test_the_report_fits_the_page(opened: Any, viewport: dict[str, int]) -> None:
    """It is never scrolled sideways, whatever stands in it; picture, boxes and bars are shown."""
    page = opened(viewport, "light")
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    right = """[...document.body.querySelectorAll("*:not(thead *, thead)")]
               .map(e => e.getBoundingClientRect().right).reduce((a, b) => Math.max(a, b))"""
    assert page.evaluate(right) <= viewport["width"]
    assert page.evaluate("document.querySelector('img').naturalWidth") == 900
    for what in ("polygon.front", ".contrast .bars", ".contrast .window", "td"):
        boxes = [box.bounding_box() for box in page.locator(what).all()]
        assert boxes
        assert all(box and box["width"] > 1 and box["height"] > 1 for box in boxes), what
    # On a narrow page a row is a card, and each cell says what it is.
    said = "getComputedStyle(document.querySelector('td[data-label]'), '::before').content"
    assert page.evaluate(said) == ("none" if viewport is DESKTOP else '"shape (tczyx)"')
    # Words are large enough to be read.
    sizes = page.evaluate(
        "[...document.querySelectorAll('td, dd, p, pre, figcaption')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12


@pytest.mark.browser
def test_the_report_is_light_or_dark_as_the_reader_has_it(opened: Any) -> None:
    """The page is as asked for, its words stand out from it; paper is white all the same."""
    light, dark = opened(DESKTOP, "light"), opened(DESKTOP, "dark")
    assert np.median(brightness(light)) > 240
    assert np.median(brightness(dark)) < 40
    for page in (light, dark):
        colors = "(e => [e.color, e.backgroundColor])(getComputedStyle(document.body))"
        ink, paper = (list(map(int, re.findall(r"\d+", c)[:3])) for c in page.evaluate(colors))
        assert abs(sum(ink) - sum(paper)) > 3 * 180
    dark.emulate_media(media="print")
    assert dark.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.browser
def test_the_report_prints_on_a_few_pages(opened: Any) -> None:
    """A4, with the two tables as tables."""
    page = opened(PHONE, "dark")
    printed = page.pdf(format="A4", prefer_css_page_size=True)
    assert 1 < len(re.findall(rb"/Type\s*/Page\b", printed)) <= 6
