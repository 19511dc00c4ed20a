"""Every error that we raise, as a tree.

    PyramidError
    ├── RequestError        what was asked is wrong; nothing was written (exit status 2)
    │   ├── LocationError   the location holds nothing, or something else
    │   ├── PlanError       the image and the parameters do not fit each other
    │   │   └── MemoryLimitError
    │   ├── TargetError     the target is taken by something that we must not touch
    │   │   └── TargetBusyError
    │   └── ClusterError    the Dask scheduler cannot be reached
    ├── SourceError         the source cannot be read as its metadata promises (exit status 1)
    ├── BuildError          a block failed (exit status 1)
    ├── DefectError         the gate found the pyramid to be wrong (exit status 1)
    └── StoppedError        the build was told to stop

Each is also the builtin that a caller would expect, so nobody needs to import ours to catch it.
"""

from __future__ import annotations

import errno

_PASSING = frozenset({errno.EIO, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE})
"""What a file system says that may well work a moment later; a full disk is not among them."""


class PyramidError(Exception):
    """Base of all errors of this package."""


class RequestError(PyramidError, ValueError):
    """What was asked cannot be done; nothing was written."""


class LocationError(RequestError):
    """A location holds nothing, or something other than what was asked for."""


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


class BuildError(PyramidError, RuntimeError):
    """A block could not be built; names level, region and cause."""


class DefectError(PyramidError, RuntimeError):
    """The gate before the commit found the pyramid to be wrong."""


class StoppedError(PyramidError):
    """The build was told to stop; what is finished stays."""


def is_transient(error: BaseException | None) -> bool:
    """Return whether the same may work a moment later: a store or a worker failed, not the image.

    >>> is_transient(ConnectionResetError()), is_transient(ValueError("corrupt chunk"))
    (True, False)
    """
    while error is not None:
        # By name, because neither library need be imported for an error of it to be asked about.
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, (SourceError, ConnectionError, TimeoutError)):
            return True
        if library in ("obstore", "distributed"):
            return True
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__
    return False
