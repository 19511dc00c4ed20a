"""Google's object store is a place like any other: read, written, resumed, owned."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyramid_core.remote as remote
from pyramid_core import PyramidParams, build_pyramid, verify_pyramid
from pyramid_core.arrays import open_array
from pyramid_core.errors import AccessError
from pyramid_core.stores import open_storage
from tests.buckets import (
    ASKED,
    an_owner_is_respected_while_it_moves,
    build_cut_off,
    downloaded,
    image_with_a_gap,
)
from tests.gcs import BUCKET, TOKEN, running_gcs
from tests.stories import tree

VARIABLES = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_BEARER_TOKEN",
             "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY",
             "GOOGLE_SKIP_SIGNATURE")  # fmt: skip


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of a server on loopback; the key of a service account leads to it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with running_gcs() as address:
        lead_to(address, monkeypatch)
        yield f"gs://{BUCKET}"


def lead_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": "",
           "private_key_id": ""}  # fmt: skip
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))


def by_other_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    address = json.loads(os.environ["GOOGLE_SERVICE_ACCOUNT_KEY"])["gcs_base_url"]
    monkeypatch.delenv("GOOGLE_SERVICE_ACCOUNT_KEY")
    monkeypatch.setenv("GOOGLE_BASE_URL", address)
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", TOKEN)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with a chunk that is not stored."""
    return image_with_a_gap(tmp_path / "a.zarr")


@pytest.mark.parametrize("zarrs", [True, False])
def test_a_pyramid_is_built_in_a_bucket_and_out_of_it(
    place: str, image: Path, tmp_path: Path, zarrs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From and to gs:// every object is that of a local build; a second run finds all; no owner stays."""
    if not zarrs:  # it does not know these variables, and would ask Google
        by_other_variables(monkeypatch)
    right = tmp_path / "right.zarr"
    build_pyramid(PyramidParams(source=str(image), target=str(right), **ASKED))
    params = PyramidParams(source=str(image), target=f"{place}/day 1/b.zarr", **ASKED)
    first = build_pyramid(params)
    assert first.blocks_built > 0
    again = build_pyramid(params)
    assert again.blocks_built == 0
    assert verify_pyramid(f"{place}/day 1/b.zarr", "full").ok
    level = open_array(open_storage(f"{place}/day 1/b.zarr"), "1")
    assert ("Zarrs" in type(level._async_array.codec_pipeline).__name__) is zarrs
    assert open_storage(place).names("day 1") == ["b.zarr"]
    assert tree(downloaded(f"{place}/day 1/b.zarr", tmp_path / "b.zarr")) == tree(right)
    back = tmp_path / "c.zarr"
    source = f"{place}/day 1/b.zarr/0"
    build_pyramid(PyramidParams(source=source, target=str(back), **ASKED))
    levels = {key: digest for key, digest in tree(right).items() if key != "zarr.json"}
    assert {key: digest for key, digest in tree(back).items() if key != "zarr.json"} == levels


@pytest.mark.parametrize("after", [5])
def test_a_build_in_a_bucket_goes_on_where_it_was_cut_off(
    place: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The service goes in the middle: one line says so, and the same again ends as if it had stayed."""
    right = tmp_path / "right" / "a.zarr"
    shutil.copytree(image, right)
    build_pyramid(PyramidParams(source=str(right), **ASKED))
    storage = open_storage(f"{place}/a.zarr")
    for path in image.rglob("*"):
        if path.is_file():
            storage.write(path.relative_to(image).as_posix(), path.read_bytes())
    params = PyramidParams(source=f"{place}/a.zarr", **ASKED)
    address = json.loads(os.environ["GOOGLE_SERVICE_ACCOUNT_KEY"])["gcs_base_url"]
    build_cut_off(params, address, lambda there: lead_to(there, monkeypatch), monkeypatch,
                  after=after, seed=after)  # fmt: skip
    assert verify_pyramid(f"{place}/a.zarr", "full").ok
    assert open_storage(place).names() == ["a.zarr"]
    assert tree(downloaded(f"{place}/a.zarr", tmp_path / "d.zarr")) == tree(right)


def test_an_owner_in_a_bucket_moves_and_is_respected(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it beats, a second build is refused; one that no longer moves is taken over, and knows."""
    an_owner_is_respected_while_it_moves(f"{place}/b.zarr", monkeypatch)
    assert open_storage(place).names() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "owner"]


def test_what_lacks_is_named(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that is not there, a refusal, and no credentials each say in one line what to set."""
    with pytest.raises(AccessError, match=r"^gs://other/a.zarr: there is no such bucket[^\n]*$"):
        open_storage("gs://other/a.zarr").read("zarr.json")
    by_other_variables(monkeypatch)
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "hunter2")
    with pytest.raises(
        AccessError, match=r"refuses us \(AuthenticationRequired\)[^\n]*GOOGLE_APP[^\n]*$"
    ) as caught:
        open_storage(f"{place}/a.zarr").read("zarr.json")
    assert "hunter2" not in str(caught.value)
    assert "AWS" not in str(caught.value)
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    remote._has_role.cache_clear()
    with pytest.raises(
        AccessError, match=r"no credentials were found[^\n]*GOOGLE_APPLICATION_CREDENTIALS[^\n]*$"
    ):
        open_storage(f"{place}/a.zarr")
