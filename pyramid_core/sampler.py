"""The two names of pyramid_sampler on our engine: change the import and nothing else.

What is different: any shape of 2 to 5 axes, any integer or float, an active Dask client or threads
on any store, memory that does not grow with the image, and a result that is OME-Zarr.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pyramid_core.build import build_pyramid
from pyramid_core.errors import RequestError
from pyramid_core.grid import Grid, Region, Shape, region_shape, times
from pyramid_core.params import cpus, parse_params
from pyramid_core.reader import open_image
from pyramid_core.stores import join, shown
from pyramid_core.workers import active_client

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr

CHUNK = 64
"""Edge of a chunk where none is asked for."""


class Downsampler:
    """Coarser levels beside the array ``0`` of a field of a Zarr store.

    Each voxel is the mean of ``refine_factor`` voxels of the level before it. Means of floats are
    those of pyramid_sampler, bit for bit. Means of integers are exact and rounded to nearest, ties
    to even; pyramid_sampler drops what follows the point. Where a shape is no multiple of the
    factor, the level is as long as the quotient rounded up, and the last voxel of the axis is the
    mean of the voxels that there are (``edges="partial"``).

    Args:
        zarr_store_path: Path or URL of the store, or of a group in it.
        refine_factor: Voxels of one level that become one of the next, per axis.
        level_0_res: Shape of the array ``0``.
        chunks: Chunk of the levels, per axis or one number for all; 64 by default.

    Raises:
        RequestError: If the three have not the same number of axes, or one is not above zero.

    Example:
        >>> from tempfile import mkdtemp
        >>> import zarr
        >>> store = mkdtemp() + "/test_image.zarr"
        >>> initialize_test_image(zarr.group(store), "field1", (32, 32, 32), chunks=(8, 8, 8))
        >>> Downsampler(store, (2, 2, 2), (32, 32, 32), (8, 8, 8)).downsample(10, "field1")
        >>> zarr.open_group(store)["field1/2"].shape
        (8, 8, 8)
    """

    def __init__(
        self,
        zarr_store_path: str | os.PathLike[str],
        refine_factor: Sequence[int],
        level_0_res: Sequence[int],
        chunks: Sequence[int] | int | None = None,
    ):
        self.zarr_store_path = os.fspath(zarr_store_path)
        self.refine_factor = _whole(refine_factor, "refine_factor")
        self.finest_resolution = _whole(level_0_res, "level_0_res")
        self.ndim = len(self.finest_resolution)
        self.chunks = _chunks(chunks, self.ndim)
        for name in ("refine_factor", "chunks"):
            if len(getattr(self, name)) != self.ndim:
                msg = (
                    f"{name} {getattr(self, name)} and level_0_res {self.finest_resolution} must "
                    f"have one number per axis each"
                )
                raise RequestError(msg)

    def levels(self, max_levels: int) -> int:
        """Return how many levels ``downsample`` gives, the base included, by this rule.

        Level *k* is made while the base's shape, divided by the factor to the power of *k* and
        rounded down, is at least one chunk along every axis; at most ``max_levels`` in all.

        >>> Downsampler("x.zarr", (2, 2, 2), (1024, 1024, 1024)).levels(10)  # 1024 to 64
        5
        >>> Downsampler("x.zarr", (2, 2, 2), (64, 1024, 1024)).levels(10)  # 32 is less than a chunk
        1
        """
        for level in range(1, max_levels):
            axes = zip(self.finest_resolution, self.refine_factor, self.chunks, strict=True)
            if any(n // factor**level < chunk for n, factor, chunk in axes):
                return level
        return max_levels

    def downsample(self, max_levels: int, zarr_field: str) -> None:
        """Build the levels of one field in place, verify them and publish it as OME-Zarr.

        Run it again after a crash: it does what is missing and ends with the same bytes.

        Args:
            max_levels: At most this many levels, the base included; see ``levels``.
            zarr_field: Path of the group in the store whose array ``0`` is the base.

        Raises:
            ValueError: If ``max_levels`` is not above zero, or the request does not fit what is
                stored: no array, another shape than ``level_0_res``, names of levels taken.
        """
        if max_levels <= 0:
            msg = f"max_levels is {max_levels} but must be above zero; 1 is the base alone"
            raise RequestError(msg)
        location = join(self.zarr_store_path, zarr_field.strip("/"))
        stored = open_image(location).info.shape
        if stored != self.finest_resolution:
            msg = (
                f"level_0_res is {times(self.finest_resolution)} but the array at "
                f"{shown(location)} has shape {times(stored)}"
            )
            raise RequestError(msg)
        build_pyramid(
            parse_params({
                "source": location,
                "step": list(self.refine_factor),
                "chunks": list(self.chunks),
                "max_levels": self.levels(max_levels),
                "edges": "partial",
            })
        )  # fmt: skip


def initialize_test_image(
    zarr_store: zarr.Group,
    zarr_field: str,
    base_resolution: Sequence[int],
    chunks: Sequence[int] | int | None = None,
    overwrite_field: bool = True,
    dtype: Any = None,
) -> None:
    """Write a test image as array ``0`` of a field: noise, brighter in the low corner.

    The noise lies in [0, 1), of integers in [0, 100); in the first half of every axis, half of that
    range is added. Blocks are drawn one by one, each from a seed of its own, on an active Dask
    client if there is one, else by threads: the same image each time.

    Args:
        zarr_store: An open Zarr group, like ``zarr.group("test_image.zarr")``; in memory, too.
        zarr_field: Name of the group to create in it.
        base_resolution: Shape of the array, 2 to 5 axes.
        chunks: Its chunks, per axis or one number for all; 64 by default.
        overwrite_field: Whether a field of that name is deleted first; if not, it is an error.
        dtype: An integer or a float, float64 by default.

    Raises:
        RuntimeError: If the data type is neither; nothing was written.
        RequestError: If the shape or the chunks cannot be; nothing was written.

    Example:
        >>> import zarr
        >>> store = zarr.group(zarr.storage.MemoryStore())
        >>> initialize_test_image(store, "field1", (20, 20), chunks=10, dtype="uint8")
        >>> store["field1/0"][:10, :10].min() >= 50
        np.True_
    """
    wanted = np.dtype(np.float64 if dtype is None else dtype)
    if wanted.kind not in "iuf":
        msg = f"a test image is of an integer or a float type, not {wanted}"
        raise RuntimeError(msg)
    shape = _whole(base_resolution, "base_resolution")
    cell = _chunks(chunks, len(shape))
    if not 2 <= len(shape) <= 5 or len(cell) != len(shape):
        msg = (
            f"base_resolution {shape} must have 2 to 5 axes, and chunks {cell} one number for each"
        )
        raise RequestError(msg)
    field = zarr_store.create_group(zarr_field, overwrite=overwrite_field)
    array = field.create_array(
        "0",
        shape=shape,
        chunks=tuple(map(min, cell, shape)),
        dtype=wanted,
        **_options(field, shape),
    )
    with _executor(array) as workers:
        _each(workers, array, Grid(shape, array.chunks))


def _whole(numbers: Sequence[int], name: str) -> Shape:
    """Return whole numbers above zero; NumPy's are taken, too."""
    given = np.asarray(numbers)
    if given.ndim != 1 or given.dtype.kind not in "iuf" or (given != np.floor(given)).any():
        msg = f"{name} {numbers!r} must be one whole number per axis"
        raise RequestError(msg)
    if (given < 1).any():
        msg = f"{name} {numbers!r} must be above zero along every axis"
        raise RequestError(msg)
    return tuple(int(number) for number in given)


def _chunks(chunks: Sequence[int] | int | None, ndim: int) -> Shape:
    if chunks is None or np.ndim(chunks) == 0:
        return _whole([CHUNK if chunks is None else chunks] * ndim, "chunks")  # type: ignore[list-item] # a number
    return _whole(chunks, "chunks")  # type: ignore[arg-type] # a sequence


def _options(field: zarr.Group, shape: Shape) -> dict[str, Any]:
    """Return what OME-Zarr wants of an array in each format."""
    if field.metadata.zarr_format == 2:
        return {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    return {"dimension_names": tuple("tczyx"[-len(shape) :])}


@contextmanager
def _executor(array: zarr.Array[Any]) -> Iterator[Executor]:
    """Yield where blocks are drawn: on an active Dask client, unless only we see the store."""
    from zarr.storage import MemoryStore

    client = None if isinstance(array.store, MemoryStore) else active_client()
    if client is not None:
        yield client.get_executor(pure=False)
    else:
        with ThreadPoolExecutor(cpus()) as threads:
            yield threads


def _each(workers: Executor, array: zarr.Array[Any], grid: Grid) -> None:
    """Draw every cell of the grid, a bounded number at a time."""
    pending: set[Future[None]] = set()
    in_flight = 4 * cpus()
    for index in itertools.chain(grid, [None]):
        if index is not None:
            pending.add(workers.submit(_draw, array, index, grid.region(index)))
        while len(pending) >= (in_flight if index is not None else 1):
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            _raise_first(done)


def _raise_first(done: Iterable[Future[None]]) -> None:
    for future in done:
        future.result()


def _draw(array: zarr.Array[Any], index: Shape, region: Region) -> None:
    """Draw and write one chunk."""
    dtype = array.dtype
    top = 1.0 if dtype.kind == "f" else 100
    noise = np.random.default_rng(index).random(region_shape(region)) * top
    if dtype.kind != "f":
        noise = np.floor(noise)
    low = [max(0, n // 2 - axis.start) for n, axis in zip(array.shape, region, strict=True)]
    noise[tuple(slice(0, n) for n in low)] += top / 2
    # int8 ends at 127.
    most = np.inf if dtype.kind == "f" else np.iinfo(dtype).max
    array[region] = np.minimum(noise, most).astype(dtype)
