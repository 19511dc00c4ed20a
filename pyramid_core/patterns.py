"""What test images show: every voxel a pure function of its index.

Voxels are computed by integer arithmetic and by the basic operations of IEEE 754 alone, and none
depends on the region that is drawn. So the bytes are the same whatever the blocks, their order, the
executor and the machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pyramid_core.grid import Grid, Region, Shape, region_shape, shift
from pyramid_core.params import PhantomKind

Array = np.ndarray[Any, Any]

LABEL_CELL = 32
"""Edge of the cells of ``labels``, each with one box in the corner of its low indices."""

LABEL_BOX = 24
"""Edge of these boxes."""

LABEL_FACTOR = 8
"""Edges of boxes lie at multiples of this, so windows of a divisor of it hold a single label."""

SPARSE_GROUP = 100
"""One chunk in this many, in C order, is occupied in ``sparse``."""

BLOBS = ((144, 0.7, 12000.0), (72, 0.35, 18000.0), (36, 0.2, 26000.0))
"""Cell edge, share of the cells that hold a blob, and brightness of each size of blob."""

_DARK, _GRAIN = 100.0, 8.0
"""Blobs lie on this background; noise of 16 +- 3 times the other is added."""

_EDGE = 64
"""Voxels are drawn in cubes of this edge, whose intermediate arrays stay in the cache."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a voxel depends on."""

    kind: PhantomKind
    """What the image shows."""
    shape: Shape
    """Voxels per axis."""
    axes: str
    """Names of the axes."""
    chunks: Shape
    """Chunk per axis; only ``sparse`` depends on it."""
    voxel_size: tuple[float, ...]
    """Extent of a voxel per axis; only ``ramp`` depends on it."""
    dtype: str
    """Data type."""
    seed: int
    """What looks like chance depends on it; ``ramp`` and ``labels`` don't."""

    @property
    def cells(self) -> Grid:
        """The chunks."""
        return Grid(self.shape, self.chunks)


def draw(pattern: Pattern, region: Region) -> Array:
    """Return the voxels of a region.

    >>> pattern = Pattern("ramp", (4, 6), "yx", (4, 6), (2.0, 0.5), "<f4", seed=0)
    >>> draw(pattern, (slice(1, 3), slice(0, 3)))
    array([[2. , 2.5, 3. ],
           [4. , 4.5, 5. ]], dtype=float32)
    """
    voxels = np.empty(region_shape(region), pattern.dtype)
    origin = tuple(axis.start for axis in region)
    cubes = Grid(pattern.shape, (1,) * (len(pattern.shape) - 3) + (_EDGE,) * 3)
    for cube in cubes.within(region) if len(region) > 2 else [region]:
        voxels[shift(cube, origin)] = _DRAW[pattern.kind](pattern, cube)
    return voxels


def is_occupied(pattern: Pattern, cell: Shape) -> bool:
    """Return whether a chunk of ``sparse`` holds anything: one of each hundred, in C order."""
    number = 0
    for index, count in zip(cell, pattern.cells.counts, strict=True):
        number = number * count + index
    # An image of fewer than a hundred chunks has one that is occupied, too.
    size = min(SPARSE_GROUP, pattern.cells.size)
    return number % SPARSE_GROUP == _occupied(number // SPARSE_GROUP, size, pattern.seed)


@lru_cache(maxsize=1024)
def _occupied(group: int, size: int, seed: int) -> int:
    """Return which chunk of a group is occupied."""
    return int(_chance((slice(group, group + 1),), seed)[0]) % size


def sum_of(coordinates: Sequence[Array]) -> Array:
    """Return the sum of one number per axis, for every combination of their indices."""
    total: Array = np.zeros((1,) * len(coordinates))
    for part in np.ix_(*coordinates):
        total = total + part
    return total


def labels_at(pattern: Pattern, at: Sequence[Array]) -> Array:
    """Return the labels at every combination of indices, one array of them per axis.

    The box of a cell has the number of the cell, in C order from 1, also over time and channels.
    """
    inside = np.ones((1,) * len(at), bool)
    number = np.zeros((1,) * len(at), np.uint64)
    grid = zip(pattern.axes, pattern.shape, np.ix_(*at), strict=True)
    for name, extent, index in grid:
        if name in "zyx":
            inside = inside & (index % LABEL_CELL < LABEL_BOX)
            count = np.uint64(-(-extent // LABEL_CELL))
            number = number * count + (index // LABEL_CELL).astype(np.uint64)
    # A small type starts again; 0 stays background.
    most = np.uint64(np.iinfo(pattern.dtype).max)
    labels = np.where(inside, number % most + np.uint64(1), np.uint64(0))
    shape = [len(indices) for indices in at]
    return np.broadcast_to(labels, shape).astype(pattern.dtype)


def _indices(region: Region) -> list[Array]:
    return [np.arange(axis.start, axis.stop) for axis in region]


def _ramp(pattern: Pattern, region: Region) -> Array:
    sizes = zip(_indices(region), pattern.voxel_size, strict=True)
    return sum_of([index * size for index, size in sizes])


def _labels(pattern: Pattern, region: Region) -> Array:
    return labels_at(pattern, _indices(region))


def _random(pattern: Pattern, region: Region) -> Array:
    """Return every value of an integer type, or floats in [0, 1), each as likely."""
    dtype = np.dtype(pattern.dtype)
    chance = _chance(region, pattern.seed)
    if dtype.kind == "f":
        # As many bits as the type holds, so that nothing is rounded up to 1.
        bits = min(32, np.finfo(dtype).nmant + 1)
        return (chance >> np.uint32(32 - bits)) * 2.0**-bits
    if dtype.itemsize == 8:
        more = _chance(region, pattern.seed + 1).astype(np.uint64) << np.uint64(32)
        wide: Array = more | chance
        return wide.astype(dtype)
    bits = 8 * dtype.itemsize
    narrow: Array = (chance >> np.uint32(32 - bits)).astype(f"u{dtype.itemsize}")
    return narrow.astype(dtype)


def _sparse(pattern: Pattern, region: Region) -> Array:
    voxels = np.zeros(region_shape(region), pattern.dtype)
    origin = tuple(axis.start for axis in region)
    for part in pattern.cells.within(region):
        cell = tuple(axis.start for axis in pattern.cells.touched(part))
        if is_occupied(pattern, cell):
            values = _random(pattern, part)
            # Never background.
            voxels[shift(part, origin)] = values + 1 if values.dtype.kind == "f" else values | 1
    return voxels


def _blobs(pattern: Pattern, region: Region) -> Array:
    spatial = sum(name in "zyx" for name in pattern.axes)
    outer, space = region[:-spatial], region[-spatial:]
    light = np.full(region_shape(region), np.float32(_DARK))
    for at in itertools.product(*_indices(outer)):
        index = dict(zip(pattern.axes, map(int, at), strict=False))
        canvas = light[tuple(i - axis.start for i, axis in zip(at, outer, strict=True))]
        for number, size in enumerate(BLOBS):
            seed = pattern.seed + 1000 * (1 + number + len(BLOBS) * index.get("c", 0))
            _shine(canvas, space, size, seed, index.get("t", 0))
    light += np.float32(_GRAIN) * np.bitwise_count(_chance(region, pattern.seed))
    dtype = np.dtype(pattern.dtype)
    # Integers get the range of 16 bits, as far as they have it.
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    brightest = min(65535.0, float(limits.max))
    light *= np.float32(brightest / 65535.0)
    return np.minimum(light, np.float32(brightest), out=light)


def _shine(
    canvas: Array, space: Region, size: tuple[int, float, float], seed: int, time: int
) -> None:
    """Add the blobs of one size that reach into a region of space.

    Each lies in a cell of its own and reaches half an edge of a cell beyond it at most.
    """
    edge, share, brightness = size
    cells = tuple(
        slice((axis.start - edge // 2) // edge, (axis.stop + edge // 2) // edge + 1)
        for axis in space
    )
    n = len(space)
    lots = _chance((*cells, slice(0, 2 + 2 * n)), seed) * 2.0**-32
    for cell in np.argwhere(lots[..., 0] < share):
        numbers = lots[tuple(cell)]
        # In step with time, each at its own phase; the tent is 1 at first in half of them.
        phase = (time / 16 + float(numbers[1])) % 1
        amplitude = brightness * (0.3 + 0.7 * abs(2 * phase - 1))
        corner = cell + [axis.start for axis in cells]
        centre = (corner + numbers[2 : 2 + n]) * edge
        radius = (0.3 + 0.2 * numbers[2 + n :]) * edge
        _add_blob(canvas, space, centre, radius, amplitude)


def _add_blob(canvas: Array, space: Region, centre: Array, radius: Array, amplitude: float) -> None:
    """Add one blob: per axis ``(1 - (x / radius)^2)^8``, which looks like a Gaussian but ends."""
    window, profiles = [], []
    for axis, c, r in zip(space, centre.tolist(), radius.tolist(), strict=True):
        start, stop = max(axis.start, int(c - r)), min(axis.stop, int(c + r) + 1)
        if start >= stop:
            return
        x = (np.arange(start, stop) - c) / r
        bump = np.maximum(1 - x * x, 0)
        bump *= bump
        bump *= bump
        window.append(slice(start - axis.start, stop - axis.start))
        profiles.append((bump * bump).astype(np.float32))
    blob: Array = np.float32(amplitude) * np.ones((1,) * len(space), np.float32)
    for profile in np.ix_(*profiles):
        blob = blob * profile
    canvas[tuple(window)] += blob


def _chance(region: Region, seed: int) -> Array:
    """Return 32 bits per index that look like chance, as a hash of seed and index."""
    bits = np.full((), seed % 2**32, np.uint32)
    for axis in region:
        index = np.arange(axis.start, axis.stop).astype(np.uint32)
        bits = _mixed(bits[..., np.newaxis] + index)
    return bits


def _mixed(bits: Array) -> Array:
    """Mix 32 bits in place, each into all others: C. Wellons' ``lowbias32``."""
    for right, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        bits ^= bits >> np.uint32(right)
        bits *= np.uint32(factor)
    return bits


_DRAW: dict[str, Callable[[Pattern, Region], Array]] = {
    "blobs": _blobs,
    "ramp": _ramp,
    "labels": _labels,
    "random": _random,
    "sparse": _sparse,
}
