"""Plain chunks: objects of their own, of voxels in C order, compressed by zstd, by blosc or not.

They are fetched and decoded straight into the voxels that they become. No pipeline takes part: of
an object store, zarrs asks for the size of a chunk first, and then for the chunk. And no decoder
gets more room than a chunk has, so nothing has to be looked at beforehand.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore

from pyramid_core.grid import Shape
from pyramid_core.swollen import ENVELOPE, frame_size, sole_codec

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Array = np.ndarray[Any, Any]

Fetch = Callable[[str, int], bytes | None]
"""Returns what is stored under a key, or None if that is more than so many bytes, or cannot be
read at once."""

_MOST = 2**30
"""Bytes of a chunk; one call to the system reads no more than 2 GB."""


def plain_chunks(array: Any) -> PlainChunks | None:
    """Return a reader of the chunks of an array, or None where they are not plain."""
    told = getattr(array.serializer, "endian", None)
    endian = getattr(told, "value", told) or sys.byteorder  # zarr 3.4 tells a word, 3.1 an Enum
    whole = math.prod(array.chunks) * array.dtype.itemsize
    fetch = _fetch(array.store_path)
    is_plain = (
        array.shards is None
        and not array.filters
        and array.order == "C"
        and endian == sys.byteorder
        and array.dtype.isnative
        and array.metadata.fill_value is not None
        and type(array.serializer).__name__ in ("BytesCodec", "NoneType")
        and bool(array.compressors) == bool(sole_codec(array))  # none, or one that we know
        and whole <= _MOST
    )
    return PlainChunks(array, fetch, whole) if is_plain and fetch else None


class PlainChunks:
    """Reads the chunks of one array, each by the thread that asks for it."""

    def __init__(self, array: Any, fetch: Fetch, whole: int):
        """Take a zarr array of plain chunks, how to get them, and the bytes that each takes."""
        self._fetch = fetch
        self._key_of = array.metadata.encode_chunk_key
        self._fill = array.metadata.fill_value
        self._most = whole + whole // 64 + ENVELOPE  # what codecs add to what they cannot compress
        self._decode = _DECODERS[sole_codec(array)]

    def read(self, cell: Shape, voxels: Array) -> bool:
        """Decode a chunk into contiguous voxels of its shape; fill where nothing is stored.

        Returns:
            Whether that could be done. If not, a reader of all that is allowed has to say whether
            the chunk is damaged; until then the voxels are anything.

        Raises:
            OSError: If a file cannot be read.
            obstore.exceptions.BaseError: If an object cannot.
        """
        try:
            stored = self._fetch(self._key_of(cell), self._most)
        except (FileNotFoundError, NotADirectoryError):
            voxels[...] = self._fill
            return True
        try:
            return stored is not None and self._decode(stored, voxels)
        except RuntimeError:  # numcodecs' word for what it cannot decode
            return False


def _fetch(place: Any) -> Fetch | None:
    """Return what gets a chunk of an array by its key; None if it is neither file nor object."""
    from zarr.storage import LocalStore, ObjectStore

    if isinstance(place.store, LocalStore):
        return partial(_from_file, f"{place.store.root}/{place.path}/")
    if isinstance(place.store, ObjectStore):
        return partial(_from_store, place.store.store, f"{place.path}/" if place.path else "")
    return None


def _from_file(folder: str, key: str, most: int) -> bytes | None:
    file = os.open(folder + key, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        stored = os.read(file, most + 1)  # a device may give bytes for ever
    except (BlockingIOError, IsADirectoryError):
        return None
    finally:
        os.close(file)
    return stored if len(stored) <= most else None


def _from_store(store: ObjectStore, folder: str, key: str, most: int) -> bytes | None:
    found = obstore.get(store, folder + key)
    return found.bytes().to_bytes() if found.meta["size"] <= most else None


def _copy(stored: bytes, voxels: Array) -> bool:
    if len(stored) != voxels.nbytes:
        return False
    voxels.reshape(-1).view(np.uint8)[:] = np.frombuffer(stored, np.uint8)
    return True


def _zstd(stored: bytes, voxels: Array) -> bool:
    from numcodecs import zstd

    if frame_size(stored) != voxels.nbytes:
        return False
    zstd.decompress(stored, voxels)
    return True


def _blosc(stored: bytes, voxels: Array) -> bool:
    from numcodecs import blosc

    # Bytes 4 to 8 of the header tell how much the voxels take, 12 to 16 how much is stored. The
    # decoder believes the latter, and would read behind the end of what was cut short.
    told = len(stored) >= 16 and struct.unpack("<4xI4xI", stored[:16])
    if told != (voxels.nbytes, len(stored)):
        return False
    blosc.decompress(stored, voxels)
    return True


_DECODERS = {"": _copy, "zstd": _zstd, "blosc": _blosc}
