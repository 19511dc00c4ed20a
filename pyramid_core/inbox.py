"""Find every image of an inbox, and say of each what became of it.

An image is a group with a multiscales document, a group with an array ``0``, or an array that lies
in neither. All other folders are looked into, so wells of plates and series of bioformats2raw are
found; what lies inside an image, hidden folders, the outbox and what we build elsewhere are not.

What became of an image is read off the metadata at its target (in place, its own group):

- a record of ours: ``unfinished``;
- a document of ours: ``finished``, or ``changed`` if an object of the source is strictly newer than
  it. Strictly, since a build in place may complete the metadata of the base just before it writes
  the document. A source that was replaced by older objects, or by others of the same tick of the
  store (a second in an object store), counts as unchanged;
- a document of others: ``foreign``; but in place, one that names a single level is a base: ``new``;
- nothing: ``new``.

What cannot be built as asked, or cannot be looked at, is ``refused`` and says why.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple

from pyramid_core.changes import DatedStorage, folders, open_dated, reason_of
from pyramid_core.errors import LocationError
from pyramid_core.ngff import Multiscales, parse_multiscales
from pyramid_core.reader import Node, read_node
from pyramid_core.record import record_of
from pyramid_core.stores import (
    Storage,
    absolute,
    is_url,
    join,
    open_storage,
    same_place,
    shown,
    split,
)

_AT_ONCE = 32
"""Folders that are looked at together; an object store answers in tens of milliseconds."""

State = Literal["new", "unfinished", "changed", "finished", "foreign", "refused"]
"""What became of an image."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image of an inbox, or a place in it that could not be looked at."""

    source: str
    """Its location."""
    target: str | None
    """Location of its pyramid; None for in place, and where it is refused."""
    state: State
    """What became of it."""
    note: str
    """Why, in a few words."""


class _Place(NamedTuple):
    """A folder to look at."""

    path: str
    """Path below the inbox."""
    real: str
    """Where it is, links resolved."""
    in_group: bool = False
    """Whether the folder that holds it is a group."""


class _Look(NamedTuple):
    """What was seen at a place."""

    place: _Place
    """The place."""
    found: Found | None = None
    """What is told of it."""
    below: tuple[_Place, ...] = ()
    """Where to look next."""
    is_array: bool = False
    """Whether it is an array."""


class _Source(NamedTuple):
    """What a pyramid is built from."""

    path: str
    """Path of the image: a group, or an array."""
    base: str
    """Path of its base array."""
    keys: tuple[str, ...]
    """Keys of its metadata, that of the array first."""


def find_images(
    inbox: str, outbox: str | None = None, *, compare_objects: bool = False
) -> list[Found]:
    """Return what became of every image below a location, sorted by source; writes nothing.

    Only metadata is read: of an image that is finished a few objects, and only two where it was
    built in place as Zarr v3.

    Args:
        inbox: A folder, or a URL that can be listed.
        outbox: Where the pyramids go, each at the path that its image has in the inbox; None for
            in place.
        compare_objects: Compare the times of all objects of a base with that of its pyramid, not
            only of its metadata.

    Raises:
        LocationError: If the inbox is not there, or cannot be listed.
    """
    inside = open_dated(absolute(inbox))
    outside = None if outbox is None else open_storage(absolute(outbox))
    root = _Place("", same_place(inside.location))
    seen = {root.real}
    if outside is not None:
        if same_place(outside.location) in seen:
            msg = f"{shown(inside.location)} is inbox and outbox; to build in place, give no outbox"
            raise LocationError(msg)
        seen.add(same_place(outside.location))
    walk = _Walk(inside, outside, compare_objects)
    found: list[Found] = []
    places = [root]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while places:
            looks = list(pool.map(walk.look, places))
            found += (
                _refuse_crowds(looks) if outside is None else [x.found for x in looks if x.found]
            )
            places = []
            for place in (below for look in looks for below in look.below):
                if place.real not in seen:  # links may lead to one place twice, or in circles
                    seen.add(place.real)
                    places.append(place)
    return sorted(found, key=lambda image: image.source)


def _refuse_crowds(looks: list[_Look]) -> list[Found]:
    """Refuse arrays in place that share a group: their levels would have the same names."""
    arrays = Counter(_group_of(look) for look in looks if look.is_array)
    note = "several arrays in one group cannot be built in place; give an outbox"
    return [
        replace(look.found, state="refused", note=note)
        if look.is_array and look.place.in_group and arrays[_group_of(look)] > 1
        else look.found
        for look in looks
        if look.found is not None
    ]


def _group_of(look: _Look) -> str:
    return look.place.path.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class _Walk:
    """One look through an inbox."""

    inside: Storage
    """The inbox."""
    outside: Storage | None
    """The outbox; None for in place."""
    compare_objects: bool
    """Whether the times of all objects of a base count."""

    def look(self, place: _Place) -> _Look:
        """Look at a place; what goes wrong there is told of it, and the walk goes on."""
        try:
            return self._look(place)
        except Exception as error:
            if not place.path and not isinstance(error, LocationError):
                inbox = shown(self.inside.location)
                reason = reason_of(error).removeprefix(f"{inbox}: ")
                msg = f"{inbox} cannot be looked through: {reason}"
                raise LocationError(msg) from error
            return _Look(place, self._refused(place.path, reason_of(error)))

    def _refused(self, path: str, note: str) -> Found:
        place = shown(self.inside.location)
        note = note.removeprefix(f"{place}: ").removeprefix(f"{place}/")
        return Found(join(self.inside.location, path), None, "refused", note)

    def _look(self, place: _Place) -> _Look:
        storage = DatedStorage(self.inside.location, self.inside.objects)
        node = read_node(storage, place.path)
        if node is None:
            return _Look(place, below=self._below(place))
        if node.kind == "array":
            return _Look(place, self._array(storage, place, node), is_array=True)
        record, multiscales = _record(node), parse_multiscales(node.attributes)
        if record is not None and not record.get("in_place"):
            return _Look(place)  # what is being built here has its source elsewhere
        if multiscales is not None:
            base = multiscales.datasets[0].path
        elif record is not None:
            base = record["plan"]["paths"][0]
        else:
            below, base = self._below(place, in_group=True), "0"
            zero = _key(place.path, base)
            first = read_node(storage, zero) if any(b.path == zero for b in below) else None
            if first is None or first.kind != "array":
                return _Look(place, below=below)
        array = _key(place.path, base)
        # In place, the last of them holds the document itself, which is never newer than it is.
        keys = (*_array_keys(node, array), _attributes_key(node, place.path))
        # A base that no document names is found from its group only if it is called 0.
        path = place.path if multiscales is not None or base == "0" else array
        source = _Source(path, array, keys)
        return _Look(place, self._found(storage, source, place.path, node, multiscales))

    def _below(self, place: _Place, *, in_group: bool = False) -> tuple[_Place, ...]:
        found = []
        for name, is_link in folders(self.inside, place.path):
            path = _key(place.path, name)
            real = (
                same_place(join(self.inside.location, path)) if is_link else join(place.real, name)
            )
            found.append(_Place(path, real, in_group))
        return tuple(found)

    def _array(self, storage: DatedStorage, place: _Place, node: Node) -> Found:
        """Say what became of an array that no image holds."""
        if self.outside is None and not place.in_group:
            note = "an array that lies in no group cannot be built in place; give an outbox"
            return self._refused(place.path, note)
        source = _Source(place.path, place.path, _array_keys(node, place.path))
        # The group around it has neither record nor document, or it would be the image.
        return self._found(storage, source, "", None, None)

    def _found(
        self,
        storage: DatedStorage,
        source: _Source,
        path: str,
        node: Node | None,
        multiscales: Multiscales | None,
    ) -> Found:
        """Say what became of an image; *path*, *node* and *multiscales* are those of its group."""
        if set(source.path) & set("?#%") and (
            is_url(self.inside.location) or (self.outside and is_url(self.outside.location))
        ):
            return self._refused(source.path, "its name holds ?, # or %, which a URL cannot")
        location, target, there = join(self.inside.location, source.path), None, storage
        if self.outside is not None:
            path = source.path or split(self.inside.location)[1]
            target = join(self.outside.location, path)
            there = DatedStorage(self.outside.location, self.outside.objects)
            node = read_node(there, path)
            multiscales = parse_multiscales(node.attributes) if node is not None else None
        if node is not None and _record(node) is not None:
            return Found(location, target, "unfinished", "its build was begun")
        if node is None or multiscales is None:
            return Found(location, target, "new", "no pyramid yet")
        count = len(multiscales.datasets)
        levels = "1 level" if count == 1 else f"{count} levels"
        if multiscales.identity is not None:
            newer = self._newer(storage, source, there.times[_attributes_key(node, path)])
            if newer:
                return Found(location, target, "changed", f"{newer} is newer than its pyramid")
            return Found(location, target, "finished", levels)
        if target is None and count == 1:
            return Found(location, target, "new", "no pyramid yet")
        return Found(location, target, "foreign", f"{levels} by another program")

    def _newer(self, storage: DatedStorage, source: _Source, since: datetime) -> str:
        """Return an object of a source that was written after a moment, or nothing."""
        if storage.written(source.keys[0]) is None:
            msg = f"there is no array at {source.base}, which its document names"
            raise LocationError(msg)
        for key in source.keys:
            if (storage.written(key) or since) > since:
                return key
        if not self.compare_objects:
            return ""
        newer = open_dated(join(self.inside.location, source.base)).newer(since)
        return _key(source.base, newer) if newer else ""


def _record(node: Node) -> dict[str, Any] | None:
    """Return the record of a build that is not finished, if there is one."""
    return record_of(node.attributes, "it")


def _key(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _array_keys(node: Node, path: str) -> tuple[str, ...]:
    """Return the keys of an array's metadata, in the format of a node."""
    names = ("zarr.json",) if node.zarr_format == 3 else (".zarray", ".zattrs")
    return tuple(_key(path, name) for name in names)


def _attributes_key(node: Node, path: str) -> str:
    return _key(path, "zarr.json" if node.zarr_format == 3 else ".zattrs")
