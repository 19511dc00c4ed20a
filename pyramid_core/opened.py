"""Arrays of a job, opened once by each process, and read such that nothing is taken for granted."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pyramid_core.arrays import open_array, with_padding
from pyramid_core.direct import DirectArray, direct
from pyramid_core.grid import Region
from pyramid_core.remote import asked
from pyramid_core.stores import Storage, is_url, open_storage, shown
from pyramid_core.swollen import refuse_swollen

if TYPE_CHECKING:
    import zarr

Array = np.ndarray[Any, Any]


def opened(token: str, location: str, path: str, *, padded: bool) -> zarr.Array[Any] | DirectArray:
    """Return an array, the same one for the same token; *padded* to whole units to be written."""
    with _opening(path):
        return _open(token, location, path, padded=padded)


def open_ahead(token: str, place: tuple[str, str], *, padded: bool = False) -> None:
    """Open an array before blocks ask for it.

    What goes wrong is left to the blocks, which open it again and say where it was met.
    """
    with suppress(Exception):
        opened(token, *place, padded=padded)


def read(token: str, place: tuple[str, str], region: Region) -> Array:
    """Return the voxels of a region of the array at a place: location and path."""
    array = opened(token, *place, padded=False)
    if not isinstance(array, DirectArray):  # which looks itself
        refuse_swollen(array, region)
    return asked(shown(place[0]), lambda: np.asarray(array[region]))


def read_surely(token: str, place: tuple[str, str], region: Region) -> Array:
    """Return the voxels of a region; of an object store not by zarrs, which may miss a chunk."""
    if not is_url(place[0]):
        return read(token, place, region)
    with _opening(place[1]):
        array = _open_surely(token, *place)
    return asked(shown(place[0]), lambda: np.asarray(array[region]))


@lru_cache(maxsize=32)
def storage_of(token: str, location: str) -> Storage:  # noqa: ARG001 - the token keeps jobs apart
    """Return a location, the same one for the same token."""
    return open_storage(location)


@lru_cache(maxsize=32)
def _open(
    token: str,  # noqa: ARG001 - keeps jobs apart
    location: str,
    path: str,
    *,
    padded: bool,
) -> zarr.Array[Any] | DirectArray:
    array = open_array(open_storage(location), path, writable=padded)
    return direct(with_padding(array) if padded else array)


@lru_cache(maxsize=32)
def _open_surely(token: str, location: str, path: str) -> zarr.Array[Any]:  # noqa: ARG001 - the token keeps jobs apart
    return open_array(open_storage(location), path, surely=True)


def _opening(path: str) -> threading.RLock:
    """Return a lock, by which threads that begin together open an array once."""
    return _locks[hash(path) % len(_locks)]


_locks = [threading.RLock() for _ in range(8)]
"""So different arrays are opened side by side."""
