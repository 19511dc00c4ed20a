"""What is built: volumes like those of users, in the codecs and layouts that they choose."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from pyramid_core.grid import Grid, Region, region_shape

Kind = Literal["microscopy", "random", "labels", "sparse"]
Array = np.ndarray[Any, Any]

DTYPES: dict[Kind, str] = {
    "microscopy": "uint16",
    "random": "float64",
    "labels": "uint8",
    "sparse": "uint16",
}
SPARSE_CELL, OCCUPIED = 128, 0.01


@dataclass(frozen=True, slots=True)
class Case:
    """One volume, and the pyramid that is asked of it."""

    name: str
    """What the table calls it."""
    kind: Kind = "microscopy"
    """What it shows."""
    size: int = 512
    """Voxels along each of its three axes."""
    codec: str = "zstd"
    """``zstd``, ``lz4`` (in blosc) or ``none``."""
    chunk: int = 64
    """Voxels of a chunk along each axis, of all levels."""
    shard: int = 0
    """Voxels of a shard along each axis; 0 for none."""
    step: tuple[int, int, int] = (2, 2, 2)
    """Voxels of a level that become one of the next."""
    remote: bool = False
    """Whether it lies in an object store that answers after 20 ms."""

    @property
    def levels(self) -> tuple[tuple[int, int, int], ...]:
        """Shapes of all levels, base first: until all axes that are reduced fit into a chunk."""
        shapes = [(self.size,) * 3]
        while any(n > self.chunk for n, s in zip(shapes[-1], self.step, strict=True) if s > 1):
            z, y, x = (n // s for n, s in zip(shapes[-1], self.step, strict=True))
            shapes.append((z, y, x))
        return tuple(shapes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the voxels."""
        return np.dtype(DTYPES[self.kind])

    @property
    def method(self) -> Literal["mean", "mode"]:
        """How voxels are reduced."""
        return "mode" if self.kind == "labels" else "mean"

    def told(self) -> dict[str, Any]:
        """Return the case as JSON can say it."""
        return asdict(self)


def case_of(told: dict[str, Any]) -> Case:
    """Return the case that ``told`` was made of."""
    return Case(**{**told, "step": tuple(told["step"])})


def all_cases(size: int) -> tuple[Case, ...]:
    """Return the middle of the field, and one case for each way to leave it."""
    half, shard = size // 2, min(512, size // 2)
    return (
        Case("zstd", size=size),
        Case("lz4", size=size, codec="lz4"),
        Case("uncompressed", size=size, codec="none"),
        Case("chunks of 32", size=half, chunk=32),
        Case("chunks of 128", size=size, chunk=128),
        Case(f"shards of {shard}", size=size, shard=shard),
        Case("step 1,2,2", size=half, step=(1, 2, 2)),
        Case("float64", "random", size=half),
        Case("labels", "labels", size=size),
        Case("sparse", "sparse", size=size),
        Case("s3, 20 ms", size=half, chunk=32, remote=True),
    )


def compressors(case: Case) -> list[Any]:
    """Return the codecs as zarr takes them; levels of every contestant get the same."""
    if case.codec == "lz4":
        return [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=case.dtype.itemsize)]
    return [ZstdCodec(level=0)] if case.codec == "zstd" else []


def create_array(case: Case, place: Any, path: str, shape: tuple[int, ...]) -> Any:
    """Create one level of a case, as every contestant that can be told writes it."""
    return zarr.create_array(
        place,
        name=path,
        shape=shape,
        chunks=(case.chunk,) * 3,
        shards=(case.shard,) * 3 if case.shard else None,
        dtype=case.dtype,
        compressors=compressors(case) or None,
        fill_value=0,
        dimension_names=["z", "y", "x"],
    )


def make_volume(case: Case, folder: Path) -> Path:
    """Write the base of a case, once, as ``field/0`` of a group; return the group's folder."""
    shard = case.shard or case.chunk
    parts = (case.kind, case.size, case.codec, case.chunk, case.shard)
    place = folder / ("-".join(map(str, parts)) + ".zarr")
    if place.exists():
        return place
    partial = place.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    zarr.create_group(partial).create_group("field")
    array = create_array(case, str(partial), "field/0", (case.size,) * 3)
    grid = Grid((case.size,) * 3, (shard,) * 3)

    def write(region: Region) -> None:
        array[region] = voxels(case, region)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, _regions(grid)))
    partial.rename(place)
    return place


def _regions(grid: Grid) -> Iterator[Region]:
    return map(grid.region, grid)


def voxels(case: Case, region: Region) -> Array:
    """Return voxels of a case: the same for the same region."""
    dice = np.random.default_rng([axis.start for axis in region])
    shape = region_shape(region)
    if case.kind == "random":
        return np.asarray(dice.random(shape))
    if case.kind == "labels":
        cells = [np.arange(axis.start, axis.stop) // 24 for axis in region]
        number: Array = (
            cells[0][:, None, None] * 5 + cells[1][:, None] * 37 + cells[2] * 101
        ) % 251
        number[number < 100] = 0
        labels: Array = number.astype(np.uint8)
        return labels
    if case.kind == "sparse":
        cell = [axis.start // SPARSE_CELL for axis in region]
        counts = max(1, case.size // SPARSE_CELL)
        number_of = (cell[0] * counts + cell[1]) * counts + cell[2]
        every = min(counts**3, round(1 / OCCUPIED))
        if number_of % every:
            return np.zeros(shape, np.uint16)
    return _microscopy(dice, region)


def _microscopy(dice: np.random.Generator, region: Region) -> Array:
    """Return smooth structure with shot noise: blobs of about 40 voxels on a dim ground."""
    waves = [
        np.sin(np.arange(axis.start, axis.stop) * (2 * np.pi / wave))
        for axis, wave in zip(region, (43, 37, 41), strict=True)
    ]
    smooth = waves[0][:, None, None] * waves[1][:, None] * waves[2]
    bright = 120 + 1500 * np.clip(smooth, 0, None) ** 2
    noisy = bright + np.sqrt(bright) * dice.standard_normal(bright.shape)
    voxels: Array = np.clip(noisy.round(), 0, 65535).astype(np.uint16)
    return voxels


def linked_copy(place: Path, copy: Path) -> Path:
    """Return a copy that shares the chunks, so a run finds a base and nothing else."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place, copy, copy_function=os.link)
    return copy
