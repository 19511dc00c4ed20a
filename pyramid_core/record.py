"""The record of a build that is not finished, checked: anybody may have written it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pyramid_core.errors import LocationError
from pyramid_core.ngff import RECORD, is_inside


def record_of(attributes: dict[str, Any], place: str) -> dict[str, Any] | None:
    """Return the record in a group's attributes, or None where there is none.

    Args:
        attributes: The attributes.
        place: Where they are, for the error.

    Raises:
        LocationError: If it is none that we would have written.
    """
    if RECORD not in attributes:
        return None
    record: Any = attributes[RECORD]
    if not _is_ours(record):
        msg = f"{place} has an attribute {RECORD!r} that is no record of ours; remove it"
        raise LocationError(msg)
    found: dict[str, Any] = record
    return found


def digest_of_record(attributes: dict[str, Any]) -> str:
    """Return a digest of the record in a group's attributes; empty where there is none."""
    if RECORD not in attributes:
        return ""
    text = json.dumps(attributes[RECORD], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_ours(record: Any) -> bool:
    """Return whether a record is as we write it, so far as anything is done with what it says."""
    if not isinstance(record, dict) or record.get("state") not in ("building", "clearing"):
        return False
    plan, source = record.get("plan"), record.get("source")
    if not isinstance(plan, dict) or not isinstance(record.get("phantom", {}), dict):
        return False
    source = source if isinstance(source, dict) else {}
    counts = [source.get(key, 0) for key in ("objects", "bytes")]
    named = (plan.get("paths"), plan.get("given", []), record.get("delete", []))
    return (
        all(map(_are_levels, named))
        and plan["paths"] != []
        and all(isinstance(count, int) for count in counts)
    )


def _are_levels(paths: Any) -> bool:
    """Return whether these are paths of levels, none of which leads out of the image."""
    return isinstance(paths, list) and all(isinstance(p, str) and is_inside(p) for p in paths)
