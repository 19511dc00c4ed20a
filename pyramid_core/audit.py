"""Audit the metadata of a finished OME-Zarr image: what no schema checks, and viewers stumble on.

Most of the rules here are those that validators leave out: a scale that is wrong by two, a missing
half-pixel translation, levels of different types, a contrast window upside down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from pyramid_core.errors import LocationError
from pyramid_core.image import AXIS_TYPES, ImageInfo
from pyramid_core.ngff import (
    RECORD,
    Dataset,
    Multiscales,
    document_of,
    is_number,
    parse_multiscales,
)
from pyramid_core.params import SPACE_UNITS, TIME_UNITS
from pyramid_core.reader import open_level, read_node
from pyramid_core.remote import each
from pyramid_core.stores import Storage, is_url

FIRST_VOXEL = frozenset({"stride", "nearest", "subsample", "sample", "decimate", "striding"})
"""Names of methods that take the first voxel of a window, so that a level is not shifted."""

AVERAGES = frozenset({"mean", "average", "gaussian", "linear", "local_mean"})
"""Names of methods whose voxels need not occur in the level before."""

_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or might be better."""

    severity: Literal["error", "warning"]
    """An error makes the image wrong; a warning does not."""
    where: str
    """Path of the level or group that it is about; empty for the image."""
    message: str
    """What was found, and what it should be."""

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.severity}: {self.where + ': ' if self.where else ''}{self.message}"


def _error(where: str, message: str) -> Finding:
    return Finding("error", where, message)


def _warning(where: str, message: str) -> Finding:
    return Finding("warning", where, message)


def audit(
    storage: Storage, attributes: dict[str, Any], *, base_has_names: bool = True
) -> tuple[list[Finding], Multiscales | None, list[ImageInfo]]:
    """Audit the attributes of a group against the arrays in it; reads metadata only.

    Args:
        storage: The location of the group.
        attributes: Its attributes; before the commit, those that it will have.
        base_has_names: False before a commit that gives the base its ``dimension_names``.

    Returns:
        The findings, the document, and what each of its levels says of itself; without the last
        two where the document cannot be understood.
    """
    findings = list(_audit_attributes(attributes))
    document = document_of(attributes)
    try:
        multiscales = parse_multiscales(attributes)
    except LocationError as error:
        return [*findings, _error("", str(error))], None, []
    if multiscales is None:
        unfinished = "; its build is not finished: run it again" if RECORD in attributes else ""
        return [*findings, _error("", f"there is no multiscales document{unfinished}")], None, []
    entry = document["multiscales"][0]
    findings += _audit_entry(entry, document, multiscales)
    findings += _audit_axes(entry["axes"])
    opened = each(partial(_opened, storage), multiscales.datasets, away=is_url(storage.location))
    levels: list[ImageInfo] = []
    for dataset, found in zip(multiscales.datasets, opened, strict=True):
        if isinstance(found, LocationError):
            return [*findings, _error(dataset.path, str(found))], multiscales, []
        levels.append(found)
    axes = tuple(axis.name for axis in multiscales.axes)
    if not base_has_names and not levels[0].dimension_names:
        levels[0] = replace(levels[0], dimension_names=axes)
    findings += _audit_arrays(storage, multiscales, levels)
    if any(len(level.shape) != len(axes) for level in levels):
        return findings, multiscales, []
    findings += _audit_told(multiscales, levels)
    findings += _audit_geometry(multiscales, levels, str(entry.get("type", "")))
    if "image-label" not in document:
        findings += _audit_omero(document.get("omero"), multiscales, levels[0])
    else:
        findings += _audit_image_label(document["image-label"], levels, str(entry.get("type", "")))
    return findings, multiscales, levels


def _opened(storage: Storage, dataset: Dataset) -> ImageInfo | LocationError:
    try:
        return open_level(storage, dataset.path)
    except LocationError as error:
        return error


def _audit_attributes(attributes: dict[str, Any]) -> Iterator[Finding]:
    try:
        json.dumps(attributes, allow_nan=False)
    except ValueError:
        yield _error("", "the attributes hold NaN or Infinity, which no other JSON reader takes")
    except RecursionError:
        yield _error("", "the attributes are nested too deeply for other readers")
    inside = attributes.get("ome")
    if isinstance(inside, dict):
        for name in ("multiscales", "omero", "image-label", "labels"):
            if name in attributes:
                make = _warning if name in inside else _error
                yield make("", f"{name} stands beside ome; since 0.5 it stands inside")


def _audit_entry(
    entry: dict[str, Any], document: dict[str, Any], multiscales: Multiscales
) -> Iterator[Finding]:
    if multiscales.version == "0.4" and entry.get("version") != "0.4":
        yield _error("", "the document does not say its version, 0.4; neuroglancer wants it")
    if multiscales.version == "0.5":
        if document.get("version") != "0.5":
            yield _error("", "the document does not say its version, 0.5")
        if "version" in entry:
            yield _error("", "version stands inside multiscales; since 0.5 it stands beside it")
    if len(document["multiscales"]) > 1:
        yield _warning("", "there is more than one multiscales entry; only the first is read")
    for name in ("name", "type", "metadata"):
        if entry.get(name) is None:
            yield _warning("", f"multiscales has no {name!r}, which the strict schema demands")
    made = (multiscales.identity or {}).get("method", entry.get("type"))
    if entry.get("type") not in (None, made):
        yield _error("", f"type is {entry['type']!r}, but the metadata tells of {made!r}")
    if entry.get("coordinateTransformations"):
        yield _warning("", "there are transformations of the whole image, which napari ignores")


def _audit_axes(axes: list[dict[str, Any]]) -> Iterator[Finding]:
    names = [axis.get("name") for axis in axes]
    types = [axis.get("type") for axis in axes]
    if len(set(names)) != len(names):
        yield _error("", f"axes have the same name twice: {names}")
    if not 2 <= len(axes) <= 5 or not 2 <= types.count("space") <= 3:
        yield _error("", f"axes {names} are of types {types}; 2 or 3 of 2 to 5 are space")
    known = [list(AXIS_TYPES).index(str(name)) for name in names if name in AXIS_TYPES]
    if known != sorted(known):
        yield _error("", f"axes {names} are not in the order time, channel, space (z, y, x)")
    for axis in axes:
        name, kind, unit = axis.get("name"), axis.get("type"), axis.get("unit")
        if kind != AXIS_TYPES.get(str(name)):
            yield _error("", f"axis {name} is of type {kind!r}, not {AXIS_TYPES.get(str(name))!r}")
        if kind == "channel":
            if unit is not None:
                yield _warning("", f"axis {name} is of channels but has a unit, {unit!r}")
        elif unit is None:
            yield _warning("", f"axis {name} has no unit")
        elif str(unit) not in (TIME_UNITS if kind == "time" else SPACE_UNITS):
            example = "second" if kind == "time" else "micrometer"
            yield _error("", f"axis {name} has unit {unit!r}; viewers want names like {example}")


def _audit_arrays(
    storage: Storage, multiscales: Multiscales, levels: list[ImageInfo]
) -> Iterator[Finding]:
    base = levels[0]
    paths = [level.path for level in levels]
    if len(set(paths)) != len(paths):
        yield _error("", f"the document names a path twice: {paths}")
    wanted = 2 if multiscales.version == "0.4" else 3
    axes = tuple(axis.name for axis in multiscales.axes)
    for level in levels:
        at = level.path
        if len(level.shape) != len(axes):
            yield _error(at, f"has shape {level.shape} but the document names axes {axes}")
        if level.zarr_format != wanted:
            yield _error(at, f"is Zarr v{level.zarr_format}; {multiscales.version} wants v{wanted}")
        if level.dtype[1:] != base.dtype[1:]:
            yield _error(at, f"is of type {level.dtype}, level 0 of {base.dtype}")
        if level.fill != base.fill:
            yield _warning(at, f"has fill value {level.fill}, level 0 has {base.fill}")
        if wanted == 3 and level.dimension_names != axes:
            yield _error(at, f"has dimension_names {level.dimension_names}, not the axes {axes}")
        if level.separator != "/":
            make = _warning if level is base else _error
            yield make(at, "has '.' in its chunk keys; OME-Zarr wants '/'")
    yield from _audit_beside(storage, paths)


def _audit_beside(storage: Storage, paths: list[str]) -> Iterator[Finding]:
    """Look for arrays in the folder of the base that are none of its levels."""
    folder = paths[0].rpartition("/")[0]
    for name in storage.names(folder):
        found = f"{folder}/{name}" if folder else name
        if found in paths or name.startswith((".z", "zarr.json")):
            continue
        try:
            node = read_node(storage, found)
        except LocationError as error:
            yield _error(found, str(error))
            continue
        if node is not None and node.kind == "array":
            yield _error(found, "is an array that the document does not name: an orphan level")


def _audit_told(multiscales: Multiscales, levels: list[ImageInfo]) -> Iterator[Finding]:
    """What an image of ours tells of its build is what its arrays say."""
    told = multiscales.identity or {}
    paths = [level.path for level in levels]
    if told.get("paths", paths) != paths:
        yield _error("", f"levels {told['paths']} were built, but the document names {paths}")
        return
    given = told.get("given")
    for number, level in enumerate(levels):
        said: dict[str, Any] = {
            "fill_value": level.fill,
            "chunks": list(level.chunks),
            "shards": list(level.shards) if level.shards else None,
        }
        if not isinstance(given, list) or level.path not in given:
            said["dtype"] = level.dtype
        for name, now in said.items():
            built = told.get(name, now)
            if name in ("chunks", "shards") and name in told:
                built = built[number] if isinstance(built, list) and number < len(built) else built
            if built != now:
                yield _error(level.path, f"has {name.replace('_', ' ')} {now}, built was {built}")


def _audit_geometry(
    multiscales: Multiscales, levels: list[ImageInfo], method: str
) -> Iterator[Finding]:
    base = multiscales.datasets[0]
    pairs = pairwise(zip(multiscales.datasets, levels, strict=True))
    for (finer, fine), (dataset, level) in pairs:
        at = dataset.path
        if level.shape == fine.shape or any(
            n > m for n, m in zip(level.shape, fine.shape, strict=True)
        ):
            yield _error(at, f"has shape {level.shape}, not smaller than {fine.shape} before it")
            continue
        yield from _audit_scale(at, finer, fine, dataset, level)
        yield from _audit_translation(at, base, dataset, method, multiscales)


def _audit_scale(
    at: str, finer: Dataset, fine: ImageInfo, dataset: Dataset, level: ImageInfo
) -> Iterator[Finding]:
    """A scale is that of the finer level times a whole step, and the shape follows from it."""
    for axis, (s, f, n, m) in enumerate(
        zip(dataset.scale, finer.scale, level.shape, fine.shape, strict=True)
    ):
        step = s / f
        whole = max(1, round(step)) if math.isfinite(step) else 1
        if math.isclose(step, whole, rel_tol=1e-6) and n in (m // whole, -(-m // whole)):
            continue
        if math.isclose(step, m / n, rel_tol=1e-6):
            message = f"scale along axis {axis} is the ratio of shapes {m}/{n}, not a whole step"
            yield _warning(at, message)
        else:
            message = (
                f"scale {s} along axis {axis} is {step:g} times {f}, but {m} voxels became {n}"
            )
            yield _error(at, message)


def _audit_translation(
    at: str, base: Dataset, dataset: Dataset, method: str, multiscales: Multiscales
) -> Iterator[Finding]:
    """The centre of the first window: half a voxel here minus half a voxel of level 0."""
    shifts = method.lower() not in FIRST_VOXEL
    for axis, (t, t0, s, s0) in enumerate(
        zip(dataset.translation, base.translation, dataset.scale, base.scale, strict=True)
    ):
        expected = t0 + (s - s0) / 2 if shifts else t0
        if not math.isclose(t, expected, rel_tol=1e-9, abs_tol=1e-6 * s0):
            name = multiscales.axes[axis].name
            yield _error(at, f"translation along {name} is {t}, but the voxels lie at {expected}")


def _audit_omero(omero: Any, multiscales: Multiscales, base: ImageInfo) -> Iterator[Finding]:
    if omero is None:
        yield _warning("", "there is no omero, so viewers guess the contrast")
        return
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, list):
        yield _error("", "omero has no list of channels")
        return
    names = [axis.name for axis in multiscales.axes]
    count = base.shape[names.index("c")] if "c" in names else 1
    if len(channels) != count:
        yield _error("", f"omero has {len(channels)} channels, the image {count}")
    for number, channel in enumerate(channels):
        if isinstance(channel, dict):
            yield from _audit_channel(number, channel)
        else:
            yield _error("", f"channel {number} is {channel!r}, not an object")


def _audit_channel(number: int, channel: dict[str, Any]) -> Iterator[Finding]:
    color = channel.get("color")
    if not (isinstance(color, str) and len(color) == 6 and set(color) <= _HEXADECIMAL):
        yield _error("", f"channel {number} has colour {color!r}, not six hexadecimal digits")
    window = channel.get("window")
    window = window if isinstance(window, dict) else {}
    values: list[Any] = [window.get(key) for key in ("min", "start", "end", "max")]
    if not all(map(is_number, values)):
        yield _error("", f"channel {number} has no contrast window of finite numbers")
    elif not values[0] <= values[1] < values[2] <= values[3]:
        yield _error("", f"channel {number} has min, start, end, max {values}, not ascending")


def _audit_image_label(label: Any, levels: list[ImageInfo], method: str) -> Iterator[Finding]:
    if method.lower() in AVERAGES:
        yield _warning("", f"levels of labels are by {method}, which gives labels that nobody drew")
    if any(level.dtype[1] not in "iu" for level in levels):
        yield _error("", f"a label image holds integers, not {levels[0].dtype}")
    if not isinstance(label, dict):
        yield _error("", f"image-label is {label!r}, not an object")
        return
    colors = label.get("colors", [])
    if not isinstance(colors, list) or not all(isinstance(color, dict) for color in colors):
        yield _error("", "image-label has colors that are no list of objects")
        return
    values = [color.get("label-value") for color in colors]
    for value in values:
        if values.count(value) > 1:
            yield _error("", f"image-label has more than one colour of label {value}")
            return
