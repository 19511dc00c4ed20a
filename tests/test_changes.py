"""How two looks at a source tell whether it was written in between."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError

from pyramid_core.changes import Change, last_change, open_dated
from pyramid_core.errors import LocationError, is_transient
from pyramid_core.stores import open_storage
from tests.stories import chunk_files, noise, write_image

NOTHING = Change(None, "0" * 64)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_image(tmp_path / "a.zarr", noise((16, 16)), (8, 8))


def test_the_last_object_gives_the_time(source: Path) -> None:
    """Chunk or metadata: the newest of all counts."""
    for k, path in enumerate(sorted(p for p in source.rglob("*") if p.is_file())):
        os.utime(path, (1e9 + k, 1e9 + k))
    assert last_change(str(source)).newest == datetime.fromtimestamp(1e9 + k, UTC)


def test_two_looks_are_equal_while_nothing_is_written(source: Path, tmp_path: Path) -> None:
    """What is added, written again, cut or deleted shows, whatever its time says."""
    seen = {last_change(str(source)).digest}
    assert seen == {last_change(str(source)).digest}
    chunk = chunk_files(source)[0]
    moments = (chunk.stat().st_atime_ns, chunk.stat().st_mtime_ns)
    chunk.write_bytes(chunk.read_bytes() + b"x")
    os.utime(chunk, ns=moments)
    seen.add(last_change(str(source)).digest)
    chunk.write_bytes(chunk.read_bytes())
    seen.add(last_change(str(source)).digest)
    (source / "new").touch()
    seen.add(last_change(str(source)).digest)
    chunk.unlink()
    seen.add(last_change(str(source)).digest)
    assert len(seen) == 5
    (tmp_path / "empty").mkdir()
    assert last_change(str(tmp_path / "empty")) == NOTHING


def test_a_source_that_cannot_be_listed_is_told(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for one that does not change; a store that fails may be asked again."""
    with pytest.raises(LocationError, match="is not there"):
        last_change(f"{source}/no")

    def fail(*_: Any) -> Any:
        raise GenericError("503 Slow Down")

    monkeypatch.setattr(obstore, "list", fail)
    with pytest.raises(LocationError, match="cannot be listed: GenericError: 503") as caught:
        last_change(str(source))
    assert is_transient(caught.value)


def test_files_have_the_same_time_by_every_way_of_asking(source: Path) -> None:
    """An object that is read, asked for or listed is never newer than itself."""
    key = "0/zarr.json"
    os.utime(source / key, ns=(0, 1_700_000_000_123_456_789))
    storage = open_dated(str(source / "0"))
    written = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert storage.written("zarr.json") == written
    for path in chunk_files(source / "0"):
        os.utime(path, (0, 0))
    assert storage.newer(written) == ""
    storage.times.clear()
    assert storage.read("zarr.json") is not None
    assert storage.times == {"zarr.json": written}
    assert storage.read("c") is storage.read("no") is storage.read("zarr.json/x") is None
    assert storage.written("no") is storage.written("zarr.json/x") is None


@pytest.mark.s3
def test_a_bucket_is_looked_at_as_a_folder_is(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place without objects has no time, each write shows, and only whole seconds are compared."""
    place = f"{bucket}/a.zarr"
    assert last_change(place) == NOTHING
    storage, dated = open_storage(place), open_dated(place)
    storage.write("zarr.json", b"{}")
    first = last_change(place)
    assert first.newest is not None
    assert first == last_change(place)
    written = dated.written("zarr.json")
    assert written == first.newest.replace(microsecond=0)
    assert dated.newer(written) == ""
    real = obstore.list

    def precise(store: Any, *_: Any, **__: Any) -> Any:
        """List as a store does that tells fractions of a second there, and there alone."""
        for batch in real(store):
            yield [{**m, "last_modified": m["last_modified"].replace(microsecond=9)} for m in batch]

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "list", precise)
        assert dated.newer(written) == ""
        assert dated.newer(written - timedelta(seconds=1)) == "zarr.json"
    storage.write("0/c/0", b"x")
    assert last_change(place).digest != first.digest
    assert dated.written("no") is None
