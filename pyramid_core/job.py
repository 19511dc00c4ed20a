"""What a worker is told of a level, and what it tells of a block: frozen data that is pickled."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass, replace

from pyramid_core.errors import StoppedError
from pyramid_core.grid import Shape
from pyramid_core.image import Fill, ImageInfo
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.params import Method
from pyramid_core.reader import read_node
from pyramid_core.record import digest_of_record
from pyramid_core.stores import is_url, open_storage, shown


@dataclass(frozen=True, slots=True)
class LevelJob:
    """What a worker needs to know to build or check any block of one level."""

    token: str
    """Unlike that of any other job, so that nothing opened for another is used for this one."""
    source: tuple[str, str]
    """Location and path of the array that is reduced."""
    finer_shape: Shape
    """Its shape."""
    stored: Shape
    """What one of its stored objects holds."""
    key_prefix: str
    """How its chunk keys begin."""
    separator: str
    """What stands between the numbers of its chunk keys."""
    target: tuple[str, str]
    """Location and path of the array that is written."""
    level: Level
    """The level that is written."""
    method: Method
    """How a window becomes a voxel."""
    fill: Fill
    """Value of voxels that are not stored."""
    dtype: str
    """Data type of the level."""
    skips: bool
    """Whether what nothing is stored of need not be read: windows of fill give fill."""
    slots: int
    """Blocks that one process may work on at the same time within ``memory_limit``."""
    driver: str
    """Host and process that hands out the blocks."""
    record: str = ""
    """Digest of the record of what is being built at the target; empty where there is none."""


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What became of one block."""

    level: int
    """Index of its level."""
    index: Shape
    """Index of the block in the level's grid."""
    seconds: float
    """Time it took its worker."""
    worker: str
    """Host and process that did it."""
    equal: bool = True
    """For a check: whether the stored voxels are what they should be."""
    fault: str = ""
    """For a check: why what the block is reduced from cannot be read; empty if it can."""
    warnings: tuple[str, ...] = ()
    """What was warned of on a worker in another process since it told of the block before."""


def this_process() -> str:
    """Return host and process, as they name a worker."""
    return f"{socket.gethostname()}:{os.getpid()}"


def level_job(plan: PyramidPlan, level: Level) -> LevelJob:
    """Return what workers need to compute the blocks of a level."""
    finer = plan.finer(level)
    given = finer if isinstance(finer, ImageInfo) else None
    default = "c" if plan.zarr_format == 3 else ""
    return LevelJob(
        token=uuid.uuid4().hex,
        source=(given.location if given else plan.target, finer.path),
        finer_shape=finer.shape,
        stored=finer.write_unit,
        key_prefix=given.key_prefix if given else default,
        separator=given.separator if given else "/",
        target=(plan.target, level.path),
        level=level,
        method=plan.method,
        fill=plan.source.fill,
        dtype=plan.dtype,
        skips=plan.background is not None,
        slots=max(1, plan.memory_limit // max(1, level.memory)),
        driver=this_process(),
    )


def building_job(plan: PyramidPlan, level: Level) -> LevelJob:
    """Return what workers need to build the blocks of a level, as long as it is this build's."""
    return replace(level_job(plan, level), record=_record(plan.target))


def refuse_other_build(job: LevelJob) -> None:
    """Raise where another build has begun at the target of a job, or this one has ended.

    A worker may outlive the run that died, and so may a thread whose process was held up until the
    target was taken over: no block of theirs may come between those of another plan.

    Raises:
        StoppedError: If it is so.
    """
    location = job.target[0]
    may_outlive = job.driver != this_process() or is_url(location)
    if job.record and may_outlive and _record(location) != job.record:
        msg = f"{shown(location)} is no longer built by this run, so nothing more is written to it"
        raise StoppedError(msg)


def _record(location: str) -> str:
    node = read_node(open_storage(location), "")
    return digest_of_record(node.attributes) if node else ""
