"""On a real server with a real worker: from the form's JSON, on a schedule, retried, killed, resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.reports import key_of
from pyramid_core.owner import own
from tests.service import FINAL, PREFECT, ROOT, Service, kill_group, pids_of, readme_commands, until
from tests.stories import attributes, build, chunk_files, noise, paths, tree, write_image

pytestmark = [pytest.mark.service, pytest.mark.timeout(600)]

stops = pytest.mark.xdist_group("stops")
"""Tests that wait long for what stops, or stop the server: run beside the others, on a second one."""

SABOTEUR = ROOT / "tests" / "saboteur"
FORM: dict[str, Any] = {
    "target": "", "step": [], "max_levels": 0, "method": "mean", "edges": "partial", "chunks": [],
    "shards": [], "compression": "source", "ngff_version": "auto", "axes": "", "voxel_size": [],
    "unit": "", "existing": "resume", "verify": "sample", "memory_limit": "2GB", "workers": 0,
    "dask_address": "", "test_image": "none", "test_shape": [256, 256, 256],
}  # fmt: skip
"""What the form sends where nothing is changed, but for the edges."""

SMALL: dict[str, Any] = {"memory_limit": "20kB", "step": [2, 2, 2]}
"""Makes small blocks, so that there are many."""


def sabotaged(**files: Path) -> dict[str, str]:
    """Return the environment in which the blocks of a run are slow, or fail, while a file is there."""
    named = {f"SABOTEUR_{name.upper()}": str(path) for name, path in files.items()}
    return {"PYTHONPATH": f"{SABOTEUR}{os.pathsep}{ROOT}", **named}


@pytest.fixture
def brake(tmp_path: Path) -> Path:
    """As long as it is there, a block takes three seconds, so the run cannot end before it is met.

    Not even where the server stands still for a minute, as Prefect's does at times with SQLite.
    """
    path = tmp_path / "brake"
    path.touch()
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 8 x 8 x 8 chunks."""
    return write_image(tmp_path / "scan.zarr", noise((64, 64, 64)), (8, 8, 8))


@pytest.fixture
def expected(image: Path, tmp_path: Path) -> dict[str, str]:
    """What the core makes of a copy of the image, in place."""
    copy = Path(shutil.copytree(image, tmp_path / "core" / image.name))
    build(copy, verify="sample", **SMALL)
    return tree(copy)


@pytest.fixture
def running(service: Service) -> Iterator[list[str]]:
    """Runs that are cancelled afterwards, whatever became of the test."""
    runs: list[str] = []
    yield runs
    print(service.story(runs))  # shown where a test has failed
    for run in runs:
        if service.state(run) not in FINAL:
            service.set_state(run, "CANCELLED")


def begun(
    service: Service, asked: dict[str, Any], running: list[str], brake: Path,
    name: str = "pyramid/pyramid",
) -> str:  # fmt: skip
    """Begin a run that cannot end before its brake is gone, and that is cancelled after the test."""
    run = service.submit(asked, name, **sabotaged(brake=brake))
    running.append(run)
    return run


def kill(run: str) -> None:
    """Kill all that works for a run."""
    for pid in pids_of(run):
        os.kill(pid, signal.SIGKILL)


def built(image: Path) -> int:
    """Return how many chunks of level 1 are stored."""
    return len(chunk_files(image / "1")) if (image / "1").is_dir() else 0


def retried(service: Service, run: str, image: Path) -> int:
    """Press Retry until the run ends by itself; return how many chunks were there at the last press.

    Within a minute of a cancel Prefect may hear of it again, and cancel the retry too.
    """
    while True:
        before = built(image)
        service.set_state(run, "SCHEDULED", "AwaitingRetry")  # what the button does
        until(lambda: service.state(run) in FINAL - {"CRASHED"}, "the retry ends")
        if service.state(run) != "CANCELLED":
            return before


def found_finished(lines: list[str]) -> int:
    """Return how many blocks of level 1 the log last says were found."""
    (*_, told) = [line for line in lines if line.startswith("level 1 of ")]
    return int(told.split(" found finished")[0].rpartition(" ")[2])


def test_the_forms_json_builds_an_image_and_the_page_shows_it(
    service: Service, image: Path, expected: dict[str, str]
) -> None:
    """States, names, a story of a dozen lines and artifacts; the bytes are those of the core."""
    run = service.submit({**FORM, **SMALL, "source": str(image)})
    done = service.wait(run)
    assert (done["state"]["type"], done["name"]) == ("COMPLETED", f"pyramid of {image}")
    assert service.tasks(run) == dict.fromkeys(
        [
            f"validate {image}", f"plan {image}", "scan level 1", "scan level 2", "scan level 3",
            "verify scan", "publish scan", "preview scan",
        ],
        "COMPLETED",
    )  # fmt: skip
    assert tree(image) == expected
    told = [line for line in service.logs(run) if "scan" in line and "flow run" not in line]
    assert [line.split(":")[0] for line in told] == [
        "scan", "level 1 of scan", "level 2 of scan", "level 3 of scan", "verified",
        f"published {image} after {told[-1].split(' after ')[1]}",
    ]  # fmt: skip
    artifacts = service.artifacts(run)
    kinds = {key.rsplit("-", 1)[0]: (kept["type"], kept["data"]) for key, kept in artifacts.items()}
    assert len({key.rsplit("-", 1)[1] for key in artifacts}) == 1
    assert {name: kind for name, (kind, _) in kinds.items()} == {
        "pyramid-scan-zarr-level-1": "progress", "pyramid-scan-zarr-level-2": "progress",
        "pyramid-scan-zarr-level-3": "progress", "pyramid-scan-zarr-levels": "table",
        "pyramid-scan-zarr-preview": "image", "pyramid-scan-zarr-report": "markdown",
        "pyramid-scan-zarr-image": "markdown",
    }  # fmt: skip
    assert {data for kind, data in kinds.values() if kind == "progress"} == {100.0}
    assert kinds["pyramid-scan-zarr-preview"][1].startswith("data:image/png;base64,")
    assert "Verified (sample): " in kinds["pyramid-scan-zarr-report"][1]
    assert [row["shape"] for row in json.loads(kinds["pyramid-scan-zarr-levels"][1])] == [
        "64x64x64", "32x32x32", "16x16x16", "8x8x8",
    ]  # fmt: skip


def test_a_wrong_request_fails_at_once_with_the_message_of_the_core(
    service: Service, image: Path
) -> None:
    """The state says in one line what to do; nothing is retried and nothing written."""
    before = tree(image)
    run = service.submit({**FORM, "source": str(image), "step": [5, 2, 2], "edges": "exact"})
    done = service.wait(run)
    assert done["state"]["type"] == "FAILED"
    assert done["state"]["message"].startswith(
        "level 1 cannot be exact: along z, level 0 has 64 voxels"
    )
    assert "--edges partial" in done["state"]["message"]
    assert service.tasks(run) == {f"validate {image}": "FAILED"}
    assert not any("Traceback" in line for line in service.logs(run))
    assert tree(image) == before


def test_a_passing_fault_is_retried_by_the_task(
    service: Service, image: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    """The form switches a flow's own retries off; the task's go on, with the blocks that are missing."""
    fault = tmp_path / "fault"
    fault.write_text("passing")
    run = service.submit(
        {**FORM, **SMALL, "source": str(image), "workers": 1}, **sabotaged(fault=fault)
    )
    done = service.wait(run)
    assert (done["state"]["type"], done["run_count"]) == ("COMPLETED", 1)
    lines = service.logs(run)
    assert any("the store hung up" in line and "Retry 1/3 will start" in line for line in lines)
    assert found_finished(lines) > 0
    assert tree(image) == expected


def test_a_failed_run_goes_on_where_it_was_when_it_is_retried_in_the_ui(
    service: Service, image: Path, tmp_path: Path, expected: dict[str, str]
) -> None:
    """A fault that stays is not retried by itself; once it is gone, Retry does what is missing."""
    fault = tmp_path / "fault"
    fault.write_text("staying")
    asked = {**FORM, **SMALL, "source": str(image), "workers": 1}
    run = service.submit(asked, **sabotaged(fault=fault))
    done = service.wait(run)
    assert done["state"]["type"] == "FAILED"
    assert "level 1, voxels" in done["state"]["message"]
    assert "corrupt chunk" in done["state"]["message"]
    assert not any("Retry 1/3" in line for line in service.logs(run))
    before = built(image)
    fault.unlink()
    service.set_state(run, "SCHEDULED", "AwaitingRetry")  # what the button Retry does
    until(lambda: service.state(run) == "COMPLETED", "the retry ends")
    assert service.flow_run(run)["run_count"] == 2
    assert found_finished(service.logs(run)) == before > 0
    assert tree(image) == expected


@stops
def test_a_cancel_stops_the_work_and_leaves_it_to_be_gone_on_with(
    service: Service, image: Path, expected: dict[str, str], running: list[str], brake: Path
) -> None:
    """No process of ours is left, and the core goes on from the blocks there."""
    asked = {**FORM, **SMALL, "source": str(image), "workers": 2}
    run = begun(service, asked, running, brake)
    until(lambda: built(image) > 4, "a few blocks are built")
    assert pids_of(run)
    service.set_state(run, "CANCELLING")
    until(lambda: not pids_of(run), "no process is left", 15)
    until(lambda: service.state(run) == "CANCELLED", "it is cancelled")
    # A crash, as Prefect takes it for without its own handler of SIGTERM, would be picked up.
    assert "Crashed" not in service.states(run)
    assert attributes(image)["zarr-pyramid-flow"]["state"] == "building"
    assert not (image.parent / ".scan.zarr.lock").exists()
    brake.unlink()
    before = retried(service, run, image)
    assert service.state(run) == "COMPLETED"
    assert found_finished(service.logs(run)) == before
    assert tree(image) == expected


@stops
def test_a_run_whose_process_is_killed_is_picked_up_once_without_a_person(
    service: Service, image: Path, expected: dict[str, str], running: list[str], brake: Path
) -> None:
    """Runner and worker tell of one death, an automation begins the run again, blocks are found."""
    asked = {**FORM, **SMALL, "source": str(image), "workers": 2}
    run = begun(service, asked, running, brake)
    until(lambda: built(image) > 4, "a few blocks are built")
    kill(run)
    brake.unlink()
    until(lambda: service.flow_run(run)["run_count"] == 2, "it is begun again")
    until(lambda: service.state(run) == "COMPLETED", "it ends")
    assert found_finished(service.logs(run)) > 4
    assert tree(image) == expected
    time.sleep(3)  # a second start would come at once
    states = service.states(run)
    assert (states.count("Running"), states[-1]) == (2, "Completed"), states
    assert states.count("AwaitingRetry") <= states.count("Crashed"), states


@stops
def test_a_cancelled_run_that_is_told_to_have_crashed_is_not_picked_up(
    service: Service, image: Path, running: list[str]
) -> None:
    """Prefect may tell first of a crash and seconds later of the cancel; of another, only the first.

    Nor is a run that never came to run, of which nothing would count how often.
    """
    number = service.deployment("pyramid/pyramid")["id"]
    cancelled, crashed, unborn = (
        service.call("POST", f"deployments/{number}/create_flow_run",
                     parameters={"source": str(image)}, state={"type": "PENDING"})["id"]
        for _ in range(3)
    )  # fmt: skip
    running += [cancelled, crashed, unborn]
    for run in (unborn, cancelled, crashed):
        if run != unborn:
            service.set_state(run, "RUNNING")
        service.set_state(run, "CRASHED")
    service.set_state(cancelled, "CANCELLED")
    until(lambda: "AwaitingRetry" in service.states(crashed), "the other is picked up")
    time.sleep(3)
    assert service.states(cancelled)[-2:] == ["Crashed", "Cancelled"]
    assert service.states(unborn) == ["Pending", "Crashed"]


def test_two_runs_on_one_image_wait_for_each_other(
    service: Service, image: Path, expected: dict[str, str], running: list[str], brake: Path
) -> None:
    """The second waits for the first and finds it all done, a third is cancelled as it waits.

    Beside Prefect, the core's guard refuses.
    """
    asked = {**FORM, **SMALL, "source": str(image), "workers": 2}
    first = begun(service, asked, running, brake)
    until(lambda: built(image) > 1, "the first builds")
    second = service.submit(asked)
    running.append(second)
    pyramid = [sys.executable, "-m", "pyramid_core.cli", "build", str(image), "--step", "2,2,2"]
    refused = subprocess.run(
        [*pyramid, "--memory-limit", "20kB"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert refused.returncode == 2
    assert "is being built by process" in refused.stderr
    given_up = service.submit(asked)
    running.append(given_up)

    def waits(run: str) -> bool:
        return any("this one waits" in line for line in service.logs(run))

    until(lambda: waits(second) and waits(given_up), "both wait")
    service.set_state(given_up, "CANCELLING")
    until(lambda: not pids_of(given_up), "a run that waits ends", 15)
    until(lambda: service.state(given_up) == "CANCELLED", "it is cancelled")
    assert service.state(first) == "RUNNING"
    brake.unlink()
    # The second may end before the first, which has its report to write.
    assert service.wait(second)["state"]["type"] == "COMPLETED"
    assert service.wait(first)["state"]["type"] == "COMPLETED"
    assert any("is there, finished" in line for line in service.logs(second))
    assert tree(image) == expected


def test_an_operator_bounds_how_many_images_are_built_at_once(
    service: Service, image: Path, tmp_path: Path, running: list[str], brake: Path
) -> None:
    """With a limit of that name made in the UI, a run of another image waits as well."""
    other = Path(shutil.copytree(image, tmp_path / "other.zarr"))
    service.call("POST", "v2/concurrency_limits/", name="pyramid-store", limit=1)
    try:
        first = begun(service, {**FORM, **SMALL, "source": str(image)}, running, brake)
        until(lambda: built(image) > 1, "the first builds")
        second = service.submit({**FORM, **SMALL, "source": str(other)})
        running.append(second)
        until(
            lambda: any("pyramid-store" in line for line in service.logs(second)),
            "the second waits",
        )
        assert built(other) == 0
        brake.unlink()
        assert service.wait(first)["state"]["type"] == "COMPLETED"
        assert service.wait(second)["state"]["type"] == "COMPLETED"
    finally:
        service.call("DELETE", "v2/concurrency_limits/pyramid-store")


def test_a_schedule_sweeps_the_inbox_and_the_next_one_finds_nothing_to_do(
    service: Service, image: Path, tmp_path: Path
) -> None:
    """The scheduler makes the runs by itself; the first builds the image, the second passes it over."""
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    inbox.mkdir()
    image.rename(inbox / "scan.zarr")
    deployment = service.deployment("sweep/sweep-often")
    assert [s["active"] for s in deployment["schedules"]] == [False]
    asked = {"inbox": str(inbox), "outbox": str(outbox), "settle_seconds": 1, "step": [2, 2, 2]}
    schedule = {"interval": 10, "anchor_date": datetime.now(UTC).isoformat()}
    (made,) = service.call_list(
        f"deployments/{deployment['id']}/schedules",
        [{"active": True, "schedule": schedule, "parameters": asked}],
    )
    try:
        until(
            lambda: (
                sum(r["state_type"] == "COMPLETED" for r in service.runs("sweep/sweep-often")) >= 2
            ),
            "two sweeps have ended",
        )
    finally:
        service.call("DELETE", f"deployments/{deployment['id']}/schedules/{made['id']}")
    runs = [r for r in service.runs("sweep/sweep-often") if r["state_type"] == "COMPLETED"]
    assert all(run["auto_scheduled"] for run in runs)
    rows = [
        json.loads(kept["data"])
        for run in sorted(runs, key=lambda r: str(r["start_time"]))[:2]
        for kept in service.artifacts(run["id"]).values()
    ]
    assert [[(row["image"], row["outcome"]) for row in table] for table in rows] == [
        [(str(inbox / "scan.zarr"), "built")], [(str(inbox / "scan.zarr"), "finished")],
    ]  # fmt: skip
    assert paths(outbox / "scan.zarr") == ["0", "1", "2", "3"]


def test_an_event_of_an_instrument_starts_a_run(service: Service, image: Path) -> None:
    """The automation of the deployment takes the location from the event."""
    event = {
        "id": "01980000-0000-7000-8000-000000000001",
        "occurred": datetime.now(UTC).isoformat(),
        "event": "image.landed",
        "resource": {"prefect.resource.id": "image.scan"},
        "payload": {"path": str(image)},
    }
    service.call_list("events", [event])
    named = f"pyramid of {image}"

    def run() -> Any:
        return next((r for r in service.runs("pyramid/pyramid") if r["name"] == named), None)

    until(run, "a run is made")
    assert service.wait(run()["id"])["state"]["type"] == "COMPLETED"
    assert run()["created_by"]["type"] == "AUTOMATION"
    assert run()["parameters"]["source"] == str(image)
    assert len(paths(image)) > 1


@stops
@pytest.mark.parametrize("name", ["pyramid/pyramid", "sweep/sweep-nightly"])
def test_a_cancel_reaches_processes_of_dask_and_the_image_of_a_sweep(
    service: Service, image: Path, running: list[str], brake: Path, name: str
) -> None:
    """Both end, nothing is left behind and the target is let go; no second sweep begins meanwhile."""
    if name == "pyramid/pyramid":
        asked = {**FORM, **SMALL, "source": str(image), "dask_address": "local", "workers": 2}
    else:
        asked = {"inbox": str(image.parent), "outbox": "", "settle_seconds": 0, **SMALL}
    run = begun(service, asked, running, brake, name)
    until(lambda: built(image) > 1, "it builds")
    if name.startswith("sweep"):
        second = service.submit(asked, name)
        until(lambda: service.state(second) == "CANCELLED", "the second collides with it")
    service.set_state(run, "CANCELLING")
    until(lambda: not pids_of(run), "no process is left", 15)
    until(lambda: service.state(run) == "CANCELLED", "it is cancelled")
    assert "Crashed" not in service.states(run)
    assert {found["state_type"] for found in service.children(run)} <= {"CRASHED", "CANCELLED"}
    assert attributes(image)["zarr-pyramid-flow"]["state"] == "building"
    with own(str(image)):  # which is refused while another holds it
        pass


@stops
@pytest.mark.parametrize("dask_address", ["", "local"], ids=["threads", "processes"])
def test_a_cancel_waits_for_no_codec(
    service: Service, image: Path, running: list[str], brake: Path, dask_address: str
) -> None:
    """In the midst of blocks that take minutes it is all over within 15 s, and a retry goes on."""
    asked = {**FORM, **SMALL, "source": str(image), "dask_address": dask_address, "workers": 2}
    run = service.submit(asked, **sabotaged(stuck=brake))
    running.append(run)
    until(brake.with_suffix(".met").exists, "blocks are begun")
    service.set_state(run, "CANCELLING")
    until(lambda: not pids_of(run), "no process is left", 15)
    until(lambda: service.state(run) == "CANCELLED", "it is cancelled")
    assert "Crashed" not in service.states(run)
    assert service.tasks(run)["scan level 1"] == "CRASHED"
    assert attributes(image)["zarr-pyramid-flow"]["state"] == "building"
    brake.unlink()
    build(image, verify="sample", **SMALL)
    assert len(paths(image)) == 4


def test_dask_processes_build_what_threads_build(
    service: Service, image: Path, expected: dict[str, str]
) -> None:
    """With dask_address local, processes of their own build the blocks, and none of them is left."""
    asked = {**FORM, **SMALL, "source": str(image), "dask_address": "local", "workers": 2}
    run = service.submit(asked)
    assert service.wait(run)["state"]["type"] == "COMPLETED"
    until(lambda: not pids_of(run), "no process is left")
    assert tree(image) == expected


def test_the_script_reports_to_the_server_that_it_is_told_of(
    service: Service, image: Path, expected: dict[str, str]
) -> None:
    """With PREFECT_API_URL set, python flows/pyramid.py starts no server; its run is seen in the UI."""
    words = [
        "--source",
        str(image),
        "--step",
        "2,2,2",
        "--memory-limit",
        "20kB",
        "--edges",
        "partial",
    ]
    out = service.run(sys.executable, "flows/pyramid.py", *words)
    assert "levels, " in out
    body = {"flow_runs": {"name": {"any_": [f"pyramid of {image}"]}}}
    (run,) = service.call("POST", "flow_runs/filter", **body)
    assert (run["state_type"], run["deployment_id"]) == ("COMPLETED", None)
    assert tree(image) == expected


@stops
def test_a_run_outlives_the_death_of_the_server(
    service: Service, image: Path, expected: dict[str, str], running: list[str], brake: Path
) -> None:
    """The server is killed and started again mid-run; the run ends as if nothing had been."""
    asked = {**FORM, **SMALL, "source": str(image), "workers": 2}
    run = begun(service, asked, running, brake)
    until(lambda: built(image) > 1, "it builds")
    kill_group(service.server, signal.SIGKILL)
    before = built(image)
    time.sleep(2)
    service.start_server()
    brake.unlink()
    done = service.wait(run)
    assert built(image) > before
    assert (done["state"]["type"], done["run_count"]) == ("COMPLETED", 1)
    assert tree(image) == expected
    limits = service.call("POST", "v2/concurrency_limits/filter")
    slots = {limit["name"]: limit["active_slots"] for limit in limits}
    assert slots.get(key_of(str(image)), 0) == 0, (
        "a server that was killed has leaked the slot of the image"
    )


@stops
def test_a_sweep_that_is_picked_up_gives_each_image_a_run_of_its_own(
    service: Service, image: Path, running: list[str], brake: Path
) -> None:
    """Killed in the second of three, it goes on there; no run goes on under the name of another image."""
    before, after = image.with_name("a.zarr"), image.with_name("z.zarr")
    for other in (before, after):
        write_image(other, noise((16, 16, 16)), (8, 8, 8))
    asked = {"inbox": str(image.parent), "outbox": "", "settle_seconds": 0, **SMALL}
    run = begun(service, asked, running, brake, "sweep/sweep-nightly")
    until(lambda: built(image) > 4, "a few blocks of the second are built")
    kill(run)
    brake.unlink()
    until(lambda: service.flow_run(run)["run_count"] == 2, "it is begun again")
    until(lambda: service.state(run) == "COMPLETED", "it ends")
    told = [line for r in service.children(run) for line in service.logs(r["id"])]
    assert told
    assert not any("this one waits" in line for line in told), "for the slot of its former self"
    assert sorted((r["name"], r["parameters"]["source"], r["state_type"])
                  for r in service.children(run)) == [
        (f"pyramid of {place}", str(place), state)
        for place, state in [(before, "COMPLETED"), (image, "COMPLETED"), (image, "CRASHED"),
                             (after, "COMPLETED")]
    ]  # fmt: skip
    assert all(paths(place)[1:] for place in (before, image, after))


@stops
def test_the_runs_of_a_lost_worker_are_picked_up_by_the_next(
    service: Service,
    image: Path,
    expected: dict[str, str],
    tmp_path: Path,
    running: list[str],
    brake: Path,
) -> None:
    """The silence of one that is lost with it is noticed; one that outlives it ends by itself."""
    other = Path(shutil.copytree(image, tmp_path / "other.zarr"))
    runs = {}
    for place in (image, other):
        asked = {**FORM, **SMALL, "source": str(place), "workers": 2}
        runs[place] = begun(service, asked, running, brake)
    until(lambda: all(built(place) > 4 for place in runs), "a few blocks of each are built")
    assert service.worker is not None
    service.worker.kill()
    service.worker.wait()
    kill(runs[image])
    brake.unlink()
    # A line for the console of the worker, which nobody reads now, is its last.
    until(lambda: not pids_of(runs[other]), "the one that outlived its worker ends")
    assert service.state(runs[image]) == "RUNNING"
    assert "ome" not in attributes(other)
    service.start_worker()

    def went_on(run: str) -> bool:
        found = service.flow_run(run)
        return (found["run_count"], found["state"]["type"]) == (2, "COMPLETED")

    until(lambda: all(map(went_on, runs.values())), "both are begun again and end", 300)
    assert all(found_finished(service.logs(run)) > 4 for run in runs.values())
    assert tree(image) == expected


@stops
def test_serve_runs_what_prefect_yaml_deploys_without_a_worker(
    service: Service, image: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """One process takes the place of work pool, deploy and worker; Ctrl-C pauses what it serves."""
    kill_group(service.worker, signal.SIGTERM)
    with (tmp_path / "serve.log").open("wb") as log:
        serving = subprocess.Popen(
            [sys.executable, "deployments/serve.py"], env=service.environment, cwd=ROOT, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        run = service.submit({**FORM, **SMALL, "source": str(image)})
        assert service.wait(run)["state"]["type"] == "COMPLETED"
        assert tree(image) == expected
        serving.send_signal(signal.SIGINT)
        serving.wait(60)
        assert service.deployment("pyramid/pyramid")["paused"]
    finally:
        kill_group(serving, signal.SIGTERM)
        # For the tests after this one, by the work pool again.
        (deploy,) = (words for words, _ in readme_commands() if "deploy" in words)
        service.run(*PREFECT, *deploy[1:])
        service.start_worker()
