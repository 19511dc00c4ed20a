"""JSON of metadata, read within bounds: a document may lie about itself."""

from __future__ import annotations

import json
from typing import Any

MOST_BYTES = 2**25
"""Bytes of a document: a consolidated one of 20,000 arrays has half of that. Decoded, it may take
thirty times as much."""

_DEEPEST = 100
"""Levels of nesting, of which OME-Zarr needs a dozen; Python copies and writes some 300."""


def json_object(content: bytes) -> dict[str, Any]:
    """Return a JSON object that other programs can read too.

    Raises:
        ValueError: If it is none, too large, or nested so deeply that nobody may walk through it;
            says what it is instead.
    """
    if len(content) > MOST_BYTES:
        msg = f"not JSON of metadata: it has more than {MOST_BYTES:,} bytes"
        raise ValueError(msg)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        msg = f"not JSON ({str(error)[:200]})"
        raise ValueError(msg) from error
    if not isinstance(document, dict):
        msg = "not a JSON object"
        raise ValueError(msg)
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        inner = (v for item in level for v in (item.values() if isinstance(item, dict) else item))
        level = [v for v in inner if isinstance(v, (dict, list))]
        if not level:
            return document
    msg = f"not JSON that others read: it is nested more than {_DEEPEST} levels deep"
    raise ValueError(msg)
