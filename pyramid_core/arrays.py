"""Arrays, opened with the codec pipeline that suits them, decided once and for good."""

from __future__ import annotations

import json
import os
import threading
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pyramid_core.stores import Storage, is_url, open_storage, shown

if TYPE_CHECKING:
    import zarr

ZARRS = "zarrs.ZarrsCodecPipeline"
BEYOND_ZARRS = ("GOOGLE_BASE_URL", "GOOGLE_BEARER_TOKEN")
"""Variables that the client inside zarrs does not know: it would ask Google, and as nobody."""
ZARR = "zarr.core.codec_pipeline.BatchedCodecPipeline"


_SETTINGS = {
    "codec_pipeline.path": ZARR,
    "array.order": "C",
    "array.write_empty_chunks": False,
}
"""Of zarr's configuration, what an array keeps: voxels lie, and background is left out, as we need
it, whatever the user has set."""


_KEPT = 2**16
"""Characters of metadata that are kept with an array; attributes may have any size."""


def open_array(
    storage: Storage, path: str, *, writable: bool = False, surely: bool = False
) -> zarr.Array[Any]:
    """Open an array with the fastest codec pipeline that can read it, decided here and for good.

    Of files, metadata that was read and is the same as before gives the same array to read from.

    zarrs cannot read foreign byte order, zip files, http servers without ranges, nor codecs that
    only numcodecs has; those go through zarr's own pipeline. Its threads are set to one: the blocks
    are the parallelism, and more would lay the chunks of a shard in whatever order they are ready.

    Args:
        storage: Where it lies.
        path: Its path there.
        writable: Whether it will be written.
        surely: Of an object store, not by zarrs, which returns fill for a chunk that the store says
            is not there, whatever its listing shows.

    Raises:
        FileNotFoundError: If there is no array.
    """
    document = _document(storage, path)
    if writable or storage.is_zip or is_url(storage.location):
        return _array(storage, path, document, writable=writable, surely=surely)
    text = json.dumps(document)
    if len(text) > _KEPT:
        return _array(storage, path, document)
    return _of_files(storage.location, path, text)


@lru_cache(maxsize=64)
def _of_files(location: str, path: str, document: str) -> zarr.Array[Any]:
    return _array(open_storage(location), path, json.loads(document))


def _array(
    storage: Storage,
    path: str,
    document: dict[str, Any],
    *,
    writable: bool = False,
    surely: bool = False,
) -> zarr.Array[Any]:
    import zarr
    from zarr.storage import StorePath

    store: Any = storage.zarr_store(writable=writable)  # a StorePath inside a zip
    place = store / path if isinstance(store, StorePath) else StorePath(store, path)
    with _configuring:
        with zarr.config.set(_SETTINGS):
            array = zarr.Array.from_dict(place, document)
        foreign = not array.dtype.isnative or array.metadata.fill_value is None
        sure = surely and is_url(storage.location)
        if foreign or sure or storage.is_zip or not storage.listable:
            return array
        return with_zarrs(array) or array


_configuring = threading.RLock()
"""zarr's configuration, like what warnings are heard, belongs to the process."""


def _document(storage: Storage, path: str) -> dict[str, Any]:
    """Return the metadata of an array; zarr's own way to it sets no bounds, and takes a thread."""
    at = f"{path}/" if path else ""
    if (document := storage.read_json(f"{at}zarr.json")) is not None:
        return document
    if (document := storage.read_json(f"{at}.zarray")) is not None:
        return {**document, "attributes": storage.read_json(f"{at}.zattrs") or {}}
    msg = f"{shown(storage.location)}: there is no array at {path!r}"
    raise FileNotFoundError(msg)


def with_zarrs(array: zarr.Array[Any]) -> zarr.Array[Any] | None:
    """Return the same array read and written by zarrs, or None where zarrs cannot."""
    import zarr
    from obstore.store import GCSStore
    from zarr.storage import ObjectStore, StorePath
    from zarrs.pipeline import UnsupportedMetadataError, ZarrsCodecPipeline

    settings = {
        "codec_pipeline.path": ZARRS,
        "codec_pipeline.strict": True,
        "codec_pipeline.chunk_concurrent_minimum": 1,
        "codec_pipeline.chunk_concurrent_maximum": 1,
        "threading.max_workers": 1,
    }
    path = array.store_path
    if isinstance(path.store, ObjectStore):
        if isinstance(path.store.store, GCSStore) and any(map(os.environ.get, BEYOND_ZARRS)):
            return None
        # zarrs asks an object store itself, and takes no subclass for one.
        path = StorePath(ObjectStore(path.store.store, read_only=path.read_only), path.path)
    with _configuring, zarr.config.set(settings), warnings.catch_warnings():
        # zarrs says that it opens its own connections to an object store; nothing to act on.
        warnings.filterwarnings("ignore", "Successfully reconstructed a store", RuntimeWarning)
        try:
            inner: Any = type(array._async_array)
            found: zarr.Array[Any] = zarr.Array(inner(array.metadata, path, array.config))
        except (UnsupportedMetadataError, TypeError, NotImplementedError, RuntimeError):
            return None
    # Where zarrs says that it cannot, zarr takes its own without a word.
    return found if isinstance(found._async_array.codec_pipeline, ZarrsCodecPipeline) else None


def with_padding(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the array as if it ended with its last write unit, so units are written whole.

    A write of the part of a chunk that lies inside an array makes zarrs read the chunk first;
    written whole, nothing is read, and what lies outside is fill, always the same bytes.
    """
    import zarr
    from zarr.codecs import GzipCodec

    unit = array.shards or array.chunks
    shape = tuple(-(-n // u) * u for n, u in zip(array.shape, unit, strict=True))
    wide = type(array._async_array)(
        array.metadata.update_shape(shape), array.store_path, array.config
    )
    # zarrs leaves too little room for the gzip of what cannot be compressed, and fails in a shard.
    gzipped = array.shards and any(isinstance(c, GzipCodec) for c in array.compressors)
    return (None if gzipped else with_zarrs(zarr.Array(wide))) or zarr.Array(wide)
