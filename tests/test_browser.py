"""In a browser: the run form as a person meets it, the page of the run, and what it leaves to see."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect

from pyramid_core.build import plan_build
from pyramid_core.errors import RequestError
from pyramid_core.grid import times
from pyramid_core.params import PyramidParams, SweepParams
from tests.service import Service
from tests.stories import assert_pyramid, noise, paths, read, tree, write_image
from tests.test_service import FORM, SMALL, built, found_finished, sabotaged

pytestmark = [
    pytest.mark.service,
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("chromium_program"),  # looked for before a server is started
]

SLOW = 30_000
"""Milliseconds that a page may take on a machine that does other things too."""

RUN = 120_000
"""Milliseconds from Submit to the end of a run; the worker starts a process of Python first."""

THEIRS = {
    r"amplitude\.com": "the UI's own analytics, which no setting of the server switches off",
    r"/(favicon[^/]*|scheduled|pending|running|completed|failed)\.(ico|png|svg) ": "the icon of "
    "the browser's tab, which the UI looks for outside of /v2, where the server has none",
    r"Cannot read properties of null[\s\S]*flow-run-graph": "Prefect's timeline, when its page is left "
    "while it is drawn",
    r" 503 |Unknown error while creating flow run": "SQLite is locked for a moment; asked again",
    r"/api/task_runs/filter ": "the page of an artifact that a flow made asks for a task without id",
}
"""What the browser may complain of in Prefect's pages, and why it is no fault of ours."""


@pytest.fixture
def expected() -> dict[str, str]:
    """What the browser may complain of in a test, and why; a test may add to it."""
    return dict(THEIRS)


@pytest.fixture
def page(chromium: Browser, service: Service, expected: dict[str, str]) -> Iterator[Page]:
    """A page of a browser that reaches the server and nothing else; it may not complain."""
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        line = f"{message.location.get('url', '')} {message.text}"
        if message.type == "error":
            complaints.append(line)

    ui = service.url.removesuffix("api")
    page = chromium.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(SLOW)
    expect.set_options(timeout=SLOW)
    page.route(lambda url: not url.startswith(ui), lambda route: route.abort())
    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(f"{error} {error.stack}"))
    yield page
    page.close()
    assert [line for line in complaints if not any(re.search(e, line) for e in expected)] == []


class Form:
    """The run form of the deployment, by what is read on it."""

    def __init__(self, page: Page, service: Service, name: str = "pyramid/pyramid") -> None:
        deployment = service.deployment(name)["id"]
        self.page = page
        page.goto(f"{service.url.removesuffix('api')}v2/deployments/deployment/{deployment}/run")
        expect(self.field("workers")).to_be_visible()

    @property
    def fields(self) -> Locator:
        """The parameters: each has a label, a sentence of help and something to fill in."""
        return self.page.locator("form div:has(> div label):has(> fieldset)")

    def field(self, name: str) -> Locator:
        label = self.page.locator("label").filter(has_text=re.compile(rf"^{name}( \(Optional\))?$"))
        return self.fields.filter(has=label)

    def box(self, name: str) -> Locator:
        return self.field(name).locator("input, textarea")

    def options(self, name: str) -> list[str]:
        """Open a drop-down, read it and close it."""
        self.page.get_by_role("button", name=f"Select {name}").click()
        found = self.page.get_by_role("option").all_inner_texts()
        self.page.keyboard.press("Escape")
        expect(self.page.get_by_role("option")).to_have_count(0)
        return found

    def pick(self, name: str, option: str) -> None:
        self.page.get_by_role("button", name=f"Select {name}").click()
        self.page.get_by_role("option", name=option, exact=True).click()
        expect(self.field(name)).to_contain_text(option)

    def add(self, name: str, *items: int) -> None:
        """Add rows to a list."""
        for item in items:
            row = self.box(name).count()
            self.field(name).get_by_role("button", name="Add item").click()
            self.box(name).nth(row).fill(str(item))

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def run(self) -> str:
        """Submit, again where the server was busy, follow to the run and return its address."""
        for _ in range(5):
            # Not by what the page says: its word of an error stays while the mouse is on it.
            with self.page.expect_response("**/create_flow_run", timeout=RUN) as answer:
                self.submit()
            if answer.value.status != 503:
                break
        self.page.get_by_role("button", name="View run").click()
        self.page.wait_for_url("**/runs/flow-run/**")
        expect(self.page.get_by_role("tab", name="Artifacts")).to_be_visible()
        return self.page.url.partition("?")[0]


def ended(page: Page) -> str:
    """Return the state that the page of a run comes to show, without being loaded again."""
    final = re.compile("^(Completed|Failed|Crashed|Cancelled)$")
    badge = page.locator("main [data-slot=badge]").filter(has_text=final)
    badge.first.wait_for(timeout=RUN)
    return badge.first.inner_text()


def opened(page: Page, run: str, name: str) -> Locator:
    """Go from a run to its artifacts, to one of them and to its newest version, as a person does."""
    page.goto(run)
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("link").filter(has_text=f"-{name}-").first.click()
    page.wait_for_url("**/artifacts/key/**")
    page.locator("main a[href*='/artifacts/artifact/']").first.click()
    page.wait_for_url("**/artifacts/artifact/**")
    return page.get_by_role("tabpanel")


def numbers(service: Service) -> set[str]:
    """Return the runs that there are."""
    return {run["id"] for run in service.runs("pyramid/pyramid")}


def brightness(picture: bytes) -> Any:
    """Return the brightness of the pixels of a picture, 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"))


def test_the_form_asks_for_each_parameter_in_its_order_with_its_help_and_its_widget(
    page: Page, service: Service
) -> None:
    """Choices are drop-downs, lists have rows, what may stay open is a blank box; all as the model says."""
    form = Form(page, service)
    asked = PyramidParams.model_fields
    labels = [
        f"{name}{'' if field.is_required() else ' (Optional)'}" for name, field in asked.items()
    ]
    assert form.fields.locator("label").all_inner_texts() == labels
    assert form.fields.locator("label + p").all_inner_texts() == [
        field.description for field in asked.values()
    ]
    for name, field in asked.items():
        boxes = [box.input_value() for box in form.box(name).all()]
        if get_origin(field.annotation) is Literal:
            default = "partial" if name == "edges" else field.default  # the deployment's own
            assert form.field(name).get_by_role("button", name="Select").inner_text() == default
            assert form.options(name) == list(get_args(field.annotation))
        elif isinstance(field.default, list):
            assert boxes == [str(item) for item in field.default]
            expect(form.field(name).get_by_role("button", name="Add item")).to_be_visible()
        elif field.is_required() or field.default is None:
            assert boxes in ([""], ["0"]), name
        else:
            assert boxes == [field.default]
    expect(page.get_by_text("Property is type")).to_have_count(0)


def test_a_person_fills_the_form_follows_the_run_and_looks_at_what_it_made(
    page: Page, service: Service, tmp_path: Path
) -> None:
    """Typed, picked and submitted; the page comes to show Completed, the report, the levels, the picture."""
    source = write_image(tmp_path / "scan.zarr", noise((20, 18, 22)), (8, 8, 8))
    target = tmp_path / "scan.ome.zarr"
    given = tree(source)
    form = Form(page, service)
    form.box("source").press_sequentially(str(source))
    form.box("target").fill(str(target))
    form.add("step", 2, 2, 2)
    form.pick("method", "median")
    form.pick("edges", "partial")
    run = form.run()
    assert ended(page) == "Completed"

    expect(page.locator("main")).to_contain_text(f"pyramid of {source}")
    page.get_by_role("tab", name="Task Runs").click()
    for task in ("scan level 0", "scan level 1", "scan level 2", "verify scan", "publish scan"):
        expect(page.locator("main")).to_contain_text(task)

    report = opened(page, run, "report")
    expect(report).to_contain_text("Verified (sample)")
    for word in (str(target), "napari --plugin", "pyramid view", "zarr.open_array("):
        expect(report).to_contain_text(word)

    levels = [read(target / path) for path in paths(target)]
    rows = opened(page, run, "levels").locator("tbody tr")
    expect(rows).to_have_count(len(levels))
    for level, row in zip(levels, rows.all(), strict=True):
        expect(row).to_contain_text(times(level.shape))

    opened(page, run, "image").get_by_role("link", name=str(target)).click()
    page.wait_for_url("**/v2/artifacts/key/*-report-*")
    expect(page.locator("main")).to_contain_text(f"Report on {target}")

    picture = opened(page, run, "preview").locator("img[src^='data:image/png']")
    expect(picture).to_be_visible()
    assert picture.evaluate("async image => (await image.decode(), image.naturalWidth)") == 600
    assert (brightness(picture.screenshot()) > 100).mean() > 0.1

    assert len(levels) == 3
    assert_pyramid(target, [(2, 2, 2)] * 2, "median")
    assert tree(source) == given


def test_a_person_tries_a_sweep_before_it_writes(
    page: Page, service: Service, tmp_path: Path
) -> None:
    """Its form has the parameters of a sweep; with dry_run switched on, the page shows what would be built."""
    source = write_image(tmp_path / "inbox" / "scan.zarr", noise((16, 16, 16)), (8, 8, 8))
    given = tree(tmp_path)
    form = Form(page, service, "sweep/sweep-nightly")
    asked = SweepParams.model_fields
    assert [re.sub(r" \(Optional\)$", "", label)
            for label in form.fields.locator("label").all_inner_texts()] == list(asked)  # fmt: skip
    assert form.fields.locator("label + p").all_inner_texts() == [
        field.description for field in asked.values()
    ]
    form.box("inbox").fill(str(source.parent))
    form.box("outbox").fill(str(tmp_path / "outbox"))
    form.field("dry_run").get_by_role("switch").click()
    form.box("settle_seconds").fill("0.5")
    run = form.run()
    assert ended(page) == "Completed"
    expect(page.locator("main")).to_contain_text(f"sweep of {source.parent}")
    row = opened(page, run, "sweep").locator("tbody tr")
    expect(row).to_have_count(1)
    for told in (str(source), "to build", "2 levels by mean"):
        expect(row).to_contain_text(told)
    assert tree(tmp_path) == given


def test_a_wrong_entry_is_said_on_the_form_and_makes_no_run(
    page: Page, service: Service, expected: dict[str, str]
) -> None:
    """Without a source the server refuses, in red below the box; a step of 0 the browser itself refuses."""
    expected["/create_flow_run .* 409 |'source' is a required property"] = "it is what is tested"
    before = numbers(service)
    form = Form(page, service)
    form.submit()
    expect(form.field("source")).to_contain_text("'source' is a required property")

    form = Form(page, service)
    form.box("source").fill("scan.zarr")
    form.add("step", 2, 0, 2)
    form.submit()
    wrong = form.box("step").nth(1)
    expect(wrong).to_be_focused()
    assert "greater than or equal to 1" in wrong.evaluate("box => box.validationMessage")
    assert form.page.url.endswith("/run")
    assert numbers(service) == before


def test_what_the_form_cannot_know_the_page_of_the_run_says(
    page: Page, service: Service, tmp_path: Path
) -> None:
    """A step that does not divide the image fails in validate; the page shows the core's message, on one line."""
    source = write_image(tmp_path / "scan.zarr", noise((16, 16, 16)), (8, 8, 8))
    given = tree(source)
    with pytest.raises(RequestError) as refused:
        plan_build(PyramidParams(source=str(source), step=[5, 5, 5]))
    form = Form(page, service)
    form.box("source").fill(str(source))
    form.add("step", 5, 5, 5)
    form.pick("edges", "exact")
    form.run()
    assert ended(page) == "Failed"
    page.get_by_role("tab", name="Details").click()
    message = " ".join(str(refused.value).split())
    expect(page.get_by_role("tabpanel").get_by_text(message, exact=True)).to_be_visible()
    page.get_by_role("tab", name="Task Runs").click()
    expect(page.get_by_role("tabpanel")).to_contain_text(f"validate {source}")
    assert tree(source) == given


def test_retry_on_the_page_of_a_failed_run_goes_on_where_it_was(
    page: Page, service: Service, tmp_path: Path
) -> None:
    """Clicked as a person does, in the menu of the run; once the fault is gone it does what is missing."""
    source = write_image(tmp_path / "scan.zarr", noise((64, 64, 64)), (8, 8, 8))
    fault = tmp_path / "fault"
    fault.write_text("staying")
    asked = {**FORM, **SMALL, "source": str(source), "workers": 1}
    run = service.submit(asked, **sabotaged(fault=fault))
    page.goto(f"{service.url.removesuffix('api')}v2/runs/flow-run/{run}")
    assert ended(page) == "Failed"
    before = built(source)
    fault.unlink()
    page.locator("main button[aria-haspopup=menu]").first.click()
    page.get_by_role("menuitem", name="Retry").click()
    asks = page.get_by_role("dialog").or_(page.get_by_role("alertdialog"))
    expect(asks).to_contain_text("AwaitingRetry")
    asks.get_by_role("button", name="Retry").click()
    badge = page.locator("main [data-slot=badge]").filter(has_text=re.compile("^Completed$"))
    badge.first.wait_for(timeout=RUN)
    assert service.flow_run(run)["run_count"] == 2
    assert found_finished(service.logs(run)) == before > 0
    assert len(paths(source)) == 4
