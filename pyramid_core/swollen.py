"""What a stored chunk would expand to, looked up before a decoder takes its word for it.

A kilobyte of zstd or blosc may say that it holds a terabyte: decoders then ask for that much, and
one of them ends the process where there is not as much. Only files are looked at; outside of shards
at their size too, and at what they say, where they are compressed by zstd or blosc alone.
"""

from __future__ import annotations

import itertools
import math
import os
import stat
import struct
from typing import Any

from pyramid_core.grid import Grid, Region, Shape

_ROOM = 2**26
"""Bytes beyond a chunk that a decoder may take: a header tells of blocks, not of bytes."""

ENVELOPE = 2**16
"""Bytes that a codec may add. Gzip, whose header says nothing, makes a thousand of each."""

_BLOCK = 2**17
"""The most bytes that one block of a zstd frame gives."""


def refuse_swollen(array: Any, *regions: Region) -> None:
    """Look at the chunks of regions of an array, before they are decoded; see ``Guard``."""
    guard = Guard(array)
    for cell in itertools.chain.from_iterable(map(guard.units.cells, regions)):
        guard.refuse_swollen(cell)


class Guard:
    """Looks at the files of one array; made once where many of them are read."""

    def __init__(self, array: Any):
        """Take a zarr array."""
        store = getattr(getattr(array, "store_path", None), "store", None)
        root = str(getattr(store, "root", ""))
        self._folder = f"{root}/{array.store_path.path}/" if root else ""
        self._is_sharded = array.shards is not None
        self.units = Grid(array.shape, array.shards or array.chunks)
        self._key_of = array.metadata.encode_chunk_key
        self._whole = math.prod(array.chunks) * array.dtype.itemsize
        self._look = None if array.shards else _LOOKS.get(sole_codec(array))

    def refuse_swollen(self, cell: Shape) -> None:
        """Look at a chunk, before it is decoded.

        Raises:
            ValueError: If it would expand to much more than a chunk holds, or is no file.
            OSError: If it cannot be opened.
        """
        if not self._folder:
            return
        key = self._key_of(cell)
        try:
            file = os.open(self._folder + key, os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing is stored there
        try:
            found = os.fstat(file)
            is_file = stat.S_ISREG(found.st_mode)
            size = self._look(file, self._whole + _ROOM) if self._look and is_file else 0
        finally:
            os.close(file)
        if not is_file:
            msg = f"{key} is no file"  # a device may give bytes for ever
            raise ValueError(msg)
        if self._is_sharded:  # are read in parts
            return
        if size > self._whole + _ROOM:
            msg = f"{key} would expand to {size:,} bytes or more, but a chunk holds {self._whole:,}"
            raise ValueError(msg)
        if found.st_size > 2 * self._whole + ENVELOPE:
            msg = f"{key} has {found.st_size:,} bytes, but a chunk holds {self._whole:,}"
            raise ValueError(msg)


def sole_codec(array: Any) -> str:
    """Return zstd or blosc if chunks are compressed by that alone."""
    if len(array.compressors) != 1:
        return ""
    codec = array.compressors[0]
    name = str(getattr(codec, "codec_id", "") or codec.to_dict().get("name"))
    return name if name in ("zstd", "blosc") else ""


def _blosc(file: int, enough: int) -> int:  # noqa: ARG001 - as the other
    head = os.pread(file, 8, 0)
    return int(struct.unpack("<I", head[4:])[0]) if len(head) == 8 else 0


def _zstd(file: int, enough: int) -> int:
    """Return the bytes that the frames of a file give at most, or say that they give.

    The walk over the headers of blocks (RFC 8878) ends where it is more than *enough*. A frame that
    says its size is held to it by every decoder; of others, each block may give all that one can.
    """
    at = total = 0
    while total <= enough:
        head = os.pread(file, 18, at)
        if not _is_frame(head):
            break  # the end, or what no decoder takes
        said, length = _header(head)
        total += said or 0
        at += length
        last = False
        while not last and total <= enough:
            block = os.pread(file, 3, at)
            if len(block) < 3:
                return total
            number = int.from_bytes(block, "little")
            last, kind, length = bool(number & 1), number >> 1 & 3, number >> 3
            if said is None:
                total += _BLOCK if kind == 2 else length
            at += 3 + (1 if kind == 1 else length)
        at += 4 if head[4] & 4 else 0
    return total


def frame_size(stored: bytes) -> int | None:
    """Return the bytes that a zstd frame says it gives; None if it does not, or is none."""
    return _header(stored[:18])[0] if _is_frame(stored[:18]) else None


def _is_frame(head: bytes) -> bool:
    return len(head) >= 5 and head[:4] == b"\x28\xb5\x2f\xfd"


def _header(head: bytes) -> tuple[int | None, int]:
    """Return what the header of a frame says it gives, if it does, and how long the header is."""
    flags = head[4]
    single = flags >> 5 & 1
    sized = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    said = int.from_bytes(head[start : start + sized], "little") + (256 if sized == 2 else 0)
    return said if sized else None, start + sized


_LOOKS = {"zstd": _zstd, "blosc": _blosc}
