"""Object stores: how they are asked, how often again, and what is said when they fail.

The client repeats requests that fail. What it leaves is done here: a listing whose body is cut off,
an object that is listed but answered to be missing. Its errors repeat whole URLs, with what is
secret in them, so they never leave this module: ours tell what was asked and what to do.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import obstore
import obstore.store as ob
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from pyramid_core.errors import AccessError, PyramidError, StoreError
from pyramid_core.urls import authorization, hidden, refuse_secrets

if TYPE_CHECKING:
    from obstore import ObjectMeta

Answer = TypeVar("Answer")
Item = TypeVar("Item")

TIMEOUT = "60s"
"""For one request and its answer; a read goes on where it stopped, a write starts anew."""
ATTEMPTS = 15
"""How often the client asks, a minute in all where it is refused at once."""
PATIENCE = 90.0
"""Seconds after which nothing is asked again."""
REQUESTS = 32
"""What one process asks of object stores at the same time: at 20 ms each, 1,600 chunks a second."""
PAUSES = (0.1, 0.3, 1.0, 3.0)
"""Seconds before what the client does not repeat is asked again."""

_CLIENT = ("allow_http", "allow_invalid_certificates", "connect_timeout", "http1_only",
           "http2_only", "pool_idle_timeout", "pool_max_idle_per_host", "proxy_url",
           "proxy_excludes", "read_timeout", "timeout", "user_agent")  # fmt: skip
"""Options of the client that are read from ``AWS_TIMEOUT`` and the like."""

_STORE_SAYS = re.compile(
    r"Generic \w+ error|Error performing|Error joining|HTTP error|Object at location|"
    r"The operation lacked|Request precondition failure|Operation not supported"
)
"""How messages of the client begin, which zarrs passes on as bare text."""
_WRONG = re.compile(r"status code: (401|403|404|400|301|307)\b")
_NO_ROLE = ("169.254.169.254", "/latest/api/token", "/computeMetadata/")
"""Of the places where a machine asks for the credentials of its role."""
_UNTRUSTED = re.compile(r"InvalidCertificate|UnknownIssuer|invalid peer certificate|certificate")


def connect(location: str, *, hasty: bool = False) -> ob.ObjectStore:
    """Return the client of a URL's store; nothing is asked of it yet.

    Args:
        location: The URL. Credentials, region, endpoint and client options come from the standard
            variables, as the README says.
        hasty: Ask only twice, and briefly: for what may as well be left undone.

    Raises:
        AccessError: If there are no credentials.
        LocationError: If no store of this kind can be opened, or the URL may hold a secret.
    """
    refuse_secrets(location)
    if _kind(location) == "http":  # ~/.netrc may change
        return _connect(location, frozenset(), hasty=hasty)
    return _kept(location, frozenset(os.environ.items()), hasty=hasty)


def _connect(
    location: str,
    variables: frozenset[tuple[str, str]],  # noqa: ARG001 - a client is kept as long as they stay
    *,
    hasty: bool,
) -> ob.ObjectStore:
    kind = _kind(location)
    options: dict[str, Any] = {"timeout": TIMEOUT, "connect_timeout": "10s"}
    if location.lower().startswith("http://"):
        options["allow_http"] = True  # it was asked for by name
    if kind == "http":
        options["default_headers"] = authorization(location)
    attempts = os.environ.get("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
    if kind == "gs" and any(map(_PLAIN_GS.search, map(str, map(os.environ.get, _PLACES_GS)))):
        options["allow_http"] = True
    if kind == "s3":
        endpoint = [os.environ.get(f"AWS_{name}", "")
                    for name in ("ENDPOINT", "ENDPOINT_URL", "ENDPOINT_URL_S3")]  # fmt: skip
        if any(url.lower().startswith("http://") for url in endpoint):
            options["allow_http"] = True
        options |= {n: os.environ[f"AWS_{n.upper()}"] for n in _CLIENT
                    if f"AWS_{n.upper()}" in os.environ}  # fmt: skip
    _refuse_without_credentials(location)
    if hasty:
        options["timeout"], attempts = "5s", "2"
    retries = max(0, int(attempts) - 1) if attempts.isdecimal() else ATTEMPTS - 1
    backoff: ob.BackoffConfig = {
        "init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=10), "base": 3,
    }  # fmt: skip
    retry: ob.RetryConfig = {
        "max_retries": retries, "retry_timeout": timedelta(seconds=PATIENCE), "backoff": backoff,
    }  # fmt: skip
    # A client that finds its account in a variable by itself panics when zarr 3.4 prints it.
    names_none = kind in ("az", "azure", "abfs", "abfss", "adl") and "@" not in location
    account = {"account_name": found} if names_none and (found := _account()) else {}
    open_url: Any = ob.from_url  # its overloads do not say that the store is anyone's guess
    store: ob.ObjectStore = open_url(
        location, client_options=options, retry_config=retry, **account
    )
    return store


_YES = ("1", "true", "on", "yes", "y")
"""Words for yes of the client."""


def _account() -> str:
    """Return the account of Azure that the variables name; the emulator has one of its own."""
    emulated = os.environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in _YES
    return os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1" if emulated else "")


_kept = lru_cache(maxsize=32)(_connect)
"""A client keeps its connections, and loads certificates when it is made: 20 ms of one core."""


_CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE",
           "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_BEARER_TOKEN",
           "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_SKIP_SIGNATURE"),
}  # fmt: skip
_WHAT_TO_SET = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles in ~/.aws are not read: "
    'eval "$(aws configure export-credentials --format env)" sets them), '
    "or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "name the file of a service account in GOOGLE_APPLICATION_CREDENTIALS, or call gcloud "
    "auth application-default login, or set GOOGLE_SKIP_SIGNATURE=true to read a public bucket",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "http": "name its host, your login and password in ~/.netrc",
}
_PLACES_GS = ("GOOGLE_BASE_URL", "GOOGLE_SERVICE_ACCOUNT_KEY")
_PLAIN_GS = re.compile(r'(?:^|"gcs_base_url"\s*:\s*")http://', re.IGNORECASE)
_GCLOUD = "~/.config/gcloud/application_default_credentials.json"


def _kind(location: str) -> str:
    scheme = location.partition(":")[0].lower()
    return {"s3a": "s3", "https": "http"}.get(scheme, scheme)


def _what_to_set(place: str) -> str:
    return _WHAT_TO_SET.get(_kind(place), "see which variables the README names")


def _refuse_without_credentials(location: str) -> None:
    """Refuse at once what would ask the address of a machine's role for a minute."""
    kind = _kind(location)
    if any(os.environ.get(name) for name in _CREDENTIALS.get(kind, ())):
        return
    if kind == "s3":
        role = os.environ.get("AWS_METADATA_ENDPOINT", "http://169.254.169.254")
    elif kind == "gs" and not Path(os.path.expanduser(_GCLOUD)).is_file():  # noqa: PTH111 - no home is no error
        role = "http://" + os.environ.get("GCE_METADATA_HOST", "169.254.169.254")
    else:
        return
    if not _has_role(role):
        msg = f"{location}: no credentials were found; {_what_to_set(location)}"
        raise AccessError(msg)


@lru_cache(maxsize=4)
def _has_role(endpoint: str) -> bool:
    """Return whether this machine has a place that hands out the credentials of its role."""
    parts = urlsplit(endpoint)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=2):
            return True
    except OSError:
        return False


def each(task: Callable[[Item], Answer], items: Sequence[Item], *, away: bool) -> list[Answer]:
    """Do a task for all items; for many at the same time, where an object store far away is asked.

    Should one fail, what has begun is waited for, so nothing is written after it.

    >>> each(abs, [-1, 2], away=True)
    [1, 2]
    """
    if not away or len(items) < 2:
        return [task(item) for item in items]
    begun = [_requests().submit(task, item) for item in items]
    try:
        return [future.result() for future in begun]
    finally:
        for future in begun:
            future.cancel()
        wait(begun)


@cache
def _requests() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="request")


def asked(place: str, ask: Callable[[], Answer]) -> Answer:
    """Return what a store answers; ask again where the client does not, and it may pass.

    Args:
        place: What is asked about, as it may be printed.
        ask: The question, which may be asked twice. That nothing is there, or something, or
            another thing than was thought, is an answer too: its error is passed on.

    Raises:
        AccessError: If the store refuses us: a retry would not help.
        StoreError: If the store cannot be asked now.
    """
    begin = time.monotonic()
    for pause in (*PAUSES, None):
        try:
            return ask()
        except Exception as error:
            if not _is_store(error):
                raise
            failed = told(error, place)
            again = pause is not None and may_pass(error, begin)
        # Not inside the except: the client's own error would be printed beside ours.
        if not again or pause is None:
            break
        time.sleep(pause)
    raise failed


def _is_store(error: BaseException) -> bool:
    """Return whether an error is the client's, or the client's in the words of zarrs."""
    answers = (FileNotFoundError, PyramidError, AlreadyExistsError, PreconditionError)
    if isinstance(error, answers):
        return False
    if "LocalFileSystem" in str(error):
        return False  # the client's for files: what a file system refuses stays refused
    if isinstance(error, BaseError) or type(error).__module__.startswith("obstore"):
        return True
    return isinstance(error, RuntimeError) and bool(_STORE_SAYS.match(str(error)))


def may_pass(error: BaseException, begin: float) -> bool:
    """Return whether to ask again what the client has not asked again itself."""
    text = str(error)
    if re.search(r"after \d+ retries", text) or _WRONG.search(text):
        return False
    return time.monotonic() - begin < PATIENCE


def told(error: BaseException, place: str) -> AccessError | StoreError:
    """Return our own error for one of the client's: one line, what to do, and no secrets."""
    text = str(error)
    line = hidden(text.split("\n")[0].partition(": <")[0])[:300].rstrip()
    status = found[1] if (found := _WRONG.search(text)) else ""
    if lacks_bucket(error):
        kind_of_place = "container" if _kind(place) == "az" else "bucket"
        where = (", and at the endpoint (AWS_ENDPOINT_URL) and region (AWS_REGION)"
                 if _kind(place) == "s3" else "")  # fmt: skip
        return AccessError(f"{place}: there is no such {kind_of_place}; look at its name{where}")
    if any(words in text for words in _NO_ROLE):
        return AccessError(f"{place}: no credentials were found; {_what_to_set(place)}")
    refused = ("PermissionDeniedError", "UnauthenticatedError")
    if status in ("401", "403") or type(error).__name__ in refused:
        return AccessError(f"{place}: the store refuses us ({_code(text) or status}); look at the "
                           f"credentials and what they may do: {_what_to_set(place)}")  # fmt: skip
    if status in ("301", "307") or "without LOCATION" in text or "AuthorizationHeaderMal" in text:
        return AccessError(f"{place}: the bucket is in another region; set AWS_REGION to its own")
    if _UNTRUSTED.search(text):
        return AccessError(f"{place}: its certificate is not trusted; name the file of those that "
                           f"you trust in SSL_CERT_FILE")  # fmt: skip
    return StoreError(f"{place}: the store cannot be asked now: {line}")


def lacks_bucket(error: BaseException) -> bool:
    """Return whether a store says that there is no bucket, or container, of that name."""
    return "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error)


def _code(text: str) -> str:
    found = re.search(r"<Code>(\w+)</Code>", text)
    return found[1] if found else ""


def is_listed(store: ob.ObjectStore, key: str) -> bool:
    """Return whether a listing shows a key; a store that cannot be listed shows none."""
    if isinstance(store, ob.HTTPStore):
        return False
    parent = key.rpartition("/")[0]
    # All but the last letter sorts just before the key.
    for batch in obstore.list(store, parent or None, offset=key[:-1]):
        for meta in batch:
            if meta["path"] >= key:
                return meta["path"] == key
    return False


def head(store: ob.ObjectStore, key: str, place: str) -> ObjectMeta:
    """Return what is known of an object without reading it.

    Raises:
        FileNotFoundError: If there is none, and no listing shows it.
    """
    try:
        return asked(place, lambda: obstore.head(store, key))
    except FileNotFoundError:
        if (found := get(store, key, place)) is None:
            raise
        return found.meta


def get(store: ob.ObjectStore, key: str, place: str) -> obstore.GetResult | None:
    """Return an object, or None where there is none: a 404 is believed if no listing shows it.

    Raises:
        StoreError: If it is listed but cannot be read, or the store cannot be asked.
        AccessError: If the store refuses us.
    """
    for pause in (*PAUSES, None):
        try:
            return asked(place, lambda: obstore.get(store, key))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if lacks_bucket(error):
                refused = told(error, place)
                break
        if not asked(place, lambda: is_listed(store, key)):
            return None
        if pause is not None:
            time.sleep(pause)
    else:
        refused = StoreError(f"{place}: {key} is listed, but the store says that it is not there")
    raise refused


def listing(store: ob.ObjectStore, prefix: str, place: str) -> Iterator[ObjectMeta]:
    """Yield what a listing tells of every object below a prefix; one that is cut off goes on.

    Raises:
        StoreError: If it cannot be told to its end.
        AccessError: If the store refuses us.
    """
    last, in_order, begin = "", True, time.monotonic()
    pauses = iter(PAUSES)
    while True:
        try:
            for batch in obstore.list(store, prefix or None, offset=last or None):
                pauses = iter(PAUSES)
                for meta in batch:
                    in_order = in_order and meta["path"] > last
                    last = meta["path"]
                    yield meta
                begin = time.monotonic()
            return
        except BaseError as error:
            failed = told(error, place)
            # What is told in no order cannot go on behind the last key: some would be left out.
            again = in_order and may_pass(error, begin)
            pause = next(pauses, None)
        if not again or pause is None:
            raise failed
        time.sleep(pause)
