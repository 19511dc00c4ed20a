"""What is stored is known from listings, and equals what lies on the disk."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pyramid_core import folder as folders
from pyramid_core import presence
from pyramid_core.errors import PlaceError
from pyramid_core.folder import Listed, listing
from pyramid_core.grid import Grid, Region, Shape
from pyramid_core.presence import Presence
from pyramid_core.stores import Storage, open_storage

KEYS = {
    "v2 .": ("", "."),
    "v2 /": ("", "/"),
    "v3 /": ("c", "/"),
    "v3 .": ("c", "."),
}
PATHS = ["", "0", "labels/cells/0"]

FOREIGN = [
    "zarr.json", ".zarray", "notes.txt", "c/x", "c/0.tmp", "0.0.0.partial", "0/0/0#1", "c/9/9/9",
    "9.9.9", "c.9.9.9", "9/9/9", "00/00/00", "c/00/0/0", "01.1.1", "c.01.1.1", "-1.0.0", "c/-1/0/0",
    "1/x/0", "c/1.1.1", "\u0663/0/1", "\u0661.1.1", "deep/c/0/0/0", "deep/1/1/1", "deep/1.1.1",
]  # fmt: skip
"""Files that are no chunk of a grid of 3 axes with 2 to 4 cells each, whatever the keys."""


def key_of(cell: Shape, prefix: str, separator: str) -> str:
    return separator.join([*([prefix] if prefix else []), *map(str, cell)])


def put(root: Path, key: str, content: bytes = b"x") -> None:
    place = root / key
    if not (place.exists() or any(parent.is_file() for parent in place.parents)):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def everything(grid: Grid) -> Region:
    return tuple(slice(0, n) for n in grid.counts)


CASES = st.fixed_dictionaries(
    {
        "keys": st.sampled_from(sorted(KEYS)),
        "path": st.sampled_from(PATHS),
        "slab": st.sampled_from([1, 3, 7, 2**22]),
        "at_once": st.sampled_from([1, 2, 2**14]),
        "counts": st.tuples(*[st.integers(2, 4)] * 3),
        "stored": st.sets(st.tuples(*[st.integers(0, 3)] * 3), max_size=30),
        "torn": st.sets(st.tuples(*[st.integers(0, 3)] * 3), max_size=5),
        "foreign": st.sets(st.sampled_from(FOREIGN)),
        "corner": st.tuples(*[st.integers(0, 1)] * 3),
    }
)


@given(CASES)
def test_what_is_present_is_what_lies_on_the_disk(case: dict[str, Any]) -> None:
    """For all kinds of keys and paths; torn and foreign files are none; slabs change nothing."""
    prefix, separator = KEYS[case["keys"]]
    grid = Grid(tuple(n * 5 - 2 for n in case["counts"]), (5, 5, 5))
    cells = set(itertools.product(*map(range, case["counts"])))
    stored = (case["stored"] & cells) - case["torn"]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(presence, "_SLAB", case["slab"])
        patch.setattr(folders, "_AT_ONCE", case["at_once"])
        root = Path(folder, case["path"])
        for cell in stored:
            put(root, key_of(cell, prefix, separator))
        for cell in case["torn"]:
            put(root, key_of(cell, prefix, separator), b"")
        for name in case["foreign"]:
            put(root, name)
        found = Presence(open_storage(folder), case["path"], grid, prefix, separator)
        whole = found.window(everything(grid))
        part = found.window(tuple(slice(c, c + 1) for c in case["corner"]))
        noted = Presence(open_storage(folder), case["path"], grid, prefix, separator)
        keys = {item.key for listed in noted.noted() for item in listed.objects()}
        assert (noted.window(everything(grid)) == whole).all()
        assert {noted.key(cell) for cell in stored} <= keys
    assert {tuple(map(int, cell)) for cell in np.argwhere(whole)} == stored
    assert whole.shape == case["counts"]
    assert part.shape == (1, 1, 1)
    assert part[0, 0, 0] == (case["corner"] in stored)


@pytest.mark.parametrize("keys", sorted(KEYS))
@pytest.mark.parametrize("slab", [1, 2**22])
def test_what_zarr_stores_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str, slab: int
) -> None:
    """The keys are those that zarr itself writes."""
    monkeypatch.setattr(presence, "_SLAB", slab)
    prefix, separator = KEYS[keys]
    version: Any = 2 if keys.startswith("v2") else 3
    encoding: Any = {"name": "v2" if version == 2 else "default", "separator": separator}
    array = zarr.create_array(
        tmp_path / "a" / "0", shape=(7, 9), chunks=(2, 3), dtype="u1", zarr_format=version,
        chunk_key_encoding=encoding,
    )  # fmt: skip
    array[2:4, 3:6] = 1
    array[6, 8] = 1
    found = Presence(open_storage(str(tmp_path)), "a/0", Grid((7, 9), (2, 3)), prefix, separator)
    assert np.argwhere(found.window((slice(0, 4), slice(0, 3)))).tolist() == [[1, 1], [3, 2]]
    assert (tmp_path / found.key((3, 2))).is_file()


def test_the_objects_of_a_sharded_array_are_its_shards(tmp_path: Path) -> None:
    """One shard that holds one chunk is one object."""
    array = zarr.create_array(
        tmp_path / "0", shape=(16, 16), chunks=(2, 2), shards=(8, 8), dtype="u1"
    )
    array[9, 0] = 1
    found = Presence(open_storage(str(tmp_path)), "0", Grid((16, 16), (8, 8)), "c", "/")
    assert found.window((slice(0, 2), slice(0, 2))).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("path", ["", "0"])
def test_nothing_is_present_where_nothing_is(tmp_path: Path, path: str) -> None:
    """A folder that is not there holds no chunk."""
    storage = open_storage(str(tmp_path / "missing"))
    assert not Presence(storage, path, Grid((9,), (2,)), "c", "/").window((slice(0, 5),)).any()


def test_levels_whose_names_begin_alike_are_kept_apart(tmp_path: Path) -> None:
    """Level 1 has none of the chunks of level 10."""
    put(tmp_path, "10/c/0/0")
    grid = Grid((4, 4), (2, 2))
    for number, expected in (("1", 0), ("10", 1)):
        found = Presence(open_storage(str(tmp_path)), number, grid, "c", "/")
        assert found.window(everything(grid)).sum() == expected


def test_only_what_is_asked_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a grid that is listed in parts, a window lists its own part, and lists it once."""
    monkeypatch.setattr(presence, "_SLAB", 4)
    for cell in itertools.product(range(3), repeat=3):
        put(tmp_path, f"0/c/{cell[0]}/{cell[1]}/{cell[2]}")
    storage = open_storage(str(tmp_path))
    listed: list[str] = []
    listing = Storage.listed

    def noted(self: Storage, prefix: str = "") -> Iterator[Listed]:
        listed.append(prefix)
        return listing(self, prefix)

    monkeypatch.setattr(Storage, "listed", noted)
    found = Presence(storage, "0", Grid((3, 3, 3), (1, 1, 1)), "c", "/")
    for _ in range(3):
        assert found.window((slice(1, 2), slice(0, 2), slice(0, 3))).all()
    assert listed == ["0/c/1/0", "0/c/1/1"]


def test_a_zip_is_listed(tmp_path: Path) -> None:
    """Chunks in a zip file are found, in its only folder too."""
    for folder in ("", "img.zarr/"):
        place = tmp_path / f"{len(folder)}.zip"
        with zipfile.ZipFile(place, "w") as file:
            file.writestr(f"{folder}zarr.json", "{}")
            file.writestr(f"{folder}0/c/1/0", b"x")
            file.writestr(f"{folder}0/c/1/1", b"")
        grid = Grid((4, 4), (2, 2))
        found = Presence(open_storage(str(place)), "0", grid, "c", "/")
        assert np.argwhere(found.window(everything(grid))).tolist() == [[1, 0]]


@pytest.mark.s3
@pytest.mark.parametrize("keys", sorted(KEYS))
def test_an_object_store_is_listed(bucket: str, keys: str) -> None:
    """Object stores list by whole segments of a key, whatever the separator of the chunks."""
    prefix, separator = KEYS[keys]
    storage = open_storage(f"{bucket}/deep/img.zarr")
    for cell in ((0, 1), (1, 0)):
        storage.write(f"0/{key_of(cell, prefix, separator)}", b"x")
    storage.write(f"0/{key_of((1, 1), prefix, separator)}", b"")
    grid = Grid((4, 4), (2, 2))
    found = Presence(storage, "0", grid, prefix, separator)
    assert np.argwhere(found.window(everything(grid))).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("named", [3, "0"], ids=["the folder", "a file in it"])
def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: int | str
) -> None:
    """It is listed by a number, which tells nobody where it is."""
    (tmp_path / "c").mkdir()

    def fail(_: int) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle", named)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(OSError, match="Stale file handle") as caught:
        list(listing(tmp_path, "c"))
    assert caught.value.filename == str(tmp_path / "c" / (named if isinstance(named, str) else ""))


@pytest.mark.parametrize("slab", [1, 4, 2**22])
@pytest.mark.parametrize("odd", ["file", "link"])
@pytest.mark.parametrize("at", ["c", "c/1", "c/1/0"])
def test_what_is_no_folder_where_chunks_lie_is_refused_however_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int, odd: str, at: str
) -> None:
    """Say, a link to a disk that is not mounted: what lay below is no background."""
    monkeypatch.setattr(presence, "_SLAB", slab)
    place = tmp_path / "0" / at
    put(tmp_path, "0/zarr.json")
    if at != "c":
        put(tmp_path, "0/c/0/0/0")
    place.parent.mkdir(parents=True, exist_ok=True)
    if odd == "file":
        place.write_bytes(b"x")
    else:
        place.symlink_to(tmp_path / "not mounted")
    grid = Grid((4, 4, 4), (2, 2, 2))
    found = Presence(open_storage(str(tmp_path)), "0", grid, "c", "/")
    kind = "a file" if odd == "file" else "a link that leads nowhere"
    with pytest.raises(PlaceError, match=f"{place} is {kind} where chunks are stored"):
        found.window(everything(grid))
    with pytest.raises(PlaceError, match=f"{place} is {kind} where chunks are stored"):
        list(found.noted())
