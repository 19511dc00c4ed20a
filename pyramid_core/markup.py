"""HTML and SVG as nested calls; what is no markup is escaped, so that it cannot be forgotten."""

from __future__ import annotations

from html import escape

from pyramid_core.errors import printable

_VOID = {"meta", "img"}


class Markup(str):
    """A text that is markup."""

    __slots__ = ()


def markup(*parts: object) -> Markup:
    """Return parts one after another, those that are no markup escaped.

    >>> markup(tag("b", "1 < 2"), " & more")
    '<b>1 &lt; 2</b> &amp; more'
    """
    return Markup("".join(p if isinstance(p, Markup) else escape(printable(p)) for p in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: Its name.
        children: What it holds; what is no markup is escaped.
        attributes: Its attributes; ``_`` becomes ``-``, one at the end is dropped, and those that
            are None are left out.

    Example:
        >>> tag("p", tag("b", "1 < 2"), class_='"')
        '<p class="&quot;"><b>1 &lt; 2</b></p>'
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{markup(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{markup(*children)}</{name}>")
