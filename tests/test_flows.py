"""The flow: the same store as the core, retried where that helps, refused before a server starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prefect import flow as prefect_flow
from prefect import task as prefect_task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL

import pyramid_core.execute as execute
from flows import stops
from flows.pyramid import build_pyramid as flow
from flows.pyramid import main
from flows.sweep import sweep_inbox
from pyramid_core import PyramidParams, build_pyramid
from pyramid_core.errors import BuildError, PlanError
from pyramid_core.owner import own
from pyramid_core.params import SweepParams
from tests.service import until
from tests.stories import noise, tree, write_image

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_harness")]


SCRIPT = Path(main.__code__.co_filename)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 6 x 4 x 2 chunks."""
    return write_image(tmp_path / "a.zarr", noise((48, 32, 16)), (8, 8, 8))


def tasks_of(state: Any) -> dict[str, str]:
    """Return name and state of each task of a run."""
    of = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=of)
    return {run.name: str(run.state_type.value) for run in found if run.state_type}


def story(log: pytest.LogCaptureFixture, place: Path) -> list[str]:
    """Return what the core told, without what differs between two runs: times and places."""
    told = [r.getMessage() for r in log.records if r.name.startswith("pyramid_core.")]
    log.clear()
    return [re.sub(r"[0-9.]+ s\b|[0-9.]+ [kMG]?B/s", "T", t).replace(str(place), "") for t in told]


def test_the_flow_gives_the_bytes_of_the_core_and_tells_its_story(
    image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every object of the two stores is equal, and so is every line of the log."""
    caplog.set_level("INFO", "pyramid_core")
    asked: dict[str, Any] = {"source": str(image), "step": [2, 2, 2], "workers": 2}
    result = flow(**asked, target=str(tmp_path / "flow" / "a.zarr"))
    flow_story = story(caplog, tmp_path / "flow")
    build_pyramid(PyramidParams(**asked, target=str(tmp_path / "core" / "a.zarr")))
    assert result.blocks_built > 0
    assert tree(tmp_path / "flow") == tree(tmp_path / "core")
    assert flow_story == story(caplog, tmp_path / "core")
    assert flow_story == [
        "a: 48x32x16 uint16, 4 levels by mean of 2x2x2 2x2x2 2x2x2; "
        "writes 57 objects, 56.2 kB, 102 kB of memory for 2 at once",
        "note: nothing tells the voxel size, so it is 1; --voxel-size and --unit would",
        "level 0 of a: 48x32x16, 49.2 kB; 1 blocks built, 0 found finished, 0 empty, T, T",
        "level 1 of a: 24x16x8, 6.14 kB; 1 blocks built, 0 found finished, 0 empty, T, T",
        "level 2 of a: 12x8x4, 768 B; 1 blocks built, 0 found finished, 0 empty, T, T",
        "level 3 of a: 6x4x2, 96 B; 1 blocks built, 0 found finished, 0 empty, T, T",
        "verified: /a.zarr is right (sample: 4 of 4 blocks computed again)",
        "published /a.zarr after T",
    ]


def test_a_second_run_of_the_flow_builds_nothing(image: Path) -> None:
    """The store says that the image is there; no cache is asked."""
    asked: dict[str, Any] = {"source": str(image), "step": [2, 2, 2]}
    first = flow(**asked)
    before = tree(image)
    again = flow(**asked)
    assert (first.blocks_found, again.blocks_built) == (0, 0)
    assert again.blocks_found == first.blocks_built
    assert tree(image) == before


def test_a_test_image_is_a_task_of_its_own_where_it_is_asked_for(tmp_path: Path) -> None:
    """The flow makes it, once; what is there already is used."""
    source = tmp_path / "phantom.zarr"
    state: Any = flow(
        source=str(source), test_image="blobs", test_shape=[64, 64, 64], return_state=True
    )
    names = set(tasks_of(state))
    assert {f"validate {source}", f"create_test_image {source}", f"plan {source}"} < names
    made = tree(source)
    again: Any = flow(source=str(source), test_image="blobs", test_shape=[64, 64, 64])
    assert again.blocks_built == 0
    assert tree(source) == made


def test_an_existing_cluster_builds_the_blocks(
    image: Path, tmp_path: Path, dask_address: str
) -> None:
    """Named by its address, its processes build what threads build."""
    asked: dict[str, Any] = {"source": str(image), "step": [2, 2, 2]}
    flow(**asked, target=str(tmp_path / "cluster" / "a.zarr"), dask_address=dask_address)
    flow(**asked, target=str(tmp_path / "threads" / "a.zarr"))
    assert tree(tmp_path / "cluster") == tree(tmp_path / "threads")


def test_what_is_ended_with_its_process_is_told_of(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that runs, and the run inside of a run; of a run by itself Prefect tells."""
    told: list[tuple[list[str], str]] = []

    @prefect_task
    def look() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        run = context.flow_run
        ours = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        with get_client(sync_client=True) as client:

            def tasks() -> list[str]:
                return [str(t.state_name) for t in client.read_task_runs(flow_run_filter=ours)]

            until(lambda: tasks() == ["Running"], "the server knows of the task", 30)
            stops._report(run)
            told.append((tasks(), str(client.read_flow_run(run.id).state_name)))

    @prefect_flow(name="outside")
    def outside() -> None:
        flow(source=str(image), return_state=True)

    monkeypatch.setattr("flows.pyramid._build", lambda _: look())
    flow(source=str(image), return_state=True)
    outside(return_state=True)
    assert told == [(["Crashed"], "Running"), (["Crashed"], "Crashed")]


def test_what_is_not_even_a_value_fails_in_validate(image: Path) -> None:
    """The one task that began tells it, and so does the run."""
    state: Any = flow(source=str(image), memory_limit="much", return_state=True)
    assert state.message.startswith("--memory-limit: a size is a number of bytes or a text like")
    assert tasks_of(state) == {f"validate {image}": "FAILED"}


def test_a_passing_fault_is_retried_and_only_what_is_missing_is_done_again(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third block of a level fails once: each block is written once all the same."""
    written: list[tuple[str, tuple[int, ...]]] = []
    real = execute.build_block

    def build_block(job: Any, index: Any, present: Any) -> Any:
        if len(written) == 2 and "FAILED" not in os.environ:
            monkeypatch.setenv("FAILED", "once")
            raise ConnectionResetError("the store hung up")
        written.append((job.level.path, index))
        return real(job, index, present)

    monkeypatch.setattr(execute, "build_block", build_block)
    monkeypatch.setattr("pyramid_core.layout._WORTHWHILE", 1)
    result: Any = flow(source=str(image), step=[2, 2, 2], workers=1)
    assert os.environ["FAILED"] == "once"
    assert len(written) == len(set(written)) > 3
    assert result.verification is not None
    assert result.verification.ok


def test_a_fault_that_stays_is_not_retried(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that cannot be decoded is tried once, and the flow fails with the core's message."""
    tried = []

    def build_block(job: Any, index: Any, present: Any) -> Any:  # noqa: ARG001 - its form
        tried.append(index)
        raise ValueError("corrupt chunk")

    monkeypatch.setattr(execute, "build_block", build_block)
    with pytest.raises(BuildError, match=r"level 1, voxels \[0:24, 0:16, 0:8\]: .*corrupt chunk"):
        flow(source=str(image), step=[2, 2, 2], workers=1)
    assert len(tried) == 1


def test_what_is_asked_wrongly_fails_the_flow_at_once(image: Path) -> None:
    """The state of the run says what the core says."""
    state: Any = flow(source=str(image), step=[5, 2, 2], return_state=True)
    assert state.is_failed()
    assert state.message.startswith("level 1 cannot be exact: along z, level 0 has 48")
    assert "\n" not in state.message
    with pytest.raises(PlanError, match="along z, level 0 has 48"):
        state.result()


def test_a_run_that_crashes_each_time_is_given_up(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many beginnings it fails, before anything is looked at; it would go on for ever."""
    monkeypatch.setattr("flows.limits.MOST_RUNS", 0)
    states: list[Any] = [
        flow(source=str(image), return_state=True),
        sweep_inbox(inbox=str(image.parent), return_state=True),
    ]
    for state in states:
        assert state.is_failed()
        assert state.message == "this run was begun 0 times and did not end; run it anew to go on"


def test_a_run_that_was_picked_up_waits_for_its_former_self(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Called crashed though it lives, that one holds the lock; the first run of all is refused."""
    monkeypatch.setattr("flows.limits.BUSY_SECONDS", 0.2)
    with own(str(image)):
        state: Any = flow(source=str(image), return_state=True)
    assert "is being built by process" in state.message
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "2")
    caplog.set_level("INFO", "pyramid_core")
    caplog.clear()

    def refusals() -> int:
        return len([r for r in caplog.records if "is being built by" in r.getMessage()])

    def let_go() -> None:
        until(lambda: refusals() > 1, "it has been refused twice")
        stack.close()

    with ExitStack() as stack:
        stack.enter_context(own(str(image)))
        thread = threading.Thread(target=let_go)
        thread.start()
        result: Any = flow(source=str(image), step=[2, 2, 2])
        thread.join()
    assert result.blocks_built > 0
    assert refusals() > 1


BLANKS = {
    "target": "",
    "max_levels": 0,
    "workers": 0,
    "dask_address": "",
    "outbox": "",
    "deployment": "",
}
"""What a form shows where nothing is asked for; the models read it as None."""


@pytest.mark.parametrize(
    ("flow", "model", "required"),
    [(flow, PyramidParams, ["source"]), (sweep_inbox, SweepParams, ["inbox"])],
    ids=["pyramid", "sweep"],
)
def test_the_form_is_the_fields_of_the_parameters(
    flow: Any, model: type[PyramidParams | SweepParams], required: list[str]
) -> None:
    """Names, order, defaults, help, choices and bounds of a form are those of the parameters."""
    schema = flow.parameters.model_dump()
    own = model.model_json_schema()["properties"]
    assert list(schema["properties"]) == list(model.model_fields)
    assert schema["required"] == required
    for position, (name, field) in enumerate(model.model_fields.items()):
        shown = schema["properties"][name]
        assert (shown["title"], shown["position"]) == (name, position)
        assert shown["description"] == field.description
        assert "type" in shown, "several types make tabs"
        for bound in ("minimum", "enum", "items", "type"):
            if bound in own[name]:
                assert shown[bound] == own[name][bound]
        if name in required:
            assert "default" not in shown
        elif field.default is None:
            assert shown["default"] == BLANKS[name]
            assert shown["type"] == {"": "string", 0: "integer"}[BLANKS[name]]
            assert getattr(model(**{required[0]: "x", name: BLANKS[name]}), name) is None
        else:
            assert shown["default"] == field.default


def test_the_choices_of_the_form_can_be_selected() -> None:
    """A choice is a list of words, which the form shows as a drop-down; a list has numbers."""
    shown = flow.parameters.model_dump()["properties"]
    assert shown["method"]["enum"] == ["mean", "median", "mode", "min", "max", "stride"]
    assert shown["edges"]["enum"] == ["exact", "partial", "trim"]
    assert shown["step"]["items"] == {"minimum": 1, "type": "integer"}
    assert shown["max_levels"]["minimum"] == 0


@pytest.mark.parametrize("flow", [flow, sweep_inbox], ids=["pyramid", "sweep"])
def test_no_box_of_the_form_asks_for_its_kind(flow: Any) -> None:
    """A choice of types would be shown as tabs; memory is text, and a number in it is a number."""
    shown = flow.parameters.model_dump()["properties"]
    assert [name for name, field in shown.items() if "type" not in field or "anyOf" in field] == []
    assert shown["memory_limit"]["type"] == "string"
    given = {"source": "a", "inbox": "a", "memory_limit": "5000"}
    asked = {name: value for name, value in given.items() if name in shown}
    assert flow.validate_parameters(asked)["memory_limit"] == "5000"
    assert PyramidParams(source="a", memory_limit="5000").memory_bytes == 5000


def test_a_wrong_request_never_starts_a_server(image: Path) -> None:
    """The command line plans with the core first: status 2, one message, and Prefect is not asked."""
    # Without any API, entering the flow would be an error of another kind.
    barred = {"PREFECT_SERVER_EPHEMERAL_ENABLED": "false", "PREFECT_API_URL": ""}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--source", image, "--step", "5,2,2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **barred, "PYTHONPATH": str(SCRIPT.parent.parent)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pyramid.py: level 1 cannot be exact: along z, level 0 has 48")
    assert len(done.stderr.splitlines()) == 3


def test_the_demo_leaves_a_picture_and_a_report_and_prints_what_helps(tmp_path: Path) -> None:
    """Below data/ and nowhere else; no line of Prefect's about tasks, and none that is said twice."""
    script = Path(main.__code__.co_filename)
    environment = {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PYTHONPATH": str(script.parent.parent),
    }
    done = subprocess.run(
        [sys.executable, script, "--test-shape", "96,96,96"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    made = {p.name for p in (tmp_path / "data").iterdir()}
    assert made == {"phantom.zarr", "phantom.png", "phantom.html"}
    place = tmp_path / "data" / "phantom.zarr"
    assert done.stdout.splitlines()[-6:] == [
        "",
        f"view:    pyramid view {place}",
        f"preview: pyramid preview {place}",
        f"Python:  zarr.open_array('{place}', path='1', mode='r')",
        "picture: data/phantom.png",
        "report:  data/phantom.html",
    ]
    for word in ("Task run", "verified: ", "published ", "Warning"):
        assert word not in done.stderr
    assert done.stderr.count("level 1 of phantom: 48x48x48") == 1


def test_ctrl_c_while_prefect_is_imported_is_said_in_one_line() -> None:
    """That takes seconds, in which nothing is built yet."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", SCRIPT], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)},
    )  # fmt: skip
    assert process.stderr is not None
    while "prefect" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in told.splitlines() if not line.startswith("import time:")] == [
        "pyramid.py: stopped by Ctrl-C; run the same again to go on"
    ]
