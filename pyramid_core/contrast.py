"""The contrast that viewers are told, from the voxels of a coarse level."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from pyramid_core.arrays import open_array
from pyramid_core.grid import Grid, Region, pieces, region_shape
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.ngff import Window, channels_of
from pyramid_core.remote import REQUESTS, each
from pyramid_core.stores import Storage, is_url
from pyramid_core.swollen import refuse_swollen

PERCENTILES = (1.0, 99.9)
"""Contrast starts and ends where these percentages of the voxels are darker."""

_SAMPLED_BYTES = 32_000_000
"""Voxels that are looked at to find the contrast of one channel."""

_COARSE_VOXELS = 2**18
"""The contrast comes from the coarsest level that has this many voxels in a channel. In a small
image, one hot pixel in ten thousand, spread by the mean over a level, would else decide it."""


def contrast_windows(plan: PyramidPlan, storage: Storage) -> list[Window]:
    """Return the contrast of each channel from a coarse level."""
    names = [axis.name for axis in plan.axes]
    count = len(channels_of(plan))

    def voxels(level: Level) -> int:
        return int(np.prod(level.shape, dtype=np.float64)) // count

    enough = [level for level in plan.levels if voxels(level) >= _COARSE_VOXELS]
    level = enough[-1] if enough else plan.levels[0]
    array = open_array(storage, level.path, surely=True)
    channel_axis = names.index("c") if "c" in names else None
    together = _together(array)

    def sample(channel: int) -> np.ndarray[Any, Any]:
        regions = list(_sampled(level, channel_axis, channel, array.dtype.itemsize))
        parts: list[np.ndarray[Any, Any]] = []
        for start in range(0, len(regions), together):
            some = regions[start : start + together]
            parts += each(partial(_read, array), some, away=is_url(storage.location))
        return np.concatenate([part.reshape(-1) for part in parts])

    return [contrast_window(sample(channel)) for channel in range(count)]


def _together(array: Any) -> int:
    """Return how many chunks may be decoded at the same time: not more than are looked at."""
    index = 16 * Grid(array.shards, array.chunks).size if array.shards else 0
    whole: int = math.prod(array.chunks) * array.dtype.itemsize + index
    return min(REQUESTS, max(1, _SAMPLED_BYTES // whole))


def _sampled(
    level: Level, channel_axis: int | None, channel: int, itemsize: int
) -> Iterator[Region]:
    """Yield voxels of one channel: all of a small level, else chunks evenly spread over it."""
    shape = list(level.shape)
    if channel_axis is not None:
        shape[channel_axis] = 1
    chunks = tuple(map(min, level.chunks, shape))
    grid = Grid(tuple(shape), chunks)
    cell_bytes = int(np.prod(chunks)) * itemsize
    wanted = min(grid.size, max(1, _SAMPLED_BYTES // cell_bytes))
    most = max(1, _SAMPLED_BYTES // itemsize)
    for number in range(wanted):
        cell = grid.region(grid.index(number * grid.size // wanted))
        # Of a chunk that is larger than the sample, one piece, about the middle.
        of_cell = list(pieces(region_shape(cell), most))
        inside = of_cell[len(of_cell) // 2]
        region = [slice(c.start + i.start, c.start + i.stop)
                  for c, i in zip(cell, inside, strict=True)]  # fmt: skip
        if channel_axis is not None:
            region[channel_axis] = slice(channel, channel + 1)
        yield tuple(region)


def _read(array: Any, region: Region) -> np.ndarray[Any, Any]:
    refuse_swollen(array, region)
    return np.asarray(array[region])


def contrast_window(voxels: np.ndarray[Any, Any]) -> Window:
    """Return a contrast window as min, start, end, max: finite, min <= start < end <= max.

    Start and end are percentiles that occur among the finite voxels; min and max are the range of
    the data type up to 16 bits, else that of the voxels.

    Example:
        >>> contrast_window(np.array([0, 10, 20, 30], np.uint8))
        (0.0, 0.0, 30.0, 255.0)
        >>> contrast_window(np.full(4, 7.5))
        (7.5, 7.5, 8.5, 8.5)
    """
    dtype = voxels.dtype
    finite = voxels[np.isfinite(voxels)] if dtype.kind == "f" else voxels.reshape(-1)
    if dtype.kind == "b" or finite.size == 0:
        return (0.0, 0.0, 1.0, 1.0)
    start, end = map(float, np.percentile(finite, PERCENTILES, method="inverted_cdf"))
    low, high = float(finite.min()), float(finite.max())
    if not start < end:
        start, end = low, high
    if not start < end:
        start, end = _around(start)
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        limits = np.iinfo(dtype)
        low, high = float(limits.min), float(max(limits.max, end))
    return (min(low, start), start, end, max(high, end))


def _around(value: float) -> tuple[float, float]:
    """Return start and end of a constant image; a step of one is lost in large floats."""
    if value + 1.0 > value:
        return value, value + 1.0
    above = math.nextafter(value, math.inf)
    return (value, above) if math.isfinite(above) else (math.nextafter(value, 0.0), value)
