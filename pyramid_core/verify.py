"""Prove a pyramid: audit its metadata, then compute voxels again and compare them bit for bit."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import get_args

from pyramid_core.audit import Finding, audit
from pyramid_core.errors import DefectError, LocationError, RequestError
from pyramid_core.execute import (
    LevelJob,
    check_block,
    in_flight,
    level_job,
    needed_units,
    open_executor,
    run_blocks,
    source_presence,
    target_presence,
    units_of,
)
from pyramid_core.grid import Shape, times
from pyramid_core.kernels import METHODS
from pyramid_core.layout import Work, cut_level
from pyramid_core.model import ImageInfo, Level, PyramidPlan
from pyramid_core.ngff import RECORD, Multiscales, document_of
from pyramid_core.params import PyramidParams, VerifyMode
from pyramid_core.plan import background_of, plan_pyramid
from pyramid_core.presence import Mask
from pyramid_core.reader import open_image, read_node
from pyramid_core.stores import Storage, is_url, join, local_path, open_storage, shown
from pyramid_core.writer import finished_attributes, source_digest

SAMPLE = 50
"""``sample`` computes one block in this many again, and the first and the last of every level."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found of one image."""

    location: str
    """Where it is."""
    mode: VerifyMode
    """Which blocks were computed again."""
    findings: tuple[Finding, ...]
    """What was found; empty if all is well."""
    levels: tuple[str, ...]
    """What was looked at, a line per level."""
    blocks_checked: int
    """Blocks that were computed again and compared."""
    blocks: int
    """Blocks in all."""

    @property
    def ok(self) -> bool:
        """Whether there is no error among the findings."""
        return all(finding.severity != "error" for finding in self.findings)

    def __str__(self) -> str:
        """Return what ``pyramid verify`` prints."""
        verdict = "is right" if self.ok else "is WRONG"
        checked = f"{self.blocks_checked:,} of {self.blocks:,} blocks computed again"
        head = f"{shown(self.location)} {verdict} ({self.mode}: {checked})"
        return "\n".join([head, *(f"  {line}" for line in [*self.levels, *self.findings])])


@dataclass(frozen=True, slots=True)
class _Checked:
    """What computing voxels again found."""

    findings: list[Finding]
    wrong: list[tuple[PyramidPlan, Level, Shape]]
    checked: int
    blocks: int


def gate(plan: PyramidPlan, workers: Executor) -> Verification:
    """Verify what was built, before anyone can see it.

    Raises:
        DefectError: If it is wrong; the blocks that are wrong have been removed, so that the next
            run builds just them.
    """
    if plan.verify == "none":
        return Verification(plan.target, "none", (), (), 0, sum(_count(p) for p in plan.images))
    findings: list[Finding] = []
    for image in plan.images:
        storage, attributes = open_storage(image.target), finished_attributes(image)
        found, _, _ = audit(storage, attributes, base_has_names=not image.in_place)
        findings += found
        record = _recorded_digest(image)
        if record != source_digest(image):
            message = "the source has changed while the image was built"
            findings.append(Finding("error", "", message))
    voxels = [_check_voxels(image, plan.verify, workers) for image in plan.images]
    verification = Verification(
        plan.target,
        plan.verify,
        tuple(findings + [finding for part in voxels for finding in part.findings]),
        tuple(_line(level) for image in plan.images for level in image.levels),
        sum(part.checked for part in voxels),
        sum(part.blocks for part in voxels),
    )
    if not verification.ok:
        for part in voxels:
            for image, level, index in part.wrong:
                _remove(image, level, index)
        msg = f"the gate found the image to be wrong, so it is not published:\n{verification}"
        raise DefectError(msg)
    return verification


def is_complete(plan: PyramidPlan, workers: Executor) -> bool:
    """Return whether a published image lacks nothing; what looks missing is computed again."""
    return all(not _check_voxels(image, "none", workers).wrong for image in plan.images)


def verify_pyramid(
    location: str, mode: VerifyMode = "sample", *, executor: Executor | None = None
) -> Verification:
    """Verify any OME-Zarr image, ours or another program's; nothing is changed.

    The document is held against ome-zarr-models, yaozarrs and our own audit. Voxels are computed
    again where the document says how they were made, as ours do.

    Args:
        location: Location of the image.
        mode: ``sample`` computes some blocks of every level again, ``full`` all, ``none`` none.
        executor: Where that is done; by default threads, or an active Dask client.

    Raises:
        LocationError: If there is no Zarr group at the location.
    """
    if mode not in get_args(VerifyMode):
        msg = f"mode is sample, full or none, not {mode!r}"
        raise RequestError(msg)
    storage = open_storage(location)
    node = read_node(storage, "")
    if node is None or node.kind != "group":
        found = "an array" if node else ", ".join(storage.names()[:5]) or "nothing"
        msg = f"{shown(location)} is no OME-Zarr image: {found} was found there"
        raise LocationError(msg)
    findings, multiscales, levels = audit(storage, node.attributes)
    findings += _validators(storage)
    lines = [_line(level) for level in levels]
    checked = _Checked([], [], 0, 0)
    if multiscales is not None and levels and not any(f.severity == "error" for f in findings):
        findings += _verify_labels(storage, multiscales, levels)
        if multiscales.identity is None or multiscales.identity.get("method") not in METHODS:
            lines.append("voxels were not computed again: the document does not say how")
        else:
            plan = _plan_again(location, multiscales, levels)
            with open_executor(plan, executor) as workers:
                checked = _check_voxels(plan, mode, workers)
    return Verification(
        location,
        mode,
        (*findings, *checked.findings),
        tuple(lines),
        checked.checked,
        checked.blocks,
    )


def _line(level: Level | ImageInfo) -> str:
    shards = f" in shards of {times(level.shards)}" if level.shards else ""
    return f"{level.path}: {times(level.shape)}, chunks of {times(level.chunks)}{shards}"


def _recorded_digest(plan: PyramidPlan) -> str | None:
    node = read_node(open_storage(plan.target), "")
    digest: str | None = node.attributes.get(RECORD, {}).get("source") if node else None
    return digest


def _validators(storage: Storage) -> Iterator[Finding]:
    """Ask the validators of others."""
    if storage.is_zip or is_url(storage.location):
        return
    import ome_zarr_models
    import yaozarrs
    import zarr

    path = str(local_path(storage.location))
    for name, validate in (
        ("yaozarrs", lambda: yaozarrs.validate_zarr_store(path)),
        ("ome-zarr-models", lambda: ome_zarr_models.open_ome_zarr(zarr.open_group(path, mode="r"))),
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                validate()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            yield Finding("error", "", f"{name} refuses it: {reason}")


def _verify_labels(
    storage: Storage, multiscales: Multiscales, levels: list[ImageInfo]
) -> Iterator[Finding]:
    """Hold each label image against the image: as many levels, of the same shapes and scales."""
    group = read_node(storage, "labels")
    names = document_of(group.attributes).get("labels", []) if group else []
    if len(set(names)) != len(names):
        yield Finding("error", "labels", f"a label is listed twice: {names}")
    axes = [axis.name for axis in multiscales.axes]
    for name in dict.fromkeys(names):
        at = f"labels/{name}"
        labels = open_storage(join(storage.location, at))
        node = read_node(labels, "")
        if node is None:
            yield Finding("error", at, "is listed but not there")
            continue
        findings, found, label_levels = audit(labels, node.attributes)
        yield from (replace(finding, where=f"{at}/{finding.where}") for finding in findings)
        if found is None or not label_levels:
            continue
        if len(label_levels) != len(levels):
            yield Finding("error", at, f"has {len(label_levels)} levels, the image {len(levels)}")
            continue
        if "image-label" not in document_of(node.attributes):
            yield Finding("error", at, "has no image-label")
        shared = [axes.index(axis.name) for axis in found.axes if axis.name in axes]
        for image, label in zip(levels, label_levels, strict=True):
            if label.shape != tuple(image.shape[i] for i in shared):
                yield Finding("error", at, f"level {label.path} has shape {label.shape}")


def _plan_again(location: str, multiscales: Multiscales, levels: list[ImageInfo]) -> PyramidPlan:
    """Return a plan of the image as it is, from its own document, to compute it again."""
    said = multiscales.identity or {}
    info = replace(open_image(location).info, labels=(), in_group=True)
    params = PyramidParams(
        source=location, max_levels=1, method=said["method"], edges=said.get("edges", "partial")
    )
    plan = plan_pyramid(info, params)
    again = [plan.levels[0]]
    for number in range(1, len(levels)):
        finer, level = levels[number - 1], levels[number]
        scales = [multiscales.datasets[i].scale for i in (0, number - 1, number)]
        step = tuple(round(s / f) for f, s in zip(scales[1], scales[2], strict=True))
        work = Work(level.shape, level.write_unit, step, finer.shape, finer.chunks,
                    finer.dtype, params.method)  # fmt: skip
        share = plan.memory_limit // plan.workers
        cut = cut_level(work, number, max(plan.memory_limit, 2**33), share)
        again.append(
            replace(
                plan.levels[0],
                index=number,
                path=level.path,
                shape=level.shape,
                chunks=level.chunks,
                shards=level.shards,
                step=step,
                factor=tuple(round(s / b) for b, s in zip(scales[0], scales[2], strict=True)),
                block=cut.block,
                tile=cut.tile,
                memory=cut.memory,
            )
        )
    return replace(
        plan,
        levels=tuple(again),
        # Whether background may be skipped depends on the steps.
        background=background_of(info, params, tuple(again)),
        target=plan.source.location,
        ngff_version="0.4" if info.zarr_format == 2 else "0.5",
    )


def _check_voxels(plan: PyramidPlan, mode: VerifyMode, workers: Executor) -> _Checked:
    """Compute blocks of every level again and compare them.

    Always those where what is stored does not follow from what is stored of the finer level: a
    chunk that is missing, or one too many. Then the others, all or some of them.
    """
    result = _Checked([], [], 0, _count(plan))
    checked = 0
    for level in plan.written:
        job = level_job(plan, level)
        chosen = _chosen(plan, level, job, mode)
        wrong = []
        for block in run_blocks(job, check_block, chosen, workers, in_flight(plan)):
            checked += 1
            if not block.equal:
                wrong.append(block.index)
        for index in wrong:
            region = ", ".join(f"{a.start}:{a.stop}" for a in level.blocks.region(index))
            message = f"voxels [{region}] are not those that {plan.method} gives"
            result.findings.append(Finding("error", level.path, message))
            result.wrong.append((plan, level, index))
    return replace(result, checked=checked)


def _chosen(
    plan: PyramidPlan, level: Level, job: LevelJob, mode: VerifyMode
) -> Iterator[tuple[Shape, Mask | None]]:
    source, target = source_presence(job), target_presence(plan, level)
    count = level.blocks.size
    dice = random.Random(f"{level.path} {level.shape} {count}")
    for number, index in enumerate(level.blocks):
        need, present = needed_units(plan, job, source, index)
        have = target.window(units_of(level, index))
        drawn = dice.random() < 1 / SAMPLE or number in (0, count - 1)
        if (need != have).any() or (
            need.any() and (mode == "full" or (mode == "sample" and drawn))
        ):
            yield index, present


def _count(plan: PyramidPlan) -> int:
    return sum(level.blocks.size for level in plan.written)


def _remove(plan: PyramidPlan, level: Level, index: Shape) -> None:
    """Delete the stored objects of a block, so that the next run builds it."""
    storage = open_storage(plan.target)
    presence = target_presence(plan, level)
    cells = units_of(level, index)
    units = [range(axis.start, axis.stop) for axis in cells]
    storage.delete_objects([presence.key(cell) for cell in itertools.product(*units)])
