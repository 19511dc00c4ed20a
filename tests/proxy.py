"""A misbehaving HTTP proxy in a process of its own, between us and a server of the tests.

Whether a request goes wrong, and how, follows from the seed, the request and how often it came
before, not from the order in which threads ask: with the same seed the same requests go wrong.
"""

from __future__ import annotations

import json
import random
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.child import Child, Server, running_child

KINDS = ("slow_down", "reset", "stall", "truncated", "chunked", "missing")
"""What can go wrong: 503 SlowDown; the connection is reset, before the server hears of the request
or after; half a body and silence; half a body and the end, its length told or in chunks; 404 for
an object that is there."""

ANSWERS = {"denied": (403, "AccessDenied"), "broken": (500, "InternalError"),
           "slow_down": (503, "SlowDown"), "missing": (404, "NoSuchKey")}  # fmt: skip
"""Kinds that are an answer of S3; denied and broken are only done when a rule asks for them."""


class Proxy:
    """The proxy as tests see it; every word goes to its process as a line of JSON."""

    def __init__(self, child: Child):
        self._child = child
        self._lock = threading.Lock()
        self.address: str = self._answer()["address"]

    def _answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._child.heard.readline())
        return answer

    def _say(self, **words: Any) -> dict[str, Any]:
        with self._lock:
            self._child.said.write(json.dumps(words) + "\n")
            self._child.said.flush()
            return self._answer()

    def behave(self) -> None:
        """Pass everything on, and forget what was counted."""
        self._say(do="behave")

    def fail(self, *kinds: str, seed: int, share: float = 0.1) -> None:
        """From now on, a share of the requests goes wrong in one of these ways."""
        print(f"proxy: kinds {' '.join(kinds)}, share {share}, seed {seed}")
        self._say(do="fail", kinds=kinds, seed=seed, share=share)

    def rule(
        self, kind: str, key: str, *, method: str = "GET", times: int = 1, first: int = 0
    ) -> None:
        """So many requests for keys that match go wrong in this way, after the first few; -1 is for ever."""
        self._say(do="rule", kind=kind, key=key, method=method, times=times, first=first)

    def leave(self, *, after: int = 0, method: str = "") -> None:
        """Refuse all connections, now or after so many more requests of a method."""
        self._say(do="leave", after=after, method=method)

    def come_back(self) -> None:
        """Listen again, at the same address."""
        self._say(do="come_back")

    @property
    def done(self) -> Counter[str]:
        """How often each thing went wrong; ``all`` counts the requests."""
        return Counter(self._say(do="tell")["done"])

    @property
    def heard(self) -> list[dict[str, str]]:
        """Method, key, authorization and what was done, of every request."""
        heard: list[dict[str, str]] = self._say(do="tell")["heard"]
        return heard


@contextmanager
def running_proxy(server: str, *, certificate: str = "") -> Iterator[Proxy]:
    """Start a proxy of a server; it ends with the block, or with this process."""
    with running_child("tests.proxy", server, certificate) as child:
        yield Proxy(child)


# --- what runs in the process of the proxy ---------------------------------------------------


class _State:
    """What the proxy was told, and what it did."""

    def __init__(self, server: str, certificate: str):
        self.server = urlsplit(server)
        self.certificate = certificate
        self.lock = threading.Lock()
        self.forget()
        self.leave_after: tuple[int, str] | None = None
        self.connections: set[socket.socket] = set()
        self.port = 0
        self.listener: Server | None = None
        self.stopping = threading.Event()

    def forget(self) -> None:
        self.kinds: list[str] = []
        self.seed, self.share = 0, 0.0
        self.rules: list[dict[str, Any]] = []
        self.seen: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.heard: list[dict[str, str]] = []

    def kind(self, method: str, path: str, span: str, key: str) -> tuple[str, float]:
        """Say what goes wrong with a request, and a number that settles the details."""
        with self.lock:
            self.done["all"] += 1
            request = f"{method} {key} {urlsplit(path).query} {span}"
            self.seen[request] += 1
            dice = random.Random(f"{self.seed} {request} {self.seen[request]}")
            for rule in self.rules:
                if (
                    rule["times"]
                    and method == rule["method"]
                    and re.search(rule["key"], key or path)
                ):
                    if rule["first"]:
                        rule["first"] -= 1
                        continue
                    rule["times"] -= 1
                    return rule["kind"], dice.random()
            if self.kinds and dice.random() < self.share:
                return dice.choice(self.kinds), dice.random()
            return "", 0.0

    def note(self, kind: str, method: str, key: str, authorization: str) -> None:
        with self.lock:
            self.done[kind or "fine"] += 1
            said = {"method": method, "key": key, "authorization": authorization, "kind": kind}
            self.heard.append(said)

    def leaves_now(self, method: str) -> bool:
        with self.lock:
            if self.leave_after is None:
                return False
            count, which = self.leave_after
            if which in ("", method):
                count -= 1
                self.leave_after = (count, which)
            return count < 0

    def listen(self) -> None:
        if self.listener is not None:
            return
        listener = _Server(("127.0.0.1", self.port), _Handler, bind_and_activate=False)
        listener.allow_reuse_address = True
        listener.server_bind()
        listener.server_activate()
        listener.state = self
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            listener.socket = context.wrap_socket(listener.socket, server_side=True)
        self.port, self.listener = listener.server_port, listener
        threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()

    def leave(self) -> None:
        with self.lock:
            listener, self.listener = self.listener, None
            connections = list(self.connections)
        if listener is not None:
            listener.shutdown()
            listener.server_close()
        for connection in connections:
            _reset(connection)


class _Server(Server):
    state: _State

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients go away in the middle."""


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    with suppress(OSError):
        connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for its body
    wbufsize = 2**20
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.state.connections.add(self.connection)

    def finish(self) -> None:
        self.server.state.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        state = self.server.state
        if state.leaves_now(self.command):
            self.close_connection = True
            threading.Thread(target=state.leave, daemon=True).start()
            _reset(self.connection)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        # What follows the bucket, whose name is new each time.
        key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]
        kind, detail = state.kind(self.command, self.path, self.headers.get("Range", ""), key)
        if kind == "missing" and (not key or self.command not in ("GET", "HEAD")):
            kind = ""
        if kind in ANSWERS:
            self._note(kind, key)
            self._refuse(*ANSWERS[kind])
            return
        if kind == "reset" and detail < 0.5:
            self._note(kind, key)
            self._hang_up()
            return
        status, headers, content = self._ask(body)
        if kind in ("stall", "truncated", "chunked") and (
            self.command == "HEAD" or len(content) < 2
        ):
            kind = ""  # there is no body to cut
        self._note(kind, key)
        if kind == "reset":
            self._hang_up()  # the server has done what was asked, and the answer is lost
            return
        self._answer(kind, status, headers, content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815 - http.server's names

    def _note(self, kind: str, key: str) -> None:
        self.server.state.note(kind, self.command, key, self.headers.get("Authorization", ""))

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        server = self.server.state.server
        connection = HTTPConnection(str(server.hostname), server.port, timeout=120)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except (OSError, HTTPException):
            return 502, [], b"the server does not answer"
        finally:
            connection.close()

    def _refuse(self, status: int, code: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
        self._answer("", status, [("Content-Type", "application/xml")], content)

    def _answer(
        self, kind: str, status: int, headers: list[tuple[str, str]], content: bytes
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        lengths = [v for k, v in headers if k.lower() == "content-length"]
        if kind == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            told = lengths[0] if lengths and self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", told)
        self.end_headers()
        half = content[: len(content) // 2]
        if kind == "chunked":
            self.wfile.write(f"{len(half):x}\r\n".encode() + half + b"\r\n")
        elif self.command != "HEAD":
            self.wfile.write(half if kind else content)
        self.wfile.flush()
        if kind == "stall":
            self._wait_for_goodbye()
        if kind:
            self.close_connection = True

    def _wait_for_goodbye(self) -> None:
        """Send nothing until the client has gone."""
        self.connection.settimeout(1)
        end = time.monotonic() + 120
        while time.monotonic() < end and not self.server.state.stopping.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    def _hang_up(self) -> None:
        self.close_connection = True
        _reset(self.connection)


def serve(server: str, certificate: str) -> None:
    """Do as the lines of standard input say, until it is closed."""
    state = _State(server, certificate)
    state.listen()
    scheme = "https" if certificate else "http"
    print(json.dumps({"address": f"{scheme}://127.0.0.1:{state.port}"}), flush=True)
    for line in sys.stdin:
        words = json.loads(line)
        answer: dict[str, Any] = {}
        if words["do"] == "behave":
            with state.lock:
                state.forget()
                state.leave_after = None
        elif words["do"] == "fail":
            with state.lock:
                state.kinds, state.seed = words["kinds"], words["seed"]
                state.share = words["share"]
        elif words["do"] == "rule":
            with state.lock:
                state.rules.append(words)
        elif words["do"] == "leave" and words["after"]:
            with state.lock:
                state.leave_after = (words["after"], words["method"])
        elif words["do"] == "leave":
            state.leave()
        elif words["do"] == "come_back":
            with state.lock:
                state.leave_after = None
            state.listen()
        else:
            with state.lock:
                answer = {"done": state.done, "heard": state.heard}
        print(json.dumps(answer), flush=True)
    state.stopping.set()


if __name__ == "__main__":
    serve(*sys.argv[1:])
