"""What is known of an image before any voxel is read: frozen data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from pyramid_core.grid import Shape, pieces

Fill: TypeAlias = bool | int | float | str
"""A fill value as JSON can say it; other floats are ``NaN``, ``Infinity``, ``-Infinity``."""

AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
"""Names of axes in the order of NGFF, and the type of each."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an image."""

    name: str
    """One of ``t c z y x``."""
    unit: str = ""
    """Name of the unit as NGFF spells it; empty where none is known."""

    @property
    def type(self) -> str:
        """``time``, ``channel`` or ``space``."""
        return AXIS_TYPES[self.name]


@dataclass(frozen=True, slots=True)
class Channel:
    """What a viewer is told about a channel."""

    label: str
    """Name of the channel."""
    color: str
    """Six hexadecimal digits, red, green, blue."""
    window: tuple[float, float, float, float] | None = None
    """Contrast as min, start, end, max; None where the image does not say."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How chunks are compressed."""

    name: Literal["zstd", "blosc", "gzip", "zlib", "none"]
    """Name of the codec; ``none`` stores raw bytes."""
    level: int = 0
    """Compression level."""
    cname: str = ""
    """Inner codec of blosc, else empty."""
    shuffle: str = ""
    """``noshuffle``, ``shuffle`` or ``bitshuffle`` for blosc, else empty."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is known of an image before any voxel is read."""

    location: str
    """Location of the group that holds the base, or of the array itself."""
    path: str
    """Path of the base array below ``location``; empty if the array is the location."""
    in_group: bool
    """Whether the base lies in a Zarr group, so that levels can be written beside it."""
    shape: Shape
    """Voxels per axis."""
    dtype: str
    """NumPy's name of the data type, byte order included, like ``>i2``."""
    chunks: Shape
    """The smallest region that can be decoded: a chunk, or the inner chunk of a shard."""
    shards: Shape | None
    """Shard per axis; None without sharding."""
    fill: Fill
    """Value of voxels that are not stored."""
    zarr_format: Literal[2, 3]
    """Version of the Zarr format."""
    key_prefix: str
    """How chunk keys begin: ``c`` for the default of Zarr v3, empty for that of v2."""
    separator: str
    """Separator of chunk keys, ``/`` or ``.``."""
    codec: Codec
    """Codec that levels inherit; zstd where the base's own is not one that viewers read."""
    axes: tuple[Axis, ...]
    """Axes in the order of the array; empty for a bare array that does not name them."""
    scale: tuple[float, ...]
    """Extent of a voxel per axis; ones for a bare array."""
    translation: tuple[float, ...]
    """Centre of the first voxel per axis, in the units of the axes; zeros for a bare array."""
    name: str
    """Name of the image."""
    channels: tuple[Channel, ...] = ()
    """Channels that the image's ``omero`` tells of."""
    ngff_version: str = ""
    """Version of the image's own multiscales document; empty without one."""
    levels: tuple[str, ...] = ()
    """Paths that the document names, finest first."""
    dimension_names: tuple[str, ...] = ()
    """The base's own ``dimension_names`` (Zarr v3); empty where it has none."""
    listable: bool = True
    """Whether what is stored can be listed; if not, a missing object has to be trusted."""
    labels_fault: str = ""
    """Why ``labels/`` is not what OME-Zarr says; empty if it is, or is not there."""
    labels: tuple[ImageInfo, ...] = ()
    """The label images below ``labels/``."""
    notes: tuple[str, ...] = ()
    """What the user should know about this image."""

    @property
    def write_unit(self) -> Shape:
        """The shard where there is one, else the chunk: what one stored object holds."""
        return self.shards or self.chunks


def fill_scalar(fill: Fill, dtype: str) -> np.generic:
    """Return a fill value as a scalar of a data type.

    >>> fill_scalar("NaN", "<f4")
    np.float32(nan)
    """
    number = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    value = number[fill] if isinstance(fill, str) else fill
    scalar: np.generic = np.dtype(dtype).newbyteorder("=").type(value)
    return scalar


def same_bits(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Compare bit for bit; in pieces, since a block may take all the memory that there is.

    >>> same_bits(np.array([np.nan, 0.0]), np.array([np.nan, -0.0]))
    False
    """
    most = 2**22 // a.itemsize
    return a.shape == b.shape and all(
        a[piece].tobytes() == b[piece].tobytes() for piece in pieces(a.shape, most)
    )
