"""Documents that nobody vouches for: a right one with anything at all at a few spots."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

numbers = st.floats() | st.integers() | st.sampled_from([10**400, -(10**400), 0, 5e-324])
texts = st.text(max_size=5) | st.sampled_from(["..", "/", "\0", "scale", "x", "0.4", "\udc80"])
leaves = st.none() | st.booleans() | numbers | texts
json_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value inside a document."""
    found = [path] if path else []
    if isinstance(value, dict):
        items: Any = value.items()
    else:
        items = enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += spots(inner, (*path, key))
    return found


def broken(right: dict[str, Any], changes: list[tuple[int, Any]]) -> dict[str, Any]:
    """Return a right document with something else at a few spots."""
    document = copy.deepcopy(right)
    for number, value in changes:
        ways = spots(document)
        if not ways:
            break
        *way, last = ways[number % len(ways)]
        at: Any = document
        for key in way:
            at = at[key]
        at[last] = copy.deepcopy(value)  # or it would come to hold itself
    return document


changes = st.lists(st.tuples(st.integers(0, 10**6), json_values), min_size=1, max_size=4)
