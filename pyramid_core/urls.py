"""URLs hold no secrets: requests and plans are stored, and locations are printed."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pyramid_core.errors import AccessError, LocationError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ANY_URL = re.compile(URL.pattern + r"[^\s\"'<>]+")


def without_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment.

    >>> without_secrets("https://me:secret@host/x.zarr?signature=1")
    'https://host/x.zarr'
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket where none may be
        return f"{url.partition('://')[0]}://..."
    host = parts.netloc.replace("%40", "@").rpartition("@")[2]
    # Clients take what follows many slashes for the host, with its password.
    path = parts.path if host else parts.path.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, path, "", ""))


def hidden(text: str) -> str:
    """Return a text with the secrets of all URLs in it left out."""
    return _ANY_URL.sub(lambda url: without_secrets(url[0]), text)


def refuse_secrets(location: str) -> str:
    """Return a location; a URL that may hold a secret is refused, and not repeated.

    Raises:
        LocationError: If it has a user, a password, a query or a fragment, or no host.
    """
    url = location.strip()
    if not URL.match(url) or url.lower().startswith("file://"):
        return location
    place = without_secrets(url)
    try:
        parts = urlsplit(url)
        found = "@" in unquote(parts.netloc) or "?" in url or "#" in url
        lacks = not parts.netloc
    except ValueError:
        found, lacks = False, True
    if found:
        msg = (
            f"{place}: a URL with a user, a password, a query or a fragment is refused, since it "
            f"would be stored and seen; credentials belong into the variables of the store "
            f"(AWS_*, GOOGLE_*, AZURE_*), those of a web server into ~/.netrc"
        )
        raise LocationError(msg)
    if lacks:
        msg = f"{place} is no URL: a bucket or host follows two slashes"
        raise LocationError(msg)
    return location


def authorization(location: str) -> dict[str, str]:
    """Return the header with which a web server knows us, if ``~/.netrc`` names its host.

    Its ``default`` is left out: it would tell every host a password.

    Raises:
        AccessError: If the file cannot be read.
    """
    file = Path(os.path.expanduser(os.environ.get("NETRC") or "~/.netrc"))  # noqa: PTH111 - no home is no error
    try:
        hosts = netrc(file).hosts if file.is_file() else {}
    except (OSError, ValueError):
        msg = f"{file}: cannot be read"
    except NetrcParseError as error:
        msg = f"{file}: line {error.lineno} is not as netrc has it"  # its text may hold a password
    else:
        known = hosts.get(urlsplit(location).hostname or "")
        words = "" if known is None else f"{known[0]}:{known[2]}"
        return {"authorization": f"Basic {b64encode(words.encode()).decode()}"} if words else {}
    raise AccessError(msg)
