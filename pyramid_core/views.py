"""What is read of an image for a picture, and how its voxels become colours.

Level 0 of a large image is never read: what is read is bounded, whatever the size of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from pyramid_core.contrast import contrast_window
from pyramid_core.errors import LocationError, SourceError
from pyramid_core.grid import Grid, Region, region_shape, times
from pyramid_core.image import Axis, Channel, ImageInfo
from pyramid_core.ngff import COLORS, document_of, is_inside, parse_multiscales
from pyramid_core.params import human
from pyramid_core.reader import open_image, open_level, read_node
from pyramid_core.stores import Storage, join, open_storage, shown
from pyramid_core.swollen import refuse_swollen

Voxels = np.ndarray[Any, Any]
Color = tuple[int, int, int]

MOST_BYTES = 64_000_000
"""Voxels that are read for a picture: of the level that is shown and of those coarser together."""

DENSE = 0.1
"""A volume of which more than this share is brighter than a quarter of its contrast is shown by its
middle slices: along most lines lies something bright, and maxima would be white all over."""

_MOST_SEEN = 2**22
"""Of a channel of more voxels, one in eight is looked at to find its contrast."""

_MOST_CHUNKS = 8_000
"""Chunks that are read for a picture, however small they are: each takes a call to zarr."""


@dataclass(frozen=True, slots=True)
class ShownPyramid:
    """The levels of an image, and what decides how they look."""

    storage: Storage
    """Where they lie."""
    levels: tuple[ImageInfo, ...]
    """Levels, finest first, each with axes and scale."""
    method: str
    """How they were made, as the document says; empty if it does not."""
    is_label: bool
    """Whether voxels are the numbers of objects."""
    label_colors: dict[int, Color] = field(default_factory=dict)
    """The colours that ``image-label`` says, by number."""


@dataclass(frozen=True, slots=True)
class Look:
    """How voxels become colours."""

    is_label: bool
    """Whether voxels are the numbers of objects; then there is nothing else to say."""
    names: tuple[str, ...] = ()
    """Label of each channel."""
    colors: tuple[Color, ...] = ()
    """Colour of each channel."""
    windows: tuple[tuple[float, float], ...] = ()
    """Start and end of the contrast of each channel."""
    is_sliced: bool = True
    """Whether a view is the middle slice, not the maximum along the line of sight."""
    label_colors: dict[int, Color] = field(default_factory=dict)
    """Colours of those objects whose colour the image says."""


def open_pyramid(location: str) -> ShownPyramid:
    """Return the levels that the document names; of a lone array, that array.

    Args:
        location: An OME-Zarr image or a Zarr array.

    Raises:
        LocationError: If there is no such image, or its levels do not fit its document.
    """
    info = open_image(location).info
    if len(info.shape) < 2:
        msg = f"{shown(info.location)} has shape {info.shape}; an image has 2 to 5 axes"
        raise LocationError(msg)
    storage = open_storage(info.location)
    axes = info.axes or tuple(Axis(name) for name in "tczyx"[-len(info.shape) :])
    if len(info.levels) == 0 or info.path != info.levels[0]:
        return ShownPyramid(storage, (replace(info, axes=axes),), "", is_label=False)
    node = read_node(storage, "")
    attributes = node.attributes if node else {}
    multiscales, document = parse_multiscales(attributes), document_of(attributes)
    levels = [info]
    for dataset in multiscales.datasets[1:] if multiscales else ():
        level = replace(open_level(storage, dataset.path), axes=axes, scale=dataset.scale)
        if len(level.shape) != len(axes):
            msg = (
                f"{shown(storage.location)}: level {level.path} has {len(level.shape)} axes, "
                f"the document names {len(axes)}; run pyramid verify on it"
            )
            raise LocationError(msg)
        levels.append(level)
    method = str(document["multiscales"][0].get("type") or "")
    kind = np.dtype(info.dtype).kind
    is_label = (kind in "iu" and method == "mode") or (kind != "f" and "image-label" in document)
    colors = label_colors(document) if is_label else {}
    return ShownPyramid(storage, tuple(levels), method, is_label, colors)


def labels_of(pyramid: ShownPyramid) -> tuple[ImageInfo, ...]:
    """Return the label images of an image, of one in a zip too, where no build can reach them.

    Raises:
        LocationError: If one that is listed is not there, or leads out of the image.
    """
    storage = pyramid.storage
    if not storage.is_zip:
        return pyramid.levels[0].labels
    group = read_node(storage, "labels")
    names = document_of(group.attributes).get("labels") if group else None
    listed = names if isinstance(names, list) else []
    return tuple(_label_in_zip(storage, name) for name in dict.fromkeys(map(str, listed)))


def _label_in_zip(storage: Storage, name: str) -> ImageInfo:
    path = f"labels/{name}"
    place = shown(join(storage.location, path))
    if not is_inside(path):
        msg = f"{place} leads out of the image"
        raise LocationError(msg)
    own = replace(storage, archive=f"{storage.archive}{path}/")
    node = read_node(own, "")
    multiscales = parse_multiscales(node.attributes) if node else None
    if multiscales is None:
        msg = f"{place} is listed among the labels, but no image is there"
        raise LocationError(msg)
    level = open_level(own, multiscales.datasets[0].path)
    return replace(level, location=join(storage.location, path))


def label_colors(document: dict[str, Any]) -> dict[int, Color]:
    """Return the colours that ``image-label`` says; what it says wrongly is left out.

    Example:
        >>> label_colors({"image-label": {"colors": [{"label-value": 3, "rgba": [9, 8, 7, 255]}]}})
        {3: (9, 8, 7)}
    """
    label = document.get("image-label")
    said = label.get("colors") if isinstance(label, dict) else None
    found: dict[int, Color] = {}
    for entry in said if isinstance(said, list) else ():
        own = entry if isinstance(entry, dict) else {}
        number, rgba = own.get("label-value"), own.get("rgba")
        whole = isinstance(rgba, list) and all(type(v) is int and 0 <= v <= 255 for v in rgba)
        if type(number) is int and isinstance(rgba, list) and whole and len(rgba) == 4:
            found[number] = (rgba[0], rgba[1], rgba[2])
    return found


def spatial(level: ImageInfo, values: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Return the values along the spatial axes as of z, y, x; 1 where there is no z."""
    own = [v for v, axis in zip(values, level.axes, strict=True) if axis.type == "space"]
    z, y, x = [1] * (3 - len(own)) + own
    return z, y, x


def choose_level(levels: tuple[ImageInfo, ...], pixels: int) -> int:
    """Return the number of the level to show.

    It is the coarsest that is as long as its views, else the finest that may be read whole, else
    the coarsest.

    Args:
        levels: Levels, finest first.
        pixels: Length of the longest view.
    """
    costs = [_cut(level, max(level.shape))[1] for level in levels]
    # Those coarser are read too, for the row of small pictures.
    whole = [i for i in range(len(levels)) if sum(costs[i:]) <= MOST_BYTES]
    enough = [i for i in whole if max(spatial(levels[i], levels[i].shape)) >= pixels]
    return enough[-1] if enough else whole[0] if whole else len(levels) - 1


def _cut(level: ImageInfo, side: int) -> tuple[Region, int]:
    """Return the middle of a level, whole chunks of it, and the bytes that it takes to read."""
    first = {"t": 1, "c": len(COLORS)}
    asked = tuple(
        slice(0, min(n, first[axis.name]))
        if axis.name in first
        else slice(max(0, (n - side) // 2), min(n, (n + side + 1) // 2))
        for n, axis in zip(level.shape, level.axes, strict=True)
    )
    grid = Grid(level.shape, level.chunks)
    chunks = tuple(
        slice(r.start * c, min(r.stop * c, n))
        for r, c, n in zip(grid.touched(asked), level.chunks, level.shape, strict=True)
    )
    region = tuple(
        a if axis.name in first else b for a, b, axis in zip(asked, chunks, level.axes, strict=True)
    )
    size = math.prod(region_shape(chunks)) * np.dtype(level.dtype).itemsize
    count = math.prod(region_shape(grid.touched(asked)))
    return region, max(size, count * MOST_BYTES // _MOST_CHUNKS)


def readable_region(level: ImageInfo) -> Region:
    """Return what is read of a level: all, or as much of its middle as may be read.

    Raises:
        LocationError: If one chunk holds more than may be read.
    """
    side = max(level.shape)
    while side:
        region, size = _cut(level, side)
        if size <= MOST_BYTES:
            return region
        side = side * 3 // 4
    msg = (
        f"{shown(join(level.location, level.path))} has chunks of {times(level.chunks)}, "
        f"{human(size)} each; a preview reads at most {human(MOST_BYTES)}; build coarser levels"
    )
    raise LocationError(msg)


def read_voxels(storage: Storage, level: ImageInfo, region: Region) -> Voxels:
    """Return voxels along c, z, y, x.

    Args:
        storage: The location of the image.
        level: One of its levels.
        region: What is read of it, at one time point.

    Raises:
        SourceError: If they cannot be read.
    """
    import zarr

    try:
        # Not by zarrs, which as we open it asks a bucket for one chunk after the other.
        array = zarr.open_array(storage.zarr_store(), path=level.path, mode="r")
        refuse_swollen(array, region)
        voxels = np.asarray(array[region])
    except Exception as error:  # zarr and its codecs raise many kinds of error here
        reason = " ".join(str(error).split())[:200]
        msg = f"{shown(join(level.location, level.path))} cannot be read: {reason}"
        raise SourceError(msg) from error
    native = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    return native.reshape(-1, *spatial(level, voxels.shape))


def look_of(pyramid: ShownPyramid, voxels: Voxels) -> Look:
    """Return how voxels become colours: as ``omero`` says, else by their percentiles.

    Args:
        pyramid: The image.
        voxels: Voxels of one level along c, z, y, x.
    """
    if pyramid.is_label:
        return Look(is_label=True, label_colors=pyramid.label_colors)
    base = pyramid.levels[0]
    count = dict(zip([axis.name for axis in base.axes], base.shape, strict=True)).get("c", 1)
    names, colors, windows = [], [], []
    some = [own[::2, ::2, ::2] if own.size > _MOST_SEEN else own for own in voxels]
    for number, own in enumerate(some):
        channel = base.channels[number] if len(base.channels) == count else None
        window = (channel and channel.window) or contrast_window(own)
        if channel is None:
            label = f"channel {number}" if count > 1 else base.name
            channel = Channel(label, "FFFFFF" if count == 1 else COLORS[number])
        names.append(channel.label)
        red, green, blue = bytes.fromhex(channel.color)
        colors.append((red, green, blue))
        windows.append((float(window[1]), float(window[2])))
    dense = any(map(_is_dense, some, windows))
    return Look(False, tuple(names), tuple(colors), tuple(windows), dense)


def _is_dense(own: Voxels, window: tuple[float, float]) -> bool:
    """Return whether too much of a channel is bright for its maxima to show anything."""
    # Each end by itself: the whole range of floats is no float.
    return bool((own > 0.75 * window[0] + 0.25 * window[1]).mean() > DENSE)


def draw_view(voxels: Voxels, look: Look, along: int) -> Image.Image:
    """Return one view, a pixel per voxel.

    Args:
        voxels: Voxels along c, z, y, x.
        look: How they become colours.
        along: The axis, of z y x, along which one looks; along x, z goes to the right.
    """
    if look.is_label:
        numbers = voxels[0].take(voxels.shape[along + 1] // 2, axis=along)
        picture = _label_colors(numbers)
        for number in np.unique(numbers) if look.label_colors else ():
            if int(number) in look.label_colors:
                picture[numbers == number] = look.label_colors[int(number)]
    else:
        middle = voxels.shape[along + 1] // 2
        # fmax passes over NaN; where there is nothing else it stays, and is black.
        seen = (
            voxels.take(middle, axis=along + 1)
            if look.is_sliced
            else np.fmax.reduce(voxels, axis=along + 1)
        )
        light = np.zeros((*seen.shape[1:], 3))
        for plane, color, window in zip(seen, look.colors, look.windows, strict=True):
            bright = np.nan_to_num(np.interp(plane, window, (0.0, 1.0)))
            light += bright[..., None] * color
        picture = light.clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(picture.swapaxes(0, 1) if along == 2 else picture)


def _label_colors(numbers: Voxels) -> Voxels:
    """Return a colour per number, always the same; 0 is black."""
    # Fibonacci hashing: numbers that follow each other get hues far apart.
    scattered = numbers.astype(np.int64 if numbers.dtype.kind != "u" else np.uint64)
    scattered = scattered.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hue = (scattered >> np.uint64(40)) / 2.0**24
    value = 0.75 + 0.25 * ((scattered >> np.uint64(20)) & np.uint64(0xFF)) / 255
    wheel = np.abs((hue[..., None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    pure = 1 - 0.7 * (1 - wheel.clip(0, 1))
    colors: Voxels = (pure * value[..., None] * 255).round() * (numbers != 0)[..., None]
    return colors.astype(np.uint8)
