"""A Prefect server for the time of one run, in a process of its own that ends with ours.

Prefect would start the same one, but imports all of the server here too in order to do so: 90 MB
and two seconds. ``python -m flows.server SOCKET`` is that process.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

from pyramid_core.errors import StoppedError

log = logging.getLogger("prefect")

_OF_PREFECT = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}
"""What Prefect tells a server that it starts itself: no pages, and few services."""

_END_SECONDS = 5.0
"""How long a server may take to end; what it was told is committed by then."""

_own: list[str] = []
"""The address of the server that this process has started."""


def is_own() -> bool:
    """Return whether the server is this run's alone, so there is nobody to wait for."""
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    return not url or url in _own


def start() -> None:
    """Start a server unless one is named, and have Prefect use it; it ends when this process ends.

    Raises:
        StoppedError: If it does not come up.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED

    if PREFECT_API_URL.value() or not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        return
    log.info("Starting a Prefect server for this run; PREFECT_API_URL would name one that stays")
    # Listened on here: the system finds a port that is free, and who connects early waits.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        process = _begin(listener.fileno())
    atexit.register(_end, process)
    _wait(process, url)
    _own.append(url)
    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()


def _begin(listener: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.server", str(listener)],
        env={**os.environ, **_OF_PREFECT},
        stdin=subprocess.PIPE,  # closed by our end, whatever that is
        pass_fds=[listener],
        process_group=0,  # Ctrl-C at a terminal is for us: Prefect has something to tell it then
    )


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    """Return as soon as the server answers, which it does when it is ready."""
    import httpx
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

    seconds = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    try:
        httpx.get(f"{url}/health", timeout=seconds, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        process.kill()
        said = (
            f"answered nothing for {seconds} s"
            if isinstance(error, httpx.TimeoutException)
            else "ended"
        )
        msg = (
            f"the Prefect server of this run {said} before it was ready; what it says of that is "
            f"above; name one that runs by PREFECT_API_URL, or use pyramid build, which needs none"
        )
        raise StoppedError(msg) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS + 1)


def serve(listener: int) -> None:
    """Be the server, on a socket that was handed on, until the standard input is closed."""
    import uvicorn

    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on"
    )
    uvicorn.Server(config).run([socket.socket(fileno=listener)])


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written there
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
