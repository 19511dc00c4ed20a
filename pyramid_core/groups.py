"""The metadata of groups, read and written in one piece; consolidated copies follow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pyramid_core.errors import LocationError
from pyramid_core.stores import Storage, is_url, open_storage, split

GROUP_KEYS = {2: (".zgroup", ".zattrs", ".zmetadata"), 3: ("zarr.json",)}
"""The objects that hold the metadata of a group, per Zarr format."""

_NODE_KEYS = {2: (".zarray", ".zgroup", ".zattrs"), 3: ("zarr.json",)}


def write_group(
    storage: Storage,
    zarr_format: Literal[2, 3],
    attributes: dict[str, Any],
    changed: Iterable[str] = (),
) -> None:
    """Write a group's attributes in one PUT; make the group where it is not there.

    Args:
        storage: The location of the group.
        zarr_format: Its format.
        attributes: All its attributes.
        changed: Paths of nodes below it that were made, changed or deleted; a consolidated copy
            of their metadata that exists is brought up to date, also in the groups above.
    """
    changed = list(changed)
    if zarr_format == 3:
        document = storage.read_json("zarr.json") or {"zarr_format": 3, "node_type": "group"}
        document["attributes"] = attributes
        if (inline := _copies(document, zarr_format)) is not None:
            _refresh(inline, storage, changed, zarr_format)
        storage.write_json("zarr.json", document)
        _refresh_above(storage, zarr_format, changed)
        return
    if storage.read(".zgroup") is None:
        storage.write_json(".zgroup", {"zarr_format": 2})
    storage.write_json(".zattrs", attributes)
    refresh_copies(storage, zarr_format, changed)


def refresh_copies(
    storage: Storage, zarr_format: Literal[2, 3], changed: Iterable[str] = ()
) -> None:
    """Bring consolidated metadata up to date, of a group and of those above, where it exists.

    Args:
        storage: The location of the group.
        zarr_format: Its format.
        changed: Paths of nodes below it that may have been made, changed or deleted.
    """
    changed = list(changed)
    if _refresh_group(storage, "", zarr_format, changed):
        _refresh_above(storage, zarr_format, changed)


def _refresh_above(storage: Storage, zarr_format: Literal[2, 3], changed: list[str]) -> None:
    for group, path in _groups_above(storage):
        if not _refresh_group(group, path, zarr_format, changed):
            return


def _refresh_group(
    group: Storage, path: str, zarr_format: Literal[2, 3], changed: list[str]
) -> bool:
    """Bring the copies in one group up to date; return whether there is such a group.

    Args:
        group: Where it may be.
        path: The path from there to the group that was written.
        zarr_format: Its format.
        changed: Paths below that.
    """
    name = "zarr.json" if zarr_format == 3 else ".zmetadata"
    if zarr_format == 2 and group.read(".zgroup") is None:
        return False
    try:
        document = group.read_json(name)
    except LocationError:
        return False  # of another program, which may lie above whatever it likes
    if document is None:  # a group of Zarr v2 without a copy may lie in one that has a copy
        return zarr_format == 2
    if (copied := _copies(document, zarr_format)) is not None:
        before = dict(copied)
        paths = [path, *(f"{path}/{below}".strip("/") for below in changed)]
        _refresh(copied, group, paths, zarr_format)
        if copied != before:
            group.write_json(name, document)
    return True


def _copies(document: dict[str, Any], zarr_format: Literal[2, 3]) -> dict[str, Any] | None:
    """Return the copies of metadata that a document holds, if they are any."""
    holder = document.get("consolidated_metadata") if zarr_format == 3 else document
    copies = holder.get("metadata") if isinstance(holder, dict) else None
    return copies if isinstance(copies, dict) else None


def _groups_above(storage: Storage) -> Iterator[tuple[Storage, str]]:
    """Yield the locations above as far as there may be groups, and our path from each."""
    location, path = storage.location, ""
    while True:
        parent, name = split(location)
        # The bucket or host is the last place that can be a group.
        if not name or parent == location or (is_url(location) and parent.count("/") < 2):
            return
        location, path = parent, f"{name}/{path}".rstrip("/")
        yield open_storage(location), path


def _refresh(
    metadata: dict[str, Any], storage: Storage, paths: list[str], zarr_format: Literal[2, 3]
) -> None:
    for path in paths:
        if zarr_format == 3 and not path:
            continue  # a group of Zarr v3 holds no copy of itself
        for name in _NODE_KEYS[zarr_format]:
            place = f"{path}/{name}" if path else name
            content = storage.read(place)
            key = path if zarr_format == 3 else place
            if content is None:
                metadata.pop(key, None)
            else:
                metadata[key] = json.loads(content)
