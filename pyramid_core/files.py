"""Files that are left for a person to look at: never in an image, never over something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pyramid_core.errors import PlaceError, TargetError, system_errors
from pyramid_core.stores import is_url, same_place, shown


def refuse_place(
    path: Path, locations: list[str], kind: str, is_kind: Callable[[bytes], bool]
) -> None:
    """Refuse a file that would lie in an image or in no folder, or replace something else.

    Args:
        path: The file.
        locations: Locations of images, which nothing is added to.
        kind: What the file will be, for the error, like "PNG".
        is_kind: Whether what a file begins with, some 4 kB, makes it one that may be replaced.

    Raises:
        TargetError: If so; nothing was written.
    """
    for location in locations:
        if _lies_in(path, location):
            msg = (
                f"{path} lies in the image {shown(location)}, which nothing is added to; "
                f"name another file"
            )
            raise TargetError(msg)
    with system_errors(TargetError, f"{path} cannot be written"):
        if not path.parent.is_dir():
            msg = f"there is no folder {path.parent} for {path.name}; make it, or name another file"
            raise TargetError(msg)
        if path.exists() and not (path.is_file() and is_kind(_beginning(path))):
            msg = f"{path} is there and is no {kind}, so it is not replaced; name another file"
            raise TargetError(msg)


def _lies_in(path: Path, location: str) -> bool:
    place = f"{same_place(location)}/"
    return not is_url(location) and f"{same_place(str(path))}/".startswith(place)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one piece: whoever looks sees the old one, or the new one.

    Raises:
        PlaceError: If the file system refuses.
    """
    partial = path.with_name(f".{path.name[:200]}.partial")
    with system_errors(PlaceError, f"{path} cannot be written"):
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
