"""How the brightness of an image is spread, per channel, from a coarse level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyramid_core.grid import Shape, region_shape
from pyramid_core.views import choose_level, look_of, open_pyramid, read_voxels, readable_region

BINS = 128
"""Bars of a histogram, at most."""

_LONGEST = 128
"""The level is the coarsest that has an axis of so many voxels."""

_AT_ONCE = 2**20
"""Voxels that are counted at once: as float64 they take eight times what a byte takes."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many voxels of a channel are how bright."""

    name: str
    """Label of the channel."""
    color: str
    """Colour of the channel, like ``#00ff00``."""
    window: tuple[float, float]
    """Start and end of the contrast that viewers are told."""
    low: float
    """Where the first bar begins."""
    high: float
    """Where the last bar ends."""
    counts: tuple[int, ...]
    """Voxels of each bar; NaN and infinities are in none."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """The histograms of an image, and what they are of."""

    level: str
    """Path of the level whose voxels were counted."""
    shape: Shape
    """The voxels that were counted: all of it, or its middle."""
    histograms: tuple[Histogram, ...]
    """One per channel, of seven at most; none for labels, whose numbers are no brightness."""


def contrast_of(location: str) -> Contrast:
    """Count how bright the voxels of an image are, at its first time point.

    Args:
        location: An OME-Zarr image or a Zarr array.

    Raises:
        LocationError: If there is no such image, or one chunk of it holds more than may be read.
        SourceError: If its voxels cannot be read.

    Example:
        >>> import tempfile, zarr
        >>> place = tempfile.mkdtemp() + "/a.zarr"
        >>> array = zarr.create_array(place, data=np.array([[0, 1], [1, 3]], "u1"))
        >>> contrast_of(place).histograms[0].counts
        (1, 2, 0, 1)
    """
    pyramid = open_pyramid(location)
    level = pyramid.levels[choose_level(pyramid.levels, _LONGEST)]
    region = readable_region(level)
    voxels = read_voxels(pyramid.storage, level, region)
    look = look_of(pyramid, voxels)
    histograms = tuple(
        count(own.reshape(-1), name, "#{:02x}{:02x}{:02x}".format(*color), window)
        for own, name, color, window in zip(
            voxels, look.names, look.colors, look.windows, strict=False
        )
    )
    return Contrast(level.path, region_shape(region), histograms)


def count(
    voxels: np.ndarray[Any, Any], name: str, color: str, window: tuple[float, float]
) -> Histogram:
    """Count the voxels of one channel, over their range and that of the contrast window."""
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    low, high = window
    if finite.size:
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    bins = BINS
    if voxels.dtype.kind in "biu" and high - low < 2**52:
        # Each bar has as many whole numbers as the others, else they would look like a comb.
        low, span = math.floor(low), math.ceil(high) - math.floor(low) + 1
        width = math.ceil(span / BINS)
        bins = math.ceil(span / width)
        high = low + width * bins
    counts = np.zeros(bins, np.int64)
    for first in range(0, finite.size, _AT_ONCE):
        # Halved, since the whole range of floats is no float.
        above = finite[first : first + _AT_ONCE].astype(np.float64) / 2 - low / 2
        number = (above / ((high / 2 - low / 2) / bins)).clip(0, bins - 1).astype(np.int64)
        counts += np.bincount(number, minlength=bins)
    return Histogram(name, color, window, low, high, tuple(counts.tolist()))
