"""A server that speaks S3, in a process of its own, on loopback and without a log.

Not in ours: zarrs holds the GIL while it reads a chunk at an edge from an object store, so a
server in a thread of the reading process would never come to answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.child import running_child


@contextmanager
def running_moto() -> Iterator[str]:
    """Yield the address of a moto server, which ends with the block, or with this process."""
    with running_child("tests.s3") as child:
        yield child.address()


def serve() -> None:
    """Serve until standard input is closed: by our parent, or by its death."""
    import logging
    import threading

    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # S3 alone: else moto looks for the service of each request among the files of its package.
    server = make_server("127.0.0.1", 0, create_backend_app("s3"), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve()
