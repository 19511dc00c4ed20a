"""What a run leaves in the UI: keys, tables, the report, progress; and the limits that runs wait at."""

from __future__ import annotations

import contextvars
import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import limits as limits_module
from flows import reports
from flows.limits import bounded_runs, limits
from flows.pyramid import build_pyramid as pyramid_flow
from flows.reports import key_of, level_rows, progress_of, report
from flows.tasks import failed
from pyramid_core.build import BuildResult
from pyramid_core.errors import BuildError
from pyramid_core.opening import ways_to_open
from pyramid_core.origin import look_at
from tests.images import write_base
from tests.service import free_port
from tests.stories import build, noise, write_image

SECRETS = ("hunter2", "hush")


@pytest.fixture
def result(tmp_path: Path) -> BuildResult:
    """What building two levels of an image, whose path holds a space, gave."""
    voxels, place = noise((32, 32, 32)), tmp_path / "day 1" / "a scan.zarr"
    return build(write_image(place, voxels, (16, 16, 16)), step=[2, 2, 2], verify="sample")


def at(result: BuildResult, target: str) -> BuildResult:
    """Return what a build would have given whose target is elsewhere."""
    return replace(result, plan=replace(result.plan, target=target))


# Keys.


@pytest.mark.parametrize(
    ("target", "slug"),
    [
        ("s3://bucket/Scan 1.ome.zarr", "scan-1-ome-zarr"),
        ("s3://bucket/a/__B__.zarr/", "b-zarr"),
        ("/data/plate.zarr/A/1/0", "0"),
        ("/data/Größe.zarr", "gr-e-zarr"),
        ("/data/像", "image"),
        (f"/data/{'x' * 99}", "x" * 40),
        ("s3://bucket", "bucket"),
    ],
)
def test_a_key_is_small_letters_digits_and_dashes(target: str, slug: str) -> None:
    """Prefect takes no other; it begins with the name of the image and ends with its digest."""
    assert re.fullmatch(
        f"pyramid-{re.escape(slug)}-level-1-[0-9a-f]{{8}}", key_of(target, "level", "1")
    )


def test_two_spellings_of_a_place_have_one_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative, with a slash, through a link, as a URL, with a password: the history is the image's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "link.zarr").symlink_to("a.zarr")
    place = tmp_path / "a.zarr"
    spellings = [place, f"{place}/", "a.zarr", "x/../a.zarr", "link.zarr", place.as_uri()]
    assert {key_of(str(one)) for one in spellings} == {key_of(f"{tmp_path}/a.zarr")}
    monkeypatch.chdir(place)
    assert key_of(".") == key_of(str(place))
    assert (
        key_of("s3://me:hunter2@b/a.zarr/")
        == key_of("s3://b/a.zarr")
        == key_of("s3://b/a.zarr?token=hush")
    )


def test_two_places_of_one_name_have_two_keys() -> None:
    """Their histories would be mixed up; so would the parts of one image."""
    places = ["/data/1/a.zarr", "/data/2/a.zarr", "s3://b/a.zarr", "s3://c/a.zarr"]
    assert len({key_of(one, part) for one in places for part in ("levels", "report")}) == 8


def test_a_key_never_tells_a_secret() -> None:
    """Neither a password nor a signature, wherever a URL may hold them."""
    for url in (
        "https://me:hunter2@host/a.zarr?sig=hush",
        "s3://me:hunter2@bucket",
        "s3://b/a?t=hush",
    ):
        assert not any(secret in key_of(url) for secret in SECRETS)


# The table of levels and the report.


def test_the_rows_say_what_each_level_is_and_took(result: BuildResult) -> None:
    """The base was given; the level beside it was built, at the rate of its voxels."""
    given, built = level_rows(result)
    seconds = result.levels[0].seconds
    assert list(built) == [
        "level", "shape", "seconds", "MB/s", "blocks built", "found finished", "background",
        "voxel size", "chunks", "shards", "objects", "bytes",
    ]  # fmt: skip
    assert list(given.values()) == [
        "0", "32x32x32", "given", "", "", "", "", "1x1x1", "16x16x16", "-", 8, 65536,
    ]  # fmt: skip
    assert list(built.values()) == [
        "1", "16x16x16", round(seconds, 2), round(8192 / seconds / 1e6, 1), 1, 0, 0,
        "2x2x2", "16x16x16", "-", 1, 8192,
    ]  # fmt: skip


def test_the_rows_of_a_plan_are_there_before_anything_is_built(
    result: BuildResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the key of the table that comes later, with the cost: a run that fails has a table too."""
    left: dict[str, Any] = {}
    monkeypatch.setattr(reports, "create_table_artifact", lambda rows, **told: left.update(told, rows=rows))  # fmt: skip
    reports.show_plan(result.plan)
    given, planned = left["rows"]
    assert list(given.values()) == [
        "0", "32x32x32", "given", "", "", "", "", "1x1x1", "16x16x16", "-", 8, 65536,
    ]  # fmt: skip
    assert list(planned.values()) == [
        "1", "16x16x16", "", "", "", "", "", "2x2x2", "16x16x16", "-", 1, 8192,
    ]  # fmt: skip
    assert left["key"] == key_of(result.plan.target, "levels")
    assert "writes 1 objects, 8.19 kB" in left["description"]


@pytest.fixture
def labelled(tmp_path: Path) -> BuildResult:
    """What building an image and its labels gave, which are called the same, of other data types."""
    ids = np.ones((16, 16, 16), "u1")
    return build(write_base(tmp_path / "a.zarr", noise((16, 16, 16)), labels={"cells": ids}))


def test_the_rows_of_labels_tell_of_the_labels(labelled: BuildResult) -> None:
    """The levels of the image, then those of its labels, each with what it took itself."""
    slow = replace(labelled.levels[1], seconds=50.0)
    rows = level_rows(replace(labelled, levels=(labelled.levels[0], slow)))
    assert [(row["level"], row["bytes"]) for row in rows] == [
        ("0", 8192), ("1", 1024), ("0", 4096), ("1", 512),
    ]  # fmt: skip
    assert [row["seconds"] for row in rows][0::2] == ["given", "given"]
    assert rows[1]["seconds"] < 50
    assert rows[3]["seconds"] == 50.0


def cells(text: str) -> list[list[str]]:
    """Return the cells of the table in a text of Markdown, without the line below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert set(table.pop(1)) == {"---"}
    assert len({len(row) for row in table}) == 1
    return table


def test_the_table_of_the_report_is_narrow(result: BuildResult, labelled: BuildResult) -> None:
    """It holds what fits on the page, and the name of an image only where there are labels."""
    columns = [
        "level",
        "shape",
        "voxel size",
        "MB",
        "blocks built",
        "found finished",
        "seconds",
        "MB/s",
    ]
    head, given, built = cells(report(result))
    assert head == columns
    assert given == ["0", "32x32x32", "1x1x1", "0.066", "", "", "given", ""]
    assert built[:6] == ["1", "16x16x16", "2x2x2", "0.008", "1", "0"]
    head, *rows = cells(report(labelled))
    assert head == ["image", *columns]
    assert len(rows) == 4


def test_the_report_says_whether_the_image_is_right(result: BuildResult, tmp_path: Path) -> None:
    """Verified, not verified, or there before: three different things."""
    source = tmp_path / "day 1" / "a scan.zarr"
    text = report(result)
    assert "Verified (sample): 1 of 1 blocks were computed again and found equal" in text
    assert f"`{source}` is an OME-Zarr 0.5 image of 2 levels." in text
    assert "1 blocks were built in " in text
    again = report(build(source, step=[2, 2, 2], verify="sample"))
    assert "It was there, finished" in again
    assert "0 blocks were built and 1 found finished in " in again
    unverified = report(build(source, tmp_path / "b.zarr", step=[2, 2, 2]))
    assert "It was not verified" in unverified
    assert "Verified" not in again + unverified
    assert "\n- nothing tells the voxel size, so it is 1; --voxel-size and --unit would" in text


def test_the_report_says_how_to_open_the_image(result: BuildResult) -> None:
    """Each way of the core, its code in a block of its own."""
    text = report(result)
    for way in ways_to_open(result.plan):
        assert f"\n{way.program}: {way.how}\n\n```\n{way.code}\n```\n" in text


def test_the_report_names_the_digest_of_the_source(result: BuildResult, tmp_path: Path) -> None:
    """As the record has it, with count and bytes; nobody looks at the source a second time."""
    report_of = re.compile(r"^Its source: (.*)\.$", re.MULTILINE)
    look = look_at(result.plan.source)
    assert (look["objects"], len(look["digest"])) == (8, 64)
    (told,) = report_of.findall(report(result))
    assert told == (
        f"metadata {look['metadata']}, objects 8, bytes {look['bytes']}, digest {look['digest']}"
    )
    shutil.rmtree(tmp_path / "day 1")
    assert report_of.findall(report(result)) == [told]


def test_the_picture_stands_in_the_report(result: BuildResult) -> None:
    """Whole, so that no server of ours has to show it; a report without one is a report as well."""
    assert "![a scan](data:image/png;base64,UE5H)" in report(result, b"PNG")
    assert "![" not in report(result)


def artifacts_of(run: Any) -> list[Any]:
    """Return the artifacts of a flow run."""
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    with get_client(sync_client=True) as client:
        return list(client.read_artifacts(artifact_filter=of_run))


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness")
def test_no_artifact_tells_a_secret(result: BuildResult, tmp_path: Path, served: str) -> None:
    """Neither a password nor a signature of source or target; the places are named all the same."""
    source = f"{served}/{(tmp_path / 'day 1' / 'a scan.zarr').relative_to(tmp_path)}/0".replace(
        " ", "%20"
    )
    state: Any = pyramid_flow(
        source=source, target=str(tmp_path / "b.zarr"), return_state=True, step=[2, 2, 2]
    )
    assert state.is_completed()

    @flow(name="leave")
    def leave() -> None:
        secret = at(result, "https://me:hunter2@host/a.zarr?signature=hush")
        reports.show_result(secret)
        reports.show_picture(secret.plan, b"PNG")
        with progress_of(secret.plan, secret.plan.levels[1]):
            pass

    left: Any = leave(return_state=True)
    for run, number in ((state, 7), (left, 5)):
        artifacts = artifacts_of(run.state_details.flow_run_id)
        assert len(artifacts) == number
        told = " ".join(artifact.model_dump_json() for artifact in artifacts)
        assert not any(secret in told for secret in SECRETS)
    assert "https://host/a.zarr" in told


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness")
def test_the_artifacts_of_a_run_are_the_table_the_report_and_the_link(result: BuildResult) -> None:
    """Each under a key of the image; the table holds every column, the link leads to the report."""

    @flow(name="leave")
    def leave() -> None:
        reports.show_result(result)

    left: Any = leave(return_state=True)
    target = result.plan.target
    found = {artifact.key: artifact for artifact in artifacts_of(left.state_details.flow_run_id)}
    assert set(found) == {key_of(target, part) for part in ("levels", "report", "image")}
    assert json.loads(found[key_of(target, "levels")].data) == level_rows(result)
    assert found[key_of(target, "report")].data == report(result)
    page = f"/v2/artifacts/key/{key_of(target, 'report')}"
    assert found[key_of(target, "image")].data == f"[{target}]({page})"


# Progress.

LEVEL: Any = SimpleNamespace(path="1", shape=(64, 64), blocks=SimpleNamespace(size=10_000))
PLAN: Any = SimpleNamespace(target="/data/a.zarr", source=SimpleNamespace(name="a"))


def after(blocks: int) -> Any:
    """Return what a run of a level says after so many blocks, found and empty ones among them."""
    return SimpleNamespace(built=blocks - 2, found=1, empty=1)


class Server:
    """Stands for Prefect's server: remembers what it was told, and when; may be out of reach."""

    def __init__(self) -> None:
        self.told: list[float] = []
        self.calls: list[float] = []
        self.is_there = True

    def _hear(self, progress: float) -> None:
        self.calls.append(time.monotonic())
        if not self.is_there:
            raise httpx.ConnectError("refused")
        self.told.append(progress)

    def create(self, progress: float, *, key: str, description: str) -> str:
        assert key == key_of("/data/a.zarr", "level", "1")
        assert description == "a level 1, 64x64"
        self._hear(progress)
        return "the artifact"

    def update(self, artifact: str, progress: float) -> None:
        assert artifact == "the artifact"
        self._hear(progress)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(reports, "create_progress_artifact", made.create)
    monkeypatch.setattr(reports, "update_progress_artifact", made.update)
    monkeypatch.setattr(reports, "UPDATE_SECONDS", 0.1)
    return made


def test_a_burst_of_blocks_makes_a_handful_of_updates(server: Server) -> None:
    """However many blocks there are: at most one per interval, never backwards, and 100 at the end."""
    start = time.monotonic()
    with progress_of(PLAN, LEVEL) as progress:
        for block in range(2, 10_001):
            progress(after(block), None)  # type: ignore[arg-type]
            if block % 1000 == 0:
                time.sleep(0.05)
    intervals = (time.monotonic() - start) / 0.1
    assert 3 < len(server.told) <= intervals + 2
    assert server.told == sorted(set(server.told))
    assert (server.told[0], server.told[-1]) == (0.0, 100.0)
    gaps = np.diff(server.calls[:-1])
    assert gaps.min() > 0.09


def test_a_level_that_stands_still_is_not_told_again(server: Server) -> None:
    """A value is told once, however long it stays; found and empty blocks count as done."""
    with progress_of(PLAN, LEVEL) as progress:
        progress(after(2500), None)  # type: ignore[arg-type]
        time.sleep(0.5)
    assert server.told in ([25.0, 100.0], [0.0, 25.0, 100.0])


def test_a_level_that_fails_ends_at_what_was_done(server: Server) -> None:
    """Its last value is the true one, and the error goes on."""

    def fail() -> None:
        with progress_of(PLAN, LEVEL) as progress:
            progress(after(3333), None)  # type: ignore[arg-type]
            raise BuildError("corrupt")

    with pytest.raises(BuildError, match="corrupt"):
        fail()
    assert server.told[-1] == 33.3
    assert "progress" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.timeout(20)
def test_an_absent_server_never_holds_a_level_up(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked again at the same bounded rate, the log says so once, and the end comes at once."""
    server.is_there = False
    with progress_of(PLAN, LEVEL) as progress:
        progress(after(5000), None)  # type: ignore[arg-type]
        time.sleep(0.5)
        end = time.monotonic()
    assert time.monotonic() - end < 0.5
    assert 2 <= len(server.calls) <= 8
    assert [record.getMessage() for record in caplog.records] == [
        "Prefect's server cannot be told of the progress: refused"
    ]
    assert caplog.records[0].levelname == "WARNING"


def test_a_server_that_comes_back_is_told(server: Server) -> None:
    """What it missed is in the next update."""
    server.is_there = False
    with progress_of(PLAN, LEVEL) as progress:
        progress(after(5000), None)  # type: ignore[arg-type]
        time.sleep(0.15)
        server.is_there = True
        time.sleep(0.3)
    assert server.told == [50.0, 100.0]


# Limits.


def images(*targets: str) -> Any:
    """Return a plan of which only the targets are asked for."""
    return SimpleNamespace(images=[SimpleNamespace(target=target) for target in targets])


def held(name: str) -> int | None:
    """Return how many slots of a limit are held; None where there is no such limit."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(name).active_slots
        except ObjectNotFound:
            return None


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return the level and the text of what we logged."""
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "pyramid_core.flows"]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, all of it."""
    caplog.set_level("INFO", "pyramid_core")
    return caplog


@pytest.fixture
def store_limit() -> Iterator[None]:
    """A limit of the store, as an operator sets it in the UI."""
    asked = GlobalConcurrencyLimitCreate(name="pyramid-store", limit=2)
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(asked)
        yield
        client.delete_global_concurrency_limit_by_name("pyramid-store")


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness")
def test_a_build_holds_a_slot_of_each_image_it_writes(tmp_path: Path, log: Any) -> None:
    """Named by the target, whatever its spelling; free afterwards, and after an error."""
    targets = [f"{tmp_path}/a.zarr", f"{tmp_path}/a.zarr/labels/cells"]

    def fail() -> None:
        with limits(images(*targets)):
            assert [held(key_of(target)) for target in targets] == [1, 1]
            raise BuildError("corrupt")

    with pytest.raises(BuildError, match="corrupt"):
        fail()
    # An operator's page shows the limits that are held, not one for every image there ever was.
    assert [held(key_of(target)) for target in targets] == [None, None]
    with limits(images(f"{tmp_path}/b.zarr")), limits(images(f"{tmp_path}/c.zarr")):
        pass
    assert told(log) == []  # there is no limit of the store, and whoever waits says so


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness", "store_limit")
def test_a_second_build_of_an_image_waits_for_the_first(
    tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and begins when the first has ended; meanwhile it keeps nobody from the store."""
    monkeypatch.setattr(limits_module, "WAIT_SECONDS", 60.0)
    plan, order = images(f"{tmp_path}/a.zarr"), []

    def second() -> None:
        with limits(plan):
            order.append("second begins")

    thread = threading.Thread(target=contextvars.copy_context().run, args=(second,))
    with limits(plan):
        thread.start()
        time.sleep(1.0)
        assert held("pyramid-store") == 1
        order.append("first ends")
    thread.join()
    assert order == ["first ends", "second begins"]
    name = key_of(f"{tmp_path}/a.zarr")
    assert told(log) == [("INFO", f"other runs hold the limit {name}; this one waits")]
    assert held(name) is None


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness")
def test_a_build_that_waits_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not when the wait is over: Prefect kills what goes on for half a minute."""
    monkeypatch.setattr(limits_module, "WAIT_SECONDS", 30.0)
    plan = images(f"{tmp_path}/a.zarr")
    with limits(plan):
        threading.Timer(2.0, signal.raise_signal, [signal.SIGINT]).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt), limits(plan):
            pass
    assert time.monotonic() - start < 10


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness")
def test_a_server_may_answer_later_than_it_is_asked_again(
    tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request is never cut off in the middle, which would leave its slot to nobody for a minute."""
    monkeypatch.setattr(limits_module, "ASK_SECONDS", 0.001)
    monkeypatch.setattr(limits_module, "WAIT_SECONDS", 3.0)
    with limits(images(f"{tmp_path}/a.zarr")):
        assert held(key_of(f"{tmp_path}/a.zarr")) == 1
    assert told(log) == []


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness")
def test_a_build_that_has_waited_long_goes_on_all_the_same(
    tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a warning: a slot may be held by nobody, and the core's own guard decides."""
    monkeypatch.setattr(limits_module, "WAIT_SECONDS", 1.0)
    plan, name = images(f"{tmp_path}/a.zarr"), key_of(f"{tmp_path}/a.zarr")
    with limits(plan), limits(plan):
        assert held(name) == 1
    assert told(log) == [
        ("INFO", f"other runs hold the limit {name}; this one waits"),
        ("WARNING", f"{name} was not free within 1.0 s; the lock beside the image decides"),
    ]
    assert held(name) is None


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness", "store_limit")
def test_a_limit_of_the_store_counts_builds_of_different_images(tmp_path: Path, log: Any) -> None:
    """Each build holds one slot of it, however many label images it has."""
    with limits(images(f"{tmp_path}/a.zarr", f"{tmp_path}/a.zarr/labels/cells")):
        assert held("pyramid-store") == 1
        with limits(images(f"{tmp_path}/b.zarr")):
            assert held("pyramid-store") == 2
    assert held("pyramid-store") == 0
    assert told(log) == []


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness", "store_limit")
def test_a_run_that_was_picked_up_again_does_not_wait_for_itself(
    tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot of the process that was killed is leased for a while longer; the store counts it."""
    plan = images(f"{tmp_path}/a.zarr")
    with limits(plan):
        monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "2")
        with bounded_runs(), limits(plan):
            assert held(key_of(f"{tmp_path}/a.zarr")) == 1
            assert held("pyramid-store") == 2
    assert told(log) == []


@pytest.mark.flow
@pytest.mark.usefixtures("prefect_harness")
def test_a_server_out_of_reach_stops_no_build(tmp_path: Path, log: Any) -> None:
    """From the start, or when the slot is given back: a warning says what follows from it."""
    nowhere = {PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}
    built = []
    with temporary_settings(nowhere), limits(images(f"{tmp_path}/a.zarr")):
        built.append("a")
    with ExitStack() as stack, limits(images(f"{tmp_path}/b.zarr")):
        stack.enter_context(temporary_settings(nowhere))
        built.append("b")
    assert built == ["a", "b"]
    assert [(level, text.split(":")[0]) for level, text in told(log)] == [
        ("WARNING", "built without waiting for others"),
        ("WARNING", "a slot was not given back, so others wait for its lease"),
    ]


def test_a_hidden_server_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is this run's own, so nobody else could hold a slot."""
    monkeypatch.setattr(limits_module, "get_client", None)
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        limits(images(f"{tmp_path}/a.zarr")),
    ):
        pass


# Failures.


def test_a_failure_is_told_in_one_line() -> None:
    """The state of a run has room for one; the error itself goes with it."""
    error = BuildError("level 1 cannot be built:\n    chunk 0/0 is corrupt\n  mend it")
    state = failed(error)
    assert state.is_failed()
    assert state.message == "level 1 cannot be built: chunk 0/0 is corrupt mend it"
    assert state.data is error
