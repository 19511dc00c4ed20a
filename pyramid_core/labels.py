"""Audit the label images of an image: the list of them, and each against the image."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pyramid_core.audit import Finding, audit
from pyramid_core.errors import LocationError
from pyramid_core.image import ImageInfo
from pyramid_core.ngff import MOST, Multiscales, document_of
from pyramid_core.reader import read_node
from pyramid_core.stores import Storage, join, open_storage


@dataclass(frozen=True, slots=True)
class LabelImage:
    """A label image that was found to be in order."""

    location: str
    """Where it is."""
    multiscales: Multiscales
    """Its document."""
    levels: list[ImageInfo]
    """What its levels say of themselves."""
    in_zip: bool = False
    """Whether it lies inside a zip, where no location leads; its levels count from the root."""


def _error(where: str, message: str) -> Finding:
    return Finding("error", where, message)


def audit_labels(
    storage: Storage, multiscales: Multiscales, levels: list[ImageInfo]
) -> tuple[list[Finding], list[LabelImage]]:
    """Hold each label image against the image: as many levels, of the same shapes and scales.

    Args:
        storage: The location of the image.
        multiscales: Its document.
        levels: What its levels say of themselves.

    Returns:
        The findings, and the label images in which there is no error.
    """
    findings: list[Finding] = []
    whole: list[LabelImage] = []
    try:
        group = read_node(storage, "labels")
    except LocationError as error:
        return [_error("labels", str(error))], []
    if group is None:
        return [], []
    document = document_of(group.attributes)
    names = document.get("labels")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return [_error("labels", f"has no list of the names of labels, but {names!r}")], []
    if len(names) > MOST:
        return [_error("labels", f"lists {len(names):,} names; {MOST:,} are read at most")], []
    if multiscales.version == "0.5" and document.get("version") != "0.5":
        findings.append(_error("labels", "the document does not say its version, 0.5"))
    if len(set(names)) != len(names):
        findings.append(_error("labels", f"a label is listed twice: {names}"))
    findings += _unlisted(storage, names)
    for name in dict.fromkeys(names):
        found, label = _audit_label(storage, name, multiscales, levels)
        findings += found
        if label is not None and not any(finding.severity == "error" for finding in found):
            whole.append(label)
    return findings, whole


def _unlisted(storage: Storage, names: list[str]) -> Iterator[Finding]:
    """Look for images among the labels that the list leaves out."""
    folders = {name.split("/")[0] for name in names}
    for name in storage.names("labels"):
        if name not in folders and not name.startswith((".z", "zarr.json")):
            yield _error(f"labels/{name}", "is not listed among the labels")


def _audit_label(
    storage: Storage, name: str, multiscales: Multiscales, levels: list[ImageInfo]
) -> tuple[list[Finding], LabelImage | None]:
    at = f"labels/{name}"
    if name.startswith("/") or ".." in name.split("/") or not name.strip("/"):
        return [_error("labels", f"label {name!r} leads out of the image")], None
    location = join(storage.location, at)
    try:
        labels = _inside(storage, at)
        node = read_node(labels, "")
    except (OSError, ValueError) as error:
        # A LocationError, or a name that no file can have.
        return [_error(at, str(error))], None
    if node is None or node.kind != "group":
        return [_error(at, "is listed but not there")], None
    found, own, own_levels = audit(labels, node.attributes)
    findings = [replace(f, where=f"{at}/{f.where}" if f.where else at) for f in found]
    findings += _audit_source(at, document_of(node.attributes))
    if own is None or not own_levels:
        return findings, None
    findings += _compare_label(at, multiscales, levels, own, own_levels)
    if storage.is_zip:
        own_levels = [replace(level, path=f"{at}/{level.path}") for level in own_levels]
        return findings, LabelImage(storage.location, own, own_levels, in_zip=True)
    return findings, LabelImage(location, own, own_levels)


def _inside(storage: Storage, at: str) -> Storage:
    if storage.is_zip:
        return replace(storage, archive=f"{storage.archive}{at}/")
    return open_storage(join(storage.location, at))


def _audit_source(at: str, document: dict[str, Any]) -> Iterator[Finding]:
    """A label image says that it is one, and of which image."""
    label = document.get("image-label")
    if label is None:
        yield _error(at, "has no image-label")
    source = label.get("source") if isinstance(label, dict) else None
    image = source.get("image", "../../") if isinstance(source, dict) else "../../"
    if not isinstance(image, str) or posixpath.normpath(posixpath.join(at, image)) != ".":
        yield _error(at, f"names {image!r} as its source, which is not this image")


def _compare_label(
    at: str, multiscales: Multiscales, levels: list[ImageInfo], own: Multiscales,
    own_levels: list[ImageInfo],
) -> Iterator[Finding]:  # fmt: skip
    """A label image may lack axes of the image; along the others its levels are the same."""
    if own.version != multiscales.version:
        yield _error(at, f"is OME-Zarr {own.version}, the image {multiscales.version}")
    if len(own_levels) != len(levels):
        yield _error(at, f"has {len(own_levels)} levels, the image {len(levels)}")
        return
    axes = [axis.name for axis in multiscales.axes]
    if not {axis.name for axis in own.axes} <= set(axes):
        yield _error(at, f"has axes {[axis.name for axis in own.axes]}, the image {axes}")
        return
    shared = [axes.index(axis.name) for axis in own.axes]
    for number, (image, label) in enumerate(zip(levels, own_levels, strict=True)):
        shape = tuple(image.shape[i] for i in shared)
        scale = tuple(multiscales.datasets[number].scale[i] for i in shared)
        path, said = f"{at}/{label.path}", own.datasets[number].scale
        if label.shape != shape:
            yield _error(path, f"has shape {label.shape}, the image {shape}")
        if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(said, scale, strict=True)):
            yield _error(path, f"has scale {said}, the image {scale}")
