"""Arrays that are read and written by the thread that asks.

zarr hands every call to the thread of its event loop, which hands it to a pool: three threads for
one call, each waiting for the GIL. zarrs needs none of them, so here it is called at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
from obstore.store import LocalStore

from pyramid_core.grid import Grid, Region, Shape, multiply, region_shape, shift
from pyramid_core.plain import plain_chunks
from pyramid_core.swollen import Guard

if TYPE_CHECKING:
    import zarr

Array = np.ndarray[Any, Any]

REQUESTS = 32
"""Chunks that one process asks of object stores at the same time: at 20 ms each, 1,600 a second."""

_CACHED = 2**22
"""Bytes of voxels that are read and reduced at once. Measured: where one chunk of 4 MB at a time
takes 2.4 s, eight take 2.6, which leave the cache before they are reduced."""


class DirectArray:
    """An array of zarrs, of which regions are read and written; all else is the array's own."""

    def __init__(self, array: zarr.Array[Any]):
        """Take an array that was opened with the pipeline of zarrs."""
        from zarrs._internal import ChunkItem

        self._array, self._chunk_item = array, ChunkItem
        self._key_of = array.metadata.encode_chunk_key
        self._guard, self._plain = Guard(array), plain_chunks(array)
        self._zarrs: Any = array._async_array.codec_pipeline.impl  # type: ignore[attr-defined] # of its pipeline
        self._units = Grid(array.shape, array.shards or array.chunks)
        store = getattr(array.store_path.store, "store", None)  # of obstore; zarr's own is local
        self._is_away = not isinstance(store, LocalStore | NoneType)
        self._folder = f"{array.store_path.path}/" if array.store_path.path else ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._array, name)

    def __getitem__(self, region: Region) -> Array:
        """Return the voxels of a region; fill where nothing is stored."""
        self._guard.refuse_swollen(region)
        voxels = np.empty(region_shape(region), self._array.dtype)
        self._read(self._items(region), voxels)
        return voxels

    @property
    def worthwhile(self) -> int:
        """How many chunks are best read at once: what stays in a cache; from afar, all of them."""
        chunk = math.prod(self._units.cell) * self._array.dtype.itemsize
        return sys.maxsize if self._is_away else max(1, _CACHED // chunk)

    def stacked(self, chunks: list[Region]) -> Array:
        """Return whole chunks, one on top of the other along the first axis."""
        rows, *others = self._units.cell
        whole = tuple(slice(0, n) for n in self._units.cell)
        voxels = np.empty((len(chunks) * rows, *others), self._array.dtype)
        left = []
        for number, chunk in enumerate(chunks):
            cell, place = next(self._units.cells(chunk)), slice(number * rows, (number + 1) * rows)
            if self._plain is None or not self._plain.read(cell, voxels[place]):
                self._guard.refuse_swollen(chunk)
                left.append(self._item(cell, whole, (place, *whole[1:]), voxels.shape))
        self._read(left, voxels)
        return voxels

    def _read(self, items: list[Any], voxels: Array) -> None:
        self._each(lambda some: self._zarrs.retrieve_chunks_and_apply_index(some, voxels), items)

    def _each(self, task: Callable[[list[Any]], None], items: list[Any]) -> None:
        """Do a task for all items; of a store that is far away, for many at the same time.

        Left to itself, zarrs waits for one after the other: 14.7 s where this takes 1.
        """
        if self._is_away and len(items) > 1:
            list(_requests().map(lambda item: task([item]), items))
        elif items:
            task(items)

    def __setitem__(self, region: Region, voxels: Array) -> None:
        """Write a region of whole write units; those of nothing but fill are not stored."""
        keeps_fill = self._array.config.write_empty_chunks
        voxels = np.ascontiguousarray(voxels)
        self._each(
            lambda some: self._zarrs.store_chunks_with_indices(some, voxels, keeps_fill),
            self._items(region),
        )

    def _items(self, region: Region) -> list[Any]:
        start, shape = tuple(axis.start for axis in region), region_shape(region)
        items = []
        for cell, part in zip(self._units.cells(region), self._units.within(region), strict=True):
            inside = shift(part, multiply(cell, self._units.cell))
            items.append(self._item(cell, inside, shift(part, start), shape))
        return items

    def _item(self, cell: Shape, inside: Region, place: Region, shape: Shape) -> Any:
        """Say to zarrs which part of a stored object is which place of voxels of a shape."""
        key = self._folder + self._key_of(cell)
        return self._chunk_item(key, inside, self._units.cell, place, shape)


@cache
def _requests() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="request")


def direct(array: zarr.Array[Any]) -> zarr.Array[Any] | DirectArray:
    """Return the array, read and written at once where that can be done."""
    from zarrs.pipeline import ZarrsCodecPipeline

    is_zarrs = isinstance(array._async_array.codec_pipeline, ZarrsCodecPipeline)
    return DirectArray(array) if is_zarrs else array
