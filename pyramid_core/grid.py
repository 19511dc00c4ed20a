"""Integer geometry: a shape cut into cells.

Floats never enter here: ``floor(log(243) / log(3))`` is 4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]
"""One whole number per axis: a shape, a chunk, a step, an index of a cell."""

Region: TypeAlias = tuple[slice, ...]
"""One slice with start and stop per axis, in voxels of one level."""

MAX_AXES = 5
"""The most axes an NGFF image has: t, c, z, y, x."""


def ceil_div(shape: Shape, by: Shape) -> Shape:
    """Divide per axis, rounding up.

    >>> ceil_div((7, 8), (2, 2))
    (4, 4)
    """
    return tuple(-(-n // b) for n, b in zip(shape, by, strict=True))


def multiply(a: Shape, b: Shape) -> Shape:
    """Multiply per axis.

    >>> multiply((3, 4), (2, 1))
    (6, 4)
    """
    return tuple(m * n for m, n in zip(a, b, strict=True))


def times(shape: tuple[float, ...] | None) -> str:
    """Return a shape as a person reads it.

    >>> times((2, 1.5)), times(None)
    ('2x1.5', '-')
    """
    return "-" if shape is None else "x".join(f"{n:g}" if n < 1e5 else str(n) for n in shape)


def region_shape(region: Region) -> Shape:
    """Return the extent of a region per axis.

    >>> region_shape((slice(2, 5), slice(0, 4)))
    (3, 4)
    """
    return tuple(axis.stop - axis.start for axis in region)


def shift(region: Region, origin: Shape) -> Region:
    """Return the region as seen from another origin.

    >>> shift((slice(6, 8),), origin=(4,))
    (slice(2, 4, None),)
    """
    return tuple(slice(r.start - o, r.stop - o) for r, o in zip(region, origin, strict=True))


def pieces(shape: Shape, most: int) -> Iterator[Region]:
    """Cut an array of *shape* into regions of at most *most* voxels, by halves.

    >>> list(pieces((4, 2), 4))
    [(slice(0, 2, None), slice(0, 2, None)), (slice(2, 4, None), slice(0, 2, None))]
    """
    pending = [tuple(slice(0, n) for n in shape)]
    while pending:
        region = pending.pop()
        extent = region_shape(region)
        if math.prod(extent) <= max(1, most):
            yield region
            continue
        axis = next(a for a, n in enumerate(extent) if n > 1)
        start, stop = region[axis].start, region[axis].stop
        halves = slice((start + stop) // 2, stop), slice(start, (start + stop) // 2)
        pending += [(*region[:axis], half, *region[axis + 1 :]) for half in halves]


def finer_region(region: Region, step: Shape, shape: Shape) -> Region:
    """Return the voxels of the finer level, of *shape*, that become the voxels of *region*.

    >>> finer_region((slice(2, 4),), step=(2,), shape=(7,))
    (slice(4, 7, None),)
    """
    return tuple(
        slice(r.start * s, min(r.stop * s, n)) for r, s, n in zip(region, step, shape, strict=True)
    )


def coarser_region(region: Region, step: Shape, shape: Shape) -> Region:
    """Return the voxels of the coarser level, of *shape*, that are made of those of *region*.

    >>> coarser_region((slice(4, 7),), step=(2,), shape=(3,))
    (slice(2, 3, None),)
    """
    return tuple(
        slice(min(r.start // s, n), min(-(-r.stop // s), n))
        for r, s, n in zip(region, step, shape, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Grid:
    """A shape cut into cells of one size; the last cell of an axis may be shorter.

    >>> grid = Grid(shape=(5, 4), cell=(2, 4))
    >>> list(grid)
    [(0, 0), (1, 0), (2, 0)]
    >>> grid.region((2, 0))
    (slice(4, 5, None), slice(0, 4, None))
    """

    shape: Shape
    """Extent of what is cut, per axis."""
    cell: Shape
    """Extent of a cell, per axis."""

    @property
    def counts(self) -> Shape:
        """Cells per axis."""
        return ceil_div(self.shape, self.cell)

    @property
    def size(self) -> int:
        """Cells in all; may exceed what ``len`` can say."""
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[Shape]:
        """Yield the index of every cell, in C order."""
        return itertools.product(*(range(n) for n in self.counts))

    def index(self, number: int) -> Shape:
        """Return the index of the cell that comes *number*-th in C order."""
        index = []
        for n in reversed(self.counts):
            number, rest = divmod(number, n)
            index.append(rest)
        return tuple(reversed(index))

    def region(self, index: Shape) -> Region:
        """Return the voxels of one cell, clipped to the shape."""
        return tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(index, self.cell, self.shape, strict=True)
        )

    def touched(self, region: Region) -> Region:
        """Return the range of cells, per axis, that a region of voxels touches."""
        return tuple(
            slice(r.start // c, -(-r.stop // c)) for r, c in zip(region, self.cell, strict=True)
        )

    def cells(self, region: Region) -> Iterator[Shape]:
        """Yield the index of every cell that a region of voxels touches, in C order.

        >>> list(Grid(shape=(10,), cell=(4,)).cells((slice(2, 8),)))
        [(0,), (1,)]
        """
        return itertools.product(*(range(c.start, c.stop) for c in self.touched(region)))

    def within(self, region: Region) -> Iterator[Region]:
        """Cut a region along the lines of this grid.

        >>> list(Grid(shape=(10,), cell=(4,)).within((slice(2, 9),)))
        [(slice(2, 4, None),), (slice(4, 8, None),), (slice(8, 9, None),)]
        """
        for index in self.cells(region):
            yield tuple(
                slice(max(i * c, r.start), min((i + 1) * c, r.stop))
                for i, c, r in zip(index, self.cell, region, strict=True)
            )
