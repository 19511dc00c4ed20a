"""Prove a pyramid: audit its metadata, then compute voxels again and compare them bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn, get_args

from pyramid_core.audit import Finding, audit
from pyramid_core.decode import Wanted, decode_level
from pyramid_core.errors import DefectError, LocationError, RequestError, TargetError, system_errors
from pyramid_core.grid import Region, Shape, times
from pyramid_core.image import ImageInfo
from pyramid_core.labels import LabelImage, audit_labels
from pyramid_core.layout import Work, cut_level
from pyramid_core.model import Level, PyramidPlan
from pyramid_core.ngff import RECORD, Multiscales, document_of
from pyramid_core.origin import changes_between, look_and_list
from pyramid_core.params import METHODS, Edges, PyramidParams, VerifyMode
from pyramid_core.plan import background_of, plan_pyramid
from pyramid_core.reader import Node, container, open_image, open_level, read_node
from pyramid_core.stores import (
    Storage,
    absolute,
    enough_threads,
    is_url,
    join,
    local_path,
    open_storage,
    shown,
    split,
)
from pyramid_core.voxels import (
    Checked,
    check_voxels,
    count_blocks,
    only_lacks,
    remove_wrong,
    voxel_findings,
)
from pyramid_core.workers import default_executor
from pyramid_core.writer import Finished, finish, published


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
    in_part: bool = False
    """Whether of some shards only some tiles were computed again."""
    decoded: int = 0
    """Stored objects that were only decoded, for nobody knows what they should hold."""
    audited: tuple[Finished, ...] = ()
    """Of the gate, what it audited of each image: the attributes that are to be published."""

    @property
    def ok(self) -> bool:
        """Whether there is no error among the findings."""
        return all(finding.severity != "error" for finding in self.findings)

    @property
    def counted(self) -> str:
        """What was computed again, in words."""
        parts = "parts of " if self.in_part else ""
        return f"{parts}{self.blocks_checked:,} of {self.blocks:,} blocks"

    @property
    def verdict(self) -> str:
        """What was found, in one line."""
        right = "has right metadata" if self.mode == "none" else "is right"
        if not self.blocks and self.mode != "none":
            right = "has right metadata and can be read"
        verdict = right if self.ok else "is WRONG"
        checked = f"{self.counted} computed again"
        if self.decoded:
            checked += f", {self.decoded:,} stored objects decoded"
        return f"{shown(self.location)} {verdict} ({self.mode}: {checked})"

    def __str__(self) -> str:
        """Return what ``pyramid verify`` prints."""
        details = [*self.levels, *self.findings]
        return "\n".join([self.verdict, *(f"  {line}" for line in details)])


def gate(plan: PyramidPlan, workers: Executor) -> Verification:
    """Verify what was built, before anyone can see it.

    Raises:
        DefectError: If it is wrong; the blocks that are wrong have been removed, so that the next
            run builds just them.
    """
    if plan.verify == "none":
        blocks = sum(map(count_blocks, plan.images))
        return Verification(plan.target, "none", (), (), 0, blocks)
    findings: list[Finding] = []
    voxels: list[Checked] = []
    audited: list[Finished] = []
    for image in plan.images:
        storage, finished = open_storage(image.target), finish(image)
        found, _, _ = audit(storage, finished.attributes, base_has_names=not image.in_place)
        findings += found
        audited.append(finished)
        look = look_and_list(image.source)
        if changed := changes_between(_recorded_source(image), look.told):
            message = f"the source has changed while the image was built ({changed})"
            findings.append(Finding("error", "", message))
        voxels.append(check_voxels(image, plan.verify, workers, look.presence))
    lines = [_line(level) for image in plan.images for level in image.levels]
    verification = _verification(plan.target, plan.verify, findings, lines, voxels)
    if not verification.ok:
        for part in voxels:
            remove_wrong(part)
        msg = f"the gate found the image to be wrong, so it is not published:\n{verification}"
        raise DefectError(msg)
    return replace(verification, audited=tuple(audited))


def still_to_build(plan: PyramidPlan, workers: Executor) -> PyramidPlan | None:
    """Return the plan of what is left to build; None if the image is there, finished and sound.

    A document tells nothing of the source, so that the same request gives the same bytes; a sample
    of the voxels does. What lacks chunks is built again, and then verified in full: so nothing of
    another source can stay beside what is new.

    Raises:
        TargetError: If something is there that is not ours to touch, or that does not follow from
            this source; nothing was written.
    """
    there, lacking = published(plan), False
    for image in there:
        found = check_voxels(image, "none", workers)
        if any(found.wrong.values()) and not only_lacks(found):
            _refuse_other_source(found)
        lacking = lacking or any(found.wrong.values())
    if lacking:
        return replace(plan, verify="full")
    for image in there:
        found = check_voxels(image, "full" if plan.verify == "full" else "sample", workers)
        if any(found.wrong.values()):
            _refuse_other_source(found)
    if there == plan.images:
        return None
    return replace(plan, verify="full") if there else plan


def _refuse_other_source(found: Checked) -> NoReturn:
    place = shown(found.plan.target)
    first = next(voxel_findings(found, found.plan.target))
    msg = (
        f"{place} holds a finished image that does not follow from this source ({first}): the "
        f"source has changed since, or the image was damaged; --existing replace builds it anew"
    )
    raise TargetError(msg)


def _verification(
    location: str, mode: VerifyMode, findings: list[Finding], lines: list[str],
    voxels: list[Checked],
) -> Verification:  # fmt: skip
    found = [finding for part in voxels for finding in voxel_findings(part, location)]
    checked = sum(part.checked for part in voxels)
    blocks = sum(count_blocks(part.plan) for part in voxels)
    in_part = any(part.in_part for part in voxels)
    return Verification(location, mode, (*findings, *found), tuple(lines), checked, blocks, in_part)


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
    with system_errors(TargetError, f"{shown(location)} cannot be read"):
        storage = open_storage(location)
    try:
        with system_errors(TargetError, f"{shown(location)} cannot be read"):
            node = read_node(storage, "")
    except LocationError as error:
        # Something is there, but it is broken: a defect, not a wrong question.
        return Verification(location, mode, (Finding("error", "", str(error)),), (), 0, 0)
    if node is None or node.kind != "group":
        raise LocationError(_no_image(storage, node))
    if said := container(storage, node):
        raise LocationError(said)
    findings, multiscales, levels = audit(storage, node.attributes)
    if levels:  # else they would be asked of what we could not read ourselves
        findings += _validators(storage)
    images = []
    if multiscales is not None:
        images.append(LabelImage(location, multiscales, levels or _readable(storage, multiscales)))
    if multiscales is not None and levels:
        of_labels, labels = audit_labels(storage, multiscales, levels)
        findings += of_labels
        images += labels
    broken = any(finding.severity == "error" for finding in findings)
    return _look_at_voxels(location, mode, findings, images, executor, broken=broken)


def _no_image(storage: Storage, node: Node | None) -> str:
    """Say what was found where there is no group, and where the image is that it belongs to."""
    place = shown(storage.location)
    found = "an array" if node else ", ".join(storage.names()[:5]) or "nothing"
    msg = f"{place} is no OME-Zarr image: {found} was found there"
    above = storage.location
    for _ in range(3 if node else 0):
        above, _name = split(above)
        if not above:
            break
        with suppress(RequestError, OSError):
            around = read_node(open_storage(above), "")
            if around is not None and "multiscales" in document_of(around.attributes):
                return f"{msg}; it belongs to the image {shown(above)}, so give that"
    return msg


def _look_at_voxels(
    location: str, mode: VerifyMode, findings: list[Finding], images: list[LabelImage],
    executor: Executor | None, *, broken: bool,
) -> Verification:  # fmt: skip
    """Compute voxels again where the document says how; decode the others."""
    told = [image for image in images if not broken and _tells_how(image)]
    plans = [_plan_again(image.location, image.multiscales, image.levels) for image in told]
    count = enough_threads(location)
    given = nullcontext(executor) if executor is not None else default_executor(count)
    with given as workers:
        voxels = [check_voxels(plan, mode, workers) for plan in plans]
        stored = [
            decode_level(level, where, "none" if image in told else mode, wanted, workers, count)
            for image in images
            if mode != "none"
            for level, where, wanted in _arrays(location, image, mode, told=image in told)
        ]
    lines = [_line(level) for image in images for level in image.levels]
    if broken:
        lines.append("voxels were not computed again: the metadata is wrong")
    lines += [_unknown(image, mode) for image in images if not broken and image not in told]
    findings = [*findings, *(finding for found in stored for finding in found.findings())]
    verification = _verification(location, mode, findings, lines, voxels)
    return replace(verification, decoded=sum(found.count for found in stored))


def _unknown(image: LabelImage, mode: VerifyMode) -> str:
    """Say what could not be proven of an image that does not tell how it was made."""
    done = {"full": "all that is stored was decoded, so damage would show, ",
            "sample": "a sample of what is stored was decoded, ", "none": ""}[mode]  # fmt: skip
    why = "they lie in a zip" if image.in_zip else "the document does not say how"
    name = image.levels[0].path.rpartition("/")[0] if image.in_zip else image.location
    return (
        f"{shown(name)}: voxels were not computed again: {why}; {done}but whether levels follow "
        f"from level 0 is not known"
    )


def _arrays(
    location: str, image: LabelImage, mode: VerifyMode, *, told: bool
) -> Iterator[tuple[ImageInfo, str, Wanted]]:
    """Yield the arrays of an image, their names in findings, and what must be decoded of them.

    Of an image that is computed again, that is what of level 0 no other level is made of.
    """
    inside = image.location[len(location) :].strip("/")
    for number, level in enumerate(image.levels):
        used = (0,) * len(level.shape)
        if told and len(image.levels) > 1:  # else nothing is made of it, and scales may be anything
            scales = [dataset.scale for dataset in image.multiscales.datasets[:2]]
            used = tuple(
                n * round(s / f) for n, f, s in zip(image.levels[1].shape, *scales, strict=True)
            )

        def wanted(region: Region, used: Shape = used, number: int = number) -> bool:
            beyond = any(axis.stop > n for axis, n in zip(region, used, strict=True))
            return told and number == 0 and mode == "full" and beyond

        yield level, join(inside, level.path) if inside else level.path, wanted


def _readable(storage: Storage, multiscales: Multiscales) -> list[ImageInfo]:
    """Return those levels of a broken image that can be opened."""
    levels = []
    for path in dict.fromkeys(dataset.path for dataset in multiscales.datasets):
        with suppress(LocationError):
            levels.append(open_level(storage, path))
    return levels


def _tells_how(image: LabelImage) -> bool:
    """Return whether a document says how its voxels were made, as ours do."""
    said = image.multiscales.identity or {}
    known = said.get("method") in list(METHODS) and said.get("edges") in get_args(Edges)
    return known and not image.in_zip


def _line(level: Level | ImageInfo) -> str:
    shards = f" in shards of {times(level.shards)}" if level.shards else ""
    return f"{level.path}: {times(level.shape)}, chunks of {times(level.chunks)}{shards}"


def _recorded_source(plan: PyramidPlan) -> Any:
    node = read_node(open_storage(plan.target), "")
    return node.attributes.get(RECORD, {}).get("source") if node else None


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
