"""Decode what is stored of a level: all that can be proven where nobody knows how it was made."""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from pyramid_core.audit import Finding
from pyramid_core.execute import read_block
from pyramid_core.flight import BlockInput, run_blocks
from pyramid_core.grid import Grid, Region, Shape
from pyramid_core.image import ImageInfo
from pyramid_core.job import LevelJob, this_process
from pyramid_core.model import Level
from pyramid_core.params import VerifyMode
from pyramid_core.presence import Presence
from pyramid_core.stores import open_storage
from pyramid_core.voxels import MOST_FINDINGS, SAMPLE

_ROOM = 10**9
"""Bytes that all decoded objects of this process may take at once."""
_TILE = 2**26
"""Bytes of a shard that are decoded at once."""

Wanted = Callable[[Region], bool]
"""Says of a region of an array whether it shall be decoded, whatever the mode."""


@dataclass
class Decoded:
    """What was found of the stored objects of one array."""

    where: str
    """The array, as findings name it."""
    count: int = 0
    """Objects that were decoded."""
    faults: dict[Shape, tuple[Region, str]] = field(default_factory=dict)
    """Where one could not be, and why."""
    strays: int = 0
    """Objects that are no chunks."""
    stray: str = ""
    """The first of them."""

    def findings(self) -> Iterator[Finding]:
        """Say what is wrong; of much, the first."""
        for cell in sorted(self.faults)[:MOST_FINDINGS]:
            region, fault = self.faults[cell]
            at = ", ".join(f"{axis.start}:{axis.stop}" for axis in region)
            yield Finding("error", self.where, f"voxels [{at}] cannot be decoded: {fault}")
        if len(self.faults) > MOST_FINDINGS:
            more = f"{len(self.faults) - MOST_FINDINGS:,} more objects cannot be decoded"
            yield Finding("error", self.where, more)
        if self.strays:
            rest = f" and {self.strays - 1:,} more" if self.strays > 1 else ""
            message = f"{self.stray}{rest}: stored here, but no chunk of it; no reader looks there"
            yield Finding("warning", self.where, message)


def decode_level(
    level: ImageInfo, where: str, mode: VerifyMode, wanted: Wanted, workers: Executor, count: int
) -> Decoded:
    """Decode stored objects of one array.

    Args:
        level: The array.
        where: What findings call it.
        mode: ``full`` decodes all, ``sample`` the first, the last, one in 100 between, and those
            of no bytes; ``none`` none.
        wanted: What else is decoded, by region.
        workers: Where that is done.
        count: How many are begun at the same time.
    """
    found = Decoded(where)
    job = _job(level, count)
    chosen = _chosen(level, job, mode, wanted, found)
    for block in run_blocks(read_block, chosen, workers, 2 * count):
        found.count += 1
        if block.fault:
            found.faults[block.index] = (job.level.blocks.region(block.index), block.fault)
    return found


def _chosen(
    level: ImageInfo, job: LevelJob, mode: VerifyMode, wanted: Wanted, found: Decoded
) -> Iterator[BlockInput]:
    first, last = True, None
    for key, cell, size in _objects(level, job.level.units):
        if cell is None:
            found.strays += 1
            found.stray = min(found.stray or key, key)
            continue
        drawn = first or size == 0 or random.Random(key).random() < 1 / SAMPLE
        if mode == "full" or (mode == "sample" and drawn) or wanted(job.level.blocks.region(cell)):
            yield job, cell, None
            last = None
        else:
            last = cell
        first = False
    if mode == "sample" and last is not None:
        yield job, last, None


def _objects(level: ImageInfo, units: Grid) -> Iterator[tuple[str, Shape | None, int]]:
    """Yield what is stored of an array; all that may be, where it cannot be listed."""
    storage = open_storage(level.location)
    presence = Presence(storage, level.path, units, level.key_prefix, level.separator)
    if storage.listable:
        yield from presence.objects()
    else:
        yield from ((presence.key(cell), cell, 1) for cell in units)


def _job(level: ImageInfo, count: int) -> LevelJob:
    """Return the job of reading an array; nothing is written by it."""
    item = np.dtype(level.dtype).itemsize
    ones = (1,) * len(level.shape)
    tile = _tile(level.chunks, level.write_unit, item)
    # Decoded, once more while it is put together, and encoded.
    memory = 3 * item * math.prod(tile if level.shards else level.chunks)
    blocks = Level(
        index=0, path=level.path, shape=level.shape, chunks=level.chunks, shards=level.shards,
        step=ones, factor=ones, scale=level.scale, translation=level.translation,
        block=level.write_unit, tile=tile, memory=memory, tile_threads=1, reads=1.0,
    )  # fmt: skip
    return LevelJob(
        token=uuid.uuid4().hex, source=(level.location, level.path), finer_shape=level.shape,
        stored=level.write_unit, key_prefix=level.key_prefix, separator=level.separator,
        target=(level.location, level.path), level=blocks, method="stride", fill=level.fill,
        dtype=level.dtype, skips=False, slots=max(1, min(count, _ROOM // max(1, memory))),
        driver=this_process(),
    )  # fmt: skip


def _tile(chunks: Shape, unit: Shape, item: int) -> Shape:
    """Return whole chunks of a shard that may be decoded at once; the last axis grows first.

    >>> _tile((64, 64, 64), (1024, 1024, 1024), 2)
    (64, 512, 1024)
    >>> _tile((64, 64), (64, 64), 2)
    (64, 64)
    """
    tile = list(chunks)
    for axis in reversed(range(len(tile))):
        room = max(1, _TILE // (math.prod(tile) * item))
        tile[axis] = min(unit[axis], chunks[axis] * room)
    return tuple(tile)
