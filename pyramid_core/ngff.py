"""NGFF 0.4 and 0.5 documents: dicts in, dicts out.

``Multiscales`` is the part of a document that we understand. It is read and written through the
models of ome-zarr-models, which hold the rules of the specification; the numbers are ours.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyramid_core.errors import LocationError
from pyramid_core.image import AXIS_TYPES, Axis, Channel
from pyramid_core.model import PyramidPlan
from pyramid_core.version import VERSION

if TYPE_CHECKING:
    from ome_zarr_models.v04.multiscales import Multiscale as Multiscale04
    from ome_zarr_models.v05.multiscales import Multiscale as Multiscale05

RECORD = "zarr-pyramid-flow"
"""Attribute of the group that holds the record of a build that is not finished."""

REDUCER = "pyramid_core.kernels.reduce_block"
"""The function that makes the voxels, for the provenance."""

COLORS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF", "FFFFFF")
"""Colours of channels that have none, in the order of the channels."""

Window = tuple[float, float, float, float]
"""The contrast of a channel: min, start, end and max."""

MOST = 10_000
"""Entries of a list in a document."""

_FOUND = "contrast"
"""Where the provenance keeps the contrast that we found: it is found again by the next build."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One level as a document tells it."""

    path: str
    """Path of the array below the group."""
    scale: tuple[float, ...]
    """Extent of a voxel per axis."""
    translation: tuple[float, ...]
    """Centre of the first voxel per axis."""


@dataclass(frozen=True, slots=True)
class Multiscales:
    """The first multiscales entry of a document, checked."""

    version: str
    """``0.4`` or ``0.5``."""
    name: str
    """Name of the image; empty without one."""
    axes: tuple[Axis, ...]
    """Axes in the order of the arrays."""
    datasets: tuple[Dataset, ...]
    """Levels, finest first."""
    channels: tuple[Channel, ...]
    """Channels of ``omero``; empty without it."""
    identity: dict[str, Any] | None
    """What our plan said of the result; None in the documents of others."""


def document_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a group's attributes that is NGFF's: below ``ome`` since 0.5."""
    ome = attributes.get("ome")
    return ome if isinstance(ome, dict) else attributes


def parse_multiscales(attributes: dict[str, Any]) -> Multiscales | None:
    """Read the multiscales document in a group's attributes.

    Returns:
        The document, or None where the attributes hold none.

    Raises:
        LocationError: If it is not a valid document of NGFF 0.4 or 0.5; says why.

    Example:
        >>> parse_multiscales({"about": "nothing of NGFF"}) is None
        True
    """
    document = document_of(attributes)
    entries = document.get("multiscales")
    if not entries:
        return None
    version = "0.5" if document is not attributes else "0.4"
    said = document.get("version") if version == "0.5" else _get(entries, 0, "version")
    if said not in (version, None):
        msg = f"the multiscales document says version {said!r}; 0.4 and 0.5 are understood"
        raise LocationError(msg)
    try:
        _check_counts(document, entries)
        entry = _model(version).model_validate(entries[0])
        axes = tuple(_axis(axis.name, axis.unit) for axis in entry.axes)
        outer = _transform(entry.coordinateTransformations or (), len(axes))
        datasets = tuple(
            _dataset(d.path, _transform(d.coordinateTransformations, len(axes)), outer)
            for d in entry.datasets
        )
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        msg = f"the multiscales document is not valid OME-Zarr {version}: {reason}"
        raise LocationError(msg) from error
    kwargs = _get(entry.metadata, "kwargs")
    ours = _get(entry.metadata, "method") == REDUCER and isinstance(kwargs, dict)
    return Multiscales(
        version=version,
        name=entry.name if isinstance(entry.name, str) else "",
        axes=axes,
        datasets=datasets,
        channels=tuple(_channels(document.get("omero"))),
        identity=kwargs if ours else None,
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _get(value: Any, *keys: Any) -> Any:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _check_counts(document: dict[str, Any], entries: Any) -> None:
    """Refuse what lists more than any image has, before minutes are spent on it."""
    channels = _get(document, "omero", "channels")
    for items in (entries, _get(entries, 0, "datasets"), _get(entries, 0, "axes"), channels):
        if len(_list(items)) > MOST:
            raise ValueError(f"a list of {len(items):,} entries; {MOST:,} are read at most")


def _model(version: str) -> type[Multiscale04] | type[Multiscale05]:
    # Late: ome-zarr-models takes most of a second to import.
    if version == "0.4":
        from ome_zarr_models.v04.multiscales import Multiscale as Model04

        return Model04
    from ome_zarr_models.v05.multiscales import Multiscale as Model05

    return Model05


def _axis(name: Any, unit: Any) -> Axis:
    if name not in AXIS_TYPES:
        msg = f"axis {name!r} is none of t, c, z, y, x"
        raise ValueError(msg)
    return Axis(name, unit if isinstance(unit, str) else "")


def _transform(transforms: Any, n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and translation of a list of transformations."""
    scale, translation = (1.0,) * n, (0.0,) * n
    for transform in transforms:
        if transform.type == "scale":
            scale = tuple(map(float, transform.scale))
        elif transform.type == "translation":
            translation = tuple(map(float, transform.translation))
    _check_transform(scale, translation)
    return scale, translation


def _check_transform(scale: tuple[float, ...], translation: tuple[float, ...]) -> None:
    if not all(map(math.isfinite, scale + translation)) or min(scale, default=1.0) <= 0:
        msg = f"scale {scale} and translation {translation} must be finite, scale above zero"
        raise ValueError(msg)


def is_inside(path: str) -> bool:
    """Return whether a path leads to one place below a group, and is its only spelling.

    >>> is_inside("a/0"), is_inside("../0"), is_inside("./0"), is_inside(".")
    (True, False, False, False)
    """
    return path.isprintable() and "\\" not in path and not set(path.split("/")) & {"", ".", ".."}


def _dataset(path: str, inner: Any, outer: Any) -> Dataset:
    """Fold the transformation of the whole image, which comes after, into that of a level."""
    if not is_inside(path):
        msg = f"dataset path {path!r} leads out of the image"
        raise ValueError(msg)
    (scale, translation), (by, plus) = inner, outer
    folded = tuple(s * b for s, b in zip(scale, by, strict=True))
    moved = tuple(t * b + p for t, b, p in zip(translation, by, plus, strict=True))
    _check_transform(folded, moved)
    return Dataset(path, folded, moved)


def _channels(omero: Any) -> list[Channel]:
    """Read what ``omero`` says of channels; what it says wrongly is left out."""
    channels = []
    found = _get(omero, "channels")
    for number, channel in enumerate(found if isinstance(found, list) else []):
        label, color = _get(channel, "label"), _get(channel, "color")
        window = [_get(channel, "window", key) for key in ("min", "start", "end", "max")]
        channels.append(
            Channel(
                label=label if isinstance(label, str) else f"channel {number}",
                color=color.lstrip("#").upper() if _is_color(color) else _color(number, 2),
                window=tuple(window) if _is_window(window) else None,
            )
        )
    return channels


def _is_color(color: Any) -> bool:
    return (
        isinstance(color, str)
        and len(color.lstrip("#")) == 6
        and set(color.lstrip("#").lower()) <= set("0123456789abcdef")
    )


def _is_window(window: list[Any]) -> bool:
    return all(map(is_number, window)) and window[0] <= window[1] < window[2] <= window[3]


def is_number(value: Any) -> bool:
    """Return whether a value of a JSON document is a number that a float can hold.

    >>> is_number(1.5), is_number(float("nan")), is_number(10**400), is_number(True)
    (True, False, False, False)
    """
    try:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    except OverflowError:
        return False


def _color(number: int, count: int) -> str:
    return "FFFFFF" if count == 1 else COLORS[number % len(COLORS)]


def channels_of(plan: PyramidPlan) -> tuple[Channel, ...]:
    """Return a channel per entry of the c axis, or one; the source's own where they fit."""
    names = [axis.name for axis in plan.axes]
    count = plan.levels[0].shape[names.index("c")] if "c" in names else 1
    if len(plan.source.channels) == count:
        return plan.source.channels
    default = (plan.source.name,) if count == 1 else [f"channel {i}" for i in range(count)]
    return tuple(Channel(label, _color(i, count)) for i, label in enumerate(default))


def image_attributes(
    plan: PyramidPlan, before: dict[str, Any], windows: list[Window]
) -> dict[str, Any]:
    """Return the attributes of a finished image: the commit.

    Args:
        plan: What was built.
        before: The attributes of the group; what is not ours in them stays.
        windows: A contrast window per channel; empty for label images, which get no ``omero``.

    Raises:
        ValueError: If the document would not be valid.
    """
    attributes = {key: value for key, value in before.items() if key != RECORD}
    document = copy.deepcopy(document_of(attributes)) if plan.in_place else {}
    # Only the first entry is read and built; what else the base says stays.
    before_entry, entry = _get(document, "multiscales", 0), _entry(plan)
    if windows:
        given = _given_windows(plan, before_entry)
        shown = [own or found for own, found in zip(given, windows, strict=True)]
        document["omero"] = _omero(plan, document.get("omero"), shown)
        if not all(given):
            entry["metadata"][_FOUND] = [
                [] if own else list(found) for own, found in zip(given, windows, strict=True)
            ]
    document["multiscales"] = [entry, *_list(document.get("multiscales"))[1:]]
    if plan.ngff_version == "0.4":
        return {**attributes, **document}
    document.pop("version", None)
    return {**attributes, "ome": {"version": "0.5", **document}}


def _given_windows(plan: PyramidPlan, before: Any) -> list[Window | None]:
    """Return the contrast that the image says of each channel, but for what an earlier build found.

    Else it would outlive the voxels that it was found in, where the base has changed since.
    """
    found = _get(before, "metadata", _FOUND)
    windows = [channel.window for channel in channels_of(plan)]
    return [
        None if window is None or list(window) == _get(found, number) else window
        for number, window in enumerate(windows)
    ]


def narrowed(attributes: dict[str, Any], base: str) -> dict[str, Any]:
    """Return the attributes with the multiscales document cut down to the base level."""
    narrow = copy.deepcopy(attributes)
    for entry in _list(document_of(narrow).get("multiscales"))[:1]:
        entry["datasets"] = [d for d in entry["datasets"] if d["path"] == base]
    return narrow


def _entry(plan: PyramidPlan) -> dict[str, Any]:
    datasets = [
        {
            "path": level.path,
            "coordinateTransformations": [
                {"type": "scale", "scale": list(level.scale)},
                {"type": "translation", "translation": list(level.translation)},
            ],
        }
        for level in plan.levels
    ]
    axes = [
        {"name": axis.name, "type": axis.type, **({"unit": axis.unit} if axis.unit else {})}
        for axis in plan.axes
    ]
    entry = _model(plan.ngff_version).model_validate(
        {
            **({"version": "0.4"} if plan.ngff_version == "0.4" else {}),
            "name": plan.source.name,
            "axes": axes,
            "datasets": datasets,
            "type": plan.method,
            "metadata": {
                "description": f"Each level is reduced from the one before it by {plan.method}.",
                "method": REDUCER,
                "version": VERSION,
                "args": [],
                "kwargs": plan.identity(),
            },
        }
    )
    dumped: dict[str, Any] = entry.model_dump(mode="json", by_alias=True, exclude_none=True)
    # exclude_none reaches into our own metadata, where None has a meaning.
    dumped["metadata"]["kwargs"] = plan.identity()
    return dumped


def _omero(plan: PyramidPlan, before: Any, windows: list[Window]) -> dict[str, Any]:
    """Return ``omero``; what the image said of its channels goes before what we found."""
    from ome_zarr_models.common.omero import Omero

    channels = []
    for number, (channel, window) in enumerate(zip(channels_of(plan), windows, strict=True)):
        low, start, end, high = window
        own = _get(before, "channels", number)
        channels.append(
            {
                "active": True,
                "coefficient": 1,
                "family": "linear",
                "inverted": False,
                **(own if isinstance(own, dict) else {}),
                "label": channel.label,
                "color": channel.color,
                "window": {"min": low, "start": start, "end": end, "max": high},
            }
        )
    model = "greyscale" if len(channels) == 1 else "color"
    omero = {
        "rdefs": {"defaultT": 0, "defaultZ": _middle(plan), "model": model},
        **(before if isinstance(before, dict) else {}),
        "channels": channels,
    }
    if plan.ngff_version == "0.4":
        omero = {"id": 1, "name": plan.source.name, "version": "0.4", **omero}
    dumped: dict[str, Any] = Omero.model_validate(omero).model_dump(mode="json", exclude_none=True)
    return dumped


def _middle(plan: PyramidPlan) -> int:
    names = [axis.name for axis in plan.axes]
    return plan.levels[0].shape[names.index("z")] // 2 if "z" in names else 0
