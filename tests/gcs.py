"""A server that speaks what a client of Google Cloud Storage asks over its XML interface.

In a process of its own, for the reason that ``tests/s3.py`` tells. Emulators speak JSON only.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.child import Server, running_child

BUCKET, TOKEN = "bucket", "token"
PAGE = 7
"""Keys of one answer to a listing; Google tells of a thousand."""

OBJECTS: dict[str, tuple[bytes, int]] = {}
"""Content and generation by key."""
LOCK = threading.Lock()


@contextmanager
def running_gcs() -> Iterator[str]:
    """Yield the address of an empty server, which ends with the block, or with this process."""
    with running_child("tests.gcs") as child:
        yield child.address()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 2**20

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        # A key that says "disable_oauth" has no token to send.
        if self.headers.get("Authorization", "Bearer").strip() not in (f"Bearer {TOKEN}", "Bearer"):
            self._refuse(401, "AuthenticationRequired")
        elif bucket != BUCKET:
            self._refuse(404, "NoSuchBucket")
        elif not key:
            self._list({name: found[0] for name, found in parse_qs(url.query).items()})
        else:
            with LOCK:
                self._change(key, body)

    do_GET = do_HEAD = do_PUT = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _change(self, key: str, body: bytes) -> None:
        content, generation = OBJECTS.get(key, (b"", 0))
        wanted = self.headers.get("x-goog-if-generation-match")
        if wanted is not None and int(wanted) != generation:
            self._refuse(412, "PreconditionFailed")
        elif self.command == "PUT":
            OBJECTS[key] = content, generation = body, generation + 1
            self._answer(200, b"", content, generation)
        elif not generation:
            self._refuse(404, "NoSuchKey")
        elif self.command == "DELETE":
            del OBJECTS[key]
            self._answer(204, b"")
        elif span := self.headers.get("Range", "").removeprefix("bytes="):
            first, _, last = span.partition("-")
            begin = int(first) if first else len(content) - int(last)
            part = content[begin : int(last) + 1 if first and last else None]
            said = f"bytes {begin}-{begin + len(part) - 1}/{len(content)}"
            self._answer(206, part, content, generation, said)
        else:
            self._answer(200, content, content, generation)

    def _list(self, asked: dict[str, str]) -> None:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        last = asked.get("continuation-token", asked.get("start-after", ""))
        found: dict[str, str] = {}
        with LOCK:
            for key, (content, _) in sorted(OBJECTS.items()):
                inner = key.removeprefix(prefix)
                name = prefix + inner.partition(delimiter)[0] + delimiter if delimiter else key
                if not key.startswith(prefix):
                    continue
                if delimiter and delimiter in inner:
                    text = f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
                else:
                    name, tag = key, hashlib.md5(content).hexdigest()
                    text = (
                        f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size>"
                        f'<LastModified>2026-01-01T00:00:00Z</LastModified><ETag>"{tag}"</ETag>'
                        f"</Contents>"
                    )
                if name > last:
                    found[name] = text
        names = list(found)[:PAGE]
        told = "".join(found[name] for name in names)
        if len(found) > PAGE:
            told += f"<NextContinuationToken>{escape(names[-1])}</NextContinuationToken>"
        self._answer(200, f"<ListBucketResult>{told}</ListBucketResult>".encode())

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def _answer(
        self, status: int, body: bytes, content: bytes = b"", generation: int = 0, span: str = ""
    ) -> None:
        self.send_response(status)
        if generation:
            self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
            self.send_header("Last-Modified", formatdate(1767225600, usegmt=True))
            self.send_header("x-goog-generation", str(generation))
        if span:
            self.send_header("Content-Range", span)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()
