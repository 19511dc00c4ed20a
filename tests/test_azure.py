"""Azure's object store is a place like any other: read, written, resumed, owned; by its own emulator."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import re
import subprocess
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from pyramid_core import PyramidParams, build_pyramid, verify_pyramid
from pyramid_core.errors import AccessError
from pyramid_core.stores import open_storage
from tests import npm
from tests.buckets import (
    ASKED,
    an_owner_is_respected_while_it_moves,
    build_cut_off,
    downloaded,
    image_with_a_gap,
)
from tests.stories import tree

pytestmark = pytest.mark.install

AZURITE = "azurite@3.35.0"
ACCOUNT = "devstoreaccount1"
# The key that every emulator has, as its documentation says.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host and port of the emulator, which keeps nothing."""
    folder = tmp_path_factory.mktemp("azurite")
    npm.install(folder, AZURITE)
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
    return image_with_a_gap(tmp_path / "a.zarr")


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

    def lead_to(address: str) -> None:
        monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", address)

    build_cut_off(params, f"http://{azurite}", lead_to, monkeypatch, after=9, seed=5)
    assert open_storage(place).names() == ["b.zarr"]
    assert tree(downloaded(f"{place}/b.zarr", tmp_path / "b.zarr")) == tree(right)


def test_an_owner_in_a_container_moves_and_is_respected(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it beats, a second build is refused; one that no longer moves is taken over, and knows."""
    an_owner_is_respected_while_it_moves(f"{place}/b.zarr", monkeypatch)
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


@pytest.mark.parametrize("scheme", ["az", "azure", "abfs", "adl"])
@pytest.mark.parametrize("emulated", ["", "on"])
def test_a_client_can_be_printed(
    monkeypatch: pytest.MonkeyPatch, scheme: str, emulated: str
) -> None:
    """As zarr 3.4 does; a client that found its account by itself panics then."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    if emulated:
        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
        monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", emulated)
    else:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    assert ACCOUNT in repr(open_storage(f"{scheme}://images/x.zarr").objects)
