"""The nouns: frozen data that the other modules pass around."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyramid_core.grid import Grid, Shape, ceil_div, times
from pyramid_core.image import Axis, Codec, Fill, ImageInfo
from pyramid_core.params import Edges, Existing, Method, VerifyMode, human

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid; level 0 is the finest."""

    index: int
    """0 for the finest."""
    path: str
    """Path of the array below the group of the image."""
    shape: Shape
    """Voxels per axis."""
    chunks: Shape
    """Chunk per axis."""
    shards: Shape | None
    """Shard per axis; None without sharding."""
    step: Shape
    """Voxels of the next finer level that become one voxel here, per axis."""
    factor: Shape
    """Voxels of level 0 per voxel here, per axis."""
    scale: tuple[float, ...]
    """Extent of a voxel per axis, in the units of the axes."""
    translation: tuple[float, ...]
    """Centre of the first voxel per axis, in the units of the axes."""
    block: Shape
    """Voxels that are written as one piece of work: whole write units."""
    tile: Shape
    """Voxels of a block that are read and reduced at once."""
    memory: int
    """Bytes that one block of this level needs while it is built."""
    tile_threads: int
    """Threads that share the tiles of one block, where blocks are fewer than workers."""
    reads: float
    """How often a chunk of the level that is reduced is read, on average."""

    @property
    def write_unit(self) -> Shape:
        """The shard where there is one, else the chunk: what one stored object holds."""
        return self.shards or self.chunks

    @property
    def units(self) -> Grid:
        """The write units of this level."""
        return Grid(self.shape, self.write_unit)

    @property
    def blocks(self) -> Grid:
        """The blocks of this level; they may run in any order."""
        return Grid(self.shape, self.block)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a plan costs when nothing is background and nothing is finished yet."""

    objects_read: int
    """Stored objects that are read."""
    bytes_read: int
    """Voxels read, in bytes before compression."""
    objects_written: int
    """Chunks or shards that are written."""
    bytes_written: int
    """Voxels written, in bytes before compression."""
    blocks: int
    """Pieces of work."""
    memory: int
    """Bytes that a process holds at most beside what Python and its libraries take."""


@dataclass(frozen=True, slots=True)
class PyramidPlan:
    """Everything that will be written, decided before anything is written."""

    source: ImageInfo
    """The image that is given."""
    target: str
    """Location of the group that will hold the image."""
    in_place: bool
    """Whether the levels go beside the base; then level 0 is not written."""
    levels: tuple[Level, ...]
    """All levels, the finest first."""
    method: Method
    """How a window of voxels becomes one voxel."""
    edges: Edges
    """What happens to windows that stick out."""
    dtype: str
    """Data type of every level that is written, little-endian."""
    codec: Codec
    """Codec of every level that is written."""
    axes: tuple[Axis, ...]
    """Axes of every level."""
    ngff_version: Literal["0.4", "0.5"]
    """Version of the document."""
    background: Fill | None
    """Value that every level leaves unstored; None where windows of fill do not give fill."""
    existing: Existing
    """What to do when the target is there already."""
    verify: VerifyMode
    """The gate before the commit."""
    memory_limit: int
    """Bytes that a process may hold."""
    workers: int
    """Blocks that are built at the same time, by threads of this process or on a local cluster."""
    max_workers: int | None
    """Workers as asked; on a cluster, None takes all that it has."""
    dask_address: str | None
    """Where the blocks are built; None for threads."""
    labels: tuple[PyramidPlan, ...]
    """The label images that get the same levels, by mode."""
    notes: tuple[str, ...]
    """What the user should know before this is built."""

    @property
    def zarr_format(self) -> Literal[2, 3]:
        """Version of the Zarr format that the version of the document demands."""
        return 2 if self.ngff_version == "0.4" else 3

    @property
    def written(self) -> tuple[Level, ...]:
        """The levels that this plan writes."""
        return self.levels[1:] if self.in_place else self.levels

    @property
    def images(self) -> tuple[PyramidPlan, ...]:
        """This plan and those of its label images, in the order in which they are built."""
        return (self, *self.labels)

    def finer(self, level: Level) -> Level | ImageInfo:
        """Return what a level is reduced from: the level above it, or the source."""
        return self.source if level == self.written[0] else self.levels[level.index - 1]

    def size(self, level: Level) -> int:
        """Return the voxels of a level in bytes, before compression."""
        return math.prod(level.shape) * np.dtype(self.dtype).itemsize

    @property
    def headline(self) -> str:
        """The image, its levels and what they cost, in one line."""
        cost = self.cost
        steps = " ".join(times(level.step) for level in self.levels[1:])
        return (
            f"{self.source.name}: {times(self.levels[0].shape)} {np.dtype(self.dtype).name}, "
            f"{len(self.levels)} levels by {self.method}"
            + (f" of {steps}" if steps else "")
            + f"; writes {cost.objects_written:,} objects, {human(cost.bytes_written)}, "
            f"{human(cost.memory)} of memory for {self.workers} at once"
        )

    @property
    def cost(self) -> Cost:
        """What this plan costs, its labels included."""
        item = np.dtype(self.dtype).itemsize
        objects_read = bytes_read = objects_written = bytes_written = blocks = 0
        for level in self.written:
            finer = self.finer(level)
            stored = math.prod(ceil_div(finer.shape, finer.write_unit))
            objects_read += math.ceil(stored * level.reads)
            bytes_read += math.ceil(math.prod(finer.shape) * item * level.reads)
            objects_written += level.units.size
            bytes_written += self.size(level)
            blocks += level.blocks.size
        # Of a level with few blocks, fewer are at work; on a cluster each process has its own.
        most = 1 if self.dask_address else self.workers
        memory = max((v.memory * min(most, v.blocks.size) for v in self.written), default=0)
        mine = Cost(objects_read, bytes_read, objects_written, bytes_written, blocks, memory)
        return _total([mine, *(labels.cost for labels in self.labels)])

    def identity(self) -> dict[str, Any]:
        """Return what describes the result alone, as JSON can say it.

        Neither location, host, time nor any parameter that leaves the voxels and their layout as
        they are: the same request gives the same bytes, and tells no secrets.
        """
        return {
            "shape": list(self.levels[0].shape),
            "dtype": self.dtype,
            "fill_value": self.source.fill,
            "axes": "".join(axis.name for axis in self.axes),
            "units": [axis.unit for axis in self.axes],
            "voxel_size": list(self.levels[0].scale),
            "origin": list(self.levels[0].translation),
            "method": self.method,
            "edges": self.edges,
            "steps": [list(level.step) for level in self.levels[1:]],
            "factors": [list(level.factor) for level in self.levels],
            "chunks": [list(level.chunks) for level in self.levels],
            "shards": [list(level.shards) if level.shards else None for level in self.levels],
            "codec": [self.codec.name, self.codec.cname, self.codec.level, self.codec.shuffle],
            "ngff_version": self.ngff_version,
            "paths": [level.path for level in self.levels],
            "given": [self.levels[0].path] if self.in_place else [],
        }

    def to_json(self) -> str:
        """Return the plan as JSON; ``from_json`` gives an equal plan back."""
        return _adapter().dump_json(self, indent=1).decode()

    @staticmethod
    def from_json(text: str) -> PyramidPlan:
        """Return the plan that ``to_json`` wrote."""
        return _adapter().validate_json(text)

    def __str__(self) -> str:
        """Return the table of levels and the cost, as ``pyramid plan`` prints it."""
        return _describe(self)


@cache
def _adapter() -> TypeAdapter[PyramidPlan]:
    from pydantic import TypeAdapter

    return TypeAdapter(PyramidPlan)


def _total(costs: list[Cost]) -> Cost:
    """Add costs up; memory is not held by two images at once, so its largest counts."""
    total = Cost(*(sum(getattr(cost, field.name) for cost in costs) for field in fields(Cost)))
    return replace(total, memory=max(cost.memory for cost in costs))


def _describe(plan: PyramidPlan) -> str:
    cost = plan.cost
    names = "".join(axis.name for axis in plan.axes)
    units = sorted({axis.unit for axis in plan.axes if axis.type == "space"} - {""})
    head = ["level", f"shape ({names})", "step", f"voxel ({' '.join(units) or '1'})", "chunks",
            "shards", "objects", "size", "block"]  # fmt: skip
    rows = [head]
    for level in plan.levels:
        given = plan.in_place and level.index == 0
        rows.append([
            level.path, times(level.shape), times(level.step), times(level.scale),
            times(level.chunks), times(level.shards), f"{level.units.size:,}",
            human(plan.size(level)), "(source)" if given else times(level.block),
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
             for row in rows]  # fmt: skip
    codec = (plan.codec.cname and f"{plan.codec.name}-{plan.codec.cname}") or plan.codec.name
    where = "in place" if plan.in_place else f"-> {plan.target}"
    size = human(cost.bytes_written)
    room = f"for {plan.workers} at once (limit {human(plan.memory_limit)})"
    lines = [
        f"{plan.source.name}: {plan.dtype}, {len(plan.levels)} levels by {plan.method}, "
        f"OME-Zarr {plan.ngff_version}, {codec}, {where}",
        "",
        *table,
        "",
        f"reads  {cost.objects_read:,} objects, {human(cost.bytes_read)} before compression",
        f"writes {cost.objects_written:,} objects, {size} before compression",
        f"memory {human(cost.memory)} {room}",
        *(f"labels {labels.source.name}: the same levels, by mode" for labels in plan.labels),
        *(f"note   {note}" for note in plan.notes),
    ]
    return "\n".join(lines)


def level_transform(
    scale: tuple[float, ...], translation: tuple[float, ...], factor: Shape, *, shifts: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the scale and translation of a level from those of level 0.

    The position of a voxel is that of its centre. A window of ``f`` voxels has its centre
    ``(f - 1) / 2`` voxels beyond the centre of its first voxel, so a level is shifted as well as
    coarser (NGFF 0.6, section "multiscales", says the same of classical binning).

    Args:
        scale: Extent of a voxel of level 0 per axis.
        translation: Centre of the first voxel of level 0 per axis, in the same units.
        factor: Voxels of level 0 per voxel of the level, per axis.
        shifts: False for a method that takes the first voxel of each window (stride).

    Example:
        >>> level_transform((0.5,), (10.0,), (4,), shifts=True)
        ((2.0,), (10.75,))
    """
    coarse = tuple(s * f for s, f in zip(scale, factor, strict=True))
    if not shifts:
        return coarse, translation
    moved = tuple(t + s * (f - 1) / 2 for s, t, f in zip(scale, translation, factor, strict=True))
    return coarse, moved
