"""What is asked of an image, with the gaps filled in from it, and checked against it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pyramid_core.errors import PlanError
from pyramid_core.grid import Shape, ceil_div, times
from pyramid_core.image import Axis, ImageInfo
from pyramid_core.layout import MOST_PARTS
from pyramid_core.params import PyramidParams
from pyramid_core.stores import absolute, join, same_place, shown


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked, with the gaps filled in from the image."""

    info: ImageInfo
    """The image."""
    params: PyramidParams
    """What the user said."""
    target: str
    """Location of the group that will hold the image."""
    in_place: bool
    """Whether that is where the base lies."""
    axes: tuple[Axis, ...]
    """Axes of every level."""
    version: Literal["0.4", "0.5"]
    """Version of the document."""
    voxel: tuple[float, ...]
    """Extent of a voxel of the source per axis."""
    chunks: Shape
    """Chunk of the levels written, before it is clipped to a small level."""
    shards: Shape | None
    """Shard of the levels written, likewise."""


def fill_in(info: ImageInfo, params: PyramidParams) -> Asked:
    """Return what is asked, with the gaps filled in from the image.

    Raises:
        PlanError: If the image and the parameters do not fit each other.
    """
    target, in_place = _target(info, params)
    axes = _axes(info, params)
    version = _ngff_version(info, params, in_place)
    voxel = tuple(params.voxel_size) or info.scale
    _expect_length(voxel, info, "voxel_size")
    chunks = per_axis(params.chunks, axes, info, "chunks") or info.chunks
    shards = per_axis(params.shards, axes, info, "shards") or None
    _check_shards(chunks, shards, version)
    return Asked(info, params, target, in_place, axes, version, voxel, chunks, shards)


def _target(info: ImageInfo, params: PyramidParams) -> tuple[str, bool]:
    """Return where the image is written, and whether that is in place."""
    if params.target is None:
        if not info.in_group:
            msg = (
                f"{shown(info.location)} is an array by itself, in no Zarr group, so no levels can "
                f"lie beside it; name a place for the image with --target"
            )
            raise PlanError(msg)
        return info.location, True
    target, source = same_place(params.target), same_place(join(info.location, info.path))
    group = same_place(info.location)
    if target in (source, group):
        msg = f"target is the source, {shown(params.target)}; leave --target out to build in place"
        raise PlanError(msg)
    if any(a.startswith(f"{b.rstrip('/')}/") for a, b in ((target, group), (group, target))):
        msg = (
            f"target {shown(params.target)} and source {shown(info.location)} lie one inside the "
            f"other; choose a target beside the source"
        )
        raise PlanError(msg)
    return absolute(params.target), False


def _expect_length(values: tuple[object, ...], info: ImageInfo, name: str) -> None:
    if len(values) != len(info.shape):
        msg = (
            f"{name} has {len(values)} entries but the image has {len(info.shape)} axes, "
            f"shape {times(info.shape)}; give one per axis"
        )
        raise PlanError(msg)


def _axes(info: ImageInfo, params: PyramidParams) -> tuple[Axis, ...]:
    """Return the axes: from the image, else as asked, else the last letters of tczyx."""
    n = len(info.shape)
    if not 2 <= n <= 5 or 0 in info.shape:
        msg = f"an image has 2 to 5 axes, none of length zero; this has shape {info.shape}"
        raise PlanError(msg)
    known = "".join(axis.name for axis in info.axes)
    names = params.axes or known or "tczyx"[-n:]
    if len(names) != n or sum(name in "zyx" for name in names) < 2:
        msg = (
            f"axes {names!r} do not describe an image of shape {times(info.shape)}; "
            f"give {n} letters of tczyx, two or three of them of zyx"
        )
        raise PlanError(msg)
    if known and names != known:
        msg = f"axes {names!r} contradict the image's own metadata, which says {known!r}"
        raise PlanError(msg)
    if info.dimension_names and params.target is None and "".join(info.dimension_names) != names:
        msg = (
            f"the base calls its dimensions {info.dimension_names}, but OME-Zarr 0.5 wants them "
            f"to be the axes {names!r}; we change nothing of the base, so name a --target"
        )
        raise PlanError(msg)
    units = [axis.unit for axis in info.axes] or [""] * n
    return tuple(
        Axis(name, params.unit if params.unit and name in "zyx" else unit)
        for name, unit in zip(names, units, strict=True)
    )


def _ngff_version(info: ImageInfo, params: PyramidParams, in_place: bool) -> Literal["0.4", "0.5"]:
    """Return the version of the document: in place, the one that the base's format allows."""
    asked = params.ngff_version
    if not in_place:
        return "0.5" if asked == "auto" else asked
    allowed: Literal["0.4", "0.5"] = "0.4" if info.zarr_format == 2 else "0.5"
    if asked not in ("auto", allowed):
        msg = (
            f"OME-Zarr {asked} cannot be written in place: the base is Zarr v{info.zarr_format}, "
            f"which goes with {allowed}; name another place with --target"
        )
        raise PlanError(msg)
    return allowed


def per_axis(asked: list[int], axes: tuple[Axis, ...], info: ImageInfo, name: str) -> Shape:
    """Return one number per axis; numbers for the spatial axes alone leave t and c at 1.

    Raises:
        PlanError: If there are too many or too few.
    """
    others = sum(axis.type != "space" for axis in axes)
    if asked and len(asked) == len(axes) - others:
        asked = [1] * others + asked
    if asked:
        _expect_length(tuple(asked), info, name)
    return tuple(asked)


def _check_shards(chunks: Shape, shards: Shape | None, version: str) -> None:
    if shards is None:
        return
    if version == "0.4":
        msg = "shards need Zarr v3, and OME-Zarr 0.4 is Zarr v2; drop --shards or write 0.5"
        raise PlanError(msg)
    if (parts := math.prod(ceil_div(shards, chunks))) > MOST_PARTS:
        msg = f"shards {times(shards)} hold {parts:,} chunks each; {MOST_PARTS:,} are the most"
        raise PlanError(msg)
    if any(shard % chunk for shard, chunk in zip(shards, chunks, strict=True)):
        msg = (
            f"shards {times(shards)} are no multiple of the chunks {times(chunks)}; "
            f"give multiples, or other --chunks"
        )
        raise PlanError(msg)
