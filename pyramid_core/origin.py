"""What a source looks like at a moment, and in which words two such looks differ.

The record of a build keeps how its source looked when it began, so that no image is mixed of two.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from pyramid_core import remote
from pyramid_core.folder import digest_of, number_of
from pyramid_core.grid import Grid
from pyramid_core.image import ImageInfo
from pyramid_core.presence import METADATA, Presence
from pyramid_core.stores import Storage, join, open_storage, same_place, shown

_WITHOUT = ("attributes", "dimension_names")
"""What of an array's metadata leaves its voxels as they are; a commit in place adds the names."""


class Look(NamedTuple):
    """How a source looks at a moment."""

    told: dict[str, Any]
    """What ``look_at`` returns."""
    presence: Presence | None
    """What is stored of it; None if it cannot be listed."""


def look_at(source: ImageInfo) -> dict[str, Any]:
    """Return how a source looks now, as JSON can say it; an equal look is the same source.

    Of each stored object that is key, size, and time or etag, in one digest. A source that cannot
    be listed is known by its place, and by what the server tells of its metadata, its first and its
    last chunk.
    """
    return look_and_list(source).told


def look_and_list(source: ImageInfo) -> Look:
    """Return how a source looks, and what is stored of it by the same listing."""
    storage = open_storage(source.location)
    look: dict[str, Any] = {"metadata": _metadata(storage, source.path)}
    if not storage.listable:
        return Look({**look, **_told_by_server(storage, source)}, None)
    objects = size = total = 0
    presence = _presence(storage, source)
    for listed in presence.noted():
        files = sorted([file for file in listed.files if file[0] not in METADATA])
        objects, size = objects + len(files), size + sum([file[1] for file in files])
        told = [f"{name}\0{size_of}\0{mark}" for name, size_of, mark in files]
        # Those of a whole folder are told in one piece; parts may be cut elsewhere the next time.
        if told and listed.is_whole:
            told = ["\0".join(told)]
        total += sum([number_of(f"{listed.folder}\0{piece}") for piece in told])
    look |= {"objects": objects, "bytes": size, "digest": digest_of(total)}
    return Look(look, presence)


def changes_between(before: Any, now: dict[str, Any]) -> str:
    """Say what has changed between two looks at a source; nothing where none has.

    >>> changes_between({"objects": 8, "bytes": 90}, {"objects": 7, "bytes": 80})
    'it has 7 stored objects, not 8; of 80 bytes, not 90'
    """
    if before == now:
        return ""
    if not isinstance(before, dict) or before.keys() != now.keys():
        return "it was recorded in another way"
    words = {
        "metadata": "the metadata of its array differs",
        "objects": "it has {:,} stored objects, not {:,}",
        "bytes": "of {:,} bytes, not {:,}",
        "place": "it lies at another place",
        "marks": "the server tells of another version",
        "digest": "an object was written again",
    }
    named = [words[key].format(now[key], before[key]) for key in words
             if before.get(key) != now.get(key)]  # fmt: skip
    # A digest differs with everything else; it is told of where nothing else is.
    return "; ".join(named[:-1] if len(named) > 1 and named[-1] == words["digest"] else named)


def _metadata(storage: Storage, path: str) -> str:
    at = f"{path}/" if path else ""
    document = storage.read_json(f"{at}zarr.json") or storage.read_json(f"{at}.zarray") or {}
    kept = {key: value for key, value in document.items() if key not in _WITHOUT}
    return _hash(json.dumps(kept, sort_keys=True))


def _told_by_server(storage: Storage, source: ImageInfo) -> dict[str, str]:
    units, presence = Grid(source.shape, source.write_unit), _presence(storage, source)
    at = f"{source.path}/" if source.path else ""
    keys = [at + name for name in sorted(METADATA - {".zattrs"})]
    keys += [presence.key(units.index(number)) for number in (0, units.size - 1)]
    marks = " ".join(_mark(storage, key) for key in keys)
    place = same_place(join(source.location, source.path))
    return {"place": _hash(place), "marks": _hash(marks)}


def _presence(storage: Storage, source: ImageInfo) -> Presence:
    units = Grid(source.shape, source.write_unit)
    return Presence(storage, source.path, units, source.key_prefix, source.separator)


def _mark(storage: Storage, key: str) -> str:
    """Return what the answer to a read tells before its content; asked like a read, which works."""
    found = remote.get(storage._store, key, shown(storage.location))
    if found is None:
        return ""
    meta = found.meta
    return f"{meta['size']} {meta['e_tag'] or meta['last_modified'].isoformat()}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
