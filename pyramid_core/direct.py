"""Arrays that are read and written by the thread that asks.

zarr hands every call to the thread of its event loop, which hands it to a pool: three threads for
one call, each waiting for the GIL. zarrs needs none of them, so here it is called at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from obstore.store import LocalStore

from pyramid_core.grid import Grid, Region, Shape, multiply, region_shape, shift
from pyramid_core.plain import plain_chunks
from pyramid_core.remote import each
from pyramid_core.swollen import Guard

if TYPE_CHECKING:
    import zarr

Array = np.ndarray[Any, Any]
T = TypeVar("T")
R = TypeVar("R")

_CACHED = 2**22
"""Bytes of voxels that are read and reduced at once. Measured: where one chunk of 4 MB at a time
takes 2.4 s, eight take 2.6, which leave the cache before they are reduced."""


class Piece(NamedTuple):
    """What is read or written of one stored object."""

    cell: Shape
    """Which object, by its place in the grid."""
    inside: Region
    """Which part of it."""
    place: Region
    """Where that lies among the voxels that are read or written."""


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
        voxels = np.empty(region_shape(region), self._array.dtype)
        self._read(self._pieces(region), voxels)
        return voxels

    @property
    def worthwhile(self) -> int:
        """How many chunks are best read at once: what stays in a cache; from afar, all of them."""
        chunk = math.prod(self._units.cell) * self._array.dtype.itemsize
        return sys.maxsize if self._is_away else max(1, _CACHED // chunk)

    def stacked(self, cells: Sequence[Shape]) -> Array:
        """Return whole chunks, stacked along an axis of their own."""
        unit = self._units.cell
        voxels = np.empty((len(cells), *unit), self._array.dtype)
        read = self._each(self._read_chunk, list(zip(cells, voxels, strict=True)))
        whole = tuple(slice(0, n) for n in unit)
        left = [
            Piece(cell, whole, (slice(number * unit[0], (number + 1) * unit[0]), *whole[1:]))
            for number, cell in enumerate(cells)
            if not read[number]
        ]
        self._retrieve(left, voxels.reshape(-1, *unit[1:]))
        return voxels

    def _read(self, pieces: list[Piece], voxels: Array) -> None:
        """Read pieces into their places, plainly or else by zarrs."""
        done = self._each(lambda piece: self._read_piece(piece, voxels), pieces)
        left = [piece for piece, is_read in zip(pieces, done, strict=True) if not is_read]
        self._retrieve(left, voxels)

    def _read_piece(self, piece: Piece, voxels: Array) -> bool:
        view = voxels[piece.place]
        if view.shape == self._units.cell and view.flags.c_contiguous:
            return self._read_chunk((piece.cell, view))
        chunk = np.empty(self._units.cell, voxels.dtype)
        is_read = self._read_chunk((piece.cell, chunk))
        if is_read:
            view[...] = chunk[piece.inside]
        return is_read

    def _read_chunk(self, chunk: tuple[Shape, Array]) -> bool:
        return self._plain is not None and self._plain.read(*chunk)

    def _retrieve(self, pieces: list[Piece], voxels: Array) -> None:
        """Read pieces by zarrs, which decodes all that is allowed, or says what is wrong."""
        for piece in pieces:
            self._guard.refuse_swollen(piece.cell)
        self._by_zarrs(lambda some: self._zarrs.retrieve_chunks_and_apply_index(some, voxels),
                       pieces, voxels.shape)  # fmt: skip

    def _each(self, task: Callable[[T], R], items: list[T]) -> list[R]:
        return each(task, items, away=self._is_away)

    def _by_zarrs(
        self, task: Callable[[list[Any]], None], pieces: list[Piece], shape: Shape
    ) -> None:
        """Let zarrs do a task for pieces of voxels of a shape.

        Left to itself, of a store that is far away it waits for one after the other: 14.7 s where
        this takes 1.
        """
        unit = self._units.cell
        items = [
            self._chunk_item(self._folder + self._key_of(cell), inside, unit, place, shape)
            for cell, inside, place in pieces
        ]
        if self._is_away:
            self._each(lambda item: task([item]), items)
        elif items:
            task(items)

    def __setitem__(self, region: Region, voxels: Array) -> None:
        """Write a region of whole write units; those of nothing but fill are not stored."""
        keeps_fill = self._array.config.write_empty_chunks
        voxels = np.ascontiguousarray(voxels)
        self._by_zarrs(
            lambda some: self._zarrs.store_chunks_with_indices(some, voxels, keeps_fill),
            self._pieces(region),
            voxels.shape,
        )

    def _pieces(self, region: Region) -> list[Piece]:
        start = tuple(axis.start for axis in region)
        return [
            Piece(cell, shift(part, multiply(cell, self._units.cell)), shift(part, start))
            for cell, part in zip(
                self._units.cells(region), self._units.within(region), strict=True
            )
        ]


def direct(array: zarr.Array[Any]) -> zarr.Array[Any] | DirectArray:
    """Return the array, read and written at once where that can be done."""
    from zarrs.pipeline import ZarrsCodecPipeline

    is_zarrs = isinstance(array._async_array.codec_pipeline, ZarrsCodecPipeline)
    return DirectArray(array) if is_zarrs else array
