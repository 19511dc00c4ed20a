"""The sweep: what is new is built, what is finished is passed over, and one bad image stops no other."""

from __future__ import annotations

import contextvars
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import zarr
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterName,
)
from prefect.states import Completed, Failed
from prefect.types.entrypoint import EntrypointType

from flows import sweep as module
from flows.pyramid import build_pyramid as pyramid_flow
from flows.sweep import sweep_inbox
from pyramid_core import PyramidParams, build_pyramid, open_image, plan_pyramid
from pyramid_core.changes import DatedStorage
from pyramid_core.inbox import Found, find_images
from pyramid_core.owner import own
from pyramid_core.params import SweepParams
from pyramid_core.stores import open_storage
from pyramid_core.writer import prepare
from tests.stories import (
    attributes,
    chunk_files,
    document,
    identities,
    noise,
    paths,
    tree,
    write_image,
)

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_harness")]

ASKED: dict[str, Any] = {"step": [2, 2], "workers": 1}
VOXELS = noise((32, 32))


def image(place: Path, **options: Any) -> Path:
    """Write an image of 2 x 2 chunks, of which two levels are made."""
    return write_image(place, VOXELS, (16, 16), **options)


def core(source: Path | str, target: Path | str | None = None, **asked: Any) -> None:
    """Build as a sweep asks for it, by the core."""
    where = None if target is None else str(target)
    options = {**ASKED, "edges": "partial", "existing": "replace", **asked}
    build_pyramid(PyramidParams(source=str(source), target=where, **options))


def sweep(inbox: Path | str, outbox: Path | str | None = None, **asked: Any) -> Any:
    """Sweep, and return the state of the run; what was written a moment ago counts as settled."""
    options = {"settle_seconds": 0, **ASKED, **asked}
    where = None if outbox is None else str(outbox)
    return sweep_inbox(inbox=str(inbox), outbox=where, return_state=True, **options)


def table(state: Any) -> list[dict[str, Any]]:
    """Return the table that a sweep left, as the server has it."""
    of_run = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    )
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(artifact_filter=of_run)
    assert artifact.type == "table"
    rows: list[dict[str, Any]] = json.loads(str(artifact.data))
    return rows


def became(state: Any, inbox: Path | str) -> dict[str, str]:
    """Return what became of each image, by its path below the inbox, in the order of the table."""
    return {row["image"].removeprefix(f"{inbox}/"): row["outcome"] for row in table(state)}


def subflows(inbox: Path | str) -> list[str]:
    """Return the names of the runs that built an image below the inbox, however often."""
    named = FlowRunFilter(name=FlowRunFilterName(like_=f"pyramid of {inbox}/"))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=named)
    return sorted(run.name.removeprefix(f"pyramid of {inbox}/") for run in runs)


def rewrite(source: Path) -> None:
    """Write other voxels of the same shape, metadata included, later than any pyramid."""
    voxels = noise((32, 32), seed=1)
    zarr.open_array(source / "0", mode="r+")[...] = voxels
    moment = time.time() + 1
    os.utime(source / "0" / "zarr.json", (moment, moment))


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something again and again, beside the block."""
    stop, context = threading.Event(), contextvars.copy_context()

    def go_on() -> None:
        while not stop.wait(0.02):
            work()

    thread = threading.Thread(target=context.run, args=(go_on,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits have tests of their own; a busy SQLite may refuse them, and Prefect asks again after 2 s."""
    monkeypatch.setattr("flows.pyramid.limits", nullcontext)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """An inbox of one image, in a folder of it."""
    image(tmp_path / "inbox" / "day 1" / "a.zarr")
    return tmp_path / "inbox"


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "outbox"])
def test_what_is_new_is_built_as_the_core_builds_it_and_only_once(
    inbox: Path, tmp_path: Path, in_place: bool
) -> None:
    """Every byte is the core's; the second sweep starts no run and touches no object."""
    image(inbox / "b.zarr", zarr_format=2)
    expected = Path(shutil.copytree(inbox, tmp_path / "core"))
    names = ["day 1/a.zarr", "b.zarr"]
    outbox, copies = (None, None) if in_place else (tmp_path / "outbox", tmp_path / "copies")
    for name in names:
        core(expected / name, copies and copies / name)
    first = sweep(inbox, outbox)
    assert first.is_completed()
    assert became(first, inbox) == dict.fromkeys(sorted(names), "built")
    assert [outcome.outcome for outcome in first.result()] == ["built", "built"]
    assert tree(outbox or inbox) == tree(copies or expected)
    assert tree(inbox) == tree(expected)

    before = {**identities(inbox), **identities(outbox or inbox)}
    again = sweep(inbox, outbox)
    assert again.is_completed()
    assert became(again, inbox) == dict.fromkeys(sorted(names), "finished")
    assert {**identities(inbox), **identities(outbox or inbox)} == before
    assert subflows(inbox) == sorted(names)


def test_the_table_says_what_became_of_each_image(inbox: Path, tmp_path: Path) -> None:
    """A row holds the image, its pyramid, what became of it, why, and the time it took."""
    (inbox / "broken.zarr").mkdir()
    (inbox / "broken.zarr" / "zarr.json").write_text("{")
    broken, row = table(sweep(inbox, tmp_path / "outbox"))
    assert row.pop("seconds") > 0
    assert row == {
        "image": f"{inbox}/day 1/a.zarr",
        "pyramid": f"{tmp_path}/outbox/day 1/a.zarr",
        "outcome": "built",
        "note": "2 blocks built, 0 found finished",
    }
    assert broken["outcome"] == "refused"
    assert broken["note"].startswith("broken.zarr/zarr.json is not JSON")


def test_the_history_of_an_inbox_is_under_one_key(inbox: Path) -> None:
    """Two sweeps leave two tables of one key, by whatever spelling the inbox is named."""
    keys = []
    for spelling in (f"{inbox}", f"{inbox}/"):
        state = sweep(spelling, dry_run=True)
        of_run = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=of_run))
        keys += [artifact.key for artifact in found]
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert str(keys[0]).startswith("pyramid-inbox-sweep-")


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "outbox"])
def test_what_was_begun_is_gone_on_with(
    tmp_path: Path, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that was killed with half its blocks there ends as one that never was."""
    monkeypatch.setattr("pyramid_core.layout._WORTHWHILE", 1)
    inbox, outbox = tmp_path / "inbox", None if in_place else tmp_path / "outbox"
    source = write_image(inbox / "a.zarr", noise((64, 64)), (16, 16))
    copy = Path(shutil.copytree(source, tmp_path / "copy" / "a.zarr"))
    target, expected = (outbox / "a.zarr", tmp_path / "core" / "a.zarr") if outbox else (None, None)
    core(copy, expected)
    asked = PyramidParams(
        source=str(source), target=target and str(target), edges="partial", **ASKED
    )
    prepare(plan_pyramid(open_image(str(source)).info, asked))
    half = (target or source) / "1" / "c" / "0"
    shutil.copytree((expected or copy) / "1" / "c" / "0", half)
    there = identities(half)
    assert list(there) == ["0", "1"]
    state = sweep(inbox, outbox)
    assert became(state, inbox) == {"a.zarr": "built"}
    assert table(state)[0]["note"].endswith(" blocks built, 2 found finished")
    assert tree(target or source) == tree(expected or copy)
    assert identities(half) == there


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "outbox"])
def test_a_source_that_changed_is_built_anew_or_refused(
    inbox: Path, tmp_path: Path, in_place: bool
) -> None:
    """By default its pyramid is replaced; with resume it is left, and the run says so."""
    source = inbox / "day 1" / "a.zarr"
    outbox = None if in_place else tmp_path / "outbox"
    pyramid = source if outbox is None else outbox / "day 1" / "a.zarr"
    core(source, outbox and pyramid)
    rewrite(source)
    before = tree(pyramid / "1")
    state = sweep(inbox, outbox, existing="resume")
    assert state.is_failed()
    assert became(state, inbox) == {"day 1/a.zarr": "refused"}
    assert tree(pyramid / "1") == before
    expected = write_image(tmp_path / "core" / "a.zarr", noise((32, 32), seed=1), (16, 16))
    core(expected)
    state = sweep(inbox, outbox)
    assert became(state, inbox) == {"day 1/a.zarr": "built"}
    assert tree(pyramid / "1") == tree(expected / "1")


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "outbox"])
@pytest.mark.parametrize(
    ("begun", "outcome"), [("new", "built"), ("changed", "finished"), ("unfinished", "finished")]
)
def test_what_another_sweep_publishes_meanwhile_is_not_built_again(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str, outcome: str, *,
    in_place: bool,
) -> None:  # fmt: skip
    """Both saw that there was something to do; no object of what the other has made is touched."""
    source = inbox / "day 1" / "a.zarr"
    outbox = None if in_place else tmp_path / "outbox"
    target = outbox and outbox / "day 1" / "a.zarr"
    if begun == "changed":
        core(source, target)
        rewrite(source)
    elif begun == "unfinished":
        asked = PyramidParams(
            source=str(source), target=target and str(target), edges="partial", **ASKED
        )
        prepare(plan_pyramid(open_image(str(source)).info, asked))
    made: list[dict[str, Any]] = []

    def looked(*asked: Any, **more: Any) -> Any:
        found = find_images(*asked, **more)
        if not made:
            assert [image.state for image in found] == [begun]
            moment = time.time() - 1  # what was rewritten is older than what the other makes of it
            os.utime(source / "0" / "zarr.json", (moment, moment))
            core(source, target)
            made.append(identities(tmp_path))
        return found

    monkeypatch.setattr("flows.sweep.find_images", looked)
    state = sweep(inbox, outbox)
    assert state.is_completed()
    assert became(state, inbox) == {"day 1/a.zarr": outcome}
    assert identities(tmp_path) == made[0]


def test_what_another_sweep_builds_just_now_is_told_as_busy(inbox: Path) -> None:
    """A build that was begun, and that another one goes on with, is not waited for and replaced."""
    source = inbox / "day 1" / "a.zarr"
    asked = PyramidParams(source=str(source), edges="partial", **ASKED)
    prepare(plan_pyramid(open_image(str(source)).info, asked))
    with own(str(source)):
        state = sweep(inbox)
    assert became(state, inbox) == {"day 1/a.zarr": "busy"}
    assert subflows(inbox) == []


@pytest.mark.parametrize("now", ["built", "finished"])
def test_the_guard_of_a_bare_array_in_place_is_that_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str
) -> None:
    """A base called raw, in a group without document: its build, by another, is busy or finished."""
    group = tmp_path / "inbox" / "scan.zarr"
    zarr.create_group(group).create_array("raw", data=VOXELS, chunks=(16, 16))
    asked = PyramidParams(source=str(group / "raw"), edges="partial", **ASKED)
    prepare(plan_pyramid(open_image(asked.source).info, asked))
    (found,) = find_images(str(group.parent))
    assert (found.source, found.state) == (str(group / "raw"), "unfinished")
    if now == "built":
        with own(str(group)):
            state = sweep(group.parent)
        assert became(state, group.parent) == {"scan.zarr/raw": "busy"}
        assert subflows(group.parent) == []
        return
    build_pyramid(asked)
    before = identities(tmp_path)
    monkeypatch.setattr("flows.sweep.find_images", looked_before([found], find_images))
    state = sweep(group.parent)
    assert became(state, group.parent) == {"scan.zarr/raw": "finished"}
    assert identities(tmp_path) == before


def looked_before(first: list[Found], then: Callable[..., Any]) -> Callable[..., Any]:
    """Return a look through an inbox that tells what was so a moment ago, and then what is."""
    told = [first]
    return lambda *asked, **more: told.pop() if told else then(*asked, **more)


def test_the_pyramid_of_another_program_is_left_alone(inbox: Path) -> None:
    """An image whose document is not ours and names several levels is passed over, untouched."""
    source = image(inbox / "b.zarr")
    zarr.create_array(source / "1", data=VOXELS[::2, ::2], chunks=(16, 16))
    scales: Any = [{"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [2.0**k] * 2}]}
              for k in range(2)]  # fmt: skip
    axes = [{"name": name, "type": "space"} for name in "yx"]
    zarr.open_group(source, mode="r+").attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": scales}],
    }
    before = identities(source)
    state = sweep(inbox)
    assert state.is_completed()
    assert became(state, inbox) == {"b.zarr": "foreign", "day 1/a.zarr": "built"}
    assert identities(source) == before


def test_one_bad_image_does_not_stop_the_others(inbox: Path) -> None:
    """The good ones are built; the run fails at its end with a line that names the first."""
    image(inbox / "z.zarr")
    corrupt = image(inbox / "b.zarr")
    chunk_files(corrupt / "0")[0].write_bytes(b"no such chunk")
    broken = image(inbox / "c.zarr")
    (broken / "0" / "zarr.json").write_text("{")
    state = sweep(inbox)
    assert state.is_failed()
    assert became(state, inbox) == {
        "c.zarr": "refused", "b.zarr": "failed", "day 1/a.zarr": "built", "z.zarr": "built",
    }  # fmt: skip
    assert state.message.startswith(f"2 of 4 images failed; the first, {broken}: ")
    assert "c.zarr/0/zarr.json is not JSON" in state.message
    assert "\n" not in state.message
    assert "level 1" in table(state)[1]["note"]
    assert paths(inbox / "z.zarr") == paths(inbox / "day 1" / "a.zarr") == ["0", "1"]
    assert "ome" not in attributes(corrupt)
    # What is mended is built by the next one.
    chunk_files(corrupt / "0")[0].write_bytes(chunk_files(inbox / "z.zarr" / "0")[0].read_bytes())
    shutil.rmtree(broken)
    again = sweep(inbox)
    assert again.is_completed()
    assert became(again, inbox)["b.zarr"] == "built"


def test_an_image_that_comes_to_rest_is_built_last_by_the_same_run(inbox: Path) -> None:
    """What was written within settle_seconds is looked at again once they are over."""
    image(inbox / "b.zarr")
    for path in (inbox / "b.zarr").rglob("*"):
        os.utime(path, (time.time() - 100,) * 2)
    start = time.monotonic()
    state = sweep(inbox, settle_seconds=2)
    assert time.monotonic() - start > 2
    assert list(became(state, inbox).items()) == [("b.zarr", "built"), ("day 1/a.zarr", "built")]


def test_an_image_that_goes_on_changing_is_left_to_the_next_sweep(inbox: Path) -> None:
    """That is no failure: it is told as being written, nothing is put beside it, and the rest is built."""
    image(inbox / "b.zarr")
    source = inbox / "day 1" / "a.zarr"
    chunk = chunk_files(source / "0")[0]
    with meanwhile(lambda: os.utime(chunk)):
        state = sweep(inbox, settle_seconds=1)
    assert state.is_completed()
    assert became(state, inbox) == {"b.zarr": "built", "day 1/a.zarr": "being written"}
    assert sorted(path.name for path in source.iterdir()) == ["0", "zarr.json"]
    assert became(sweep(inbox), inbox) == {"b.zarr": "finished", "day 1/a.zarr": "built"}


def test_a_dry_run_writes_nothing_and_says_what_would_be_done(inbox: Path, tmp_path: Path) -> None:
    """Each image that is not finished is planned, so what would be refused is known."""
    core(image(inbox / "b.zarr"))
    write_image(inbox / "odd.zarr", noise((33, 32)), (16, 16))
    before = identities(tmp_path)
    state = sweep(inbox, dry_run=True, edges="exact", settle_seconds=60)
    assert state.is_failed()
    assert identities(tmp_path) == before
    assert became(state, inbox) == {
        "b.zarr": "finished", "day 1/a.zarr": "to build", "odd.zarr": "refused",
    }  # fmt: skip
    notes = {row["outcome"]: row["note"] for row in table(state)}
    assert notes["to build"].startswith("new; a: 32x32 uint16, 2 levels by mean of 2x2; writes")
    assert notes["refused"].startswith("level 1 cannot be exact: along y, level 0 has 33")
    assert subflows(inbox) == []


def test_shapes_that_do_not_divide_are_built(inbox: Path) -> None:
    """Without being asked: real images seldom divide, so the edges are partial."""
    odd = write_image(inbox / "odd.zarr", noise((33, 31)), (16, 16))
    assert became(sweep(inbox), inbox)["odd.zarr"] == "built"
    assert zarr.open_array(odd / "1", mode="r").shape == (17, 16)


def test_a_target_that_another_build_owns_is_no_failure(inbox: Path) -> None:
    """It is told as busy, with who builds it, and the sweep goes on to the others."""
    image(inbox / "b.zarr")
    source = inbox / "day 1" / "a.zarr"
    with own(str(source)):
        state = sweep(inbox)
    assert state.is_completed()
    assert became(state, inbox) == {"b.zarr": "built", "day 1/a.zarr": "busy"}
    assert f"{source} is being built by process {os.getpid()}" in table(state)[1]["note"]


def test_wells_and_series_are_built(tmp_path: Path) -> None:
    """The images of a plate and of a bioformats2raw container, each in its place."""
    inbox = tmp_path / "inbox"
    documents: dict[str, Any] = {
        "plate.zarr": {"plate": {"wells": [{"path": "A/1"}]}},
        "plate.zarr/A": {},
        "plate.zarr/A/1": {"well": {"images": [{"path": "0"}]}},
        "raw.zarr": {"bioformats2raw.layout": 3},
        "raw.zarr/OME": {"series": ["0", "1"]},
    }
    for name, ome in documents.items():
        zarr.open_group(inbox / name, mode="a").attrs["ome"] = {"version": "0.5", **ome}
    names = ["plate.zarr/A/1/0", "raw.zarr/0", "raw.zarr/1"]
    for name in names:
        image(inbox / name)
    state = sweep(inbox)
    assert became(state, inbox) == dict.fromkeys(names, "built")
    assert {name: len(document(inbox / name)["multiscales"]) for name in names} == dict.fromkeys(
        names, 1
    )


def test_finished_images_cost_two_looks_each_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: a read of the group and the time of the base; none is listed, opened or planned."""
    core(image(tmp_path / "a.zarr"))
    calls: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any) -> Any:
            calls[name] += 1
            return real(*args)

        monkeypatch.setattr(owner, name, call)

    for name in ("read", "written", "listing"):
        count(DatedStorage, name)
    for name in ("last_change", "plan_build", "build_pyramid"):
        count(module, name)
    inbox = tmp_path / "inbox"
    reads = []
    for number in (2, 20):
        for k in range(number):
            shutil.copytree(tmp_path / "a.zarr", inbox / f"{k}.zarr", dirs_exist_ok=True)
        calls.clear()
        assert set(became(sweep(inbox), inbox).values()) == {"finished"}
        reads.append((calls.pop("read"), calls.pop("written")))
        assert not calls
    (few, dated), (many, more) = reads
    assert (many - few, more - dated) == (18, 3 * 18)  # a time that is known is not asked for again
    assert subflows(inbox) == []


def test_an_inbox_that_is_not_there_fails_the_run_in_one_line(tmp_path: Path) -> None:
    """The state says what the core says, and nothing is made."""
    state = sweep(tmp_path / "no")
    assert state.is_failed()
    assert state.message == f"{tmp_path}/no is not there; give a folder"
    assert not (tmp_path / "no").exists()
    assert sweep(tmp_path, memory_limit="much").message.startswith("--memory-limit: ")


@pytest.mark.s3
def test_an_inbox_in_a_bucket_is_swept(inbox: Path, tmp_path: Path, bucket: str) -> None:
    """In place and into an outbox, each pyramid is the core's; the second time there is nothing to do."""
    for path in (p for p in inbox.rglob("*") if p.is_file()):
        open_storage(f"{bucket}/in").write(path.relative_to(inbox).as_posix(), path.read_bytes())
    core(inbox / "day 1" / "a.zarr", tmp_path / "elsewhere")
    core(inbox / "day 1" / "a.zarr")
    for outbox, level in ((f"{bucket}/out", tmp_path / "elsewhere" / "1"),
                          (None, inbox / "day 1" / "a.zarr" / "1")):  # fmt: skip
        first, again = (sweep(f"{bucket}/in", outbox) for _ in range(2))
        assert became(first, f"{bucket}/in") == {"day 1/a.zarr": "built"}
        assert became(again, f"{bucket}/in") == {"day 1/a.zarr": "finished"}
        stored = open_storage(f"{outbox or f'{bucket}/in'}/day 1/a.zarr/1")
        for path in (p for p in level.rglob("*") if p.is_file()):
            assert stored.read(path.relative_to(level).as_posix()) == path.read_bytes()


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A deployment of the flow, without a worker: who runs it is played by the test."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.1)
    own = {"edges": "exact", "target": "elsewhere", "max_levels": 2}
    made: Any = pyramid_flow.to_deployment(
        "handed", parameters=own, entrypoint_type=EntrypointType.MODULE_PATH
    )
    return made.apply()


def handed(deployment: Any) -> list[Any]:
    """Return the runs of a deployment."""
    of = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    with get_client(sync_client=True) as client:
        return list(client.read_flow_runs(deployment_filter=of))


def test_a_deployment_builds_the_images_of_a_sweep(
    inbox: Path, tmp_path: Path, deployment: Any
) -> None:
    """Each becomes a run of it with what was asked; how they end is what became of the images."""
    image(inbox / "b.zarr")
    ends: dict[str, Any] = {"a.zarr": Completed(), "b.zarr": Failed(message="level 1 is\nwrong")}

    def work() -> None:
        for run in handed(deployment):
            if run.state.is_scheduled():
                with get_client(sync_client=True) as client:
                    end = ends[Path(run.parameters["source"]).name]
                    client.set_flow_run_state(run.id, end, force=True)

    with meanwhile(work):
        state = sweep(inbox, tmp_path / "outbox", deployment="pyramid/handed", step=[2, 4])
    assert state.is_failed()
    assert state.message == f"1 of 2 images failed; the first, {inbox}/b.zarr: level 1 is wrong"
    assert became(state, inbox) == {"b.zarr": "failed", "day 1/a.zarr": "built"}
    asked = {run.parameters["source"]: run.parameters for run in handed(deployment)}
    assert asked == {
        f"{inbox}/{name}": {
            "source": f"{inbox}/{name}",
            "target": f"{tmp_path}/outbox/{name}",
            "step": [2, 4],
            "max_levels": 0,
            "method": "mean",
            "edges": "partial",
            "chunks": [],
            "shards": [],
            "compression": "source",
            "ngff_version": "auto",
            "axes": "",
            "voxel_size": [],
            "unit": "",
            "existing": "resume",  # replace is for what was there when the sweep began
            "verify": "sample",
            "memory_limit": "2GB",
            "workers": 1,
            "dask_address": "",
            "test_image": "none",
            "test_shape": [256, 256, 256],
        }  # what the sweep asks, whatever the deployment has of its own
        for name in ("b.zarr", "day 1/a.zarr")
    }
    assert not (tmp_path / "outbox").exists()


def test_two_sweeps_hand_over_an_image_once(
    tmp_path: Path, deployment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait for one run; only where that has ended without the image, another is made."""
    inbox, waiting = tmp_path / "inbox", set[int]()
    image(inbox / "a.zarr")
    before = {run.id for run in handed(deployment)}

    def state(run: Any, real: Any = module._state) -> Any:
        waiting.add(threading.get_ident())
        return real(run)

    def work(end: Any) -> None:
        for run in handed(deployment) if len(waiting) >= 2 else ():
            if run.state.is_scheduled():
                with get_client(sync_client=True) as client:
                    client.set_flow_run_state(run.id, end, force=True)

    def swept() -> dict[str, str]:
        return became(sweep(inbox, deployment="pyramid/handed"), inbox)

    monkeypatch.setattr(module, "_state", state)
    with meanwhile(lambda: work(Failed())), ThreadPoolExecutor(2) as two:
        both = [two.submit(contextvars.copy_context().run, swept) for _ in range(2)]
        assert [future.result() for future in both] == [{"a.zarr": "failed"}] * 2
    assert len({run.id for run in handed(deployment)} - before) == 1
    with meanwhile(lambda: work(Completed())):
        assert swept() == {"a.zarr": "built"}
    assert len({run.id for run in handed(deployment)} - before) == 2


def test_a_sweep_that_is_stopped_cancels_what_it_handed_over(
    inbox: Path, deployment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runs would go on else, on machines that nobody looks at; that of another sweep does."""
    image(inbox / "b.zarr")
    image(inbox / "c.zarr")
    third = Found(str(inbox / "c.zarr"), None, "new", "")
    other = module._run_for("pyramid/handed", third, PyramidParams(source=third.source)).id
    before = {run.id for run in handed(deployment)}

    def stop(_: Any) -> None:
        runs = [run for run in handed(deployment) if run.id not in before]
        assert len(runs) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_state", stop)
    with pytest.raises(KeyboardInterrupt):
        sweep(inbox, deployment="pyramid/handed")
    states = [run.state.type.value for run in handed(deployment) if run.id not in before]
    assert states == ["CANCELLED", "CANCELLED"]
    assert [run.state.type.value for run in handed(deployment) if run.id == other] == ["SCHEDULED"]


def test_a_deployment_that_is_not_there_is_said_before_anything_is_done(inbox: Path) -> None:
    """In one line that says how to find those that there are, whatever the form of its name."""
    for name in ("pyramid/nowhere", "nowhere"):
        state = sweep(inbox, deployment=name, settle_seconds=60)
        assert state.is_failed()
        assert state.message == (
            f"there is no deployment {name}; `prefect deployment ls` names those that there are"
        )


@pytest.mark.parametrize(
    ("existing", "asked"), [("replace", "resume"), ("resume", "resume"), ("fail", "fail")]
)
def test_a_sweep_asks_to_replace_nothing_that_was_not_there(existing: Any, asked: str) -> None:
    """What was not there when the inbox was listed may have been published since, so that is gone on with."""
    image = Found("/inbox/a.zarr", "/out/a.zarr", "new", note="")
    params = SweepParams(inbox="/inbox", existing=existing)
    now = module._asked_now(params, image)
    assert isinstance(now, PyramidParams)
    assert now.existing == asked
