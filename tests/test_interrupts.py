"""Ctrl-C and its kin at every stage of every command; workers and schedulers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyramid_core import shell
from pyramid_core.cli import main
from tests.cluster import running, running_scheduler, wait_for_workers
from tests.stories import attributes, chunk_files, noise, tree, write_image

ROOT = Path(__file__).parent.parent

SLOW = """
import os, sys, time
from pathlib import Path
from pyramid_core import build, cli, execute, layout, phantom, preview, voxels

layout._WORTHWHILE = 1  # one chunk is one block
stage, mark = sys.argv[1], Path(sys.argv[2])

def slow(real, seconds):
    def run(*args, **kwargs):
        mark.open("ab").write(b"x")
        time.sleep(seconds)
        return real(*args, **kwargs)
    return run

if stage == "level":
    execute.write_block = slow(execute.write_block, 0.1)
if stage == "brief":
    execute.write_block = slow(execute.write_block, 0.02)
if stage == "stuck":
    execute.write_block = slow(execute.write_block, 300)
if stage == "verify":
    voxels.check_block = slow(voxels.check_block, 0.1)
if stage == "document":
    build.commit = slow(build.commit, 60)
if stage == "phantom":
    phantom.draw = slow(phantom.draw, 0.1)
if stage == "preview":
    preview.render_preview = slow(preview.render_preview, 60)
if stage == "thread":
    from concurrent.futures import ThreadPoolExecutor
    threads = ThreadPoolExecutor(1)
    def render(*args, real=preview.render_preview, **kwargs):
        return threads.submit(slow(real, 60), *args, **kwargs).result()
    preview.render_preview = render
if stage == "cluster":
    import distributed
    distributed.LocalCluster.__exit__ = slow(distributed.LocalCluster.__exit__, 60)
if stage == "plan":
    build.open_image = slow(build.open_image, 60)
sys.exit(cli.main(sys.argv[3:]))
"""
"""Runs ``pyramid`` with one stage slowed down, and notes each time it is come to."""

IMPORTING = """
import importlib, sys, time

class Slow:
    def find_spec(self, name, *_):
        if name == "pydantic":
            print("importing", flush=True)
            time.sleep(300)

sys.meta_path.insert(0, Slow())
module, _, name = sys.argv.pop(1).partition(":")
sys.exit(getattr(importlib.import_module(module), name)())
"""
"""Runs a script that pip installs, and is slow to import what it needs."""

SIGNALS = [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]


def until(true: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.01)


started: list[subprocess.Popen[str]] = []
"""What a test has started, and has to end."""


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    while started:
        process = started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


class Running:
    """A command in a session of its own, like one that a terminal has started."""

    def __init__(self, tmp_path: Path, stage: str, *words: str | Path):
        self.mark = tmp_path / f"mark.{stage}"
        self.mark.unlink(missing_ok=True)
        argv = [sys.executable, "-c", SLOW, stage, str(self.mark), *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            cwd=tmp_path, start_new_session=True,
        )  # fmt: skip

        started.append(self.process)

    @property
    def passed(self) -> int:
        """How often the slow stage was come to."""
        return self.mark.stat().st_size if self.mark.exists() else 0

    def reach(self, count: int = 1) -> None:
        """Wait until the slow stage was come to so often."""
        until(lambda: self.passed >= count or self.process.poll() is not None, "the stage")
        assert self.process.poll() is None, self.process.communicate()[1]

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or as a terminal does to all that it has started."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        """Return the status and the last line; nothing of it may still run."""
        try:
            _, told = self.process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail(f"it goes on: {self.process.communicate()[1]}")
        assert "Traceback" not in told, told
        assert told.count("run the same again") <= 1, told
        until(lambda: not self.left(), "all its processes are gone")
        return self.process.returncode, told.splitlines()[-1] if told else ""

    def left(self) -> list[str]:
        """Return the processes of its session that still run."""
        return [
            entry.name
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and _session(entry) == self.process.pid
        ]


def _session(process: Path) -> int:
    try:
        words = (process / "stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if words[0] == "Z" else int(words[3])


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image of 216 chunks, and its pyramid as an undisturbed run builds it."""
    folder = tmp_path_factory.mktemp("calm")
    write_image(folder / "in.zarr", noise((48, 48, 48)), (8, 8, 8))
    again(folder / "in.zarr", folder / "out.zarr")
    return folder


def asked(source: Path, target: Path, *more: str) -> list[str]:
    """Ask for the pyramid of the image; blocks are small, so there are many."""
    return ["build", str(source), "--target", str(target), "--step", "2,2,2", "--workers", "2",
            "--memory-limit", "200kB", *more]  # fmt: skip


def again(source: Path, target: Path) -> None:
    """Build undisturbed."""
    assert main(asked(source, target)) == 0


@pytest.mark.parametrize(
    ("stage", "number", "status", "name"),
    [
        ("level", *SIGNALS[0]),
        ("level", *SIGNALS[1]),
        ("verify", *SIGNALS[1]),
        ("document", *SIGNALS[0]),
    ],
)
def test_a_signal_at_any_stage_of_a_build_ends_it_with_the_blocks_in_flight(
    tmp_path: Path, calm: Path, stage: str, number: int, status: int, name: str
) -> None:
    """One line and the status; no more than two blocks go on; unfinished, not locked, and then the same bytes."""
    target = tmp_path / "out.zarr"
    run = Running(tmp_path, stage, *asked(calm / "in.zarr", target))
    run.reach(1 if stage == "document" else 3)
    before = run.passed
    run.send(number, group=True)
    assert run.end() == (status, f"pyramid: stopped by {name}; run the same again to go on")
    # One more may begin on each worker before the signal is seen.
    assert run.passed <= before + 2 + 2
    assert attributes(target)["zarr-pyramid-flow"]["state"] == "building"
    assert "ome" not in attributes(target)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".lock")] == []
    again(calm / "in.zarr", target)
    assert tree(target) == tree(calm / "out.zarr")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("verify", ["verify", "{calm}/out.zarr", "--verify", "full"]),
        ("phantom", ["phantom", "{here}/p.zarr", "--test-shape", "512,512,512"]),
        ("plan", ["plan", "{calm}/in.zarr"]),
        ("preview", ["preview", "{calm}/out.zarr", "-o", "{here}/a.png"]),
    ],
    ids=["verify", "phantom", "plan", "preview"],
)
def test_a_signal_ends_every_other_command_too(
    tmp_path: Path, calm: Path, stage: str, words: list[str]
) -> None:
    """Ctrl-C or SIGTERM in the middle: one line and the status; no picture by halves, and nothing that was read is changed."""
    before = tree(calm)
    number, status, name = SIGNALS[stage in ("phantom", "plan")]
    run = Running(tmp_path, stage, *(word.format(calm=calm, here=tmp_path) for word in words))
    run.reach()
    passed = run.passed
    run.send(number)
    assert run.end() == (status, f"pyramid: stopped by {name}; run the same again to go on")
    assert run.passed <= passed + 2 * (os.cpu_count() or 1)
    assert tree(calm) == before
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".png", ".lock", ".partial")]


def test_a_second_signal_ends_at_once_and_nothing_is_lost(tmp_path: Path, calm: Path) -> None:
    """While the first waits for blocks that take five minutes; what is there is whole, and the lock holds up nobody."""
    target = tmp_path / "out.zarr"
    run = Running(tmp_path, "stuck", *asked(calm / "in.zarr", target))
    run.reach(2)
    run.send(signal.SIGINT)
    time.sleep(1)  # of two that come together, the system may tell a thread that is not to know
    assert run.process.poll() is None
    run.send(signal.SIGTERM)
    assert run.end() == (143, "pyramid: ended at once; run the same again to go on")
    assert attributes(target)["zarr-pyramid-flow"]["state"] == "building"
    again(calm / "in.zarr", target)
    assert tree(target) == tree(calm / "out.zarr")


@pytest.mark.parametrize(("number", "status", "name"), SIGNALS)
def test_a_block_that_does_not_end_holds_up_a_signal_for_no_more_than_seconds(
    tmp_path: Path, calm: Path, number: int, status: int, name: str
) -> None:
    """Blocks of five minutes, as of one large chunk in a codec: one line, the status, in under 5 s but for a busy machine; and then the same bytes."""
    target = tmp_path / "out.zarr"
    run = Running(tmp_path, "stuck", *asked(calm / "in.zarr", target))
    run.reach(2)
    run.send(number, group=True)
    begin = time.monotonic()
    status_and_line = run.end()
    assert time.monotonic() - begin < 10
    assert status_and_line == (status, f"pyramid: stopped by {name}; run the same again to go on")
    again(calm / "in.zarr", target)
    assert tree(target) == tree(calm / "out.zarr")


def test_a_chunk_in_a_codec_holds_up_the_end_of_a_picture_no_longer_either(
    tmp_path: Path, calm: Path
) -> None:
    """Where the command has unwound, but a thread that Python waits for at its end has not."""
    run = Running(tmp_path, "thread", "preview", calm / "out.zarr", "-o", tmp_path / "a.png")
    run.reach()
    run.send(signal.SIGINT)
    begin = time.monotonic()
    assert run.end() == (130, "pyramid: stopped by Ctrl-C; run the same again to go on")
    assert time.monotonic() - begin < 10


def test_a_terminal_that_is_closed_stops_the_build_unless_nohup_was_said(
    tmp_path: Path, calm: Path
) -> None:
    """SIGHUP ends it like Ctrl-C, with 129; where it is ignored from the beginning it stays ignored."""
    before, ends = signal.getsignal(signal.SIGHUP), []
    for handed_on in (signal.SIG_DFL, signal.SIG_IGN):  # the tests may run under nohup themselves
        signal.signal(signal.SIGHUP, handed_on)
        try:
            run = Running(tmp_path, "brief", *asked(calm / "in.zarr", tmp_path / "out.zarr"))
        finally:
            signal.signal(signal.SIGHUP, before)
        run.reach(3)
        run.send(signal.SIGHUP, group=True)
        ends.append(run.end())
    assert ends[0] == (129, "pyramid: stopped by SIGHUP; run the same again to go on")
    assert ends[1][0] == 0
    assert tree(tmp_path / "out.zarr") == tree(calm / "out.zarr")


def test_who_reads_what_is_printed_may_stop_reading(calm: Path) -> None:
    """``pyramid plan | head -1`` prints the line, and no word of a broken pipe."""
    command = f"{sys.executable} -u -m pyramid_core.cli plan {calm / 'in.zarr'} | head -1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True,
                          env=environment)  # fmt: skip
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.dask
@pytest.mark.parametrize(
    ("moment", "number", "status", "name"),
    [("starting", *SIGNALS[1]), ("building", *SIGNALS[0]), ("building", *SIGNALS[1])],
)
def test_a_signal_to_a_build_on_local_processes_reaches_all_and_ends_all(
    tmp_path: Path, number: int, status: int, name: str, moment: str
) -> None:
    """As a terminal sends it, to the workers too, which leave it to us: one line, the status, and no process left."""
    source = write_image(tmp_path / "in.zarr", noise((96, 96, 96), "f8"), (8, 8, 8))
    target = tmp_path / "out.zarr"
    words = asked(source, target, "--dask-address", "local", "--method", "mode")
    run = Running(tmp_path, "none", *words)
    if moment == "starting":
        until(lambda: len(run.left()) > 2, "workers are started")
    else:
        until(lambda: (target / "0" / "c").is_dir(), "it builds")
    run.send(number, group=moment == "building")
    assert run.end() == (status, f"pyramid: stopped by {name}; run the same again to go on")
    if moment == "building":
        assert attributes(target)["zarr-pyramid-flow"]["state"] == "building"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".lock")] == []


@pytest.mark.dask
def test_local_processes_that_do_not_end_are_given_up_and_end_all_the_same(
    tmp_path: Path, calm: Path
) -> None:
    """Where the cluster takes a minute to close: the one line and nothing after it, in seconds, and no process left."""
    target = tmp_path / "out.zarr"
    run = Running(tmp_path, "cluster", *asked(calm / "in.zarr", target, "--dask-address", "local"))
    until(lambda: (target / "0" / "c").is_dir(), "it builds")
    run.send(signal.SIGTERM, group=True)
    begin = time.monotonic()
    assert run.end() == (143, "pyramid: stopped by SIGTERM; run the same again to go on")
    assert time.monotonic() - begin < 10


# --- processes of Dask that die -----------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], list[Any]]]:
    """The address of a scheduler, its process, and those of its two workers, each with a nanny."""
    with ExitStack() as stack:
        where, scheduler = stack.enter_context(running_scheduler())
        nannies = [
            stack.enter_context(
                running(
                    *("worker", where, "--nthreads", "1", "--no-dashboard"),
                    *("--local-directory", str(tmp_path / f"worker{number}")),
                )
            )
            for number in range(2)
        ]
        wait_for_workers(where, 2)
        yield where, scheduler, nannies


def workers_of(nanny: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes of the worker that a nanny has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
                words = (entry / "cmdline").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == nanny.pid and "spawn_main" in words:
                found.append(int(entry.name))
    return found


@pytest.mark.dask
def test_workers_that_are_killed_one_after_another_or_pause_do_not_end_the_build(
    tmp_path: Path, calm: Path, cluster: tuple[str, Any, list[Any]]
) -> None:
    """Both of two workers get kill -9, then one pauses for seconds: the build goes on with those that their nannies start, and ends with the same bytes."""
    address, _, nannies = cluster
    target = tmp_path / "out.zarr"
    words = asked(calm / "in.zarr", target, "--dask-address", address)
    with running_build(words) as build:
        for number, nanny in enumerate(nannies):
            least = 10 + 30 * number
            until(partial(enough, target, least, build), "blocks are built")
            (worker,) = workers_of(nanny)
            os.kill(worker, signal.SIGKILL)
        until(lambda: all(workers_of(nanny) for nanny in nannies), "the nannies start others")
        (worker,) = workers_of(nannies[0])
        os.kill(worker, signal.SIGSTOP)
        time.sleep(2)
        os.kill(worker, signal.SIGCONT)
        _, told = build.communicate(timeout=240)
    assert build.returncode == 0, told
    assert tree(target) == tree(calm / "out.zarr")


@pytest.mark.dask
def test_a_scheduler_that_is_killed_is_told_of_in_a_line_and_the_build_can_be_gone_on_with(
    tmp_path: Path, calm: Path, cluster: tuple[str, Any, list[Any]]
) -> None:
    """Status 1, what was lost and what to do; by threads it ends with the same bytes."""
    address, scheduler, _ = cluster
    target = tmp_path / "out.zarr"
    with running_build(asked(calm / "in.zarr", target, "--dask-address", address)) as build:
        until(lambda: len(written(target)) > 10 or build.poll() is not None, "blocks are built")
        scheduler.kill()
        _, told = build.communicate(timeout=240)
    assert build.returncode == 1, told
    assert "Traceback" not in told, told
    lines = [line for line in told.splitlines() if line.startswith("pyramid:")]
    assert len(lines) == 1, told
    assert lines[0] == (
        "pyramid: level 0: the Dask scheduler was lost; start one, then run the same again to go on"
    )
    assert attributes(target)["zarr-pyramid-flow"]["state"] == "building"
    again(calm / "in.zarr", target)
    assert tree(target) == tree(calm / "out.zarr")


def running_build(words: list[str]) -> subprocess.Popen[str]:
    """Start a build."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pyramid_core.cli", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                            env=environment)  # fmt: skip


def enough(target: Path, least: int, build: subprocess.Popen[str]) -> bool:
    """Return whether so many chunks are there, or the build has ended."""
    return len(written(target)) >= least or build.poll() is not None


def written(target: Path) -> list[Path]:
    """Return the chunks that are there."""
    try:
        return chunk_files(target / "0") if (target / "0").is_dir() else []
    except FileNotFoundError:
        return []


def test_a_front_that_fails_on_its_way_out_of_a_signal_was_stopped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect raises an error of its own where a signal meets it between two states: one line and 143 all the same."""

    class TerminationSignal(BaseException):
        signal = 15

    for told, status, name in (
        (TerminationSignal(), 143, "SIGTERM"),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
    ):

        def run(told: BaseException = told) -> int:
            try:
                raise told
            except type(told):
                raise ValueError("Task run is not set")  # noqa: B904 - as Prefect does

        monkeypatch.setattr(shell, "_last_word", threading.Lock())
        assert shell.guarded(run, "pyramid.py") == status
        assert capsys.readouterr().err == (
            f"pyramid.py: stopped by {name}; run the same again to go on\n"
        )


def test_ctrl_c_while_the_command_is_still_imported_is_one_line() -> None:
    """What pip installs minds it before anything that takes time."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTING, project["scripts"]["pyramid"], "plan", "scan.zarr"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert told == "pyramid: stopped by Ctrl-C; run the same again to go on\n"
    assert process.returncode == 130
