"""A location becomes a Zarr store.

Everything that reads, lists, writes or deletes objects goes through here. Local files are read by
zarr's own store (zarrs reads that fastest) and written through obstore's, which writes a temporary
file and renames it, also below the zarrs codec pipeline; zarrs over zarr's ``LocalStore`` opens the
final file in place and would leave a torn chunk behind a crash.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import obstore
import obstore.store as ob

from pyramid_core.errors import LocationError

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ANY_URL = re.compile(_URL.pattern + r"[^\s\"']+")
ZARRS = "zarrs.ZarrsCodecPipeline"
ZARR = "zarr.core.codec_pipeline.BatchedCodecPipeline"


def is_url(location: str) -> bool:
    """Return whether a location is a URL other than ``file://``."""
    return bool(_URL.match(location)) and not location.lower().startswith("file://")


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
    if not is_url(location):
        return location
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


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


def same_place(location: str) -> str:
    """Return a form in which two spellings of one place are equal."""
    if is_url(location):
        return location.rstrip("/")
    return os.path.realpath(local_path(location))


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a listing."""

    key: str
    """Key below the location."""
    size: int
    """Bytes."""
    mark: str
    """Time of the last change, or the etag: what differs when the content was replaced."""


@dataclass(frozen=True)
class Storage:
    """One location: what zarr reads through, and what we list, write and delete in it."""

    location: str
    """Path or URL."""
    objects: ob.ObjectStore | None
    """The object store; None for a zip file, or where there is no such folder."""
    archive: str = ""
    """Folder inside a zip file that holds the image; only for zip files."""

    @property
    def is_zip(self) -> bool:
        """Whether this is a zip file."""
        return _is_zip(self.location)

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
        return ObjectStore(self._store, read_only=not writable)

    def read(self, key: str) -> bytes | None:
        """Return an object, or None where there is none; any other failure is raised."""
        try:
            if self.is_zip:
                with zipfile.ZipFile(local_path(self.location)) as file:
                    return file.read(self.archive + key)
            if not is_url(self.location):
                return (local_path(self.location) / key).read_bytes()
            return bytes(obstore.get(self._store, key).bytes())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, KeyError):
            return None

    def read_json(self, key: str) -> dict[str, Any] | None:
        """Return a JSON object, or None where there is none.

        Raises:
            LocationError: If what is stored is not a JSON object.
        """
        content = self.read(key)
        if content is None:
            return None
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            msg = f"{shown(self.location)}: {key} is not JSON ({error})"
            raise LocationError(msg) from error
        if not isinstance(document, dict):
            msg = f"{shown(self.location)}: {key} is not a JSON object"
            raise LocationError(msg)
        return document

    def exists(self, key: str) -> bool:
        """Return whether an object is there now."""
        if self.is_zip or not is_url(self.location):
            return any(item.key == key for item in self.listing(key)) or (
                not self.is_zip and (local_path(self.location) / key).is_file()
            )
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def write(self, key: str, content: bytes) -> None:
        """Write an object in one piece: readers see the old one, or the new one."""
        obstore.put(self._store, key, content)

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

        Raises:
            NotImplementedError: If the place cannot be listed (plain http).
        """
        if self.is_zip:
            with zipfile.ZipFile(local_path(self.location)) as file:
                for item in file.infolist():
                    key = item.filename.removeprefix(self.archive)
                    # A prefix is whole names, as elsewhere: 01 does not lie below 0.
                    below = not prefix or f"{key}/".startswith(f"{prefix}/")
                    if below and item.filename.startswith(self.archive) and not item.is_dir():
                        yield StoredObject(key, item.file_size, f"{item.CRC:08x}")
            return
        if isinstance(self.objects, ob.HTTPStore):
            raise NotImplementedError("a plain http server cannot be listed")
        if self.objects is None:
            return
        for batch in obstore.list(self.objects, prefix or None):
            for meta in batch:
                mark = meta["e_tag"] if is_url(self.location) else meta["last_modified"].isoformat()
                yield StoredObject(meta["path"], meta["size"], str(mark))

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
        found = obstore.list_with_delimiter(self.objects, prefix or None)
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
        for batch in obstore.list(self._store, prefix):
            obstore.delete(self._store, [meta["path"] for meta in batch])

    def delete_objects(self, keys: list[str]) -> None:
        """Delete single objects; those that are gone already are passed over."""
        for key in keys:
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                continue

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
    if path.is_file():
        if not zipfile.is_zipfile(path):
            msg = f"{location} is a file, not a Zarr array or group; give the folder that holds it"
            raise LocationError(msg)
        return Storage(location, None, _zip_root(path))
    if create:
        path.mkdir(parents=True, exist_ok=True)
    if not path.is_dir():
        return Storage(location, None)
    return Storage(location, ob.LocalStore(path))


def _remote(location: str) -> ob.ObjectStore:
    # obstore wants to be told that a plain http URL is meant.
    plain = location.lower().startswith("http://")
    try:
        return ob.from_url(location, client_options={"allow_http": True} if plain else None)
    except Exception as error:  # obstore raises many kinds here; all mean a wrong location
        # The reason repeats the location, with its secrets.
        reason = _ANY_URL.sub(lambda url: shown(url[0]), str(error).split("\n")[0])
        msg = f"cannot open {shown(location)}: {reason}"
        raise LocationError(msg) from error


def _zip_root(path: Path) -> str:
    """Return the folder inside a zip that holds the metadata: the root, or its only folder."""
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    if any(name in ("zarr.json", ".zgroup", ".zarray") for name in names):
        return ""
    tops = {name.split("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 else ""


def open_array(storage: Storage, path: str, *, writable: bool = False) -> zarr.Array[Any]:
    """Open an array with the fastest codec pipeline that can read it, decided here and for good.

    zarrs cannot read foreign byte order, zip files, http servers without ranges, nor codecs that
    only numcodecs has; those go through zarr's own pipeline. Its threads are set to one: the blocks
    are the parallelism.

    Raises:
        FileNotFoundError: If there is no array.
    """
    import zarr

    store = storage.zarr_store(writable=writable)
    mode: Any = "r+" if writable else "r"
    with zarr.config.set({"codec_pipeline.path": ZARR}):
        array = zarr.open_array(store, path=path, mode=mode)
    foreign = not array.dtype.isnative or array.metadata.fill_value is None
    if foreign or storage.is_zip or not storage.listable:
        return array
    return with_zarrs(array) or array


def with_zarrs(array: zarr.Array[Any]) -> zarr.Array[Any] | None:
    """Return the same array read and written by zarrs, or None where zarrs cannot."""
    import zarr
    from zarrs.pipeline import UnsupportedMetadataError

    settings = {
        "codec_pipeline.path": ZARRS,
        "codec_pipeline.strict": True,
        "codec_pipeline.chunk_concurrent_maximum": 1,
        "threading.max_workers": 1,
    }
    with zarr.config.set(settings), warnings.catch_warnings():
        # zarrs says that it opens its own connections to an object store; nothing to act on.
        warnings.filterwarnings("ignore", "Successfully reconstructed a store", RuntimeWarning)
        try:
            return zarr.Array(
                type(array._async_array)(array.metadata, array.store_path, array.config)
            )
        except (UnsupportedMetadataError, TypeError, NotImplementedError, RuntimeError):
            return None


def with_padding(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the array as if it ended with its last write unit, so units are written whole.

    A write of the part of a chunk that lies inside an array makes zarrs read the chunk first;
    written whole, nothing is read, and what lies outside is fill, always the same bytes.
    """
    import zarr

    unit = array.shards or array.chunks
    shape = tuple(-(-n // u) * u for n, u in zip(array.shape, unit, strict=True))
    wide = type(array._async_array)(
        array.metadata.update_shape(shape), array.store_path, array.config
    )
    return with_zarrs(zarr.Array(wide)) or zarr.Array(wide)
