"""Open an image in a viewer that people know: Neuroglancer in a browser, or napari.

Neuroglancer comes with its Python package and needs no internet. Contrast and colours are given to
it, since it does not read those of OME-Zarr 0.5.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import quote

import numpy as np

from pyramid_core.errors import LocationError, RequestError, printable
from pyramid_core.image import ImageInfo
from pyramid_core.ngff import COLORS, document_of
from pyramid_core.reader import read_node
from pyramid_core.serve import ObjectHandler, ServedImage, served_image
from pyramid_core.stores import shown
from pyramid_core.views import (
    Color,
    Look,
    ShownPyramid,
    choose_level,
    label_colors,
    labels_of,
    look_of,
    open_pyramid,
    read_voxels,
    readable_region,
)

LOOPBACK = "127.0.0.1"
"""Where only programs of this machine can look."""

_LOOKED_AT = 200
"""Length of the level from which contrast is taken where the image does not say it."""

_PANEL = 360
"""Pixels of a window's panel that the image is made to fit in at first."""

_OTHERWISE = "pyramid preview draws it, and napari shows it (pyramid view --napari)"

_TYPES = {"uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32"}
"""What Neuroglancer 2.41 shows; in Zarr v2, int64 too, as if it had no sign."""

_POWERS = {
    "yotta": 24, "zetta": 21, "exa": 18, "peta": 15, "tera": 12, "giga": 9, "mega": 6, "kilo": 3,
    "hecto": 2, "deca": 1, "": 0, "deci": -1, "centi": -2, "milli": -3, "micro": -6, "nano": -9,
    "pico": -12, "femto": -15, "atto": -18, "zepto": -21, "yocto": -24,
}  # fmt: skip
_UNITS = {
    "": (1.0, ""), "angstrom": (1e-10, "m"), "inch": (0.0254, "m"), "foot": (0.3048, "m"),
    "yard": (0.9144, "m"), "mile": (1609.34, "m"), "parsec": (3.0856775814913673e16, "m"),
    "minute": (60.0, "s"), "hour": (3600.0, "s"), "day": (86400.0, "s"),
    **{f"{prefix}meter": (10.0**power, "m") for prefix, power in _POWERS.items()},
    **{f"{prefix}second": (10.0**power, "s") for prefix, power in _POWERS.items()},
}  # fmt: skip
"""Units of NGFF as Neuroglancer has them: how many meters or seconds."""

SHADER = """\
#uicontrol invlerp contrast
#uicontrol vec3 color color
void main() {
  emitRGB(color * contrast());
}
"""
"""How Neuroglancer draws a channel; the sliders of its panel are named here."""


@dataclass(frozen=True)
class View:
    """An image that is being served to a browser."""

    url: str
    """What to open; whoever knows it can look."""
    notes: tuple[str, ...]
    """What is not shown, and why."""
    viewer: Any
    """The ``neuroglancer.Viewer``, to change what is seen while it is open."""


@contextmanager
def served_view(location: str, *, bind: str = LOOPBACK) -> Iterator[View]:
    """Serve an image and a Neuroglancer that shows it, while the block runs.

    Channels have the colours and the contrast that the image says, else those of its preview;
    label images lie over them. Of many channels the first seven are shown.

    Args:
        location: An OME-Zarr image, wherever ``open_image`` can read it; others get it through us.
        bind: Address of this machine to serve at.

    Raises:
        LocationError: If there is no such image, or Neuroglancer cannot show it.
        RequestError: If Neuroglancer is not installed, or the address is not ours.
        SourceError: If its voxels cannot be read.

    Example:
        >>> import tempfile
        >>> from pyramid_core import PyramidParams, build_pyramid, write_phantom
        >>> place = tempfile.mkdtemp() + "/a.zarr"
        >>> info = write_phantom(place, shape=(64, 64, 64))
        >>> result = build_pyramid(PyramidParams(source=place))
        >>> with served_view(place) as view:
        ...     view.url.startswith("http://127.0.0.1:")
        True
    """
    neuroglancer = _neuroglancer()
    pyramid = open_pyramid(location)
    base = pyramid.levels[0]
    _refuse(pyramid)
    listed = labels_of(pyramid)
    labels = tuple(label for label in listed if not _unknown_type(label))
    look = _look(pyramid)
    _try_address(bind)
    neuroglancer.set_server_bind_address(bind)
    viewer = neuroglancer.Viewer(allow_credentials=False)
    try:
        url = _serve(neuroglancer.server, served_image(pyramid.storage, (base, *labels)))
        viewer.set_state(viewer_state(pyramid, look, labels, url))
        yield View(viewer.get_viewer_url(), _notes(base, listed), viewer)
    finally:
        neuroglancer.stop()


def _neuroglancer() -> ModuleType:
    try:
        return importlib.import_module("neuroglancer")
    except ImportError as error:
        msg = "the viewer is not installed: pip install 'zarr-pyramid-flow[view]'"
        raise RequestError(msg) from error


def _try_address(bind: str) -> None:
    try:
        socket.create_server((bind, 0)).close()
    except OSError as error:
        msg = f"cannot serve at {bind!r}: {error}; name an address of this machine, like {LOOPBACK}"
        raise RequestError(msg) from error


def _serve(server: Any, image: ServedImage) -> str:
    """Add an image to Neuroglancer's own server, so that one port is enough; return its URL."""
    token = secrets.token_hex(20)
    routes = [(f"/{token}/(.*)", ObjectHandler, {"image": image})]
    server.global_server.app.add_handlers(".*", routes)
    return f"{server.get_server_url()}/{token}/"


def _refuse(pyramid: ShownPyramid) -> None:
    """Say before anything starts what Neuroglancer would only show as black.

    Raises:
        LocationError: If it cannot show the image.
    """
    base, place = pyramid.levels[0], shown(pyramid.levels[0].location)
    if not base.ngff_version:
        msg = f"{place} is no OME-Zarr image yet; run pyramid build on it, or pyramid preview"
        raise LocationError(msg)
    if _unknown_type(base):
        msg = f"{place} is of type {_type(base)}, which Neuroglancer cannot show; {_OTHERWISE}"
        raise LocationError(msg)
    node = read_node(pyramid.storage, "")
    document = document_of(node.attributes if node else {})
    said = document if base.ngff_version == "0.5" else document["multiscales"][0]
    if not said.get("version"):
        msg = f"{place} does not say its version, which Neuroglancer asks for; {_OTHERWISE}"
        raise LocationError(msg)
    for axis in base.axes:
        if axis.unit not in _UNITS:
            msg = f"{place}: Neuroglancer does not know the unit {axis.unit!r}; {_OTHERWISE}"
            raise LocationError(msg)


def _type(info: ImageInfo) -> str:
    return np.dtype(info.dtype).name


def _unknown_type(info: ImageInfo) -> bool:
    """Return whether Neuroglancer cannot show voxels of this type."""
    signed = {"int64"} if info.zarr_format == 2 else set()
    return _type(info) not in _TYPES | signed


def _notes(base: ImageInfo, listed: Sequence[ImageInfo]) -> tuple[str, ...]:
    """Return what is not shown of an image and its labels, and why."""
    notes = [
        f"{_path(base, label)} is left out: Neuroglancer cannot show {_type(label)}"
        for label in listed
        if _unknown_type(label)
    ]
    sizes = {axis.name: n for axis, n in zip(base.axes, base.shape, strict=True)}
    if sizes.get("c", 1) > len(COLORS):
        notes.append(f"of {sizes['c']} channels the first {len(COLORS)} are shown")
    if _type(base) == "int64":
        notes.append("Neuroglancer shows int64 as if it had no sign")
    return tuple(notes)


def _look(pyramid: ShownPyramid) -> Look:
    level = pyramid.levels[choose_level(pyramid.levels, _LOOKED_AT)]
    return look_of(pyramid, read_voxels(pyramid.storage, level, readable_region(level)))


def _path(base: ImageInfo, label: ImageInfo) -> str:
    return label.location[len(base.location) + 1 :]


def viewer_state(
    pyramid: ShownPyramid, look: Look, labels: Sequence[ImageInfo], url: str
) -> dict[str, Any]:
    """Return what Neuroglancer shows at first.

    Args:
        pyramid: The image.
        look: Colours and contrast of its channels.
        labels: Its label images.
        url: Where the image is served; ends with a slash.
    """
    base = pyramid.levels[0]
    # With the format, the viewer does not look for the other, which makes errors in its console.
    source = f"zarr{base.zarr_format}://{url}"
    layers = _channels(base, look, source)
    if look.is_label:
        layers = [{"type": "segmentation", "name": base.name, "source": source, "selectedAlpha": 1}]
        layers[0] |= _segment_colors(look.label_colors)
    for label in labels:
        path = _path(base, label)
        name = path.removeprefix("labels/")
        layers.append({"type": "segmentation", "name": name, "source": f"{source}{quote(path)}/"})
        node = read_node(pyramid.storage, path)
        said = label_colors(document_of(node.attributes)) if node else {}
        layers[-1] |= _segment_colors(said)
    names: list[str] = []
    for layer in layers:  # which the viewer wants to differ
        layer["name"] += f" ({len(names)})" if layer["name"] in names else ""
        names.append(layer["name"])
    axes = {axis.name: (n, scale * _UNITS[axis.unit][0], _UNITS[axis.unit][1])
            for axis, n, scale in zip(base.axes, base.shape, base.scale, strict=True)}  # fmt: skip
    space = [name for name in "xyz" if name in axes]
    finest = min(axes[name][1] for name in space)
    longest = max(axes[name][0] * axes[name][1] for name in space) / finest
    return {
        "title": base.name,
        "layers": layers,
        "dimensions": {name: axes[name][1:] for name in "xyzt" if name in axes},
        "displayDimensions": space,
        "layout": "4panel" if len(space) == 3 else "xy",
        "crossSectionScale": longest / (_PANEL if "z" in space else 2 * _PANEL),
        "projectionScale": 1.5 * longest,
        "showAxisLines": False,
    }


def _segment_colors(colors: dict[int, Color]) -> dict[str, Any]:
    """Return what a layer of labels is told of colours; nothing where nothing is said."""
    said = {str(number): "#" + bytes(color).hex() for number, color in colors.items()}
    return {"segmentColors": said} if said else {}


def _channels(base: ImageInfo, look: Look, source: str) -> list[dict[str, Any]]:
    """Return a layer per channel; their light adds up."""
    layers = []
    own = {axis.name: i for i, axis in enumerate(base.axes)}.get("c")
    for number, (name, color) in enumerate(zip(look.names, look.colors, strict=True)):
        contrast = _range(base, look.windows[number])
        layer = {
            "type": "image",
            "name": name,
            "source": source,
            "shader": SHADER,
            "shaderControls": {
                "contrast": {"range": contrast, "window": contrast},
                "color": "#" + bytes(color).hex(),
            },
            "blend": "additive",
            "opacity": 1,
        }
        if own is not None:
            # The mark makes an axis the layer's own.
            layer["localDimensions"] = {"c'": [base.scale[own], ""]}
            layer["localPosition"] = [base.translation[own] / base.scale[own] + number]
        layers.append(layer)
    return layers


def _range(base: ImageInfo, window: tuple[float, float]) -> list[float]:
    """Return start and end of a contrast as the type of the image can say them."""
    dtype = np.dtype(base.dtype)
    if dtype.kind == "f":
        return list(window)
    limits = np.iinfo(dtype)
    whole = (math.floor(window[0]), math.ceil(window[1]))
    return [min(max(value, limits.min), limits.max) for value in whole]


def show(location: str, *, bind: str = LOOPBACK, browser: bool = True) -> None:
    """Serve an image until the process is stopped; print where, and open a browser.

    Args:
        location: The image.
        bind: Address of this machine to serve at.
        browser: Open one, where there is a screen.

    Raises:
        RequestError: As ``served_view``.
        SourceError: If voxels cannot be read.
    """
    with served_view(location, bind=bind) as view:
        for note in view.notes:
            print(printable(f"note: {note}"))
        print(f"{view.url}\nCtrl-C stops", flush=True)
        if browser and _has_screen():
            webbrowser.open(view.url)
        threading.Event().wait()


def _has_screen() -> bool:
    """Return whether a browser would open a window; others would take the terminal."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in screens)


def show_in_napari(location: str) -> None:
    """Open an image in napari, and return when its window is closed.

    Args:
        location: The image.

    Raises:
        RequestError: If napari or its reader of OME-Zarr is not installed.
        LocationError: If there is no such image.
    """
    missing = [n for n in ("napari", "napari_ome_zarr") if importlib.util.find_spec(n) is None]
    if missing:
        msg = f"{missing[0]} is not installed: pip install 'napari[all]' napari-ome-zarr"
        raise RequestError(msg)
    info = open_pyramid(location).levels[0]
    napari = importlib.import_module("napari")
    viewer = napari.Viewer(title=info.name)
    viewer.open(info.location, plugin="napari-ome-zarr")
    napari.run()
