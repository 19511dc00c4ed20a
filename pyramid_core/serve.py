"""The objects of one image over HTTP, wherever they lie: what a browser's viewer reads.

Any part of an object can be asked for, since chunks of a shard are. Nothing that lies beside the
image is served, and nothing without the token in the path.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from obstore.exceptions import BaseError
from tornado.web import RequestHandler
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import StorePath

from pyramid_core.errors import printable
from pyramid_core.image import ImageInfo
from pyramid_core.ngff import is_inside
from pyramid_core.remote import told
from pyramid_core.stores import Storage, is_url, join, local_path, shown

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class ServedImage:
    """The objects of one image."""

    root: StorePath
    """Where they are read."""
    place: str
    """The same, as it may be printed."""
    folders: tuple[str, ...] | None
    """What files have to lie in, links resolved; None where there are no files."""

    def holds(self, key: str) -> bool:
        """Return whether a key is a name below the image, and leads to no file elsewhere.

        A level may be a link: its array is then part of the image, and nothing else over there.
        """
        if not is_inside(key):
            return False
        if self.folders is None:
            return True
        file = Path(os.path.realpath(Path(self.folders[0], key)))
        return file.is_file() and any(file.is_relative_to(folder) for folder in self.folders)

    async def size(self, key: str) -> int | None:
        """Return the bytes of an object; None where there is none."""
        path = self.root / key
        try:
            return await path.store.getsize(path.path)
        except FileNotFoundError:
            return None
        except BaseError as error:
            failed = told(error, self.place)
        raise failed

    async def read(self, key: str, part: RangeByteRequest | None) -> bytes | None:
        """Return an object or a part of it; None where there is none."""
        found = await (self.root / key).get(default_buffer_prototype(), part)
        return None if found is None else found.to_bytes()


def served_image(storage: Storage, images: Sequence[ImageInfo]) -> ServedImage:
    """Return what is served of an image.

    Args:
        storage: Its location.
        images: What is known of it, and of its label images.
    """
    store: Any = storage.zarr_store()  # a StorePath inside a zip
    root = store if isinstance(store, StorePath) else StorePath(store)
    folders = None
    if not storage.is_zip and not is_url(storage.location):
        levels = [join(image.location, path) for image in images for path in image.levels]
        places = [storage.location, *levels]
        folders = tuple(os.path.realpath(local_path(place)) for place in places)
    return ServedImage(root, shown(storage.location), folders)


class ObjectHandler(RequestHandler):
    """Answers GET and HEAD for the objects of one image."""

    def initialize(self, image: ServedImage) -> None:
        """Take what tornado was told with the route."""
        self.image = image

    def set_default_headers(self) -> None:
        """Let the browser ask each time: an image may be built meanwhile."""
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("Accept-Ranges", "bytes")

    def compute_etag(self) -> None:
        """Give none: chunks are too many to hash, and the viewer keeps them itself."""

    async def head(self, key: str) -> None:
        """Tell the size of an object."""
        size = await self.image.size(key) if self.image.holds(key) else None
        if size is None:
            self.send_error(404)
        else:
            self.set_header("Content-Length", str(size))

    async def get(self, key: str) -> None:
        """Send an object, or the part of it that was asked for."""
        there, part, size = self.image.holds(key), None, None
        if there and (asked := self.request.headers.get("Range")):
            size = await self.image.size(key)
            part = None if size is None else _part(asked, size)
        if part is not None and part.start >= part.end:
            self.send_error(416)
            return
        content = await self.image.read(key, part) if there else None
        if content is None:
            self.send_error(404)
            return
        if part is not None:
            self.set_status(206)
            last = part.start + len(content) - 1
            self.set_header("Content-Range", f"bytes {part.start}-{last}/{size}")
        self.finish(content)

    def log_exception(self, *about: Any) -> None:
        """Say in one line what could not be read, once: a viewer asks again and again."""
        _warn(" ".join(f"{about[0].__name__}: {about[1]}".split()))

    def write_error(self, status_code: int, **_: Any) -> None:
        """Answer with the status alone."""
        self.finish(f"{status_code}\n")


def _part(asked: str, size: int) -> RangeByteRequest | None:
    """Return the part of an object that a Range header asks for; None for all of it.

    >>> _part("bytes=2-3", 10)
    RangeByteRequest(start=2, end=4)
    >>> _part("bytes=-3", 10)
    RangeByteRequest(start=7, end=10)
    """
    found = _RANGE.fullmatch(asked.strip())
    first, last = found.groups() if found else ("", "")
    if first:
        return RangeByteRequest(int(first), min(int(last) + 1, size) if last else size)
    return RangeByteRequest(max(0, size - int(last)), size) if last else None


@lru_cache(maxsize=100)
def _warn(text: str) -> None:
    logging.getLogger(__name__).warning("%s", printable(text))
