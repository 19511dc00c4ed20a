"""Keep the record of a build, and commit.

The attributes of the group tell the truth at any moment: a record while the image is built, the
multiscales document once it is finished and verified. In place, the base's own document is narrowed
to level 0 meanwhile, never lost.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from tempfile import TemporaryFile
from typing import Any, Literal

from pyramid_core.contrast import contrast_windows
from pyramid_core.errors import LocationError, TargetError, system_errors
from pyramid_core.groups import GROUP_KEYS, refresh_copies, write_group
from pyramid_core.leftovers import delete_torn_metadata
from pyramid_core.levels import create_level
from pyramid_core.model import PyramidPlan
from pyramid_core.ngff import (
    RECORD,
    document_of,
    image_attributes,
    narrowed,
    parse_multiscales,
)
from pyramid_core.origin import Look, changes_between, look_and_list, look_at
from pyramid_core.reader import Node, read_node
from pyramid_core.record import record_of
from pyramid_core.remote import each
from pyramid_core.stores import (
    Storage,
    is_linked,
    is_url,
    local_path,
    open_storage,
    shown,
)

_TEMPORARY = re.compile(r"#\d+$|\.partial$")
"""Names that obstore and zarr give to files that are not whole yet."""


def published(plan: PyramidPlan) -> tuple[PyramidPlan, ...]:
    """Return those of the image and its labels that are there already, as asked; writes nothing.

    Raises:
        TargetError: If the target holds something that the plan must not touch.
    """
    return tuple(image for image in plan.images if _decide(image) == "published")


def refresh(plan: PyramidPlan) -> None:
    """Bring consolidated copies up to date that a crash inside the commit left behind."""
    for image in plan.images:
        paths, storage = [level.path for level in image.levels], open_storage(image.target)
        refresh_copies(storage, image.zarr_format, paths)
        delete_torn_metadata(image, storage)


def prepare(plan: PyramidPlan) -> list[Look]:
    """Record the build at the target and its labels, and create the levels that lack.

    Returns:
        How the sources of the image and of its labels look now.

    Raises:
        TargetError: If the target holds something that the plan must not touch; nothing was
            written then.
    """
    actions = [_decide(image) for image in plan.images]
    return [
        _prepare(image, clear=action == "clear")
        for image, action in zip(plan.images, actions, strict=True)
    ]


def _decide(plan: PyramidPlan) -> Literal["build", "clear", "published"]:
    """Say what has to be done with what is at the target now, or refuse."""
    storage = open_storage(plan.target)
    place = shown(plan.target)
    node = read_node(storage, "")
    if node is None:
        found = storage.names()
        if found:
            msg = f"{place} holds something that is no Zarr group: {', '.join(found[:5])}"
            raise TargetError(msg)
        return "build"
    if node.kind == "array":
        msg = f"{place} is an array; the image needs a group, so choose another place"
        raise TargetError(msg)
    record = record_of(node.attributes, place)
    named = _named(node)
    _check_names(plan, storage, named)
    if record is not None:
        return _decide_unfinished(plan, record)
    return _decide_finished(plan, node, named)


def _decide_unfinished(
    plan: PyramidPlan, record: dict[str, Any]
) -> Literal["build", "clear", "published"]:
    place = shown(plan.target)
    if plan.existing == "fail":
        msg = f"{place} holds an unfinished build; go on with it by --existing resume"
        raise TargetError(msg)
    differing = differences(record.get("plan", {}), plan.identity())
    if not differing and (changed := changes_between(record.get("source"), look_at(plan.source))):
        differing = [f"the source, which has changed since ({changed})"]
    if differing and plan.existing != "replace":
        msg = (
            f"{place} holds an unfinished build of another plan; they differ in "
            f"{', '.join(differing)}; ask for the same again, or start over with --existing replace"
        )
        raise TargetError(msg)
    if not differing and record.get("state") != "clearing":
        return "build"
    _refuse_given(plan, record.get("plan", {}))
    return "clear"


def _decide_finished(
    plan: PyramidPlan, node: Node, named: list[str]
) -> Literal["build", "clear", "published"]:
    place = shown(plan.target)
    multiscales = parse_multiscales(node.attributes)
    foreign = [path for path in named if not plan.in_place or path != plan.levels[0].path]
    if multiscales is None or (multiscales.identity is None and not foreign):
        if not plan.in_place and (node.attributes or _children(plan)):
            found = ", ".join([*node.attributes, *_children(plan)][:5])
            msg = f"{place} is a Zarr group that holds something else: {found}"
            raise TargetError(msg)
        return "build"
    if plan.existing == "replace":
        _refuse_given(plan, multiscales.identity or {})
        return "clear"
    if plan.existing == "fail":
        msg = f"{place} holds a finished image; --existing replace builds it anew"
        raise TargetError(msg)
    if multiscales.identity is None:
        msg = (
            f"{place} holds an image of {len(named)} levels that another program made; "
            f"--existing replace deletes them and builds anew"
        )
        raise TargetError(msg)
    differing = differences(multiscales.identity, plan.identity())
    if differing:
        msg = (
            f"{place} holds a finished image of another plan; they differ in "
            f"{', '.join(differing)}; --existing replace builds it anew"
        )
        raise TargetError(msg)
    return "published"


def _refuse_given(plan: PyramidPlan, identity: dict[str, Any]) -> None:
    """Refuse to delete a base that was given to a build in place: nobody can make it again."""
    given = identity.get("given")
    if given and not plan.in_place:
        msg = (
            f"{shown(plan.target)} holds an image whose base {given[0]!r} was given, not made by "
            f"us; --existing replace would delete it, so choose another --target"
        )
        raise TargetError(msg)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the names of the fields in which two plans differ, with both values.

    >>> differences({"method": "mean", "edges": "trim"}, {"method": "mode", "edges": "trim"})
    ["method ('mean', now 'mode')"]
    """
    return [
        f"{name} ({_brief(before.get(name))}, now {_brief(now.get(name))})"
        for name in dict.fromkeys([*now, *before])
        if before.get(name) != now.get(name)
    ]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _named(node: Node) -> list[str]:
    """Return the levels that the record or the document of a group names."""
    record = record_of(node.attributes, "the group")
    named = [*record["plan"]["paths"], *record.get("delete", [])] if record else []
    if multiscales := parse_multiscales(node.attributes):
        named += [dataset.path for dataset in multiscales.datasets]
    return list(dict.fromkeys(named))


def _doomed(plan: PyramidPlan, node: Node) -> list[str]:
    """Return the levels that ``replace`` deletes: those that are named, and in place no base."""
    bases = {plan.levels[0].path} if plan.in_place else set()
    multiscales = parse_multiscales(node.attributes)
    if plan.in_place and multiscales is not None:
        bases.add(multiscales.datasets[0].path)
    named = [p for p in _named(node) if not any(f"{b}/".startswith(f"{p}/") for b in bases)]
    storage = open_storage(plan.target)
    # A level is an array: of a group, like labels, nobody knows what it holds.
    return [p for p in named if (found := read_node(storage, p)) is None or found.kind == "array"]


def _children(plan: PyramidPlan) -> list[str]:
    metadata = {key for keys in GROUP_KEYS.values() for key in keys}
    return [name for name in open_storage(plan.target).names() if name not in metadata]


def _check_names(plan: PyramidPlan, storage: Storage, named: list[str]) -> None:
    """Refuse to write a level where something is that neither record nor document names."""
    base = plan.levels[0].path
    for path in (*named, *(level.path for level in plan.written)):
        if is_linked(storage.location, path) and not (plan.in_place and path == base):
            msg = (
                f"{shown(plan.target)} has a link at {path}, where a level is or would go; what "
                f"lies elsewhere is not ours to change, so remove the link or choose a --target"
            )
            raise TargetError(msg)
    completes = plan.ngff_version == "0.5" and not plan.source.dimension_names
    if plan.in_place and completes and is_linked(storage.location, base):
        msg = (
            f"{shown(plan.target)} has a link in place of its base, which lacks dimension_names; "
            f"what lies elsewhere is not ours to change, so choose a --target"
        )
        raise TargetError(msg)
    names = cache(storage.names)
    for level in plan.written:
        if level.path in named:
            continue
        folder, _, name = level.path.rpartition("/")
        if name in names(folder):
            msg = (
                f"{shown(plan.target)} has something at {level.path}, where a level would go, that "
                f"no document names; it is not ours to delete, so move it or choose a --target"
            )
            raise TargetError(msg)


def _prepare(plan: PyramidPlan, *, clear: bool) -> Look:
    with system_errors(LocationError, f"{shown(plan.target)} cannot be built"):
        look = look_and_list(plan.source)
        storage = open_storage(plan.target, create=True)
        _check_writable(storage)
    node = read_node(storage, "")
    before = node.attributes if node else {}
    paths = [level.path for level in plan.written]
    record = {
        "state": "building",
        "in_place": plan.in_place,
        "plan": plan.identity(),
        "source": look.told,
    }
    attributes = {key: value for key, value in before.items() if key != RECORD}
    if plan.in_place:
        attributes = narrowed(attributes, plan.levels[0].path)
    else:
        attributes = {k: v for k, v in attributes.items() if k not in ("ome", *_OME_KEYS)}
    if clear and node is not None:
        doomed = _doomed(plan, node)
        clearing = {**record, "state": "clearing", "delete": doomed}
        write_group(storage, node.zarr_format, {**attributes, RECORD: clearing})
        for path in doomed:
            storage.delete(path)
        paths += doomed
    delete_temporary(plan, storage)
    write_group(storage, plan.zarr_format, {**attributes, RECORD: record}, paths)
    _drop_other_format(plan, storage)
    each(partial(create_level, plan, storage), plan.written, away=is_url(storage.location))
    return look


_OME_KEYS = ("multiscales", "omero")


def _check_writable(storage: Storage) -> None:
    """Raise what the file system says where nothing can be made; obstore panics without 8 files."""
    if not is_url(storage.location):
        with ExitStack() as files:
            for _ in range(8):
                files.enter_context(TemporaryFile(dir=local_path(storage.location)))


def delete_temporary(plan: PyramidPlan, storage: Storage) -> None:
    """Delete what writers that were killed have left; obstore's own listing does not show it."""
    if is_url(storage.location):
        return
    for level in plan.written:
        for folder, folders, names in os.walk(local_path(storage.location) / level.path):
            for link in filter(os.path.islink, (os.path.join(folder, f) for f in folders)):  # noqa: PTH118 - os.walk gives strings
                msg = f"{link} is a link; what lies elsewhere is not ours to change, so remove it"
                raise TargetError(msg)
            for name in names:
                if _TEMPORARY.search(name):
                    os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118 - os.walk gives strings
    delete_torn_metadata(plan, storage)


def _drop_other_format(plan: PyramidPlan, storage: Storage) -> None:
    """Delete the group metadata of the other Zarr format, which a replaced image had."""
    other = 3 if plan.zarr_format == 2 else 2
    if not plan.in_place:
        storage.delete_objects([k for k in GROUP_KEYS[other] if storage.read(k) is not None])


@dataclass(frozen=True, slots=True)
class Finished:
    """The attributes of a group before and after it is committed."""

    before: dict[str, Any]
    """Those that it had when this was made."""
    attributes: dict[str, Any]
    """Those that it will have."""


def finish(plan: PyramidPlan) -> Finished:
    """Return the attributes that the group will have once it is committed.

    Raises:
        ValueError: If the document would not be valid.
    """
    storage = open_storage(plan.target)
    before = _attributes(storage)
    is_label = "image-label" in document_of(before)
    windows = [] if is_label else contrast_windows(plan, storage)
    return Finished(before, image_attributes(plan, before, windows))


def _attributes(storage: Storage) -> dict[str, Any]:
    node = read_node(storage, "")
    return node.attributes if node else {}


def commit(plan: PyramidPlan, audited: Sequence[Finished] = ()) -> None:
    """Publish: swap the record for the multiscales document, of the labels first.

    Args:
        plan: What was built.
        audited: What the gate has audited, per image: that is published. Where someone has changed
            the attributes since, they are made anew of what is there now.
    """
    for number, image in reversed(list(enumerate(plan.images))):
        storage = open_storage(image.target)
        ready = audited[number] if audited else None
        if ready is None or ready.before != _attributes(storage):
            ready = finish(image)
        if image.in_place:
            _complete_base(image, storage)
        paths = [level.path for level in image.levels]
        write_group(storage, image.zarr_format, ready.attributes, paths)


def _complete_base(plan: PyramidPlan, storage: Storage) -> None:
    """Give the base the ``dimension_names`` that NGFF 0.5 demands, where it has none."""
    if plan.ngff_version == "0.5" and not plan.source.dimension_names:
        key = f"{plan.levels[0].path}/zarr.json"
        document = storage.read_json(key)
        if document is not None and not document.get("dimension_names"):
            document["dimension_names"] = [axis.name for axis in plan.axes]
            storage.write_json(key, document)
