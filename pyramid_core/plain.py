"""Plain chunks: files of their own, of voxels in C order, compressed by zstd, by blosc or not.

They are read and decoded straight into the voxels that they become. No store and no pipeline takes
part, and no decoder gets more room than a chunk has, so nothing has to be looked at beforehand.
"""

from __future__ import annotations

import math
import os
import struct
import sys
from typing import Any

import numpy as np

from pyramid_core.grid import Shape
from pyramid_core.swollen import ENVELOPE, frame_size, sole_codec

Array = np.ndarray[Any, Any]

_MOST = 2**30
"""Bytes of a chunk; one call to the system reads no more than 2 GB."""


def plain_chunks(array: Any) -> PlainChunks | None:
    """Return a reader of the chunks of an array, or None where they are not plain."""
    root = getattr(array.store_path.store, "root", None)
    endian = getattr(getattr(array.serializer, "endian", None), "value", sys.byteorder)
    whole = math.prod(array.chunks) * array.dtype.itemsize
    is_plain = (
        root is not None
        and array.shards is None
        and not array.filters
        and array.order == "C"
        and endian == sys.byteorder
        and array.dtype.isnative
        and array.metadata.fill_value is not None
        and type(array.serializer).__name__ in ("BytesCodec", "NoneType")
        and bool(array.compressors) == bool(sole_codec(array))  # none, or one that we know
        and whole <= _MOST
    )
    return PlainChunks(array, whole) if is_plain else None


class PlainChunks:
    """Reads the chunks of one array, each by the thread that asks for it."""

    def __init__(self, array: Any, whole: int):
        """Take a zarr array of plain chunks, of so many bytes each."""
        self._folder = f"{array.store_path.store.root}/{array.store_path.path}/"
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
            OSError: If it cannot be read.
        """
        try:
            stored = self._stored(self._key_of(cell))
        except (FileNotFoundError, NotADirectoryError):
            voxels[...] = self._fill
            return True
        try:
            return stored is not None and self._decode(stored, voxels)
        except RuntimeError:  # numcodecs' word for what it cannot decode
            return False

    def _stored(self, key: str) -> bytes | None:
        """Return what a file holds, or None if that is more than a chunk can be."""
        file = os.open(self._folder + key, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            stored = os.read(file, self._most + 1)  # a device may give bytes for ever
        except (BlockingIOError, IsADirectoryError):
            return None
        finally:
            os.close(file)
        return stored if len(stored) <= self._most else None


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
