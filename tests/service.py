"""A real Prefect server, a real process worker and the deployments, as an operator starts them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
PREFECT = [sys.executable, "-m", "prefect"]
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(ask: Callable[[], Any], what: str, seconds: float = 180.0) -> Any:
    """Ask again and again until the answer is true, and return it; patient, for a busy machine."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := ask():
            return answer
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


@dataclass
class Service:
    """A Prefect server with one worker, in a home of its own; all on loopback."""

    home: Path
    port: int = field(default_factory=free_port)
    server: subprocess.Popen[bytes] | None = None
    worker: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        settings = {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",
        }
        return {**os.environ, **settings}

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a command of Prefect in a process group of its own; its output goes to a file."""
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*PREFECT, *words], env=self.environment, cwd=ROOT, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(self, *words: str) -> str:
        """Run a command to its end and return what it printed."""
        done = subprocess.run(
            list(words), env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_server(self) -> None:
        words = ("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        self.server = self.start("server", *words)
        until(self.is_healthy, "the server answers", 120)

    def start_worker(self) -> None:
        self.worker = self.start("worker", "worker", "start", "--pool", "pyramids")

    def is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False

    # --- what the UI does, by the same calls -----------------------------------------------

    def call(self, method: str, path: str, **body: Any) -> Any:
        return self._ask(method, path, body or None)

    def call_list(self, path: str, body: list[dict[str, Any]]) -> Any:
        """Post a list."""
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        """Ask the API; again where SQLite was locked, as every client of Prefect's does."""

        def answer() -> list[httpx.Response]:
            found = httpx.request(method, f"{self.url}/{path}", json=body, timeout=120)
            return [] if found.status_code == 503 else [found]

        (found,) = until(answer, f"{path} answers")
        found.raise_for_status()
        return found.json() if found.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"deployments/name/{name}")
        return found

    def submit(
        self, parameters: dict[str, Any], name: str = "pyramid/pyramid", **environment: str
    ) -> str:
        """Start a run as the form does: it always switches the flow's own retries off."""
        deployment = self.deployment(name)
        # Silence is called a crash after 75 s here, so every run is heard of more often.
        quick = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
        given = {**deployment["job_variables"].get("env", {}), **quick}
        body = {
            "parameters": parameters,
            "empirical_policy": {"retries": 0, "retry_delay": 0},
            "state": {"type": "SCHEDULED"},
            "job_variables": {"env": {**given, **environment}},
        }
        run = self.call("POST", f"deployments/{deployment['id']}/create_flow_run", **body)
        return str(run["id"])

    def flow_run(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"flow_runs/{run}")
        return found

    def state(self, run: str) -> str:
        return str(self.flow_run(run)["state"]["type"])

    def states(self, run: str) -> list[str]:
        """Return the names of all states that a run had, the oldest first."""
        return [state["name"] for state in self._history(run)]

    def _history(self, run: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", f"flow_run_states/?flow_run_id={run}")
        return found

    def story(self, runs: list[str]) -> str:
        """Return all that is known of runs: their states, what they logged, what the worker said."""
        lines = []
        for run in runs:
            told = [f"{s['timestamp']} {s['name']}: {s['message']}" for s in self._history(run)]
            lines += [f"run {run}", *told, *self.logs(run)]
        worker = (self.home / "worker.log").read_text("utf-8", "replace")
        return "\n".join([*lines, "the worker:", worker[-8000:]])

    def wait(self, run: str, *, seconds: float = 180.0) -> dict[str, Any]:
        """Wait for a run to end and return it."""
        until(lambda: self.state(run) in FINAL, f"run {run} ends", seconds)
        return self.flow_run(run)

    def logs(self, run: str) -> list[str]:
        """Return the log lines of a run, the oldest first."""
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        return [line["message"] for line in self.call("POST", "logs/filter", **body)]

    def tasks(self, run: str) -> dict[str, str]:
        """Return name and state of each task run, in the order in which they began."""
        body = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return {t["name"]: t["state_type"] for t in self.call("POST", "task_runs/filter", **body)}

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """Return the artifacts of a run by their keys, of each its newest version."""
        body = {"artifacts": {"flow_run_id": {"any_": [run]}}}
        found: list[dict[str, Any]] = self.call("POST", "artifacts/filter", **body)
        return {a["key"]: a for a in sorted(found, key=lambda a: str(a["created"]))}

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Return the runs of a deployment, the newest first."""
        body = {"deployments": {"id": {"any_": [self.deployment(name)["id"]]}}}
        found: list[dict[str, Any]] = self.call(
            "POST", "flow_runs/filter", **body, sort="START_TIME_DESC"
        )
        return found

    def children(self, run: str) -> list[dict[str, Any]]:
        """Return the runs inside of a run: those of the images of a sweep."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}
        found: list[dict[str, Any]] = self.call("POST", "flow_runs/filter", **body)
        return found

    def set_state(self, run: str, type_: str, name: str | None = None) -> None:
        state = {"type": type_, "name": name or type_.capitalize()}
        self.call("POST", f"flow_runs/{run}/set_state", state=state, force=False)


def pids_of(run: str) -> list[int]:
    """Return the processes that work for a flow run: Prefect gives them its id."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if run.encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return found


def kill_group(process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
    """Send a signal to a process and all that it started in its group."""
    if process is not None and process.poll() is None:
        os.killpg(process.pid, number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def readme_commands() -> list[tuple[list[str], bool]]:
    """Return the commands by which the README starts all, and whether each of them stays."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## From the Prefect UI.*?```bash\n(.*?)```", text, re.DOTALL)
    return [(shlex.split(line, comments=True), "# stays" in line) for line in block.splitlines()]


@contextmanager
def running_service(home: Path) -> Iterator[Service]:
    """Start a server, the work pool, the deployments and a worker; stop what is left of them."""
    home.mkdir(parents=True)
    service = Service(home)
    try:
        for words, stays in readme_commands():
            if words[1:] == ["server", "start"]:
                service.start_server()
            elif stays:
                assert words == ["prefect", "worker", "start", "--pool", "pyramids"]
                service.start_worker()
            elif words[0] == "prefect":
                service.run(*PREFECT, *words[1:])
            else:
                # Shorter than three heartbeats, and than usual, so that tests need not wait as long.
                service.run(sys.executable, *words[1:], "--within", "75", "--calm", "12")
        yield service
    finally:
        kill_group(service.worker, signal.SIGTERM)
        kill_group(service.server, signal.SIGTERM)
