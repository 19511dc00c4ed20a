"""One builder per target, and the death of one leaves nothing that stops the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyramid_core import owner
from pyramid_core.errors import (
    AccessError,
    LocationError,
    RequestError,
    StoppedError,
    TargetBusyError,
)
from pyramid_core.owner import own
from pyramid_core.stores import open_storage

HOLD = """
import sys, time
from pyramid_core.owner import own
with own(sys.argv[1]):
    print("owned", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(target: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the target until its input ends, or it is killed."""
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, target],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "owned\n"
        yield process


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_the_second_process_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    """The message names target and process; when the first is done, the second may build."""
    target = tmp_path / "img.zarr"
    with holder(str(target)) as first:
        with (
            pytest.raises(TargetBusyError, match=f"by process {first.pid} on ") as caught,
            own(str(target)),
        ):
            pytest.fail("two builders")
        assert str(target) in str(caught.value)
        assert isinstance(caught.value, RequestError)  # exit status 2
    with own(str(target)):
        assert not target.exists(), "owning makes nothing of the target"
    assert list(tmp_path.iterdir()) == []


def test_death_frees_the_target_at_once(tmp_path: Path) -> None:
    """After kill -9 nothing has to be removed or waited for."""
    target = tmp_path / "img.zarr"
    with holder(str(target)) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / ".img.zarr.lock").exists()
        with own(str(target)):
            pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_gone_after_a_failure_too(tmp_path: Path) -> None:
    """Whatever ends a build, it leaves no file beside the target."""
    with pytest.raises(ZeroDivisionError), own(str(tmp_path / "new" / "img.zarr")):
        raise ZeroDivisionError
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("spelling", ["./x/../img.zarr", "link", "img.zarr/"])
def test_two_spellings_are_one_target(tmp_path: Path, spelling: str) -> None:
    """A link or a detour leads to the same lock."""
    (tmp_path / "img.zarr").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("img.zarr")
    with (
        own(str(tmp_path / "img.zarr")),
        pytest.raises(TargetBusyError),
        own(f"{tmp_path}/{spelling}"),
    ):
        pytest.fail("two builders")


def test_targets_side_by_side_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """The lock is that of one image."""
    with own(str(tmp_path / "a.zarr")) as first, own(str(tmp_path / "b.zarr")):
        first.check()


def test_of_many_builders_that_come_and_go_one_builds_at_a_time(tmp_path: Path) -> None:
    """The lock file comes and goes too, and two never hold it at once."""
    target, inside, most, built = str(tmp_path / "img.zarr"), [0], [0], [0]

    def build() -> None:
        for _ in range(40):
            try:
                with own(target):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.0005)
                    built[0] += 1
                    inside[0] -= 1
            except TargetBusyError:
                time.sleep(0.0002)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert built[0] > 0


def test_a_place_that_cannot_be_written_is_a_wrong_request(tmp_path: Path) -> None:
    """The reason is told in a line."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(LocationError, match=r"cannot write beside .*img.zarr"),
        own(str(tmp_path / "file" / "img.zarr")),
    ):
        pytest.fail("below a file")


def test_a_web_server_is_no_target(served: str) -> None:
    """What can only be read is refused before anything is built."""
    with (
        pytest.raises(LocationError, match=f"cannot write beside {served}/img.zarr"),
        own(f"{served}/img.zarr"),
    ):
        pytest.fail("a web server")


# --- object stores --------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners that beat, and are given up, after a second."""
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(owner, "WATCH_SECONDS", 1.0)


def found(bucket: str, name: str = "img.zarr.owner") -> dict[str, str]:
    content = open_storage(bucket).read(name)
    return {} if content is None else json.loads(content)


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_who_beats_is_left_alone(bucket: str) -> None:
    """A newcomer sees the object move, and is refused with the name of the first."""
    target = f"{bucket}/img.zarr"
    with own(target) as first:
        with (
            pytest.raises(TargetBusyError, match=f"by process {os.getpid()} on ") as caught,
            own(target),
        ):
            pytest.fail("two builders")
        assert target in str(caught.value)
        first.check()
    assert found(bucket) == {}
    with own(target) as second:
        second.check()


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_the_owner_object_moves_and_goes(bucket: str) -> None:
    """Each beat changes the object and keeps its token; at the end it is deleted."""
    with own(f"{bucket}/img.zarr"):
        first = found(bucket)
        wait_until(lambda: found(bucket)["beat"] != first["beat"])
        assert found(bucket)["token"] == first["token"]
    assert found(bucket) == {}
    with pytest.raises(ZeroDivisionError), own(f"{bucket}/img.zarr"):
        raise ZeroDivisionError
    assert found(bucket) == {}


def forsake(bucket: str) -> None:
    """Leave an owner object as a builder does that was killed."""
    content = {"token": "of the dead", "who": "process 1 on a host that burnt", "beat": "last"}
    open_storage(bucket).write("img.zarr.owner", json.dumps(content).encode())


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_who_does_not_move_is_taken_over(bucket: str) -> None:
    """After the watch, and not before, the object is the newcomer's."""
    forsake(bucket)
    start = time.monotonic()
    with own(f"{bucket}/img.zarr") as second:
        assert time.monotonic() - start >= 1.0
        second.check()
        assert found(bucket)["token"] != "of the dead"
    assert found(bucket) == {}


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_who_lost_the_target_is_told_and_stops(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder that slept too long raises at its next check, and leaves the other's object."""
    target = f"{bucket}/img.zarr"
    monkeypatch.setattr(owner, "BEAT_SECONDS", 3600)  # the first sleeps
    with own(target) as first:
        monkeypatch.setattr(owner, "BEAT_SECONDS", 0.05)
        with own(target) as second:
            with pytest.raises(StoppedError, match=f"taken over by process {os.getpid()} on"):
                first.check()
            second.check()
    with pytest.raises(StoppedError, match="taken over by another build"):
        first.check()


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_of_two_newcomers_one_takes_over(bucket: str) -> None:
    """Both watch the same dead owner; If-Match lets one of them win and refuses the other."""
    forsake(bucket)
    owners, refused = [], []
    done = threading.Event()

    def come() -> None:
        try:
            with own(f"{bucket}/img.zarr") as mine:
                owners.append(mine)
                done.wait(20)
        except TargetBusyError as error:
            refused.append(error)
            done.set()

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(owners), len(refused)) == (1, 1)


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_an_owner_whose_answer_was_lost_goes_on_beating(bucket: str) -> None:
    """The object store took the beat but the answer never came: the object is still ours."""
    with own(f"{bucket}/img.zarr") as mine:
        storage = open_storage(bucket)
        storage.write("img.zarr.owner", json.dumps({**found(bucket), "beat": "lost"}).encode())
        wait_until(lambda: found(bucket)["beat"] != "lost")
        mine.check()


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_a_whole_bucket_is_no_target(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no place beside it for the owner object, and none is made in the current folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LocationError, match="a place inside the bucket"), own(bucket):
        pytest.fail("a whole bucket")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_a_bucket_that_is_not_there_is_a_wrong_request(bucket: str) -> None:
    """It is said at once, and is no traceback of a store."""
    with (
        pytest.raises(
            AccessError, match=r"^s3://no-such-bucket/a/img.zarr: there is no such bucket"
        ),
        own("s3://no-such-bucket/a/img.zarr"),
    ):
        pytest.fail(bucket)
