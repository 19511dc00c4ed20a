"""On a laptop: no server, nothing written elsewhere, no word to anyone, nothing left behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows import pyramid as flow
from pyramid_core import verify_pyramid
from tests.service import ROOT, Service, pids_of, until
from tests.stories import attributes, chunk_files

SCRIPT = [sys.executable, str(ROOT / "flows" / "pyramid.py")]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with a home of its own, whose connections are noted."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DO_NOT_TRACK"))}
    return {
        **kept,
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "home"),
        "PYTHONPATH": f"{ROOT / 'tests' / 'watcher'}{os.pathsep}{ROOT}",
        "WATCHER_NOTES": str(tmp_path / "connected"),
    }


@pytest.mark.flow
def test_the_script_alone_builds_the_demo_and_writes_nowhere_else(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """The image, its picture and a report in data/, Prefect's own in its home; only loopback is spoken to."""
    done = subprocess.run(
        SCRIPT, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["data"]
    assert sorted(p.name for p in (tmp_path / "work" / "data").iterdir()) == [
        "phantom.html", "phantom.png", "phantom.zarr",
    ]  # fmt: skip
    # numba keeps its kernels beside the package where it can, else in the user's cache.
    assert {p.name for p in (tmp_path / "home").iterdir()} <= {".prefect", ".cache"}
    until(lambda: not pids_of(str(tmp_path / "home")), "the hidden server is gone")
    hosts = set((tmp_path / "connected").read_text().split())
    assert hosts <= {"127.0.0.1", "localhost", "::1", "0.0.0.0", "None", "b'127.0.0.1'"}
    assert verify_pyramid(str(tmp_path / "work" / "data" / "phantom.zarr"), "full").ok
    assert not [line for line in done.stderr.splitlines() if "ERROR" in line or "WARNING" in line]
    assert len(done.stderr.splitlines()) < 25
    assert done.stdout.splitlines()[-2:] == [
        "picture: data/phantom.png",
        "report:  data/phantom.html",
    ]


def failing(tmp_path: Path, environment: dict[str, str], status: int) -> str:
    """Return what the script says on its way to a status; it has written nothing."""
    done = subprocess.run(
        SCRIPT, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert list((tmp_path / "work").iterdir()) == []
    return done.stderr


def test_a_server_that_is_not_there_is_told_of_in_one_line(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """What was asked, what was found and what to do, status 2, and nothing written."""
    nowhere = {**environment, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    told = failing(tmp_path, nowhere, 2)
    assert told.splitlines()[-1] == (
        "pyramid.py: no Prefect server answers at http://127.0.0.1:9/api (PREFECT_API_URL); start "
        "it, unset the variable, or use pyramid build, which needs none"
    )
    assert "Traceback" not in told


def test_a_signal_that_meets_prefect_between_two_states_is_no_traceback() -> None:
    """Prefect fails then with an error of its own, which comes of the signal; any other error is shown."""
    try:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ValueError("Task run is not set")  # noqa: B904 - as Prefect does
    except ValueError:
        of_signal = sys.exc_info()
    other = (ValueError, ValueError("corrupt chunk"), None)
    shown = {
        name: flow._helps(logging.LogRecord("prefect", logging.ERROR, "", 0, "failed", (), error))
        for name, error in {"of the signal": of_signal, "another": other}.items()
    }
    assert shown == {"of the signal": False, "another": True}


def slow_build(
    tmp_path: Path, environment: dict[str, str], **options: Any
) -> tuple[Path, subprocess.Popen[str]]:
    """Start the script on a test image of many blocks with a brake that stays; return its target."""
    target = tmp_path / "a.zarr"
    words = ["--source", str(target), "--test-image", "random", "--test-shape", "64,64,64"]
    slow = {
        **environment,
        "PYTHONPATH": f"{ROOT / 'tests' / 'saboteur'}{os.pathsep}{ROOT}",
        "SABOTEUR_BRAKE": str(tmp_path),  # which stays there
        "PREFECT__FLOW_RUN_ID": "",
    }
    process = subprocess.Popen(
        [*SCRIPT, *words, "--chunks", "4,4,4", "--step", "2,2,2"], cwd=tmp_path, env=slow,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    return target, process


@pytest.mark.flow
def test_ctrl_c_at_a_terminal_ends_the_script_and_its_server_in_seconds(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """It reaches the hidden server too, which Prefect would then try to reach for minutes: no traceback, one last line, nothing left."""
    target, process = slow_build(tmp_path, environment, start_new_session=True)
    try:
        until(lambda: (target / "1").is_dir() and chunk_files(target / "1"), "it builds")
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert told.splitlines()[-1].endswith(": stopped by Ctrl-C; run the same again to go on")
    until(lambda: not pids_of(str(tmp_path / "home")), "the hidden server is gone")


@pytest.mark.service
@pytest.mark.parametrize(
    ("number", "status", "seconds"),
    [(signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 2), (signal.SIGTERM, 143, 300)],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM in a long block"],
)
def test_the_script_stops_when_it_is_told_to_and_can_be_gone_on_with(
    tmp_path: Path, service: Service, number: signal.Signals, status: int, seconds: int
) -> None:
    """In seconds, also where a block takes minutes, as of one large chunk in a codec; one last line, and the target says that it is unfinished."""
    slow = {**service.environment, "SABOTEUR_SECONDS": str(seconds)}
    target, process = slow_build(tmp_path, slow)
    is_written = (target / "1" / "c").is_dir if seconds == 2 else (target / "1").is_dir
    until(is_written, "it builds")
    time.sleep(1)  # blocks have begun
    process.send_signal(number)
    begin = time.monotonic()
    _, told = process.communicate(timeout=180)
    assert time.monotonic() - begin < 10  # 5, but for a busy machine
    assert process.returncode == status, told
    assert "Traceback" not in told
    assert told.count("run the same again to go on") == 1
    assert attributes(target)["zarr-pyramid-flow"]["state"] == "building"
    if seconds == 2:  # else it was ended in the middle, and the system frees its lock
        assert not (target.parent / ".a.zarr.lock").exists()


@pytest.mark.service
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_script_ends_at_once_at_a_second_signal(
    tmp_path: Path, service: Service, second: signal.Signals
) -> None:
    """It does not wait for a block that takes minutes, nor for the end of the grace."""
    target, process = slow_build(tmp_path, {**service.environment, "SABOTEUR_SECONDS": "300"})
    until((target / "1").is_dir, "it builds")
    time.sleep(1)  # blocks have begun
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(second)
    _, told = process.communicate(timeout=180)
    assert process.returncode == 128 + second, told
    assert told.endswith("pyramid: ended at once; run the same again to go on\n")
    assert attributes(target)["zarr-pyramid-flow"]["state"] == "building"


@pytest.mark.flow
def test_the_server_of_a_run_that_is_killed_ends_by_itself(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """Kill -9 leaves no server behind, which would hold its port and its database for ever."""
    hold = "import time; from flows import server; server.start(); print('up'); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", hold], cwd=tmp_path / "work", env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert len(pids_of(str(tmp_path / "home"))) == 2
        process.kill()
    until(lambda: not pids_of(str(tmp_path / "home")), "the server is gone")


def test_a_server_that_does_not_come_up_is_told_of(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """Its own words, one last line of ours that says what to do, status 1, and nothing written."""
    nowhere = "sqlite+aiosqlite:////nowhere/a.db"
    broken = {**environment, "PREFECT_SERVER_DATABASE_CONNECTION_URL": nowhere}
    assert failing(tmp_path, broken, 1).splitlines()[-1] == (
        "pyramid.py: the Prefect server of this run ended before it was ready; what it says of "
        "that is above; name one that runs by PREFECT_API_URL, or use pyramid build, which needs "
        "none"
    )
