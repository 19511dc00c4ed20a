"""What is left of metadata by a writer that was killed, and what of it is ours to delete."""

from __future__ import annotations

import re
from pathlib import Path

from pyramid_core.model import PyramidPlan
from pyramid_core.stores import Storage, is_url, local_path

_TORN = re.compile(r"(zarr(\.json)?|\.zgroup|\.zattrs|\.zmetadata)(#\d+|\.[0-9a-f]{32}\.partial)")
"""Names that obstore and zarr give to metadata that is not whole yet."""


def delete_torn_metadata(plan: PyramidPlan, storage: Storage) -> None:
    """Delete what is half-written of the metadata of an image, or of the base that was given.

    Beside what was given, nothing else is ours to delete; obstore's listing does not show it.
    """
    if is_url(storage.location):
        return
    place = local_path(storage.location)
    given = (place / "labels", place / plan.levels[0].path) if plan.in_place else ()
    for folder in filter(Path.is_dir, (place, *given)):
        for path in folder.iterdir():
            if _TORN.fullmatch(path.name):
                path.unlink()
