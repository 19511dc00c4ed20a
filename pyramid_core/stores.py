"""A location becomes a Zarr store.

Everything that reads, lists, writes or deletes objects goes through here. Local files are read by
zarr's own store (zarrs reads that fastest) and written through obstore's, which writes a temporary
file and renames it, also below the zarrs codec pipeline; zarrs over zarr's ``LocalStore`` opens the
final file in place and would leave a torn chunk behind a crash.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
import obstore.store as ob

from pyramid_core import folder, remote
from pyramid_core.errors import LocationError, PyramidError
from pyramid_core.folder import Listed, StoredObject
from pyramid_core.jsons import json_object
from pyramid_core.params import cpus
from pyramid_core.remote import asked
from pyramid_core.urls import URL as _URL
from pyramid_core.urls import hidden, without_secrets

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from zarr.abc.store import Store


def is_url(location: str) -> bool:
    """Return whether a location is a URL other than ``file://``."""
    return bool(_URL.match(location)) and not location.lower().startswith("file://")


def enough_threads(*locations: str) -> int:
    """Return how many threads keep this machine busy: some wait for the disk, most for a store.

    >>> enough_threads("s3://bucket/x.zarr") >= 8
    True
    """
    some = cpus() + min((cpus() + 1) // 2, 4)
    return max(some, 8) if any(map(is_url, locations)) else some


def local_path(location: str) -> Path:
    """Return the path that a local location names, ``~`` and ``file://`` resolved."""
    if location.lower().startswith("file://"):
        from urllib.request import url2pathname

        location = url2pathname(urlsplit(location).path)
    return Path(location).expanduser()


def absolute(location: str) -> str:
    """Return the location in full: workers on other machines have another current folder."""
    return location.rstrip("/") if is_url(location) else os.path.abspath(local_path(location))  # noqa: PTH100 - keeps links


def shown(location: str) -> str:
    """Return a location as it may be printed: without user, password and query.

    >>> shown("https://me:secret@host/x.zarr?signature=1")
    'https://host/x.zarr'
    """
    return without_secrets(location) if is_url(location) else location


def join(location: str, path: str) -> str:
    """Return the location of a path below a location.

    >>> join("s3://bucket/x.zarr/", "labels/a")
    's3://bucket/x.zarr/labels/a'
    """
    return f"{location.rstrip('/')}/{path}" if path else location


def split(location: str) -> tuple[str, str]:
    """Return the location above, and the last part of the name.

    >>> split("data/x.zarr/0")
    ('data/x.zarr', '0')
    """
    if not is_url(location):
        path = local_path(location)
        path = path if path.name else path.resolve()
        return str(path.parent), path.name
    parent, _, name = location.rstrip("/").rpartition("/")
    return (parent, name) if _URL.match(parent + "/") and "//" in parent else ("", name)


def is_linked(location: str, path: str) -> bool:
    """Return whether a path below a location leads over a link, and so may lie elsewhere."""
    if is_url(location):
        return False
    parts = path.split("/")
    places = [local_path(location).joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    return any(place.is_symlink() for place in places)


def same_place(location: str) -> str:
    """Return a form in which two spellings of one place are equal."""
    if is_url(location):
        return location.rstrip("/")
    return os.path.realpath(local_path(location))


@dataclass(frozen=True)
class Storage:
    """One location: what zarr reads through, and what we list, write and delete in it."""

    location: str
    """Path or URL."""
    objects: ob.ObjectStore | None
    """The object store; None for a zip file, or where there is no such folder."""
    archive: str = ""
    """Folder inside a zip file that holds the image; only for zip files."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A client would take passwords along; each machine has its own.
        return open_storage, (self.location,)

    @property
    def is_zip(self) -> bool:
        """Whether this is a zip file."""
        return self.objects is None and _is_zip(self.location)

    def zarr_store(self, *, writable: bool = False) -> Store:
        """Return the store to give to zarr."""
        from zarr.core.sync import sync
        from zarr.storage import LocalStore, ObjectStore, StorePath, ZipStore

        if self.is_zip:
            # Opened here: zarr opens a store by itself, but not one inside a StorePath.
            store: Store = sync(ZipStore.open(local_path(self.location), mode="r", read_only=True))
            return StorePath(store, self.archive) if self.archive else store  # type: ignore[return-value] # zarr takes both
        if not is_url(self.location) and not writable:
            return LocalStore(local_path(self.location), read_only=True)
        if is_url(self.location):
            from pyramid_core.sure import SureStore

            place = shown(self.location)
            return SureStore(self._store, read_only=not writable, place=place)
        return ObjectStore(self._store, read_only=False)

    def read(self, key: str) -> bytes | None:
        """Return an object, or None where there is none; any other failure is raised."""
        try:
            if self.is_zip:
                return folder.read_member(local_path(self.location), self.archive + key)
            if not is_url(self.location):
                return folder.read(local_path(self.location) / key)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, KeyError):
            return None
        found = self.get(key)
        return None if found is None else found[0]

    def get(self, key: str) -> tuple[bytes, ObjectMeta] | None:
        """Return an object of a store and what is known of it, or None where there is none.

        Raises:
            StoreError: If the store cannot be asked, or does not find what it lists.
            AccessError: If it refuses us.
        """
        place = shown(self.location)

        def ask() -> tuple[bytes, ObjectMeta] | None:
            found = remote.get(self._store, key, place)
            return None if found is None else (bytes(found.bytes()), found.meta)

        return asked(place, ask)

    def read_json(self, key: str) -> dict[str, Any] | None:
        """Return a JSON object, or None where there is none.

        Raises:
            LocationError: If what is stored is not a JSON object.
        """
        content = self.read(key)
        if content is None:
            return None
        try:
            return json_object(content)
        except ValueError as error:
            msg = f"{shown(self.location)}: {key} is {error}"
            raise LocationError(msg) from error

    def exists(self, key: str) -> bool:
        """Return whether an object is there now."""
        if self.is_zip or not is_url(self.location):
            return any(item.key == key for item in self.listing(key)) or (
                not self.is_zip and (local_path(self.location) / key).is_file()
            )
        try:
            remote.head(self._store, key, shown(self.location))
        except FileNotFoundError:
            return False
        return True

    def write(self, key: str, content: bytes) -> None:
        """Write an object in one piece: readers see the old one, or the new one."""
        if not is_url(self.location):
            obstore.put(self._store, key, content)
            return
        place = shown(self.location)
        try:
            asked(place, lambda: obstore.put(self._store, key, content))
            return
        except FileNotFoundError as error:
            failed = remote.told(error, place)  # there is no such bucket
        raise failed

    def write_json(self, key: str, document: dict[str, Any]) -> None:
        """Write strict JSON in one piece.

        Raises:
            LocationError: If it cannot be said in JSON: NaN and Infinity are refused.
        """
        try:
            content = json.dumps(document, indent=2, allow_nan=False)
        except (ValueError, RecursionError) as error:
            # In place, the attributes may be those of another program.
            msg = f"{shown(self.location)}: the attributes in {key} are not JSON ({error})"
            raise LocationError(msg) from error
        self.write(key, content.encode())

    def listing(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose key is below *prefix*, in no order.

        Args:
            prefix: Whole names.

        Raises:
            NotImplementedError: If the place cannot be listed (plain http).
        """
        for found in self.listed(prefix):
            yield from found.objects()

    def listed(self, prefix: str = "") -> Iterator[Listed]:
        """Yield what ``listing`` does, many at once, and what is no object with it."""
        if isinstance(self.objects, ob.HTTPStore):
            raise NotImplementedError("a plain http server cannot be listed")
        if self.is_zip:
            yield from folder.in_folders(self._members(prefix))
        elif self.objects is not None and is_url(self.location):
            yield from folder.in_folders(
                StoredObject(meta["path"], meta["size"], str(meta["e_tag"]))
                for meta in self.metas(prefix)
            )
        elif self.objects is not None:
            yield from folder.listing(local_path(self.location), prefix)

    def _members(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects in a zip file."""
        with zipfile.ZipFile(local_path(self.location)) as file:
            for item in file.infolist():
                key = item.filename.removeprefix(self.archive)
                # A prefix is whole names, as elsewhere: 01 does not lie below 0.
                below = not prefix or f"{key}/".startswith(f"{prefix}/")
                if below and item.filename.startswith(self.archive) and not item.is_dir():
                    yield StoredObject(key, item.file_size, f"{item.CRC:08x}")

    def metas(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """Yield what a store's listing tells of every object below a prefix."""
        if is_url(self.location):
            yield from remote.listing(self._store, prefix, shown(self.location))
        else:
            for batch in obstore.list(self._store, prefix or None):
                yield from batch

    @property
    def listable(self) -> bool:
        """Whether what is stored can be listed."""
        return not isinstance(self.objects, ob.HTTPStore)

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of objects and folders directly below *prefix*, sorted."""
        if self.is_zip:
            deep = {item.key.removeprefix(prefix).lstrip("/") for item in self.listing(prefix)}
            return sorted({key.split("/")[0] for key in deep})
        if self.objects is None or not self.listable:
            return []
        if not is_url(self.location):
            return folder.names(local_path(self.location) / prefix)
        store = self.objects
        found = asked(
            shown(self.location), lambda: obstore.list_with_delimiter(store, prefix or None)
        )
        paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def delete(self, prefix: str) -> None:
        """Delete every object below *prefix*, leftover temporary files included."""
        if set(prefix.split("/")) & {"", ".", ".."}:
            msg = f"only a place below a location is ever deleted, not {prefix!r}"
            raise ValueError(msg)
        if not is_url(self.location):
            place = local_path(self.location) / prefix
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            elif place.is_symlink() or place.exists():
                place.unlink()
            return
        metas = self.metas(prefix)
        while keys := [meta["path"] for meta in itertools.islice(metas, 1000)]:
            asked(shown(self.location), partial(obstore.delete, self._store, keys))

    def delete_objects(self, keys: list[str]) -> None:
        """Delete single objects; those that are gone already are passed over."""
        for key in keys:
            with suppress(FileNotFoundError):
                if not is_url(self.location):
                    (local_path(self.location) / key).unlink()
                    continue
                asked(shown(self.location), partial(obstore.delete, self._store, key))

    @property
    def _store(self) -> ob.ObjectStore:
        if self.objects is None:
            msg = f"{shown(self.location)} cannot be written"
            raise LocationError(msg)
        return self.objects


def _is_zip(location: str) -> bool:
    # Whatever its name: open_storage refuses the files that are no zip.
    return not is_url(location) and local_path(location).is_file()


def open_storage(location: str, *, create: bool = False) -> Storage:
    """Open a location; nothing is read yet.

    Args:
        location: A path, ``file://``, a ``.zip`` file, or any URL that obstore opens: ``s3://``,
            ``gs://``, ``az://``, ``http(s)://``. Credentials, region and endpoint come from the
            standard variables (``AWS_*`` and the like), never from the location.
        create: Make the folder if it is a local path.

    Raises:
        LocationError: If no store of this kind can be opened.
    """
    if is_url(location):
        return Storage(location, _remote(location))
    path = local_path(location)
    found = folder.kind(path)
    if found not in ("", "a file", "a folder"):
        msg = f"{location} is {found}, no folder; choose another place"
        raise LocationError(msg)
    if found == "a file":
        if not zipfile.is_zipfile(path):
            msg = f"{location} is a file, not a Zarr array or group; give the folder that holds it"
            raise LocationError(msg)
        return Storage(location, None, _zip_root(path))
    if create:
        path.mkdir(parents=True, exist_ok=True)
    elif not found:
        return Storage(location, None)
    return Storage(location, ob.LocalStore(path))


def _remote(location: str) -> ob.ObjectStore:
    try:
        return remote.connect(location)
    except PyramidError:
        raise
    except Exception as error:  # obstore raises many kinds here; all mean a wrong location
        # The reason repeats the location, with its secrets.
        reason = hidden(str(error).split("\n")[0])
    msg = f"cannot open {shown(location)}: {reason}"
    raise LocationError(msg)


def _zip_root(path: Path) -> str:
    """Return the folder inside a zip that holds the metadata: the root, or its only folder."""
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    if any(name in ("zarr.json", ".zgroup", ".zarray") for name in names):
        return ""
    tops = {name.split("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 else ""
