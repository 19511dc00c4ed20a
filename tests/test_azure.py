"""Azure's object store is a place like any other: read, written, resumed, owned; by its own emulator."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyramid_core.owner as owner
import pyramid_core.remote as remote
from pyramid_core import PyramidParams, build_pyramid, verify_pyramid
from pyramid_core.errors import AccessError, PyramidError, StoppedError, TargetBusyError
from pyramid_core.stores import open_storage
from tests.proxy import running_proxy
from tests.stories import tree, write_image
from tests.test_faults import until_done
from tests.test_gcs import downloaded

pytestmark = pytest.mark.install

AZURITE = "azurite@3.35.0"
ACCOUNT = "devstoreaccount1"
# The key that every emulator has, as its documentation says.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

ASKED: dict[str, Any] = {
    "step": [2, 2], "chunks": [16, 16], "edges": "partial", "workers": 2, "verify": "full",
}  # fmt: skip


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host and port of the emulator, which keeps nothing."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("azurite")
    if npm is None:
        pytest.skip("npm is not installed")
    subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), AZURITE],
        check=True, capture_output=True,
    )  # fmt: skip
    words = "--inMemoryPersistence --blobPort 0 --skipApiVersionCheck --silent --disableTelemetry"
    with subprocess.Popen(
        ["node", folder / "node_modules/azurite/dist/src/blob/main.js", *words.split()],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            said = iter(process.stdout.readline, "")
            found = (re.search(r"listens on http://(127\.0\.0\.1:\d+)", line) for line in said)
            yield next(match[1] for match in found if match)
        finally:
            process.kill()


@pytest.fixture
def place(azurite: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty container, to which the standard variables lead."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://{azurite}")
    name = f"images-{uuid.uuid4().hex}"
    make_container(azurite, name)
    return f"az://{name}"


def make_container(host: str, name: str) -> None:
    """Make a container; the client of the core makes none."""
    told = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = [f"{key}:{value}" for key, value in told.items()]
    lines += [f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"]
    text = "PUT" + "\n" * 12 + "\n".join(lines)
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    told["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    connection = http.client.HTTPConnection(host)
    connection.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=told)
    assert connection.getresponse().status == 201
    connection.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with a chunk that is not stored."""
    voxels = np.random.default_rng(3).integers(1, 4000, (40, 56)).astype("u2")
    found = write_image(tmp_path / "a.zarr", voxels, (16, 16))
    (found / "0/c/2/1").unlink()
    return found


def test_a_pyramid_is_built_in_a_container_and_out_of_it(
    place: str, image: Path, tmp_path: Path
) -> None:
    """From and to az:// every object is that of a local build; a second run finds all, and one that replaces leaves no other."""
    right = tmp_path / "right.zarr"
    build_pyramid(PyramidParams(source=str(image), target=str(right), **ASKED))
    target = f"{place}/day 1/b.zarr"
    params = PyramidParams(source=str(image), target=target, **ASKED)
    build_pyramid(params.model_copy(update={"method": "max", "chunks": [8, 8]}))
    assert build_pyramid(params.model_copy(update={"existing": "replace"})).blocks_built > 0
    assert build_pyramid(params).blocks_built == 0
    assert verify_pyramid(target, "full").ok
    assert open_storage(place).names("day 1") == ["b.zarr"]
    assert tree(downloaded(target, tmp_path / "b.zarr")) == tree(right)
    back = tmp_path / "c.zarr"
    build_pyramid(PyramidParams(source=f"{target}/0", target=str(back), **ASKED))
    levels = {key: digest for key, digest in tree(right).items() if key != "zarr.json"}
    assert {key: digest for key, digest in tree(back).items() if key != "zarr.json"} == levels


def test_a_build_in_a_container_goes_on_where_it_was_cut_off(
    place: str, azurite: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service goes in the middle, then misbehaves: one line says so, and the same again ends as if it had stayed."""
    right = tmp_path / "right.zarr"
    build_pyramid(PyramidParams(source=str(image), target=str(right), **ASKED))
    params = PyramidParams(source=str(image), target=f"{place}/b.zarr", **ASKED)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(remote, "PAUSES", (0.01,))
    monkeypatch.setattr(owner, "WATCH_SECONDS", 2.0)
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.4)
    with running_proxy(f"http://{azurite}") as proxy:
        monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", proxy.address)
        proxy.leave(after=9, method="PUT")
        with pytest.raises(PyramidError, match=r"^[^\n]*cannot be asked now[^\n]*$"):
            build_pyramid(params)
        proxy.come_back()
        proxy.fail("reset", "slow_down", "truncated", seed=5)
        said = until_done(lambda: build_pyramid(params))
        assert any(proxy.done[kind] for kind in ("reset", "slow_down", "truncated")), said
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://{azurite}")
    assert open_storage(place).names() == ["b.zarr"]
    assert tree(downloaded(f"{place}/b.zarr", tmp_path / "b.zarr")) == tree(right)


def test_an_owner_in_a_container_moves_and_is_respected(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it beats, a second build is refused; one that no longer moves is taken over, and knows."""
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(owner, "WATCH_SECONDS", 20.0)
    target = f"{place}/b.zarr"
    with owner.own(target) as mine:
        with pytest.raises(TargetBusyError, match="is being built by process"), owner.own(target):
            pass
        stopped: Any = mine
        beating = stopped._owners[0]
        beating._stop.set()
        beating._thread.join()
        monkeypatch.setattr(owner, "WATCH_SECONDS", 0.5)
        with owner.own(target) as other:
            other.check()
            with pytest.raises(StoppedError, match="was taken over by process"):
                mine.check()
    assert open_storage(place).names() == []


def test_what_lacks_is_named(place: str, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is not there and a wrong key each say so in one line, before anything is built."""
    nowhere = "az://none-of-this-name/a.zarr"
    said = rf"^{nowhere}: there is no such container; look at its name[^\n]*$"
    with pytest.raises(AccessError, match=said):
        build_pyramid(PyramidParams(source=nowhere, **ASKED))
    with pytest.raises(AccessError, match=said):
        build_pyramid(PyramidParams(source=str(image), target=nowhere, **ASKED))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"hunter2").decode())
    with pytest.raises(AccessError, match=r"refuses us[^\n]*AZURE_STORAGE_ACCOUNT_KEY$") as caught:
        build_pyramid(PyramidParams(source=f"{place}/a.zarr", **ASKED))
    assert "hunter2" not in str(caught.value)
