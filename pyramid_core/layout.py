"""How a level is cut into blocks and tiles, and the memory that a block needs.

A block is written whole, so it consists of whole write units; it is read in tiles, so a large
write unit does not need all the voxels above it in memory at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyramid_core.errors import MemoryLimitError
from pyramid_core.grid import Grid, Shape, ceil_div, multiply, times
from pyramid_core.params import Method, human

MOST_PARTS = 2**22
"""Chunks in a shard: its index, of 16 bytes for each, is held as a whole."""

_WORTHWHILE = 4 * 2**20
"""Bytes to read for one block, below which the cost of a call to zarr begins to show (measured:
0.4 ms a call, as much as decoding 0.5 MB of zstd); blocks of small chunks grow to this."""

_SENT = 8
"""So many times larger are blocks that are sent to a Dask cluster: to send one and hear of it takes
5 ms of CPU in all, as much as decoding 4 MB of zstd."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one level is made from, as far as cutting it needs to know."""

    shape: Shape
    """Voxels of the level per axis."""
    write_unit: Shape
    """What one stored object of the level holds."""
    step: Shape
    """Voxels of the finer level per voxel of this one."""
    finer_shape: Shape
    """Voxels of the level that is reduced."""
    finer_chunks: Shape
    """The smallest region of it that can be decoded."""
    dtype: str
    """Data type of the level that is reduced."""
    method: Method
    """How a window becomes a voxel."""

    @property
    def item(self) -> int:
        """Bytes of a voxel."""
        return np.dtype(self.dtype).itemsize

    def read_bytes(self, tile: Shape) -> int:
        """Bytes that reading and reducing one tile holds: tile, conversions, chunks in decoding."""
        dtype = np.dtype(self.dtype)
        fine = math.prod(map(min, multiply(tile, self.step), self.finer_shape))
        # float16 is widened to float32 before the kernel, a foreign byte order is swapped.
        copies = 4 if dtype.kind == "f" and dtype.itemsize == 2 else 2
        wide = 8 if dtype.kind == "f" else dtype.itemsize
        # Encoded and decoded; measured: 1.5 to 2.4 times the chunk.
        decoding = 2 * math.prod(self.finer_chunks) * dtype.itemsize
        held = fine * dtype.itemsize * copies + math.prod(tile) * wide
        return held + decoding + self._kernel_bytes(tile)

    def _kernel_bytes(self, tile: Shape) -> int:
        """Bytes that a kernel holds for one row of windows; see the kernels."""
        window = [min(s, n) for s, n in zip(self.step, self.finer_shape, strict=True)]
        if self.method == "stride" or max(window) == 1:
            return 0
        rows = 8 * math.prod(window[:-1])
        if self.method in ("median", "mode"):
            wide = 4 if self.item == 2 and np.dtype(self.dtype).kind == "f" else self.item
            return rows + (tile[-1] + 1) * math.prod(window) * wide + 8 * tile[-1]
        # Of a mean, the sums of the lines and those of the windows.
        return rows + (8 * tile[-1] * (window[-1] + 1) if self.method == "mean" else 0)

    def write_bytes(self, block: Shape) -> int:
        """Bytes that a block holds while it is encoded: its voxels, and their encoded form."""
        unit = math.prod(self.write_unit) * self.item
        # Measured for a block of one unit: 2.5 to 3.3 units in all, gzip most.
        return math.prod(self._padded(block)) * self.item * 2 + unit

    def memory(self, block: Shape, tile: Shape, tile_threads: int = 1) -> int:
        """Bytes that one block needs at most; reading and writing do not overlap."""
        held = math.prod(self._padded(block)) * self.item
        return max(held + tile_threads * self.read_bytes(tile), self.write_bytes(block))

    def _padded(self, block: Shape) -> Shape:
        return multiply(ceil_div(block, self.write_unit), self.write_unit)

    def tile(self, block: Shape, chunks_wide: int) -> Shape:
        """Return a tile of about *chunks_wide* source chunks per axis that splits no chunk."""
        tile = []
        for extent, step, chunk in zip(block, self.step, self.finer_chunks, strict=True):
            aligned = chunk // math.gcd(chunk, step)
            tile.append(min(extent, aligned * max(1, chunks_wide * chunk // (aligned * step))))
        return tuple(tile)

    def reads(self, block: Shape) -> float:
        """Return how often a chunk of the finer level is read, on average."""
        return math.prod(
            _reads(n, b, s, fine, chunk)
            for n, b, s, fine, chunk in zip(
                self.shape, block, self.step, self.finer_shape, self.finer_chunks, strict=True
            )
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """How one level is cut."""

    block: Shape
    """Voxels that are written as one piece of work."""
    tile: Shape
    """Voxels of a block that are read and reduced at once."""
    memory: int
    """Bytes that a block needs with one thread."""


def cut_level(work: Work, level: int, limit: int, share: int, *, sent: bool = False) -> Cut:
    """Choose block and tile of a level.

    A block grows from one write unit until it splits no chunk of the level that is reduced, and
    until it is worth a call; as far as *share* allows.

    Args:
        work: The level.
        level: Its index, for the error.
        limit: Bytes that a process may hold.
        share: Bytes of it that a block should keep to, so that all workers find room.
        sent: Whether blocks are sent to other processes.

    Raises:
        MemoryLimitError: If the smallest block does not fit in *limit*.
    """
    block = tuple(map(min, work.write_unit, work.shape))
    cut = _fit(work, block, share) or _fit(work, block, limit)
    if cut is None:
        raise MemoryLimitError(_too_large(work, level, block, limit))
    return _grown(work, cut, share, _WORTHWHILE * (_SENT if sent else 1))


def _grown(work: Work, cut: Cut, share: int, worthwhile: int) -> Cut:
    """Grow a block from one write unit, first to whole source chunks, then to a worthwhile size."""
    counts = Grid(work.shape, work.write_unit).counts
    units = [1] * len(counts)
    for axis in reversed(range(len(units))):
        aligned = units.copy()
        aligned[axis] = min(_units_to_align(work, axis), counts[axis])
        if larger := _grow(work, aligned, share):
            units, cut = aligned, larger
    while _bytes_read(work, cut.block) < worthwhile:
        free = [a for a in range(len(units)) if units[a] < counts[a]]
        if not free:
            break
        axis = min(reversed(free), key=cut.block.__getitem__)
        doubled = units.copy()
        doubled[axis] *= 2
        larger = _grow(work, doubled, share)
        if larger is None:
            break
        units, cut = doubled, larger
    return cut


def _grow(work: Work, units: list[int], share: int) -> Cut | None:
    block = tuple(map(min, multiply(work.write_unit, tuple(units)), work.shape))
    return _fit(work, block, share)


def _fit(work: Work, block: Shape, limit: int) -> Cut | None:
    """Return the block with the widest tile that fits, or None."""
    for chunks_wide in (2, 1):
        tile = work.tile(block, chunks_wide)
        memory = work.memory(block, tile)
        if memory <= limit:
            return Cut(block, tile, memory)
    return None


def _units_to_align(work: Work, axis: int) -> int:
    extent = work.write_unit[axis] * work.step[axis]
    return math.lcm(extent, work.finer_chunks[axis]) // extent


def _bytes_read(work: Work, block: Shape) -> int:
    return math.prod(multiply(block, work.step)) * work.item


def _reads(n: int, block: int, step: int, fine: int, chunk: int) -> float:
    """Return chunks touched by all blocks over chunks there are, along one axis.

    Each block touches its own chunks; a chunk that a border between two blocks splits counts
    twice. Borders repeat with the least common multiple of block and chunk.
    """
    extent = block * step
    borders = -(-n // block) - 1
    unsplit = borders // (math.lcm(extent, chunk) // extent)
    chunks = -(-min(fine, n * step) // chunk)
    return (chunks + borders - unsplit) / chunks


def _too_large(work: Work, level: int, block: Shape, limit: int) -> str:
    tile = work.tile(block, 1)
    need = work.memory(block, tile)
    return (
        f"one block of level {level} needs {human(need)} (read {human(work.read_bytes(tile))} from "
        f"chunks of {times(work.finer_chunks)}, write {human(work.write_bytes(block))} in units of "
        f"{times(work.write_unit)}) but memory_limit is {human(limit)}; smaller shards or chunks, "
        f"or a memory_limit above {human(need)} would do"
    )
