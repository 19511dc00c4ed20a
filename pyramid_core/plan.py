"""An image and what is asked of it become a plan; pure, opens nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pyramid_core.asked import Asked, fill_in, per_axis
from pyramid_core.errors import PlanError
from pyramid_core.grid import Grid, Shape, ceil_div, multiply, times
from pyramid_core.image import Codec, Fill, ImageInfo, fill_scalar
from pyramid_core.layout import Cut, Work, cut_level
from pyramid_core.model import Level, PyramidPlan, level_transform
from pyramid_core.params import PyramidParams, cpus
from pyramid_core.stores import enough_threads

CODECS = {
    "zstd": Codec("zstd", level=3),
    "lz4": Codec("blosc", level=5, cname="lz4", shuffle="shuffle"),
    "none": Codec("none"),
}
"""What the parameter ``compression`` means."""

_MOST_BLOCKS = 10**10
"""Blocks of a level: 40 petabytes of the smallest; a day, if nothing were stored."""

Outline = tuple[Shape, Shape, Shape]
"""Shape, step and factor of a level."""


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
    asked = fill_in(info, params)
    outlines = _follow(info.shape, steps, params) if steps is not None else _outlines(asked)
    levels, workers = _levels(asked, list(outlines))
    _check_paths(asked, levels)
    if asked.in_place and info.labels_fault:
        msg = f"{info.labels_fault}; mend it, move it away, or name another place with --target"
        raise PlanError(msg)
    labels = tuple(_plan_label(label, asked, levels) for label in info.labels if asked.in_place)
    return PyramidPlan(
        source=info,
        target=asked.target,
        in_place=asked.in_place,
        levels=levels,
        method=params.method,
        edges=params.edges,
        dtype=np.dtype(info.dtype).newbyteorder("<").str,
        codec=info.codec if params.compression == "source" else CODECS[params.compression],
        axes=asked.axes,
        ngff_version=asked.version,
        background=background_of(info, params, levels),
        existing=params.existing,
        verify=params.verify,
        memory_limit=params.memory_bytes,
        workers=workers,
        max_workers=params.workers,
        dask_address=params.dask_address,
        labels=labels,
        notes=(*info.notes, *_notes(asked, levels)),
    )


def _outlines(asked: Asked) -> Iterator[Outline]:
    """Yield the levels by our rule.

    Levels are added while an axis that is reduced is longer than its chunk, at most
    ``max_levels`` in all; never one with an axis of length zero or with its parent's shape.
    """
    params, shape = asked.params, asked.info.shape
    given = per_axis(params.step, asked.axes, asked.info, "step")
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


def _chosen_step(asked: Asked, shape: Shape, factor: Shape) -> Shape:
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


def _check_divisible(asked: Asked, shape: Shape, step: Shape, level: int) -> None:
    for axis, n, s in zip(asked.axes, shape, step, strict=True):
        if n % s:
            msg = (
                f"level {level} cannot be exact: along {axis.name}, level {level - 1} has {n} "
                f"voxels, no multiple of the step {s}; to average the shorter last windows:\n"
                f"  {asked.params.command(edges='partial')}\n"
                f"(--edges trim drops them; --max-levels {level} stops before)"
            )
            raise PlanError(msg)


def _levels(asked: Asked, outlines: list[Outline]) -> tuple[tuple[Level, ...], int]:
    """Return the levels with their layout, and how many workers find room."""
    info, params = asked.info, asked.params
    limit, sent = params.memory_bytes, bool(params.dask_address)
    busy = cpus() if sent else enough_threads(info.location, asked.target)
    workers = params.workers or busy
    # On a cluster each process has a limit of its own.
    share = limit if sent else limit // workers
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
        cut = Cut(chunks, chunks, 0) if given else cut_level(work, index, limit, share, sent=sent)
        _check_count(index, Grid(shape, cut.block), given=given)
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
    if not sent:
        largest = max(level.memory for level in levels)
        workers = min(workers, limit // largest) if largest else workers
        levels = [
            _share_tiles(level, work, workers, limit) if work else level
            for level, work in zip(levels, works, strict=True)
        ]
    return tuple(levels), workers


def _check_count(level: int, blocks: Grid, *, given: bool) -> None:
    """Refuse what nobody would see the end of: to look whether a block is there takes 10 us."""
    if blocks.size > _MOST_BLOCKS and not given:
        msg = (
            f"level {level} of {times(blocks.shape)} has {blocks.size:.2g} blocks of "
            f"{times(blocks.cell)}; at most {_MOST_BLOCKS:.0g} are built, so larger --chunks or "
            f"--shards are needed, or the metadata is wrong"
        )
        raise PlanError(msg)


def _check_paths(asked: Asked, levels: tuple[Level, ...]) -> None:
    """Refuse to write a level over the base."""
    base = levels[0].path
    for level in levels[1:] if asked.in_place else ():
        if f"{base}/".startswith(f"{level.path}/") or level.path.startswith(f"{base}/"):
            msg = (
                f"the base is called {base!r}, where level {level.index} would be written; "
                f"name another place with --target"
            )
            raise PlanError(msg)


def _share_tiles(level: Level, work: Work, workers: int, limit: int) -> Level:
    """Let the workers share the tiles of a block where a level has fewer blocks than workers."""
    blocks = level.blocks.size
    tiles = math.prod(ceil_div(level.block, level.tile))
    for threads in range(min(workers // blocks, tiles), 1, -1):
        memory = work.memory(level.block, level.tile, threads)
        if memory * blocks <= limit:
            return replace(level, tile_threads=threads, memory=memory)
    return level


def _clipped(asked: Asked, shape: Shape) -> tuple[Shape, Shape | None]:
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

    A mean of floats may not: ``(0.1 + 0.1 + 0.1) / 3`` is not 0.1. A mean of integers is exact, and
    the other methods return a voxel of the window.
    """
    fill = fill_scalar(info.fill, info.dtype)
    if params.method != "mean" or fill.dtype.kind != "f":
        return info.fill
    finer = info.shape
    for level in levels[1:]:
        sizes = [
            {s, n % s or s} if params.edges == "partial" else {s}
            for n, s in zip(finer, level.step, strict=True)
        ]
        finer = level.shape
        counts = {math.prod(window) for window in itertools.product(*sizes)}
        if not all(_mean_is_same(fill, count) for count in counts):
            return None
    return info.fill


def _mean_is_same(fill: np.generic, count: int) -> bool:
    """Return whether the mean of *count* times fill is fill, bit for bit.

    By the rule of the kernels, without them: loading compiled code takes a second.
    """
    value, total = float(fill), 0.0
    if value == 0 or not math.isfinite(value):
        count = 1
    if count > 2**20:  # takes too long to know, and to keep background is never wrong
        return False
    for _ in range(count):  # not sum(): that compensates since Python 3.12
        total += value
    mean = fill.dtype.type(total / count)
    return bool(mean.tobytes() == fill.tobytes())


def _plan_label(label: ImageInfo, asked: Asked, levels: tuple[Level, ...]) -> PyramidPlan:
    """Plan the levels of the image for one of its label images, by mode and in its own chunks."""
    names = [axis.name for axis in asked.axes]
    own = [axis.name for axis in label.axes]
    if not own:
        msg = f"labels {label.name!r} have no multiscales document, so nobody knows their axes"
        raise PlanError(msg)
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
            "voxel_size": [asked.voxel[i] for i in at] if asked.params.voxel_size else [],
        }
    )
    return _plan(label, params, [tuple(level.step[i] for i in at) for level in levels[1:]])


def _notes(asked: Asked, levels: tuple[Level, ...]) -> Iterator[str]:
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
    if not info.ngff_version and not asked.params.voxel_size:
        yield "nothing tells the voxel size, so it is 1; --voxel-size and --unit would"
    if not info.axes and not asked.params.axes and len(info.shape) > 3:
        names = "".join(axis.name for axis in asked.axes)
        yield f"nothing names the axes, so they are taken for {names}; --axes would"
    if not info.listable:
        yield "the source cannot be listed, so a chunk that is not found counts as background"
    if asked.in_place and info.separator == ".":
        yield "the base has '.' in its chunk keys; OME-Zarr wants '/', and some viewers insist"
    if asked.in_place and np.dtype(info.dtype).byteorder == ">":
        yield "the base is big-endian; the new levels are little-endian"
    for level in levels:
        if level.reads > 1.001:
            yield f"level {level.path} reads each chunk {level.reads:.2f} times on average"
