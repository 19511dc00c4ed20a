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
from pyramid_core.errors import DefectError, LocationError, RequestError, TargetError
from pyramid_core.execute import (
    check_block,
    needed_units,
    run_blocks,
    source_presence,
    target_presence,
    units_of,
)
from pyramid_core.grid import Region, Shape, times
from pyramid_core.image import ImageInfo
from pyramid_core.job import LevelJob, level_job
from pyramid_core.labels import LabelImage, audit_labels
from pyramid_core.layout import Work, cut_level
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.ngff import RECORD, Multiscales
from pyramid_core.params import METHODS, Edges, PyramidParams, VerifyMode
from pyramid_core.plan import background_of, plan_pyramid
from pyramid_core.presence import Mask
from pyramid_core.reader import open_image, read_node
from pyramid_core.stores import Storage, absolute, is_url, join, local_path, open_storage, shown
from pyramid_core.workers import in_flight, open_executor
from pyramid_core.writer import finished_attributes, published, source_digest

SAMPLE = 50
"""``sample`` computes one block in this many again, and the first and the last of every level."""


MOST_FINDINGS = 20
"""Of one level; a level that is lost as a whole must not fill the memory and the report."""


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

    @property
    def verdict(self) -> str:
        """What was found, in one line."""
        right = "has right metadata" if self.mode == "none" else "is right"
        verdict = right if self.ok else "is WRONG"
        checked = f"{self.blocks_checked:,} of {self.blocks:,} blocks computed again"
        return f"{shown(self.location)} {verdict} ({self.mode}: {checked})"

    def __str__(self) -> str:
        """Return what ``pyramid verify`` prints."""
        details = [*self.levels, *self.findings]
        return "\n".join([self.verdict, *(f"  {line}" for line in details)])


@dataclass(slots=True)
class _Checked:
    """What computing the voxels of one image again found."""

    plan: PyramidPlan
    wrong: dict[int, dict[Shape, str]]
    """Per level, the blocks that are wrong, and why they could not be computed if so."""
    checked: int = 0


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
    lines = [_line(level) for image in plan.images for level in image.levels]
    verification = _verification(plan.target, plan.verify, findings, lines, voxels)
    if not verification.ok:
        for part in voxels:
            _remove_wrong(part)
        msg = f"the gate found the image to be wrong, so it is not published:\n{verification}"
        raise DefectError(msg)
    return verification


def still_to_build(plan: PyramidPlan, workers: Executor) -> PyramidPlan | None:
    """Return the plan of what is left to build; None if the image is there, finished and sound.

    A document tells nothing of the source, so that the same request gives the same bytes; a sample
    of the voxels does. What lacks chunks is built again, and then verified in full: so nothing of
    another source can stay beside what is new.

    Raises:
        TargetError: If something is there that is not ours to touch, or that does not follow from
            this source; nothing was written.
    """
    there = published(plan)
    if any(any(_check_voxels(image, "none", workers).wrong.values()) for image in there):
        return replace(plan, verify="full")
    for image in there:
        mode: VerifyMode = "full" if plan.verify == "full" else "sample"
        found = _check_voxels(image, mode, workers)
        if any(found.wrong.values()):
            first = str(next(_findings(found, image.target)))
            msg = (
                f"{shown(image.target)} holds a finished image that does not follow from this "
                f"source ({first}): the source has changed since, or the image was damaged; "
                f"--existing replace builds it anew"
            )
            raise TargetError(msg)
    if there == plan.images:
        return None
    return replace(plan, verify="full") if there else plan


def _verification(
    location: str, mode: VerifyMode, findings: list[Finding], lines: list[str],
    voxels: list[_Checked],
) -> Verification:  # fmt: skip
    found = [finding for part in voxels for finding in _findings(part, location)]
    checked, blocks = sum(part.checked for part in voxels), sum(_count(p.plan) for p in voxels)
    return Verification(location, mode, (*findings, *found), tuple(lines), checked, blocks)


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
    location = absolute(location)
    storage = open_storage(location)
    try:
        node = read_node(storage, "")
    except LocationError as error:
        # Something is there, but it is broken: a defect, not a wrong question.
        return Verification(location, mode, (Finding("error", "", str(error)),), (), 0, 0)
    if node is None or node.kind != "group":
        found = "an array" if node else ", ".join(storage.names()[:5]) or "nothing"
        msg = f"{shown(location)} is no OME-Zarr image: {found} was found there"
        raise LocationError(msg)
    findings, multiscales, levels = audit(storage, node.attributes)
    findings += _validators(storage)
    images = []
    if multiscales is not None and levels:
        of_labels, labels = audit_labels(storage, multiscales, levels)
        findings += of_labels
        images = [LabelImage(location, multiscales, levels), *labels]
    lines = [_line(level) for image in images for level in image.levels]
    if any(finding.severity == "error" for finding in findings):
        lines.append("voxels were not computed again: the metadata is wrong")
        return _verification(location, mode, findings, lines, [])
    told = [image for image in images if _tells_how(image.multiscales)]
    lines += [f"{image.location}: voxels were not computed again: the document does not say how"
              for image in images if image not in told]  # fmt: skip
    plans = [_plan_again(image.location, image.multiscales, image.levels) for image in told]
    voxels = []
    if plans:
        with open_executor(plans[0], executor) as workers:
            voxels = [_check_voxels(plan, mode, workers) for plan in plans]
    return _verification(location, mode, findings, lines, voxels)


def _tells_how(multiscales: Multiscales) -> bool:
    """Return whether a document says how its voxels were made, as ours do."""
    said = multiscales.identity or {}
    return said.get("method") in list(METHODS) and said.get("edges") in get_args(Edges)


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


def _plan_again(location: str, multiscales: Multiscales, levels: list[ImageInfo]) -> PyramidPlan:
    """Return a plan of the image as it is, from its own document, to compute it again."""
    said = multiscales.identity or {}
    info = replace(open_image(location).info, labels=(), in_group=True)
    params = PyramidParams(
        source=location, max_levels=1, method=said["method"], edges=said["edges"]
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
    found = _Checked(plan, {level.index: {} for level in plan.written})
    for level in plan.written:
        _check_blocks(found, level, workers, mode)
    if mode == "sample" and any(found.wrong.values()):
        # Where a sample finds something, nothing of the rest can be taken on trust.
        return _check_voxels(plan, "full", workers)
    return found


def _check_blocks(found: _Checked, level: Level, workers: Executor, mode: VerifyMode) -> None:
    """Check those blocks of one level that the mode asks for."""
    plan = found.plan
    job = level_job(plan, level)
    chosen = _chosen(plan, level, job, mode)
    for block in run_blocks(job, check_block, chosen, workers, in_flight(plan, workers)):
        found.checked += 1
        if not block.equal:
            found.wrong[level.index][block.index] = block.fault


def _chosen(
    plan: PyramidPlan, level: Level, job: LevelJob, mode: VerifyMode
) -> Iterator[tuple[Shape, Mask | None]]:
    source, target = source_presence(job), target_presence(plan, level)
    count = level.blocks.size
    dice = random.Random(f"{level.path} {level.shape} {count}")
    for number, index in enumerate(level.blocks):
        need, present = needed_units(plan, job, source, index)
        cells = units_of(level, index)
        drawn = dice.random() < 1 / SAMPLE or number in (0, count - 1)
        asked = mode == "full" or (mode == "sample" and drawn)
        # Where the source cannot be listed, neither can what was published beside it.
        doubtful = source is not None and (
            (need != target.window(cells)).any() or target.hollow(cells).any()
        )
        if doubtful or (asked and need.any()):
            yield index, present


def _count(plan: PyramidPlan) -> int:
    return sum(level.blocks.size for level in plan.written)


def _cells(region: Region) -> Iterator[Shape]:
    return itertools.product(*(range(axis.start, axis.stop) for axis in region))


def _findings(found: _Checked, root: str) -> Iterator[Finding]:
    """Say which blocks are wrong; of many, the first few."""
    plan = found.plan
    inside = plan.target[len(root) :].strip("/")
    for level in plan.written:
        wrong = found.wrong[level.index]
        where = join(inside, level.path) if inside else level.path
        for index in sorted(wrong)[:MOST_FINDINGS]:
            region = ", ".join(f"{a.start}:{a.stop}" for a in level.blocks.region(index))
            fault = wrong[index]
            what = (
                f"cannot be computed again, because the finer level cannot be read: {fault}"
                if fault
                else f"are not those that {plan.method} gives"
            )
            yield Finding("error", where, f"voxels [{region}] {what}")
        if len(wrong) > MOST_FINDINGS:
            yield Finding("error", where, f"{len(wrong) - MOST_FINDINGS:,} more blocks are wrong")


def _remove_wrong(found: _Checked) -> None:
    """Delete the stored objects of wrong blocks, so that the next run builds them.

    What is coarser may have been made of them, so that goes too. The coarsest go first: after a
    stop in between, the gate still finds the cause.
    """
    plan = found.plan
    doomed: dict[int, set[Shape]] = {}
    for level in plan.written:
        # Where only the finer level could not be read, nothing is known against the block.
        own = {index for index, fault in found.wrong[level.index].items() if not fault}
        for index in doomed.get(level.index - 1, ()):
            finer = plan.levels[level.index - 1].blocks.region(index)
            own |= set(_cells(level.blocks.touched(coarser_region(finer, level))))
        doomed[level.index] = own
    storage = open_storage(plan.target)
    for level in reversed(plan.written):
        presence = target_presence(plan, level)
        keys = [presence.key(cell) for index in sorted(doomed[level.index])
                for cell in _cells(units_of(level, index))]  # fmt: skip
        storage.delete_objects(keys)


def coarser_region(region: Region, level: Level) -> Region:
    """Return the voxels of a level that are made of a region of the finer one."""
    return tuple(
        slice(min(r.start // s, n), min(-(-r.stop // s), n))
        for r, s, n in zip(region, level.step, level.shape, strict=True)
    )
