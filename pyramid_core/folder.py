"""Files: read, named and listed such that nothing is left out in silence.

A folder, a pipe or a link to nothing in the place of a chunk is told of: who left it out would
take the chunk for background. Files that are still being written are no objects.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pyramid_core.errors import PlaceError
from pyramid_core.jsons import MOST_BYTES

_TEMPORARY = re.compile(r"#\d+$")
"""Names that obstore gives to files that are not whole yet."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_NO_LINK = "a link that leads nowhere"


_AT_ONCE = 2**14
"""Files of one folder that are told of at once: a flat grid may have a billion in one."""

File = tuple[str, int, str | int]
"""Name, bytes, and time of the last change in ns, or the etag."""


class StoredObject(NamedTuple):
    """One object of a listing, of a folder or of another store."""

    key: str
    """Key below the location."""
    size: int
    """Bytes."""
    mark: str
    """Time of the last change, or the etag: what differs when the content was replaced."""


class Listed(NamedTuple):
    """What lies in one folder, or objects of another store whose keys begin alike."""

    folder: str
    """How the keys begin: up to a slash and with it, or empty."""
    files: Sequence[File]
    """The files, or objects, in no order."""
    odd: list[tuple[str, str]]
    """Key and kind of what is no object: a pipe, a link that leads nowhere, an empty folder."""
    is_whole: bool
    """Whether these are all that lie in the folder, not one of several parts."""

    def objects(self) -> Iterator[StoredObject]:
        """Yield the objects by themselves."""
        for name, size, mark in self.files:
            yield StoredObject(self.folder + name, size, str(mark))


def kind(path: Path) -> str:
    """Say what lies at a path; nothing where nothing does.

    >>> kind(Path("/dev/null")), kind(Path("/")), kind(Path("/nothing"))
    ('a device', 'a folder', '')
    """
    try:
        return _KINDS[stat.S_IFMT(path.stat().st_mode)]
    except FileNotFoundError:
        return _NO_LINK if path.is_symlink() else ""
    except NotADirectoryError:
        return ""
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return _NO_LINK if path.is_symlink() else ""


def oddity(path: Path) -> str:
    """Say what lies at a path, where it is neither file nor folder nor nothing."""
    found = kind(path)
    return "" if found in ("a file", "a folder") else found


def read(path: Path) -> bytes:
    """Return metadata, cut where it is too long; nobody waits for what a pipe might say.

    Raises:
        PlaceError: If it is a pipe, a socket or a device.
    """
    if odd := oddity(path):
        msg = f"{path} is {odd}, not a file; remove it"
        raise PlaceError(msg)
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def read_member(archive: Path, name: str) -> bytes:
    """Return what a member of a zip file holds.

    Raises:
        KeyError: If there is none of that name.
        PlaceError: If it cannot be read.
    """
    try:
        with zipfile.ZipFile(archive) as file, file.open(name) as member:
            return member.read(MOST_BYTES + 1)
    except (RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        msg = f"{archive}: {name} cannot be read: {error}"
        raise PlaceError(msg) from error


def names(folder: Path) -> list[str]:
    """Return the names of all that lies in a folder, sorted."""
    try:
        return sorted(p.name for p in folder.iterdir() if not _TEMPORARY.search(p.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def listing(root: Path, prefix: str) -> Iterator[Listed]:
    """Yield all that lies below a folder, folder by folder; of folders in it, those that are empty.

    Raises:
        OSError: If a folder cannot be listed.
    """
    found = kind(root / prefix)
    if found == "a folder":
        yield from _below(str(root / prefix), f"{prefix}/" if prefix else "")
    elif found:
        yield _odd(prefix, found)


def _below(root: str, prefix: str) -> Iterator[Listed]:
    pending = [(root, prefix)]
    while pending:
        folder, start = pending.pop()
        # Opened, so that the system walks the path to it once, not again for each file.
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(place) as entries:
                yield from _told(folder, start, entries, pending)
        except OSError as error:
            error.filename = _named(folder, error.filename)
            raise
        finally:
            os.close(place)


def _told(
    folder: str, start: str, entries: Iterable[os.DirEntry[str]], pending: list[tuple[str, str]]
) -> Iterator[Listed]:
    """Yield what lies in one folder; folders in it are left pending."""
    files, is_whole, is_empty = list[File](), True, True
    for entry in entries:
        is_empty, name = False, entry.name
        try:
            status = None if entry.is_dir() else entry.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            # What is no link was deleted meanwhile, or has got its final name.
            if entry.is_symlink():
                yield _odd(start + name, _NO_LINK)
            continue
        if status is None:
            if entry.is_symlink():
                _refuse_cycle(f"{folder}/{name}")
            pending.append((f"{folder}/{name}", f"{start}{name}/"))
        elif "#" in name and _TEMPORARY.search(name):
            continue
        elif stat.S_ISREG(mode := status.st_mode):
            files.append((name, status.st_size, status.st_mtime_ns))
            if len(files) == _AT_ONCE:
                yield Listed(start, files, [], is_whole=False)
                files, is_whole = [], False
        else:
            yield _odd(start + name, _KINDS[stat.S_IFMT(mode)])
    if is_empty:
        yield _odd(start.rstrip("/"), "a folder")
    if files:
        yield Listed(start, files, [], is_whole=is_whole)


def _odd(key: str, found: str) -> Listed:
    return Listed("", [], [(key, found)], is_whole=False)


def in_folders(objects: Iterable[StoredObject]) -> Iterator[Listed]:
    """Yield objects in parts whose keys begin alike; where a folder ends, no store tells."""
    for start, some in itertools.groupby(objects, lambda item: item.key[: item.key.rfind("/") + 1]):
        while files := [
            (item.key.removeprefix(start), item.size, item.mark)
            for item in itertools.islice(some, _AT_ONCE)
        ]:
            yield Listed(start, files, [], is_whole=False)


def number_of(told: str) -> int:
    """Return a number for what a listing tells; those of all are added up."""
    # Names of files that are no UTF-8 have stand-ins in them.
    return int.from_bytes(hashlib.sha256(told.encode(errors="surrogateescape")).digest())


def digest_of(total: int) -> str:
    """Return the digest that the sum of the numbers of all objects gives, in whatever order."""
    return f"{total % 2**256:064x}"


def _named(folder: str, name: object) -> str:
    """Return the path that an error names: of a folder a number, of a file in it only the name."""
    if not isinstance(name, str):
        return folder
    return name if "/" in name else f"{folder}/{name}"


def _refuse_cycle(link: str) -> None:
    """Refuse a link to a folder above it: its listing would have no end."""
    place = os.path.realpath(os.path.dirname(link))  # noqa: PTH120 - os.scandir gives strings
    if f"{place}/".startswith(f"{os.path.realpath(link).rstrip('/')}/"):
        msg = "the link leads to a folder that it lies in"
        raise OSError(errno.ELOOP, msg, str(Path(link).parent))
