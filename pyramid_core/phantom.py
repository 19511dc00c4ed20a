"""Test images whose voxels are known, drawn and written block by block, never held as a whole."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from pyramid_core.errors import (
    GO_ON,
    BuildError,
    LocationError,
    RequestError,
    TargetError,
    system_errors,
)
from pyramid_core.execute import write_block
from pyramid_core.flight import run_blocks
from pyramid_core.grid import Region, Shape, times
from pyramid_core.groups import write_group
from pyramid_core.image import Axis, ImageInfo
from pyramid_core.job import BlockResult, LevelJob, building_job
from pyramid_core.levels import create_level
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.needs import target_presence, units_of
from pyramid_core.ngff import RECORD, document_of
from pyramid_core.owner import own
from pyramid_core.params import PHANTOM_KINDS, Method, PhantomKind, parse_params
from pyramid_core.patterns import LABEL_FACTOR, Array, Pattern, draw, is_occupied, labels_at, sum_of
from pyramid_core.plan import CODECS, plan_pyramid
from pyramid_core.presence import Mask
from pyramid_core.reader import Node, image_name, open_image, read_node
from pyramid_core.record import record_of
from pyramid_core.stores import Storage, absolute, is_url, local_path, open_storage, shown
from pyramid_core.version import VERSION
from pyramid_core.workers import in_flight, open_executor
from pyramid_core.writer import delete_temporary, differences, finish

MADE_BY = "pyramid_core.phantom.write_phantom"
"""The function that made the image, for the provenance."""

DTYPES = {"blobs": "u2", "labels": "u4", "random": "u2", "sparse": "u2"}
"""Data type of each kind where none is asked for; a ramp's is the first float that is exact."""

_EDGE = 64
"""Edge of the chunks of a volume."""


def write_phantom(
    location: str,
    kind: PhantomKind = "blobs",
    shape: Shape = (256, 256, 256),
    *,
    chunks: Shape | None = None,
    dtype: str | None = None,
    axes: str | None = None,
    voxel_size: tuple[float, ...] | None = None,
    unit: str = "micrometer",
    ngff_version: Literal["auto", "0.4", "0.5"] = "0.5",
    seed: int = 0,
    executor: Executor | None = None,
) -> ImageInfo:
    """Write a test image of one level, from which a pyramid can be built in place.

    It is published last, in one write. A run that was killed leaves no image, and the same request
    goes on where it stopped.

    Args:
        location: Where; nothing may be there.
        kind: What it shows.

            * ``blobs``: soft blobs of several sizes on a dark, noisy background; in each channel
              others, which swell and fade over time.
            * ``ramp``: the value of a voxel is the sum of its physical coordinates, that is over
              all axes ``scale * index + translation``. This then holds **exactly** for every level
              by mean and by stride (``phantom_answer``). Float32, or float64 where that is needed.
            * ``labels``: boxes of 24 voxels, a label each, at multiples of 32.
            * ``random``: every value of an integer type, or floats in [0, 1).
            * ``sparse``: random values in one chunk of a hundred; the others are background and
              leave no chunk.
        shape: Voxels per axis, 2 to 5 axes.
        chunks: Chunk per axis; by default 64 (128 for an image of two spatial axes), 1 along t, c.
        dtype: Data type; a ramp is of float32 or float64, labels are integers.
        axes: Names of the axes; by default the last letters of ``tczyx``.
        voxel_size: Extent of a voxel per axis, ones by default. A ramp wants numbers that are
            short in binary, like 0.5 or 0.75, or it could not be exact.
        unit: Unit of the spatial axes; that of t is the second.
        ngff_version: Version of the document.
        seed: Another one gives another image.
        executor: Where blocks are drawn; by default an active Dask client, else threads.

    Raises:
        TargetError: If something is at the location; it is not touched.
        RequestError: If there can be no such image; nothing was written.

    Example:
        >>> from tempfile import mkdtemp
        >>> info = write_phantom(mkdtemp() + "/ramp.zarr", "ramp", (5, 40), voxel_size=(2.0, 0.5))
        >>> open_image(info.location).array[2, 10:13].tolist()
        [9.0, 9.5, 10.0]
    """
    plan, pattern = plan_phantom(
        location, kind, shape, chunks=chunks, dtype=dtype, axes=axes, voxel_size=voxel_size,
        unit=unit, ngff_version=ngff_version, seed=seed,
    )  # fmt: skip
    with system_errors(LocationError, f"{shown(location)} cannot be written"):
        _refuse_file(location)
    failed = f"{shown(location)} could not be finished"
    with own(plan.target), system_errors(BuildError, failed, GO_ON):
        _claim(plan, pattern)
        with open_executor(plan, executor) as workers:
            _write_blocks(plan, pattern, workers)
        _publish(plan, pattern)
    return open_image(plan.target).info


def plan_phantom(
    location: str,
    kind: PhantomKind,
    shape: Shape,
    *,
    chunks: Shape | None = None,
    dtype: str | None = None,
    axes: str | None = None,
    voxel_size: tuple[float, ...] | None = None,
    unit: str = "micrometer",
    ngff_version: Literal["auto", "0.4", "0.5"] = "0.5",
    seed: int = 0,
) -> tuple[PyramidPlan, Pattern]:
    """Return the plan of a test image and what is drawn in it; see ``write_phantom``.

    Raises:
        RequestError: If there can be no such image.
    """
    names = axes or "tczyx"[-len(shape) :]
    asked = _dtype(kind, shape, dtype, voxel_size)
    params = parse_params({
        "source": f"phantom://{kind}", "target": absolute(location), "max_levels": 1,
        "chunks": list(chunks or _default_chunks(names)), "axes": axes or "", "unit": unit,
        "voxel_size": list(voxel_size or ()), "ngff_version": ngff_version,
        "test_shape": list(shape),
    })  # fmt: skip
    plan = plan_pyramid(_imagined(location, kind, names, tuple(params.test_shape), asked), params)
    level = plan.levels[0]
    names = "".join(axis.name for axis in plan.axes)
    pattern = Pattern(kind, level.shape, names, level.chunks, level.scale, plan.dtype, seed)
    return plan, pattern


def foreseen(plan: PyramidPlan) -> ImageInfo:
    """Return what ``open_image`` will tell of a phantom that is planned, its channels apart."""
    level = plan.levels[0]
    return replace(
        plan.source,
        location=plan.target,
        path=level.path,
        in_group=True,
        chunks=level.chunks,
        zarr_format=plan.zarr_format,
        key_prefix="c" if plan.zarr_format == 3 else "",
        axes=plan.axes,
        scale=level.scale,
        translation=level.translation,
        ngff_version=plan.ngff_version,
        levels=(level.path,),
        dimension_names=tuple(a.name for a in plan.axes) if plan.zarr_format == 3 else (),
    )


def phantom_answer(
    kind: PhantomKind, base: ImageInfo, level: Level, method: Method = "mean"
) -> Array:
    """Return what a level of a phantom's pyramid must hold, where that is known in closed form.

    * ``ramp``, by mean or stride: the sum over the axes of ``scale * index + translation``. By
      mean, the last voxel of an axis is apart where the level's factor does not divide the base: it
      stands for fewer voxels, so what it holds is less, by at most half a voxel of the level.
    * ``labels``, by any method, where the factor of every spatial axis divides 8: each window
      holds a single label, so the answer is the base at ``factor * index``. By coarser factors
      labels mix; by mode, median, min, max and stride a level then holds labels of the base only.

    Args:
        kind: What was asked of ``write_phantom``.
        base: What ``write_phantom`` returned.
        level: A level of the plan that was built from it.
        method: The method of that plan.

    Returns:
        The voxels of the level, as a whole: for small images.

    Raises:
        RequestError: If there is no answer in closed form.
    """
    names = "".join(axis.name for axis in base.axes)
    if kind == "ramp" and method in ("mean", "stride"):
        centres = [
            np.arange(n) * s + t
            for n, s, t in zip(level.shape, level.scale, level.translation, strict=True)
        ]
        return sum_of(centres).astype(base.dtype)
    spatial = [f for f, name in zip(level.factor, names, strict=True) if name in "zyx"]
    if kind == "labels" and not any(LABEL_FACTOR % factor for factor in spatial):
        pattern = Pattern(kind, base.shape, names, base.chunks, base.scale, base.dtype, 0)
        at = [np.arange(n) * f for n, f in zip(level.shape, level.factor, strict=True)]
        return labels_at(pattern, at)
    msg = f"{kind} by {method} at factor {times(level.factor)} has no answer in closed form"
    raise RequestError(msg)


def is_vacant(location: str) -> bool:
    """Return whether nothing is at a location, or a test image that was never finished."""
    if not is_url(location) and local_path(location).is_file():
        return False
    storage = open_storage(location)
    node = read_node(storage, "")
    if node is None:
        return not storage.names()
    record = record_of(node.attributes, shown(storage.location)) or {}
    return _is_bare(node, storage) or "phantom" in record


def _is_bare(node: Node, storage: Storage) -> bool:
    """Return whether this is what a kill leaves between the two objects of a group of Zarr v2."""
    return node.kind == "group" and not node.attributes and storage.names() == [".zgroup"]


def _default_chunks(names: str) -> Shape:
    edge = _EDGE if sum(name in "zyx" for name in names) > 2 else 2 * _EDGE
    return tuple(edge if name in "zyx" else 1 for name in names)


def _dtype(
    kind: PhantomKind, shape: Shape, asked: str | None, voxel_size: tuple[float, ...] | None
) -> str:
    """Return the data type, or refuse it."""
    if kind not in PHANTOM_KINDS:
        msg = f"there is no test image {kind!r}; there are {', '.join(PHANTOM_KINDS)}"
        raise RequestError(msg)
    try:
        dtype = None if asked is None else np.dtype(asked)
    except TypeError as error:
        msg = f"{asked!r} is not a data type"
        raise RequestError(msg) from error
    if kind == "ramp":
        return _ramp_dtype(shape, voxel_size or (1.0,) * len(shape), dtype)
    dtype = dtype or np.dtype(DTYPES[kind])
    if dtype.kind not in ("iu" if kind == "labels" else "iuf") or dtype.itemsize > 8:
        msg = f"{kind} cannot be of type {dtype}; {DTYPES[kind]} is what it is by default"
        raise RequestError(msg)
    return dtype.str


def _ramp_dtype(shape: Shape, voxel_size: tuple[float, ...], asked: np.dtype[Any] | None) -> str:
    """Return a float that holds every coordinate: multiples of half the common unit of the axes."""
    unit = 2 * max((float(size).as_integer_ratio()[1] for size in voxel_size), default=1)
    most = sum(n * size for n, size in zip(shape, voxel_size, strict=False)) * unit
    # Of float64, enough bits are left for the sum over a window, which is made in float64.
    for dtype, bits in (("<f4", 24), ("<f8", 44)):
        if most < 2**bits and asked in (None, np.dtype(dtype)):
            return dtype
    msg = (
        f"a ramp of {times(shape)} voxels of {times(voxel_size)} cannot be exact in "
        f"{asked or 'float64'}; float32 and float64 are, for sizes that are short in binary, "
        f"like 0.5 or 0.75"
    )
    raise RequestError(msg)


def _imagined(location: str, kind: PhantomKind, names: str, shape: Shape, dtype: str) -> ImageInfo:
    """Return the phantom as if it were the source of a copy, so that it is planned like one."""
    return ImageInfo(
        location=f"phantom://{kind}",
        path="",
        in_group=False,
        shape=shape,
        dtype=dtype,
        chunks=(1,) * len(shape),
        shards=None,
        fill=0.0 if np.dtype(dtype).kind == "f" else 0,
        zarr_format=3,
        key_prefix="c",
        separator="/",
        codec=CODECS["zstd"],
        axes=tuple(Axis(name, "second" if name == "t" else "") for name in names),
        scale=(1.0,) * len(shape),
        translation=(0.0,) * len(shape),
        name=image_name(absolute(location)),
    )


def _refuse_file(location: str) -> None:
    if not is_url(location) and local_path(location).is_file():
        msg = f"{location} is a file; a test image needs a place where nothing is"
        raise TargetError(msg)


def _claim(plan: PyramidPlan, pattern: Pattern) -> None:
    """Record at the location what is drawn there, and create the level.

    Raises:
        TargetError: If something else is there; nothing was written then.
    """
    storage = open_storage(plan.target, create=True)
    record: dict[str, Any] = {
        "state": "building",
        "plan": plan.identity(),
        "phantom": _request(pattern),
    }
    if not storage.listable:
        msg = f"{shown(plan.target)} cannot be written: it is on a plain http server"
        raise TargetError(msg)
    node, found = read_node(storage, ""), storage.names()
    before = record_of(node.attributes, shown(plan.target)) if node else None
    if before is not None and "phantom" in before:
        now = {**record["plan"], **record["phantom"]}
        if differing := differences({**before["plan"], **before["phantom"]}, now):
            msg = (
                f"{shown(plan.target)} holds another test image, unfinished; they differ in "
                f"{', '.join(differing)}; delete it, or choose another place"
            )
            raise TargetError(msg)
    elif found and not (node and _is_bare(node, storage)):
        msg = (
            f"{shown(plan.target)} holds something already ({', '.join(found[:5])}); a test image "
            f"needs a place where nothing is"
        )
        raise TargetError(msg)
    delete_temporary(plan, storage)
    write_group(storage, plan.zarr_format, {RECORD: record})
    create_level(plan, storage, plan.levels[0])


def _request(pattern: Pattern) -> dict[str, Any]:
    return {"kind": pattern.kind, "seed": pattern.seed}


def _write_blocks(plan: PyramidPlan, pattern: Pattern, workers: Executor) -> None:
    """Draw the blocks that are not there yet."""
    level = plan.levels[0]
    job, task = building_job(plan, level), partial(_draw_block, pattern)
    missing = ((job, index, None) for index in _missing(plan, pattern))
    for _ in run_blocks(task, missing, workers, in_flight(plan, workers)):
        pass


def _missing(plan: PyramidPlan, pattern: Pattern) -> Iterator[Shape]:
    level = plan.levels[0]
    present = target_presence(plan, level)
    for index in level.blocks:
        cells = units_of(level, index)
        sparse = pattern.kind == "sparse"
        if not present.window(cells).all() and not (sparse and not _any_occupied(pattern, cells)):
            yield index


def _any_occupied(pattern: Pattern, cells: Region) -> bool:
    ranges = (range(axis.start, axis.stop) for axis in cells)
    return any(is_occupied(pattern, cell) for cell in itertools.product(*ranges))


def _draw_block(pattern: Pattern, job: LevelJob, index: Shape, _: Mask | None) -> BlockResult:
    """Draw and write one block; running it twice is harmless."""
    start = time.perf_counter()
    write_block(job, index, draw(pattern, job.level.blocks.region(index)))
    return BlockResult(job.level.index, index, time.perf_counter() - start, "")


def _publish(plan: PyramidPlan, pattern: Pattern) -> None:
    """Swap the record for the document, which says how the voxels were drawn.

    It does not say that they were reduced: the image is the base of a pyramid, not one.
    """
    attributes = finish(plan).attributes
    entry = document_of(attributes)["multiscales"][0]
    entry["type"] = "phantom"
    entry["metadata"] = {
        "description": f"A test image: {pattern.kind}.",
        "method": MADE_BY,
        "version": VERSION,
        "args": [],
        "kwargs": _request(pattern),
    }
    write_group(open_storage(plan.target), plan.zarr_format, attributes, [plan.levels[0].path])
