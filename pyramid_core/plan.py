"""An image and what is asked of it become a plan; pure, opens nothing."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pyramid_core.errors import PlanError
from pyramid_core.grid import Shape, ceil_div, multiply, times
from pyramid_core.kernels import reduce_block
from pyramid_core.layout import Cut, Work, cut_level
from pyramid_core.model import (
    Axis,
    Codec,
    Fill,
    ImageInfo,
    Level,
    PyramidPlan,
    fill_scalar,
    level_transform,
)
from pyramid_core.params import PyramidParams
from pyramid_core.stores import join, same_place, shown

CODECS = {
    "zstd": Codec("zstd", level=3),
    "lz4": Codec("blosc", level=5, cname="lz4", shuffle="shuffle"),
    "none": Codec("none"),
}
"""What the parameter ``compression`` means."""

Outline = tuple[Shape, Shape, Shape]
"""Shape, step and factor of a level."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked, with the gaps filled in from the image."""

    info: ImageInfo
    params: PyramidParams
    in_place: bool
    axes: tuple[Axis, ...]
    voxel: tuple[float, ...]
    chunks: Shape
    shards: Shape | None


def plan_pyramid(info: ImageInfo, params: PyramidParams) -> PyramidPlan:
    """Decide everything that will be written; nothing is opened, read or written.

    Args:
        info: The image, as ``open_image(location).info`` tells it.
        params: What is asked.

    Returns:
        The plan; ``str(plan)`` is a table of its levels and its cost.

    Raises:
        PlanError: If the image and the parameters do not fit each other; a shape that is no
            multiple of the step names level, axis, both numbers and the remedy.
        MemoryLimitError: If one block does not fit in ``memory_limit``.
    """
    return _plan(info, params, steps=None)


def _plan(info: ImageInfo, params: PyramidParams, steps: list[Shape] | None) -> PyramidPlan:
    """Plan with given steps, one per level, or with those that the parameters ask for."""
    target, in_place = _target(info, params)
    axes = _axes(info, params)
    version = _ngff_version(info, params, in_place)
    voxel = tuple(params.voxel_size) or info.scale
    _expect_length(voxel, info, "voxel_size")
    chunks = _per_axis(params.chunks, axes, info, "chunks") or info.chunks
    shards = _per_axis(params.shards, axes, info, "shards") or None
    _check_shards(chunks, shards, version)
    asked = _Asked(info, params, in_place, axes, voxel, chunks, shards)
    outlines = _follow(info.shape, steps, params) if steps is not None else _outlines(asked)
    levels, workers = _levels(asked, list(outlines))
    labels = tuple(_plan_label(label, asked, levels) for label in info.labels if in_place)
    return PyramidPlan(
        source=info,
        target=target,
        in_place=in_place,
        levels=levels,
        method=params.method,
        edges=params.edges,
        dtype=np.dtype(info.dtype).newbyteorder("<").str,
        codec=info.codec if params.compression == "source" else CODECS[params.compression],
        axes=axes,
        ngff_version=version,
        background=background_of(info, params, levels),
        existing=params.existing,
        verify=params.verify,
        memory_limit=params.memory_bytes,
        workers=workers,
        dask_address=params.dask_address,
        labels=labels,
        notes=(*info.notes, *_notes(asked, levels)),
    )


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
    if target.startswith(group + "/") or group.startswith(target + "/"):
        msg = (
            f"target {shown(params.target)} and source {shown(info.location)} lie one inside the "
            f"other; choose a target beside the source"
        )
        raise PlanError(msg)
    return params.target, False


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


def _per_axis(asked: list[int], axes: tuple[Axis, ...], info: ImageInfo, name: str) -> Shape:
    """Return one number per axis; numbers for the spatial axes alone leave t and c at 1."""
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
    if any(shard % chunk for shard, chunk in zip(shards, chunks, strict=True)):
        msg = (
            f"shards {times(shards)} are no multiple of the chunks {times(chunks)}; "
            f"give multiples, or other --chunks"
        )
        raise PlanError(msg)


def _outlines(asked: _Asked) -> Iterator[Outline]:
    """Yield the levels by our rule.

    Levels are added while an axis that is reduced is longer than its chunk, at most
    ``max_levels`` in all; never one with an axis of length zero or with its parent's shape.
    """
    params, shape = asked.params, asked.info.shape
    given = _per_axis(params.step, asked.axes, asked.info, "step")
    if given and max(given) == 1:
        msg = "step is 1 along every axis, so no level would be coarser; give 2 where it should be"
        raise PlanError(msg)
    factor = (1,) * len(shape)
    yield shape, factor, factor
    for level in itertools.count(1):
        step = given or _chosen_step(asked, shape, factor)
        longer = any(s > 1 and n > c for n, s, c in zip(shape, step, asked.chunks, strict=True))
        if not longer or level == params.max_levels:
            return
        if params.edges == "exact":
            _check_divisible(asked, shape, step, level)
        coarser = _coarser(shape, step, params)
        if 0 in coarser or coarser == shape:
            return
        shape, factor = coarser, multiply(factor, step)
        yield shape, step, factor


def _follow(shape: Shape, steps: list[Shape], params: PyramidParams) -> Iterator[Outline]:
    """Yield the levels that given steps lead to."""
    factor = (1,) * len(shape)
    yield shape, factor, factor
    for step in steps:
        shape, factor = _coarser(shape, step, params), multiply(factor, step)
        yield shape, step, factor


def _coarser(shape: Shape, step: Shape, params: PyramidParams) -> Shape:
    if params.edges == "trim":
        return tuple(n // s for n, s in zip(shape, step, strict=True))
    return ceil_div(shape, step)


def _chosen_step(asked: _Asked, shape: Shape, factor: Shape) -> Shape:
    """Halve the long spatial axes whose voxel is within sqrt(2) of the finest of them.

    So an anisotropic stack is first halved in the plane, and a short axis never blocks the rest.
    """
    voxel = [v * f for v, f in zip(asked.voxel, factor, strict=True)]
    long = [
        axis.type == "space" and n > chunk
        for axis, n, chunk in zip(asked.axes, shape, asked.chunks, strict=True)
    ]
    finest = min((v for v, is_long in zip(voxel, long, strict=True) if is_long), default=0.0)
    # 2.0 * 0.7071 and the like must not fall to the other side by a rounding.
    most = finest * math.sqrt(2) * (1 + 1e-9)
    return tuple(2 if is_long and v <= most else 1 for v, is_long in zip(voxel, long, strict=True))


def _check_divisible(asked: _Asked, shape: Shape, step: Shape, level: int) -> None:
    for axis, n, s in zip(asked.axes, shape, step, strict=True):
        if n % s:
            msg = (
                f"level {level} cannot be exact: along {axis.name}, level {level - 1} has {n} "
                f"voxels, no multiple of the step {s}; to average the shorter last windows:\n"
                f"  {asked.params.command(edges='partial')}\n"
                f"(--edges trim drops them; --max-levels {level} stops before)"
            )
            raise PlanError(msg)


def _levels(asked: _Asked, outlines: list[Outline]) -> tuple[tuple[Level, ...], int]:
    """Return the levels with their layout, and how many workers find room."""
    info, params = asked.info, asked.params
    limit = params.memory_bytes
    workers = params.workers or len(os.sched_getaffinity(0))
    # On a cluster each process has a limit of its own.
    share = limit if params.dask_address else limit // workers
    folder = info.path.rpartition("/")[0] if asked.in_place else ""
    levels: list[Level] = []
    works: list[Work | None] = []
    for index, (shape, step, factor) in enumerate(outlines):
        given = asked.in_place and index == 0
        chunks, shards = (info.chunks, info.shards) if given else _clipped(asked, shape)
        finer = levels[-1] if levels else info
        work = Work(
            shape, shards or chunks, step, finer.shape, finer.chunks, info.dtype, params.method
        )
        cut = Cut(chunks, chunks, 0) if given else cut_level(work, index, limit, share)
        scale, translation = level_transform(
            asked.voxel, info.translation, factor, shifts=params.method != "stride"
        )
        works.append(None if given else work)
        levels.append(
            Level(
                index=index,
                path=info.path if given else "/".join(filter(None, [folder, str(index)])),
                shape=shape,
                chunks=chunks,
                shards=shards,
                step=step,
                factor=factor,
                scale=scale,
                translation=translation,
                block=cut.block,
                tile=cut.tile,
                memory=cut.memory,
                tile_threads=1,
                reads=1.0 if given else work.reads(cut.block),
            )
        )
    if not params.dask_address:
        largest = max(level.memory for level in levels)
        workers = min(workers, limit // largest) if largest else workers
        levels = [
            _share_tiles(level, work, workers, limit) if work else level
            for level, work in zip(levels, works, strict=True)
        ]
    return tuple(levels), workers


def _share_tiles(level: Level, work: Work, workers: int, limit: int) -> Level:
    """Let the workers share the tiles of a block where a level has fewer blocks than workers."""
    blocks = level.blocks.size
    tiles = math.prod(ceil_div(level.block, level.tile))
    for threads in range(min(workers // blocks, tiles), 1, -1):
        memory = work.memory(level.block, level.tile, threads)
        if memory * blocks <= limit:
            return replace(level, tile_threads=threads, memory=memory)
    return level


def _clipped(asked: _Asked, shape: Shape) -> tuple[Shape, Shape | None]:
    """Return chunk and shard no larger than a level needs."""
    chunks = tuple(map(min, asked.chunks, shape))
    if asked.shards is None:
        return chunks, None
    whole = multiply(ceil_div(shape, chunks), chunks)
    return chunks, tuple(
        min(shard - shard % chunk, most)
        for shard, chunk, most in zip(asked.shards, chunks, whole, strict=True)
    )


def background_of(info: ImageInfo, params: PyramidParams, levels: tuple[Level, ...]) -> Fill | None:
    """Return the fill value if every window of fill gives fill, also the smaller ones at edges.

    A mean of floats may not: ``(0.1 + 0.1 + 0.1) / 3`` is not 0.1.
    """
    fill = fill_scalar(info.fill, info.dtype)
    finer = info.shape
    for level in levels[1:]:
        partial = params.edges == "partial"
        sizes = [
            {s, n % s or s} if partial else {s} for n, s in zip(finer, level.step, strict=True)
        ]
        finer = level.shape
        for count in {math.prod(window) for window in itertools.product(*sizes)}:
            window = np.full((count,), fill)
            if reduce_block(window, (count,), params.method).tobytes() != fill.tobytes():
                return None
    return info.fill


def _plan_label(label: ImageInfo, asked: _Asked, levels: tuple[Level, ...]) -> PyramidPlan:
    """Plan the levels of the image for one of its label images, by mode and in its own chunks."""
    names = [axis.name for axis in asked.axes]
    own = [axis.name for axis in label.axes]
    if set(own) - set(names):
        msg = f"labels {label.name!r} have axes {''.join(own)}, the image {''.join(names)}"
        raise PlanError(msg)
    at = [names.index(name) for name in own]
    if label.shape != tuple(levels[0].shape[i] for i in at):
        msg = (
            f"labels {label.name!r} have shape {times(label.shape)} but the image has "
            f"{times(levels[0].shape)}; they cannot get the same levels"
        )
        raise PlanError(msg)
    params = asked.params.model_copy(
        update={
            "source": label.location,
            "method": "mode",
            "step": [],
            "chunks": [],
            "shards": list(label.shards or []),
            "compression": "source",
            "axes": "",
            "voxel_size": [],
        }
    )
    return _plan(label, params, [tuple(level.step[i] for i in at) for level in levels[1:]])


def _notes(asked: _Asked, levels: tuple[Level, ...]) -> Iterator[str]:
    """Yield what the user should know before this is built."""
    info = asked.info
    if len(levels) == 1:
        yield (
            f"no level is added: no axis that is halved is longer than its chunk of "
            f"{times(asked.chunks)}; smaller --chunks give levels"
        )
    if info.labels and not asked.in_place:
        names = ", ".join(label.name for label in info.labels)
        yield f"the labels of the source ({names}) are left out: the target is elsewhere"
    if not info.listable:
        yield "the source cannot be listed, so a chunk that is not found counts as background"
    if asked.in_place and info.separator == ".":
        yield "the base has '.' in its chunk keys; OME-Zarr wants '/', and some viewers insist"
    if asked.in_place and np.dtype(info.dtype).byteorder == ">":
        yield "the base is big-endian; the new levels are little-endian"
    for level in levels:
        if level.reads > 1.001:
            yield f"level {level.path} reads each chunk {level.reads:.2f} times on average"
