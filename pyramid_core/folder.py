"""Files: read, named and listed such that nothing is left out in silence.

A folder, a pipe or a link to nothing in the place of a chunk is told of: who left it out would
take the chunk for background. Files that are still being written are no objects.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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


class StoredObject(NamedTuple):
    """One object of a listing, of a folder or of another store."""

    key: str
    """Key below the location."""
    size: int
    """Bytes."""
    mark: str
    """Time of the last change, or the etag: what differs when the content was replaced."""
    odd: str = ""
    """What it is where it is no object, but a folder, a pipe, a link that leads nowhere."""


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


def listing(root: Path, prefix: str) -> Iterator[StoredObject]:
    """Yield all that lies below a folder, whatever it is; of folders, those that are empty.

    Raises:
        OSError: If a folder cannot be listed.
    """
    found = kind(root / prefix)
    if found == "a folder":
        yield from _below(str(root / prefix), f"{prefix}/" if prefix else "")
    elif found:
        yield StoredObject(prefix, 0, "", found)


def _below(root: str, prefix: str) -> Iterator[StoredObject]:
    pending = [(root, prefix)]
    while pending:
        folder, start = pending.pop()
        is_empty = True
        with _opened(folder) as place, os.scandir(place) as entries:
            for entry in entries:
                is_empty = False
                key = start + entry.name
                try:
                    status = None if entry.is_dir() else entry.stat()
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ELOOP):
                        raise
                    # What is no link was deleted meanwhile, or has got its final name.
                    if entry.is_symlink():
                        yield StoredObject(key, 0, "", _NO_LINK)
                    continue
                if status is None:
                    if entry.is_symlink():
                        _refuse_cycle(f"{folder}/{entry.name}")
                    pending.append((f"{folder}/{entry.name}", f"{key}/"))
                elif "#" not in entry.name or not _TEMPORARY.search(entry.name):
                    mode = status.st_mode
                    odd = "" if stat.S_ISREG(mode) else _KINDS[stat.S_IFMT(mode)]
                    yield StoredObject(key, status.st_size, str(status.st_mtime_ns), odd)
        if is_empty:
            yield StoredObject(start.rstrip("/"), 0, "", "a folder")


@contextmanager
def _opened(folder: str) -> Iterator[int]:
    """Open a folder, so that the system walks the path to it once, not again for each file."""
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield place
    except OSError as error:
        name = error.filename  # of a file in it, only that; of itself, a number
        if not isinstance(name, str):
            error.filename = folder
        elif "/" not in name:
            error.filename = f"{folder}/{name}"
        raise
    finally:
        os.close(place)


def _refuse_cycle(link: str) -> None:
    """Refuse a link to a folder above it: its listing would have no end."""
    place = os.path.realpath(os.path.dirname(link))  # noqa: PTH120 - os.scandir gives strings
    if f"{place}/".startswith(f"{os.path.realpath(link).rstrip('/')}/"):
        msg = "the link leads to a folder that it lies in"
        raise OSError(errno.ELOOP, msg, str(Path(link).parent))
