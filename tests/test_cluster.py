"""The story on Dask: processes of their own build the same bytes."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pyramid_core import PyramidParams, verify_pyramid
from pyramid_core.build import build_pyramid, plan_build
from pyramid_core.errors import BuildError, ClusterError
from pyramid_core.job import BlockResult
from pyramid_core.workers import in_flight, open_executor
from tests.stories import build, chunk_files, noise, tree, write_image

ASKED = {"memory_limit": "100kB", "step": [2, 2, 2], "edges": "partial"}

pytestmark = pytest.mark.dask


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


def test_workers_bounds_what_is_begun_on_a_cluster_that_others_use(
    tmp_path: Path, local: Path, dask_address: str
) -> None:
    """So many blocks at the same time, whatever it has; without it, two for each of its two threads."""
    for workers, expected in ((1, 1), (3, 3), (None, 4)):
        made = plan_build(asked(local, tmp_path, dask_address=dask_address, workers=workers))
        with open_executor(made) as executor:
            assert in_flight(made, executor) == expected


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
