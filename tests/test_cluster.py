"""The story on Dask: processes of their own build the same bytes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyramid_core import PyramidParams, verify_pyramid
from pyramid_core.build import build_pyramid
from pyramid_core.errors import BuildError, ClusterError
from pyramid_core.job import BlockResult
from tests.stories import build, chunk_files, noise, tree, write_image

ROOT = Path(__file__).parent.parent
ASKED = {"memory_limit": "100kB", "step": [2, 2, 2], "edges": "partial"}

pytestmark = pytest.mark.dask


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``dask`` as the command line would, and end it."""
    argv = [sys.executable, "-m", "dask", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def dask_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with two workers of one thread, all started from the command line."""
    folder = tmp_path_factory.mktemp("dask")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = f"tcp://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(
            running(
                *("scheduler", "--host", "127.0.0.1", "--port", str(port)),
                *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
            )
        )
        for number in range(2):
            stack.enter_context(
                running(
                    *("worker", where, "--nthreads", "1", "--no-nanny", "--no-dashboard"),
                    *("--local-directory", str(folder / str(number))),
                )
            )
        wait_for_workers(where, 2)
        yield where


def wait_for_workers(address: str, count: int) -> None:
    """Wait until the scheduler listens and the workers have come."""
    from distributed import Client

    host, _, port = address.removeprefix("tcp://").partition(":")
    deadline = time.monotonic() + 60
    # By hand: a refused attempt of Dask's own leaves a socket to the garbage collector, which warns.
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline, f"no scheduler at {address}"
            time.sleep(0.1)
    with Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=60)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, and its pyramid as threads build it, side by side."""
    folder = tmp_path_factory.mktemp("local")
    write_image(folder / "in.zarr", noise((44, 48, 48)), (8, 8, 8))
    build(folder / "in.zarr", folder / "out.zarr", **ASKED)
    build(folder / "in.zarr", folder / "sharded.zarr", shards=[16, 16, 16], **ASKED)
    return folder


@pytest.mark.parametrize(("name", "shards"), [("out.zarr", []), ("sharded.zarr", [16, 16, 16])])
def test_two_processes_of_a_real_cluster_share_the_blocks(
    tmp_path: Path, local: Path, dask_address: str, name: str, shards: list[int]
) -> None:
    """Both workers build blocks, this process builds none, and the bytes are those that threads write."""
    results: list[BlockResult] = []
    params = asked(local, tmp_path, dask_address=dask_address, shards=shards, verify="full")
    result = build_pyramid(params, progress=lambda _, block: results.append(block))
    assert result.blocks_built == len(results)
    workers = {block.worker for block in results}
    assert len(workers) == 2
    assert not any(worker.endswith(f":{os.getpid()}") for worker in workers)
    assert tree(tmp_path / "out.zarr") == tree(local / name)


def asked(local: Path, tmp_path: Path, **options: Any) -> PyramidParams:
    """Ask for the pyramid of the image in another place."""
    both = {**ASKED, **options}
    source, target = str(local / "in.zarr"), str(tmp_path / "out.zarr")
    return PyramidParams(source=source, target=target, **both)


def test_local_starts_processes_here_and_ends_them(tmp_path: Path, local: Path) -> None:
    """With dask_address=local the blocks run in processes of this machine, which are gone afterwards."""
    results: list[BlockResult] = []
    params = asked(local, tmp_path, dask_address="local", workers=2)
    build_pyramid(params, progress=lambda _, block: results.append(block))
    pids = {int(block.worker.rpartition(":")[2]) for block in results}
    assert len(pids) == 2
    assert os.getpid() not in pids
    for pid in pids:
        assert not Path(f"/proc/{pid}/cmdline").exists()
    assert tree(tmp_path / "out.zarr") == tree(local / "out.zarr")


def test_an_active_client_is_used(tmp_path: Path, local: Path, dask_address: str) -> None:
    """Who has connected to a cluster gets the build there, without naming it, and keeps the connection."""
    from distributed import Client

    results: list[BlockResult] = []
    with Client(dask_address, timeout=30) as client:
        params = asked(local, tmp_path)
        build_pyramid(params, progress=lambda _, block: results.append(block))
        assert client.submit(lambda: 7).result() == 7
        assert verify_pyramid(str(tmp_path / "out.zarr"), "full").ok
    assert not any(block.worker.endswith(f":{os.getpid()}") for block in results)
    assert tree(tmp_path / "out.zarr") == tree(local / "out.zarr")


def test_a_block_that_fails_on_the_cluster_is_told_here(tmp_path: Path, dask_address: str) -> None:
    """The error crosses the wire with level, region and cause."""
    source = write_image(tmp_path / "in.zarr", noise((16, 16, 16)), (8, 8, 8))
    torn = chunk_files(source / "0")[3]
    torn.write_bytes(torn.read_bytes()[:20])
    with pytest.raises(BuildError, match=r"level 0, voxels \[.*\]: \w+Error: "):
        build(source, tmp_path / "out.zarr", dask_address=dask_address, **ASKED)


def test_an_address_where_nobody_answers_is_told_at_once(tmp_path: Path, local: Path) -> None:
    """The error names the address, and nothing is written."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ClusterError, match=address):
            build_pyramid(asked(local, tmp_path, dask_address=address))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ClusterError, match="nonsense"):
        build_pyramid(asked(local, tmp_path, dask_address="nonsense://here"))


def test_what_workers_warn_of_is_told_with_the_blocks(
    tmp_path: Path, local: Path, dask_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning in another process reaches the log of the build, once, with the worker's name."""
    from distributed import Client

    from pyramid_core.workers import warnings_heard

    def warn() -> None:
        import logging

        logging.getLogger("pyramid_core").warning("the disk is slow")

    with Client(dask_address, set_as_default=False) as client:
        client.run(warnings_heard)  # begins to listen, as the first block does
        client.run(warn)
    build_pyramid(asked(local, tmp_path, dask_address=dask_address))
    told = [r.getMessage() for r in caplog.records if "the disk is slow" in r.getMessage()]
    assert len(told) in (1, 2)  # a level tells each warning once, and both workers have one
    assert all(line.startswith(f"on {socket.gethostname()}:") for line in told)
