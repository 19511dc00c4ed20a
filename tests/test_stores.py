"""A location in any spelling becomes a store; every write is whole; nothing secret is printed."""

from __future__ import annotations

import copy
import json
import os
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pyramid_core import PyramidParams, build_pyramid
from pyramid_core.arrays import open_array, with_padding
from pyramid_core.errors import LocationError
from pyramid_core.remote import each
from pyramid_core.stores import (
    Storage,
    is_url,
    join,
    local_path,
    open_storage,
    same_place,
    shown,
    split,
)

# --- spelling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://bucket/x", True),
        ("http://host/x", True),
        ("HTTPS://host/x", True),
        ("file:///data/x", False),
        ("FILE:///data/x", False),
        ("/data/x", False),
        ("x.zarr", False),
        ("C:/x", False),
        ("gs://bucket/x", True),
    ],
)
def test_a_url_is_known_by_its_scheme(location: str, expected: bool) -> None:
    """A file:// URL is a path."""
    assert is_url(location) is expected


def test_a_path_may_be_spelled_in_many_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Home, escaped letters and file:// all lead to a path."""
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/x.zarr") == Path("/home/me/x.zarr")
    assert local_path("file:///data/my%20scan.zarr") == Path("/data/my scan.zarr")
    assert local_path("/data/my%20scan.zarr") == Path("/data/my%20scan.zarr")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://me:secret@host:8080/x.zarr?X-Amz-Signature=1#top", "https://host:8080/x.zarr"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("/data/a?b@c", "/data/a?b@c"),
    ],
)
def test_what_is_printed_tells_no_secret(location: str, expected: str) -> None:
    """User, password and query are left out."""
    assert shown(location) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/data/x.zarr/0", ("/data/x.zarr", "0")),
        ("x.zarr", (".", "x.zarr")),
        ("file:///data/x.zarr", ("/data", "x.zarr")),
        ("s3://bucket/a/x.zarr/", ("s3://bucket/a", "x.zarr")),
        ("s3://bucket/x.zarr", ("s3://bucket", "x.zarr")),
        ("s3://bucket", ("", "bucket")),  # nothing lies above a bucket
        ("http://host:80", ("", "host:80")),
    ],
)
def test_a_location_splits_into_place_and_name(location: str, expected: tuple[str, str]) -> None:
    """The place is a location again."""
    assert split(location) == expected


@given(
    st.sampled_from(["/data", "s3://b", "data"]),
    st.from_regex(r"[a-z]{1,3}(/[a-z]{1,3}){0,2}", fullmatch=True),
)
def test_split_undoes_join(place: str, path: str) -> None:
    """A path joined to a place is found again, name by name."""
    location = join(place, path)
    names: list[str] = []
    for _ in path.split("/"):
        location, name = split(location)
        names.insert(0, name)
    assert location == place
    assert "/".join(names) == path


def test_two_spellings_of_a_place_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links, detours and file:// lead to one form; another place has another."""
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "link").symlink_to("x.zarr")
    monkeypatch.chdir(tmp_path)
    spellings = [
        "x.zarr",
        "./x.zarr/",
        "link",
        f"file://{tmp_path}/x.zarr",
        str(tmp_path / "x.zarr"),
    ]
    assert {same_place(spelling) for spelling in spellings} == {str(tmp_path / "x.zarr")}
    assert same_place("x") != same_place("x.zarr")
    assert same_place("s3://b/x/") == same_place("s3://b/x") != same_place("s3://b/y")


# --- the same of every kind of place --------------------------------------------------------------

FILES = {
    "zarr.json": b"{}",
    "0/zarr.json": b"[]",
    "0/c/0/0": b"chunk",
    "01/c": b"one",
    "a b/\u00b5": b"u",
}


def local(place: Path) -> str:
    for key, content in FILES.items():
        (place / "img" / key).parent.mkdir(parents=True, exist_ok=True)
        (place / "img" / key).write_bytes(content)
    return str(place / "img")


def zipped(place: Path, folder: str = "") -> str:
    with zipfile.ZipFile(place / "img.zip", "w") as file:
        for key, content in FILES.items():
            file.writestr(folder + key, content)
    return str(place / "img.zip")


PLACES: dict[str, Callable[[Path], str]] = {
    "folder": local,
    "file://": lambda place: f"file://{local(place)}",
    "zip": zipped,
    "zip with one folder": lambda place: zipped(place, "img.zarr/"),
    "zip of another name": lambda place: str(Path(zipped(place)).rename(place / "img.ozx")),
}


@pytest.fixture(params=[*PLACES, pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The same few objects in every kind of place that can be listed."""
    if request.param != "s3":
        return open_storage(PLACES[request.param](tmp_path))
    found = open_storage(f"{request.getfixturevalue('bucket')}/deep/img")
    for key, content in FILES.items():
        found.write(key, content)
    return found


def test_every_place_is_read_alike(storage: Storage) -> None:
    """An object is its bytes; what is not there, or is a folder, is None."""
    assert {key: storage.read(key) for key in FILES} == FILES
    assert storage.read("0") is None
    assert storage.read("0/c/0/1") is None
    assert storage.read("zarr.json/x") is None
    assert storage.exists("0/c/0/0")
    assert not storage.exists("0/c")
    assert not storage.exists("0/c/0/1")


def test_every_place_is_listed_alike(storage: Storage) -> None:
    """A prefix is whole names: what lies below 0 is not what lies below 01."""
    assert {item.key for item in storage.listing()} == set(FILES)
    assert {item.key: item.size for item in storage.listing("0")} == {
        "0/zarr.json": 2,
        "0/c/0/0": 5,
    }
    assert [item.key for item in storage.listing("0/c/0")] == ["0/c/0/0"]
    assert list(storage.listing("no")) == []
    assert all(item.mark for item in storage.listing())
    assert storage.names() == ["0", "01", "a b", "zarr.json"]
    assert storage.names("0") == ["c", "zarr.json"]
    assert storage.listable


def test_what_is_no_json_object_is_told(storage: Storage) -> None:
    """Where a document is expected, anything else is an error that names it."""
    assert storage.read_json("zarr.json") == {}
    assert storage.read_json("nothing") is None
    with pytest.raises(LocationError, match=r"0/zarr.json is not a JSON object"):
        storage.read_json("0/zarr.json")
    with pytest.raises(LocationError, match=r"0/c/0/0 is not JSON"):
        storage.read_json("0/c/0/0")


@pytest.mark.parametrize("place", ["folder", pytest.param("s3", marks=pytest.mark.s3)])
def test_what_is_written_is_read_and_what_is_deleted_is_gone(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Deleting a level deletes what is below its name, and no other level."""
    location = str(tmp_path) if place == "folder" else request.getfixturevalue("bucket") + "/a"
    storage = open_storage(location, create=True)
    for key in ("1/c/0", "1/c/1", "10/c/0", "zarr.json"):
        storage.write(key, b"old")
        storage.write(key, b"new")
    assert storage.read("1/c/1") == b"new"
    storage.delete("1")
    storage.delete("2")  # was never there
    storage.delete_objects(["10/c/0", "10/c/7"])
    assert [item.key for item in storage.listing()] == ["zarr.json"]
    with pytest.raises(ValueError, match="below a location"):
        storage.delete("")


def test_json_is_strict(tmp_path: Path) -> None:
    """NaN is no JSON, and other readers would fail; nothing is written."""
    storage = open_storage(str(tmp_path))
    storage.write_json("a.json", {"fine": [1.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"fine": [1.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        storage.write_json("b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_deleting_leaves_what_a_link_leads_to(tmp_path: Path) -> None:
    """A level that is a link is unlinked; the place it leads to is not ours."""
    (tmp_path / "img").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "keep").write_text("")
    (tmp_path / "img" / "1").symlink_to(tmp_path / "other")
    open_storage(str(tmp_path / "img")).delete("1")
    assert (tmp_path / "other" / "keep").exists()
    assert not (tmp_path / "img" / "1").is_symlink()


def test_a_reader_never_sees_half_an_object(tmp_path: Path) -> None:
    """While an object is written again and again, it is one content or the other."""
    storage = open_storage(str(tmp_path))
    contents = [b"a" * 2_000_000, b"b" * 1_000_000]
    storage.write("x", contents[0])
    done = threading.Event()

    def write() -> None:
        for i in range(40):
            storage.write("x", contents[i % 2])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add((tmp_path / "x").read_bytes())
    thread.join()
    assert seen <= set(contents)
    assert os.listdir(tmp_path) == ["x"]  # noqa: PTH208 - no temporary file stays


# --- what cannot be a place -----------------------------------------------------------------------


def test_a_file_is_no_place(tmp_path: Path) -> None:
    """The folder that holds it may be meant."""
    (tmp_path / "scan.tif").write_bytes(b"II*\0")
    with pytest.raises(LocationError, match=r"scan.tif is a file, not a Zarr array or group"):
        open_storage(str(tmp_path / "scan.tif"))
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with pytest.raises(LocationError, match="is a file"):
        open_storage(str(tmp_path / "bad.zip"))


def test_an_unknown_scheme_is_told() -> None:
    """The message names the location."""
    with pytest.raises(LocationError, match="cannot open gopher://host/x: "):
        open_storage("gopher://host/x")


def test_what_is_not_there_can_be_asked_but_not_written(tmp_path: Path) -> None:
    """A folder is made only where that is asked for."""
    storage = open_storage(str(tmp_path / "new"))
    assert storage.read("zarr.json") is None
    assert storage.names() == []
    assert list(storage.listing("0")) == []
    with pytest.raises(LocationError, match="new cannot be written"):
        storage.write("zarr.json", b"{}")
    assert not (tmp_path / "new").exists()
    open_storage(str(tmp_path / "new"), create=True).write("zarr.json", b"{}")
    assert (tmp_path / "new" / "zarr.json").exists()


def test_a_zip_is_read_only(tmp_path: Path) -> None:
    """What would write into an archive is refused."""
    storage = open_storage(zipped(tmp_path))
    with pytest.raises(LocationError, match=r"img.zip cannot be written"):
        storage.write("x", b"")


def test_a_web_server_is_read_and_not_listed(served: str, tmp_path: Path) -> None:
    """What it does not have is None; listing it is an error and never an empty answer."""
    local(tmp_path)
    storage = open_storage(f"{served}/img")
    assert storage.read("0/c/0/0") == b"chunk"
    assert storage.read("0/c/0/1") is None
    assert storage.exists("zarr.json")
    assert not storage.exists("zarr.yaml")
    assert not storage.listable
    assert storage.names() == []
    with pytest.raises(NotImplementedError, match="cannot be listed"):
        list(storage.listing())


# --- arrays ---------------------------------------------------------------------------------------

VOXELS = np.random.default_rng(0).integers(0, 200, (11, 7)).astype("u2")


@pytest.mark.parametrize("dtype", ["u2", ">u2", "f2", ">f8", "bool", "i8"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_is_read_whatever_pipeline_can(
    tmp_path: Path, dtype: str, zarr_format: Any
) -> None:
    """Where zarrs cannot, as for a foreign byte order, zarr's own pipeline reads."""
    array = zarr.create_array(
        tmp_path / "0", shape=(11, 7), chunks=(4, 4), dtype=dtype, zarr_format=zarr_format
    )
    array[...] = VOXELS.astype(dtype)
    before = dict(zarr.config.get("codec_pipeline"))
    found = open_array(open_storage(str(tmp_path)), "0")
    np.testing.assert_array_equal(np.asarray(found[...]), VOXELS.astype(dtype))
    assert zarr.config.get("codec_pipeline") == before  # the user's settings stay


def test_an_array_is_opened_anew_where_its_metadata_or_its_place_has_changed(
    tmp_path: Path,
) -> None:
    """The same metadata gives the same array to read, but not behind a link that leads elsewhere."""
    for name, offset in (("a", 0), ("b", 1)):
        zarr.create_array(tmp_path / name / "0", data=VOXELS + offset, chunks=(4, 4))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")
    storage = open_storage(str(link))
    first = open_array(storage, "0")
    assert open_array(storage, "0") is first
    assert open_array(storage, "0", writable=True) is not first
    link.unlink()
    link.symlink_to(tmp_path / "b")
    np.testing.assert_array_equal(np.asarray(open_array(storage, "0")[...]), VOXELS + 1)
    text = (tmp_path / "b/0/zarr.json").read_text()
    (tmp_path / "b/0/zarr.json").write_text(text.replace('"little"', '"big"'))
    np.testing.assert_array_equal(np.asarray(open_array(storage, "0")[...]), (VOXELS + 1) << 8)


def test_many_threads_that_open_arrays_leave_the_configuration_of_zarr(tmp_path: Path) -> None:
    """It belongs to the process, and so to the user."""
    zarr.create_array(tmp_path / "0", data=VOXELS, chunks=(4, 4))
    before = copy.deepcopy(zarr.config.config)
    storage, interval = open_storage(str(tmp_path)), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        each(lambda _: open_array(storage, "0"), range(400), away=True)
    finally:
        sys.setswitchinterval(interval)
    assert zarr.config.config == before


def test_what_the_user_has_set_for_zarr_changes_no_build(tmp_path: Path) -> None:
    """Background is left out, and voxels lie as kernels need them."""
    array = zarr.create_array(tmp_path / "in.zarr", shape=(32, 32), chunks=(4, 4), dtype="u2")
    array[:4, :4] = VOXELS[:4, :4]
    built = []
    for name, user in (
        ("a", {}),
        ("b", {"array.order": "F", "array.write_empty_chunks": True}),
    ):
        asked = PyramidParams(
            source=str(tmp_path / "in.zarr"), target=str(tmp_path / name), step=[2, 2],
            unit="micrometer", max_levels=2,
        )  # fmt: skip
        with zarr.config.set(user):
            build_pyramid(asked)
        files = (p for p in (tmp_path / name).rglob("*") if p.is_file())
        built.append({p.relative_to(tmp_path / name): p.read_bytes() for p in files})
    assert built[0] == built[1]
    assert sum("c" in path.parts for path in built[0]) == 2


def test_what_has_begun_when_a_question_fails_is_waited_for() -> None:
    """So nothing is written once the failure was told and the target let go."""
    begun = threading.Barrier(3)
    ended: list[int] = []

    def ask(number: int) -> None:
        if number < 3:
            begun.wait(10)
        if number == 0:
            raise OSError("no answer")
        time.sleep(0.1)
        ended.append(number)

    with pytest.raises(OSError, match="no answer"):
        each(ask, range(200), away=True)
    some = list(ended)
    assert {1, 2} <= set(some)
    time.sleep(0.3)
    assert ended == some


def test_an_array_that_is_not_there_is_no_new_one(tmp_path: Path) -> None:
    """Opening never creates."""
    for writable in (False, True):
        with pytest.raises(FileNotFoundError):
            open_array(open_storage(str(tmp_path)), "0", writable=writable)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shards", [None, (8, 8)])
def test_edge_chunks_are_written_whole(tmp_path: Path, shards: Any) -> None:
    """Through padding, a write unit at the edge is written without being read; outside is fill."""
    zarr.create_array(
        tmp_path / "0", shape=(11, 7), chunks=(4, 4), shards=shards, dtype="u2", fill_value=3
    )
    wide = with_padding(open_array(open_storage(str(tmp_path)), "0", writable=True))
    unit = shards or (4, 4)
    assert wide.shape == tuple(-(-n // u) * u for n, u in zip((11, 7), unit, strict=True))
    block = np.full(wide.shape, 3, "u2")
    block[:11, :7] = VOXELS
    wide[...] = block
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "0", mode="r")[...], VOXELS)
