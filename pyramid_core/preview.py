"""A picture of an image and its levels: what one wants to see before a viewer is opened."""

from __future__ import annotations

import io
import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pyramid_core.errors import LocationError, RequestError
from pyramid_core.files import refuse_place, write_whole
from pyramid_core.grid import Shape, region_shape, times
from pyramid_core.image import ImageInfo
from pyramid_core.params import UNIT_SYMBOLS, human
from pyramid_core.stores import shown
from pyramid_core.views import (
    Color,
    Look,
    ShownPyramid,
    Voxels,
    choose_level,
    draw_view,
    look_of,
    open_pyramid,
    read_voxels,
    readable_region,
    spatial,
)

WIDTHS = (400, 4000)
"""The narrowest and the widest picture, in pixels."""

DENSEST = 0.7
"""A PNG of more bytes than this times its width squared, 252 kB at 600, is cut to 256 colours."""

_MARGIN, _GAP, _LINE = 20, 6, 20
_MOST_ROWS = 12
_TALLEST = 0.75  # the height of the views to the width of the page
_PAGE: Color = (22, 24, 29)
_TEXT: Color = (230, 232, 236)
_QUIET: Color = (146, 152, 163)
_ACCENT: Color = (255, 196, 87)
_METRES = {
    "megameter": 1e6, "kilometer": 1e3, "hectometer": 1e2, "meter": 1.0, "decimeter": 1e-1,
    "centimeter": 1e-2, "millimeter": 1e-3, "micrometer": 1e-6, "nanometer": 1e-9,
    "angstrom": 1e-10, "picometer": 1e-12, "femtometer": 1e-15,
}  # fmt: skip
_PREFIXED = ("kilometer", "meter", "millimeter", "micrometer", "nanometer", "picometer",
             "femtometer")  # fmt: skip
_SYMBOLS = {name: symbol for symbol, name in reversed(UNIT_SYMBOLS.items()) if symbol.isascii()}
_SYMBOLS |= {"kilometer": "km", "femtometer": "fm"}


@dataclass(frozen=True, slots=True)
class _Panel:
    """One of the orthogonal views, and where it lies in the picture."""

    along: int
    """The axis, of z y x, along which one looks."""
    left: int
    """First column."""
    top: int
    """First row."""
    width: int
    """Columns."""
    height: int
    """Rows."""
    is_turned: bool = False
    """Whether z goes to the right and x down, in what is seen along y."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the views lie."""

    panels: tuple[_Panel, ...]
    """One for a plane, else three."""
    pixels: float
    """Pixels per unit of length, the same in every view and direction."""


def render_preview(location: str, *, width: int = 900) -> bytes:
    r"""Draw an image and its levels: three orthogonal views, a scale bar and a table of the levels.

    The views are maximum projections of a level that is about as large as the picture; of volumes
    that are dense, where maxima would be white all over, middle slices; of label images too, in a
    colour per label. Voxels have their true aspect, channels the colour
    and the contrast that the image says. Of several time points the first is shown, of many
    channels the first seven. An image without coarse levels that is large shows its middle, and the
    picture says so. The same image gives the same bytes.

    Args:
        location: An OME-Zarr image or a Zarr array, wherever ``open_image`` can read it.
        width: Width of the picture in pixels.

    Returns:
        A PNG; where it would take more than 252 kB at a width of 600, or 567 kB at 900, it is cut
        to 256 colours.

    Raises:
        LocationError: If there is no such image, or one chunk of it holds more than may be read.
        RequestError: If the picture would be too narrow or too wide.
        SourceError: If the voxels cannot be read.

    Example:
        >>> import numpy, tempfile, zarr
        >>> place = tempfile.mkdtemp() + "/a.zarr"
        >>> array = zarr.create_array(place, data=numpy.eye(32, dtype="u1"))
        >>> render_preview(place)[:4]
        b'\x89PNG'
    """
    if not WIDTHS[0] <= width <= WIDTHS[1]:
        msg = f"a picture {width} pixels wide was asked for; {WIDTHS[0]} to {WIDTHS[1]} can be"
        raise RequestError(msg)
    pyramid = open_pyramid(location)
    base = pyramid.levels[0]
    panels = _lay_out(base, spatial(base, base.shape), width).panels
    number = choose_level(pyramid.levels, max(max(p.width, p.height) for p in panels))
    level = pyramid.levels[number]
    region = readable_region(level)
    voxels = read_voxels(pyramid.storage, level, region)
    look = look_of(pyramid, voxels)
    shape = spatial(level, region_shape(region))
    layout = _lay_out(level, shape, width)
    whole = shape == spatial(level, level.shape)
    small = [draw_view(voxels, look, 0)] * (number + 1) if whole else []
    for coarser in pyramid.levels[number + 1 :]:
        own = read_voxels(pyramid.storage, coarser, readable_region(coarser))
        small.append(draw_view(own, look, 0))
    strips = [
        _header(pyramid, look, width),
        _draw_views(voxels, look, layout, level, width),
        _caption(level, "" if whole else times(shape[shape[0] == 1 :]), layout, look, width),
        _table(pyramid.levels, number, small, layout, look, width),
    ]
    return _png(strips, width)


def write_preview(location: str, path: str | Path, *, width: int = 900) -> Path:
    """Draw an image as ``render_preview`` does, into a file.

    Args:
        location: The image.
        path: The file; an earlier PNG is replaced, anything else is not.
        width: Width of the picture in pixels.

    Raises:
        TargetError: If the file would lie in the image or in no folder, or is there and no PNG.
        RequestError: As ``render_preview``.
        SourceError: If the voxels cannot be read.
    """
    path = Path(path)
    refuse_place(path, [location], "PNG", lambda begin: begin[:4] == b"\x89PNG")
    write_whole(path, render_preview(location, width=width))
    return path


def _arrange(sides: tuple[float, float, float], full: float) -> tuple[str, float]:
    """Return how views are placed, and pixels per length: the most picture on the page.

    Example:
        >>> [_arrange(zyx, 860)[0] for zyx in ((1, 1, 1), (1, 9, 9), (9, 1, 1))]
        ['row', 'below', 'turned']
    """
    z, y, x = sides
    found = []
    for way, right, down, gap, line in (
        ("row", 2 * x + z, max(y, z), 2 * _GAP, 0),
        ("below", x + z, y + z, _GAP, _LINE),
        ("turned", x + z, y + x, _GAP, _LINE),
    ):
        pixels = min((full - gap) / right, (full * _TALLEST - line) / down)
        # Header and table take about a fifth of the width.
        found.append((pixels * pixels / (pixels * down + full / 5), pixels, way))
    _, pixels, way = max(found)
    return way, pixels


def _lay_out(level: ImageInfo, shape: Shape, width: int) -> _Layout:
    """Place the views: one of a plane, else three."""
    z, y, x = (n * s for n, s in zip(shape, spatial(level, level.scale), strict=True))
    full = width - 2 * _MARGIN
    if shape[0] == 1:
        way, pixels = "plane", min(full / x, full * _TALLEST / y)
    else:
        way, pixels = _arrange((z, y, x), full)
    if not pixels or not all(math.isfinite(n * pixels) for n in (x, y, z)):
        msg = f"{shown(level.location)} has voxels of {times(level.scale)}: no picture shows that"
        raise LocationError(msg)
    w, h, d = (max(1, round(n * pixels)) for n in (x, y, z))
    wide = {"plane": w, "row": 2 * (w + _GAP) + d}.get(way, w + _GAP + d)
    left = _MARGIN + max(0, (full - wide) // 2)
    side, lower = left + w + _GAP, h + 2 * _LINE
    # Side by side, what is lower is in the middle of the row: no gap is below one view alone.
    down = (max(h, d) - h) // 2 if way == "row" else 0
    panels = [_Panel(0, left, _LINE + down, w, h), _Panel(2, side, _LINE + down, d, h)]
    third = {
        "row": _Panel(1, side + d + _GAP, _LINE + (max(h, d) - d) // 2, w, d),
        "below": _Panel(1, left, lower, w, d),
        "turned": _Panel(1, side, lower, d, w, is_turned=True),
    }
    return _Layout((*panels, third[way]) if way in third else (panels[0],), pixels)


def _draw_views(
    voxels: Voxels, look: Look, layout: _Layout, level: ImageInfo, width: int
) -> Image.Image:
    bottom = max(panel.top + panel.height for panel in layout.panels)
    strip = Image.new("RGB", (width, bottom), _PAGE)
    draw = ImageDraw.Draw(strip)
    axes = [axis.name for axis in level.axes if axis.type == "space"]
    names = {0: axes[-1] + axes[-2], 2: axes[0] + axes[-2], 1: axes[-1] + axes[0]}
    for panel in layout.panels:
        name, view = names[panel.along], draw_view(voxels, look, panel.along)
        if panel.is_turned:
            name, view = name[::-1], view.transpose(Image.Transpose.TRANSPOSE)
        draw.text((panel.left, panel.top - 5), name, _QUIET, _font(12), "ls")
        strip.paste(_resized(view, panel.width, panel.height, look), (panel.left, panel.top))
    return strip


def _resized(view: Image.Image, width: int, height: int, look: Look) -> Image.Image:
    """Resize each axis by itself: voxels that are large in the picture are shown as they are."""
    for size in ((width, view.height), (width, height)):
        growth = max(size[0] / view.width, size[1] / view.height)
        sharp = look.is_label or growth >= 4
        resampling = Image.Resampling.NEAREST if sharp else Image.Resampling.BILINEAR
        view = view.resize(size, resampling)
    return view


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, size: int, width: float) -> str:
    """Return as much of a text as fits; the font has ASCII alone."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    plain = " ".join(plain.encode("ascii", "replace").decode().split())[:500]
    plain = "".join(c if c.isprintable() else "?" for c in plain)
    if _font(size).getlength(plain) <= width:
        return plain
    while plain and _font(size).getlength(plain + "...") > width:
        plain = plain[:-1]
    return plain + "..."


def _header(pyramid: ShownPyramid, look: Look, width: int) -> Image.Image:
    base = pyramid.levels[0]
    shape = {axis.name: n for axis, n in zip(base.axes, base.shape, strict=True)}
    count = len(pyramid.levels)
    facts = [np.dtype(base.dtype).name, f"{count} level{'s' * (count > 1)}"]
    facts[1] += f" by {pyramid.method}" if pyramid.method and count > 1 else ""
    facts += [f"OME-Zarr {base.ngff_version}" if base.ngff_version else f"Zarr v{base.zarr_format}"]
    facts += [f"time point 0 of {shape['t']}"] if shape.get("t", 1) > 1 else []
    shown_channels = len(look.names)
    if shape.get("c", 1) > max(1, shown_channels):
        facts.append(f"channels 0 to {max(0, shown_channels - 1)} of {shape['c']}")
    strip = Image.new("RGB", (width, _MARGIN + 52 + (_LINE if look.names else 0)), _PAGE)
    draw = ImageDraw.Draw(strip)
    full = width - 2 * _MARGIN
    draw.text((_MARGIN, _MARGIN + 16), _fitted(base.name, 21, full), _TEXT, _font(21), "ls")
    draw.text((_MARGIN, _MARGIN + 38), _fitted(", ".join(facts), 13, full), _QUIET, _font(13), "ls")
    left = _MARGIN
    for name, color, (start, end) in zip(look.names, look.colors, look.windows, strict=True):
        name = "contrast" if name == base.name else name
        text = _fitted(f"{name} {_short(start)} to {_short(end)}", 12, width - _MARGIN - left - 16)
        draw.rectangle((left, _MARGIN + 49, left + 9, _MARGIN + 58), color)
        draw.text((left + 16, _MARGIN + 58), text, _TEXT, _font(12), "ls")
        left += 16 + math.ceil(_font(12).getlength(text)) + 16
        if left > width - _MARGIN - 80:
            break
    return strip


def _short(number: float) -> str:
    """Return a number in few digits, whole numbers whole."""
    return f"{number:.0f}" if number.is_integer() and abs(number) < 1e7 else f"{number:.4g}"


def _caption(level: ImageInfo, middle: str, layout: _Layout, look: Look, width: int) -> Image.Image:
    """Draw a scale bar of a round length, and say what is seen."""
    strip = Image.new("RGB", (width, 40), _PAGE)
    draw = ImageDraw.Draw(strip)
    left = layout.panels[0].left
    longest = max(max(panel.width for panel in layout.panels) / 2.5, 2.0) / layout.pixels
    power = 10.0 ** math.floor(math.log10(longest))
    # A half, because log10 of a number just below a power of ten is rounded up to that power.
    length = max(n * power for n in (0.5, 1, 2, 5) if n * power <= longest)
    bar = max(1, round(length * layout.pixels))
    draw.rectangle((left, 14, left + bar - 1, 17), _TEXT)
    label = _length(length, level.axes[-1].unit)
    draw.text((left, 32), label, _TEXT, _font(12), "ls")
    what = "middle slices of " if look.is_sliced else "maximum projections of "
    lines = [(what if len(layout.panels) > 1 else "") + f"level {level.path}"]
    lines += [f"its middle {middle}"] if middle else []
    room = width - _MARGIN - left - max(bar, _font(12).getlength(label)) - 20
    for row, line in enumerate(lines):
        at = (width - _MARGIN, 18 + 15 * row)
        draw.text(at, _fitted(line, 12, room), _QUIET, _font(12), "rs")
    return strip


def _length(length: float, unit: str) -> str:
    """Return a length in the unit that a person would write: 2 mm rather than 2000 um.

    Example:
        >>> _length(2000, "micrometer"), _length(0.5, "micrometer"), _length(5, "angstrom")
        ('2 mm', '500 nm', '5 angstrom')
    """
    metres = length * _METRES.get(unit, 0.0)
    fitting = [name for name in _PREFIXED if metres >= _METRES[name] * (1 - 1e-9)]
    # What is below all prefixes stays; so do units that have none, and small lengths in angstrom.
    if fitting and (unit != "angstrom" or metres >= _METRES["nanometer"] * (1 - 1e-9)):
        length, unit = metres / _METRES[fitting[0]], fitting[0]
    return f"{length:g} {_SYMBOLS.get(unit, unit)}" if unit else f"{length:g} (no unit)"


def _table(
    levels: tuple[ImageInfo, ...],
    number: int,
    small: list[Image.Image],
    layout: _Layout,
    look: Look,
    width: int,
) -> Image.Image:
    """Draw a row per level, the one that is shown marked, and beside them the levels to scale."""
    axes, unit = levels[0].axes, levels[0].axes[-1].unit
    rows = [("level", f"shape ({''.join(axis.name for axis in axes)})",
             f"voxel ({_SYMBOLS.get(unit, unit) or 'no unit'})", "raw size")]  # fmt: skip
    for level in levels[:_MOST_ROWS]:
        size = human(math.prod(level.shape) * np.dtype(level.dtype).itemsize)
        voxel = [s for s, axis in zip(level.scale, axes, strict=True) if axis.type == "space"]
        rows.append((level.path, times(level.shape), times(tuple(voxel)), size))
    if len(levels) > _MOST_ROWS:
        rows.append((f"... {len(levels) - _MOST_ROWS} more", "", "", ""))
    tall = max(len(rows) * _LINE, 130 if small and len(levels) > 1 else 0)
    strip = Image.new("RGB", (width, tall + _MARGIN), _PAGE)
    draw = ImageDraw.Draw(strip)
    left = _MARGIN
    for column in zip(*rows, strict=True):
        texts = [_fitted(text, 13, width / 3) for text in column]
        for row, text in enumerate(texts):
            color = _QUIET if row == 0 else _ACCENT if row == number + 1 else _TEXT
            draw.text((left, row * _LINE + 14), text, color, _font(13), "ls")
        left += math.ceil(max(_font(13).getlength(text) for text in texts)) + 18
    _draw_small(strip, levels, small, layout, look, left + 10)
    return strip


def _draw_small(
    strip: Image.Image,
    levels: tuple[ImageInfo, ...],
    small: list[Image.Image],
    layout: _Layout,
    look: Look,
    left: int,
) -> None:
    """Draw the levels side by side, each as large as its shape is beside that of level 0."""
    lengths = [max(spatial(level, level.shape)[1:]) for level in levels]
    room = strip.width - _MARGIN - left - 2 * _GAP * (len(levels) - 1)
    panel = layout.panels[0]
    aspect = panel.width / panel.height
    bottom = strip.height - _MARGIN - _LINE
    first = min(room * lengths[0] / sum(lengths), bottom * aspect)
    if not small or len(levels) == 1 or min(first, first / aspect) < 12:
        return
    draw = ImageDraw.Draw(strip)
    right = strip.width - _MARGIN
    for level, picture, length in reversed(list(zip(levels, small, lengths, strict=True))):
        w = max(2, round(first * length / lengths[0]))
        h = max(2, round(first / aspect * length / lengths[0]))
        strip.paste(_resized(picture, w, h, look), (right - w, bottom - h))
        draw.text((right - w / 2, bottom + 15), level.path[:8], _QUIET, _font(12), "ms")
        right -= w + 2 * _GAP


def _png(strips: list[Image.Image], width: int) -> bytes:
    page = Image.new("RGB", (width, sum(strip.height for strip in strips)), _PAGE)
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    content = _encoded(page)
    if len(content) > DENSEST * width**2:
        small = page.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        content = _encoded(small)
    return content


def _encoded(page: Image.Image) -> bytes:
    content = io.BytesIO()
    page.save(content, "PNG", optimize=True)
    return content.getvalue()
