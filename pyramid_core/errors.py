"""Every error that we raise, as a tree.

    PyramidError
    ├── RequestError        what was asked is wrong; nothing was written (exit status 2)
    │   ├── LocationError   the location holds nothing, or something else
    │   ├── AccessError     a store refuses us: credentials, bucket, region or certificate
    │   ├── PlanError       the image and the parameters do not fit each other
    │   │   └── MemoryLimitError
    │   ├── TargetError     the target is taken by something that we must not touch
    │   │   └── TargetBusyError
    │   └── ClusterError    the Dask scheduler cannot be reached
    ├── SourceError         the source cannot be read as its metadata promises (exit status 1)
    ├── StoreError          a store cannot be asked now (exit status 1)
    ├── PlaceError          a file system refuses: full, no permission, ... (exit status 1)
    ├── BuildError          a block failed (exit status 1)
    ├── DefectError         the gate found the pyramid to be wrong (exit status 1)
    └── StoppedError        the build was told to stop

Each is also the builtin that a caller would expect, so nobody needs to import ours to catch it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

_PASSING = frozenset({
    errno.EIO, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.EBUSY,
    errno.ENFILE, errno.ENOLCK,
})  # fmt: skip
"""What a system says that may well work a moment later: a disk that hiccups, a network file system
whose server restarts, a table of the whole machine that is full."""

REMEDIES = {
    errno.ENOSPC: "make room there (space, or files: see df -h and df -i)",
    errno.EDQUOT: "make room in your quota there",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount it to be written, or choose another place",
    errno.EACCES: "look at the permissions there",
    errno.EPERM: "look at the permissions there",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or ask for fewer --workers",
    errno.ENAMETOOLONG: "choose a place with a shorter path",
    errno.ELOOP: "a symbolic link there leads back to itself; remove it",
    errno.ENOTDIR: "a file lies where a folder has to be; move it",
    errno.EISDIR: "a folder lies where a file has to be; move it",
}
"""What a system says that stays until somebody does something, and what."""

_WRAPPED = re.compile(r"\(os error (\d+)\)")
"""How the object-store client, and zarrs after it, tell what a system said."""


def printable(text: object) -> str:
    r"""Return a text as a terminal may have it: names in metadata may hold what moves its cursor.

    >>> printable("scan\x1b[2J of")
    'scan\\x1b[2J of'
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


class PyramidError(Exception):
    """Base of all errors of this package."""


class RequestError(PyramidError, ValueError):
    """What was asked cannot be done; nothing was written."""


class LocationError(RequestError):
    """A location holds nothing, or something other than what was asked for."""


class AccessError(RequestError):
    """A store refuses us: credentials, bucket, region or certificate are wrong, or lack."""


class PlanError(RequestError):
    """The image and the parameters do not fit each other."""


class MemoryLimitError(PlanError):
    """The smallest unit of work does not fit in ``memory_limit``."""


class TargetError(RequestError):
    """The target is taken by something that we must not touch."""


class TargetBusyError(TargetError):
    """Another build works on the same target now."""


class ClusterError(RequestError):
    """The Dask scheduler that was named cannot be reached."""


class SourceError(PyramidError, OSError):
    """The source cannot be read as its metadata promises."""


class StoreError(PyramidError, OSError):
    """A store cannot be asked now, or answers what cannot be; the same may work a moment later."""


class PlaceError(PyramidError, OSError):
    """A file system refuses what a build needs, or holds what it should not."""


GO_ON = ", then run the same again to go on"
"""What to do after the cause is gone, where a build failed underway."""


class BuildError(PyramidError, RuntimeError):
    """A block could not be built; names level, region and cause."""


class DefectError(PyramidError, RuntimeError):
    """The gate before the commit found the pyramid to be wrong."""


class StoppedError(PyramidError):
    """The build was told to stop; what is finished stays."""


def system_number(error: BaseException) -> int | None:
    """Return the number of what a system said, of an OSError or of one that a library wraps.

    >>> system_number(RuntimeError("Unable to open file /a#1: File too large (os error 27)"))
    27
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = None if isinstance(error, PyramidError) else _WRAPPED.search(str(error))
    return int(found[1]) if found else None


def reason_and_remedy(error: BaseException, then: str = "") -> str:
    """Say what a system said, of what, and what to do; nothing of another error.

    >>> reason_and_remedy(OSError(errno.EROFS, "", "/a/b"))
    '/a/b: Read-only file system; mount it to be written, or choose another place'
    """
    number = system_number(error)
    if number is None:
        return ""
    if isinstance(error, OSError) and error.errno is not None:
        at = str(error.filename or "")
    else:
        # "Generic LocalFileSystem error: Unable to open file /a/b#1: No space left on device (..."
        at = str(error).split("\n")[0].rpartition(": ")[0].partition("error: ")[2]
    at = re.sub(r"#\d+$", "", at)
    at = at if len(at) <= 300 else f"{at[:200]}...{at[-60:]}"
    remedy = f"; {REMEDIES[number]}{then}" if number in REMEDIES else ""
    return f"{at}: {os.strerror(number)}{remedy}".removeprefix(": ")


@contextmanager
def system_errors(kind: type[PyramidError], task: str, then: str = "") -> Iterator[None]:
    """Raise what a system says while the block runs as an error of ours, with what to do.

    Args:
        kind: Class of the error that is raised.
        task: What cannot be done, like "a.zarr cannot be written".
        then: What to do after that.
    """
    try:
        yield
    except PlaceError as error:
        raise kind(str(error)) from error
    except Exception as error:
        if isinstance(error, PyramidError) or not (said := reason_and_remedy(error, then)):
            raise
        msg = f"{task}: {said}"
        raise kind(msg) from error


def is_transient(error: BaseException | None) -> bool:
    """Return whether the same may work a moment later: a store or a worker failed, not the image.

    >>> is_transient(ConnectionResetError()), is_transient(ValueError("corrupt chunk"))
    (True, False)
    """
    while error is not None:
        if (number := system_number(error)) in REMEDIES:
            return False
        if number in _PASSING:
            return True
        # By name, because neither library need be imported for an error of it to be asked about.
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, (SourceError, StoreError, ConnectionError, TimeoutError)):
            return True
        if library in ("obstore", "distributed"):
            return True
        error = error.__cause__
    return False


_REFUSED = frozenset({errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.EPERM})
"""What a system says of the process that asks, whatever is stored."""


def tells_of_image(error: BaseException) -> bool:
    """Return whether a read failed because of what is stored, so that to say so is a finding.

    >>> tells_of_image(ValueError("corrupt chunk")), tells_of_image(OSError(errno.EMFILE, ""))
    (True, False)
    """
    refused = isinstance(error, MemoryError) or system_number(error) in _REFUSED
    return not (refused or isinstance(error, PyramidError) or is_transient(error))
