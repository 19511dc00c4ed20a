"""When what is stored was written.

An object store may tell whole seconds in an answer and fractions in a listing, so seconds are
compared there; files have microseconds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import obstore
import obstore.exceptions

from pyramid_core import remote
from pyramid_core.errors import AccessError, LocationError, StoreError
from pyramid_core.folder import digest_of, number_of
from pyramid_core.remote import asked
from pyramid_core.stores import Storage, absolute, is_url, local_path, open_storage, shown
from pyramid_core.urls import hidden

if TYPE_CHECKING:
    from obstore import ObjectMeta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Change:
    """How a source looks at a moment; a later look is equal if nothing was written in between."""

    newest: datetime | None
    """When the last of its objects was written; None where there is none."""
    digest: str
    """Digest of key, size, time and etag of all its objects."""


@dataclass(frozen=True)
class DatedStorage(Storage):
    """A location that remembers when each object that was read from it was written."""

    times: dict[str, datetime] = field(default_factory=dict)
    """Those times."""

    def read(self, key: str) -> bytes | None:
        """Return an object, or None where there is none; any other failure is raised."""
        try:
            if is_url(self.location):
                found = self.get(key)
                if found is None:
                    return None
                self.times[key] = self._moment(found[1])
                return found[0]
            with (local_path(self.location) / key).open("rb") as file:
                self.times[key] = _file_moment(os.fstat(file.fileno()))
                return file.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def written(self, key: str) -> datetime | None:
        """Return when an object was written, or None where there is none."""
        if key not in self.times:
            place = shown(self.location)
            try:
                if is_url(self.location):
                    self.times[key] = self._moment(remote.head(self._store, key, place))
                else:
                    self.times[key] = _file_moment((local_path(self.location) / key).stat())
            except (FileNotFoundError, NotADirectoryError):
                return None
        return self.times[key]

    def newer(self, since: datetime) -> str:
        """Return the key of an object that was written after a moment, or nothing."""
        for meta in self.metas():
            if self._moment(meta) > since:
                return meta["path"]
        return ""

    def _moment(self, meta: ObjectMeta) -> datetime:
        found = meta["last_modified"]
        return found.replace(microsecond=0) if is_url(self.location) else found


def _file_moment(status: os.stat_result) -> datetime:
    """Return when a file was written, cut as obstore cuts it."""
    return _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)


def open_dated(location: str) -> DatedStorage:
    """Open a location that can be listed.

    Raises:
        LocationError: If it is not there, or cannot be listed.
    """
    storage = open_storage(location)
    if storage.objects is None:
        msg = f"{shown(location)} is {'a file' if storage.is_zip else 'not there'}; give a folder"
        raise LocationError(msg)
    if not storage.listable:
        msg = f"{shown(location)} cannot be listed: it is on a plain http server"
        raise LocationError(msg)
    return DatedStorage(location, storage.objects)


def last_change(source: str) -> Change:
    """Return how all objects at a location look now; an image's levels are among them.

    Raises:
        LocationError: If they cannot be listed.
    """
    storage = open_dated(absolute(source))
    newest, total = _EPOCH, 0
    try:
        for meta in storage.metas():
            newest = max(newest, meta["last_modified"])
            told = (meta["path"], meta["size"], meta["e_tag"], meta["last_modified"])
            total += number_of("\0".join(map(str, told)))
    except (OSError, AccessError, obstore.exceptions.BaseError) as error:
        msg = f"{shown(source)} cannot be listed: {reason_of(error)}"
        raise LocationError(msg) from error
    return Change(newest if total else None, digest_of(total))


def folders(storage: Storage, path: str) -> list[tuple[str, bool]]:
    """Return the folders directly below a path that are not hidden, and which are links."""
    if is_url(storage.location):
        ask = partial(obstore.list_with_delimiter, storage._store, path or None)
        listed = asked(shown(storage.location), ask)["common_prefixes"]
        found = [(prefix.rstrip("/").rpartition("/")[2], False) for prefix in listed]
    else:
        try:
            with os.scandir(local_path(storage.location) / path) as entries:
                found = [(e.name, e.is_symlink()) for e in entries if _is_folder(e)]
        except FileNotFoundError:
            return []  # it was deleted meanwhile
    return sorted(item for item in found if not item[0].startswith("."))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Asked of an entry, a link to itself is an error.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112 - twice as fast


def reason_of(error: Exception) -> str:
    """Return what an error says, in a line.

    >>> reason_of(LocationError("it is not there")), reason_of(KeyError("plan"))
    ('it is not there', "KeyError: 'plan'")
    """
    said = hidden(" ".join(str(error).splitlines()[:1]).partition(": <")[0])[:300]
    ours = isinstance(error, LocationError | AccessError | StoreError)
    return said if ours else f"{type(error).__name__}: {said}"
