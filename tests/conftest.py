"""What several files need: a folder served over http, and a server that speaks S3."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.child import Server
from tests.cluster import running_cluster
from tests.crash import Driver
from tests.images import Pyramids
from tests.s3 import running_moto
from tests.service import Service, running_service

collect_ignore = ["saboteur", "watcher"]
"""Folders that tests put on the PYTHONPATH of other processes, each with a sitecustomize."""

SHARED = ("service", "prefect_harness", "chromium", "driver", "dask_address", "large_images")
"""Fixtures that one process makes for all; their tests are begun first."""

# How long an example takes says nothing of a claim: the first one may compile a kernel.
settings.register_profile("claims", deadline=None)
settings.load_profile("claims")

# What a script starts in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag of the long campaigns."""
    parser.addoption("--long", action="store_true", help="run campaigns in their long form")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook, and would come first
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares something that is slow to make, when processes share the tests."""
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue  # in a group of its own choice
        for name in SHARED:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(name))
                break


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what campaigns have to report, whichever process they ran in."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, text in report.user_properties:
                if name == "campaign" and report.when == "call":
                    terminalreporter.write_line(f"campaign: {text}")


@pytest.fixture(scope="session")
def long_form(pytestconfig: pytest.Config) -> bool:
    """Whether campaigns run in their long form."""
    return bool(pytestconfig.getoption("--long"))


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The URL at which ``tmp_path`` can be read."""
    handler = partial(_Silent, directory=str(tmp_path))
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a moto server in a process of its own, on loopback and without a log."""
    pytest.importorskip("moto.server")
    with running_moto() as address:
        yield address


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; the standard variables lead to the server."""
    from urllib.request import Request, urlopen

    name = f"bucket-{uuid.uuid4().hex}"
    for variable, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(variable, value)
    with urlopen(Request(f"{s3_server}/{name}", method="PUT")):
        pass
    return f"s3://{name}"


@pytest.fixture(scope="session")
def chromium_program() -> str:
    """Where Chromium is installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("CI"):
        pytest.fail("Chromium is not installed")
    pytest.skip("Chromium is not installed")


@pytest.fixture(scope="module")
def chromium(chromium_program: str) -> Iterator[Any]:
    """A browser without a window; not for the session, for its event loop would stop others."""
    sync_api = pytest.importorskip("playwright.sync_api")
    # What WebGL needs where there is no graphics card.
    arguments = "--use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader".split()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pyramids(tmp_path_factory: pytest.TempPathFactory) -> Pyramids:
    """Finished pyramids, each built when it is first asked for; nobody may change one."""
    return Pyramids(tmp_path_factory.mktemp("pyramids"))


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """What forks the builds that are killed."""
    driver = Driver(tmp_path_factory.mktemp("runs"))
    yield driver
    driver.close()


@pytest.fixture
def dask_threads() -> Iterator[Any]:
    """A Dask client, the active one, whose workers are threads of this process."""
    import gc

    distributed = pytest.importorskip("distributed")
    options: dict[str, Any] = {"processes": False, "n_workers": 1, "threads_per_worker": 3}
    with distributed.Client(dashboard_address=None, **options) as client:
        yield client
    gc.collect()  # a socket that Dask leaves open is found here, not in the test of another


@pytest.fixture(scope="session")
def prefect_harness() -> Iterator[None]:
    """One hidden server for all; without heartbeats, whose thread takes a second to end."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    quiet = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with prefect_test_harness(server_startup_timeout=120), temporary_settings(quiet):
        yield


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A real Prefect server with our deployments and automations, and a worker."""
    with running_service(tmp_path_factory.mktemp("prefect") / "home") as running:
        yield running


@pytest.fixture(scope="session")
def dask_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two workers of one thread, all started from the command line."""
    with running_cluster(tmp_path_factory.mktemp("dask")) as address:
        yield address
