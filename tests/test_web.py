"""Web servers are sources: their faults, their certificates, and who may know a password."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyramid_core.remote as remote
import pyramid_core.sure as sure
from pyramid_core import PyramidParams, build_pyramid, open_image, verify_pyramid
from pyramid_core.cli import main
from pyramid_core.errors import AccessError, RequestError, StoreError
from pyramid_core.origin import look_at
from pyramid_core.params import parse_params, parse_sweep_params
from pyramid_core.plan import plan_pyramid
from pyramid_core.stores import open_storage
from tests.child import Server
from tests.proxy import Proxy, running_proxy
from tests.stories import tree, write_image
from tests.test_faults import pyramid, until_done

ASKED: dict[str, Any] = {
    "step": [2, 2], "chunks": [16, 16], "edges": "partial", "workers": 2, "verify": "full",
}  # fmt: skip


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of twelve chunks, all stored."""
    voxels = np.random.default_rng(3).integers(1, 4000, (40, 56)).astype("u2")
    return write_image(tmp_path / "a.zarr", voxels, (16, 16))


@pytest.fixture
def proxy(served: str, image: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A misbehaving proxy before a web server with the image, and a client that soon gives up."""
    assert image.is_dir()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    for module in (remote, sure):
        monkeypatch.setattr(module, "PAUSES", (0.01, 0.02, 0.05))
    with running_proxy(served) as running:
        yield running


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_a_web_server_that_misbehaves_leaves_the_image_right(
    proxy: Proxy, image: Path, tmp_path: Path, seed: int
) -> None:
    """Resets, cut-off bodies and refusals: the image is that of a build from files, or one line is said."""
    right, found = tmp_path / "right.zarr", tmp_path / "b.zarr"
    build_pyramid(PyramidParams(source=str(image), target=str(right), **ASKED))
    proxy.fail("reset", "truncated", "slow_down", seed=seed, share=0.25)
    params = PyramidParams(source=f"{proxy.address}/a.zarr", target=str(found), **ASKED)
    said = until_done(lambda: build_pyramid(params))
    done = proxy.done
    proxy.behave()
    assert min(done[kind] for kind in ("reset", "truncated", "slow_down")) > 0, (done, said)
    assert verify_pyramid(str(found), "full").ok
    chunks = {key: digest for key, digest in tree(found).items() if "/c/" in key}
    assert chunks == {key: digest for key, digest in tree(right).items() if "/c/" in key}


@pytest.mark.parametrize("kind", ["slow_down", "reset", "truncated"])
def test_what_a_source_looks_like_is_asked_again(proxy: Proxy, kind: str) -> None:
    """A server that fails once tells its marks the next time; one that goes on is one clear error."""
    info = open_image(f"{proxy.address}/a.zarr").info
    before = look_at(info)
    proxy.rule(kind, "0/c/2/3$")
    assert look_at(info) == before
    if kind != "truncated":  # the marks come before the body
        assert proxy.done[kind] == 1
        proxy.rule(kind, "0/c/2/3$", times=-1)
        with pytest.raises(StoreError, match=r"^http[^\n]*cannot be asked now[^\n]*$"):
            look_at(info)


# --- certificates ---------------------------------------------------------------------------------


def certificate(place: Path) -> Path:
    """Write a key and a certificate for loopback that nobody but itself signed."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=9)).add_extension(here, critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    place.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return place


def test_a_certificate_has_to_be_trusted(
    served: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed by nobody: one line says so, with the variable to set; with it, the image is read."""
    pytest.importorskip("cryptography")
    file = certificate(tmp_path / "own.pem")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    with running_proxy(served, certificate=str(file)) as proxy:
        assert proxy.address.startswith("https://")
        words = ("plan", f"{proxy.address}/{image.name}", "--target", str(tmp_path / "b.zarr"))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(file))  # which is for the tools of AWS
        status, text = pyramid(*words, "--edges", "partial")
        assert (status, text.count("\n")) == (2, 1), text
        assert "its certificate is not trusted" in text
        assert "SSL_CERT_FILE" in text
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        status, text = pyramid(*words, "--edges", "partial")
        assert status == 0, text


# --- secrets --------------------------------------------------------------------------------------

SECRET = [
    "https://me:hunter2@host/x.zarr",
    "HTTPS://me:hunter2@host/x.zarr",
    "https://hunter2@host/x.zarr",
    "https://me%3Ahunter2@host/x.zarr",
    "https://me:hunter2%40host/x.zarr",
    "https:///me:hunter2@host/x.zarr",
    "https://[hunter2/x.zarr",
    " https://me:hunter2@host/x.zarr",
    "https://host/x.zarr?X-Amz-Signature=hunter2",
    "az://container/x.zarr?sig=hunter2",
    "s3://key:hunter2@bucket/x.zarr",
    "s3://bucket/x.zarr#hunter2",
]


@pytest.mark.parametrize("url", SECRET)
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    """As source, target, inbox or outbox, from Python or the command line: before anything is asked."""
    asks: list[Callable[[], object]] = [
        lambda: PyramidParams(source=url),
        lambda: PyramidParams(source="a.zarr", target=url),
        lambda: parse_params({"source": url}),
        lambda: parse_sweep_params({"inbox": url}),
        lambda: parse_sweep_params({"inbox": "in", "outbox": url}),
        lambda: open_storage(url.strip()),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match=r"is refused, since it|is no URL") as caught:
            ask()
        assert "hunter2" not in f"{caught.value} {caught.value!r}"
    with pytest.raises(RequestError, match="--source: ") as told:
        parse_params({"source": url})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "location",
    ["file:///data/a?b@c#d", "/data/a?b#c@d", "s3://bucket/me@home.zarr", "https://host:80/a%40b"],
)
def test_what_holds_no_secret_is_taken_as_it_is(location: str) -> None:
    """Paths may hold any letter, and so may what follows a host."""
    assert PyramidParams(source=location, target=location).target == location


def test_the_command_line_refuses_a_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that takes a location says in one line where the secret belongs; status 2."""
    url = "https://me:hunter2@127.0.0.1:9/x.zarr?sig=hunter2"
    for words in (["plan", url], ["build", "x.zarr", "--target", url], ["verify", url],
                  ["preview", url]):  # fmt: skip
        assert main(words) == 2
        text = "".join(capsys.readouterr())
        assert (text.count("\n"), "hunter2" in text, "~/.netrc" in text) == (1, False, True), text
    flow = [sys.executable, "flows/pyramid.py", url, "--target", str(tmp_path / "b.zarr")]
    done = subprocess.run(
        flow, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent
    )
    assert (done.returncode, "hunter2" in done.stdout + done.stderr) == (2, False)


class _Guarded(BaseHTTPRequestHandler):
    """Serves files to whoever says who they are; ``/away/`` leads to another server."""

    def do_GET(self) -> None:
        server: Any = self.server
        said = self.headers.get("Authorization", "")
        server.heard.append(said)
        if self.path.startswith("/away/"):
            self.send_response(302)
            self.send_header("Location", server.elsewhere + self.path.removeprefix("/away"))
            self.end_headers()
            return
        file = server.folder / self.path.lstrip("/")
        known = said == "Basic " + base64.b64encode(b"me:hunter2").decode()
        status = (200 if file.is_file() else 404) if known or server.public else 401
        content = file.read_bytes() if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def guarded(folder: Path, host: str = "127.0.0.1", *, public: bool = False) -> Iterator[Any]:
    with Server((host, 0), _Guarded) as server:
        told: Any = server
        told.folder, told.public, told.heard, told.elsewhere = folder, public, [], ""
        told.url = f"http://{host}:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield told
        server.shutdown()
        thread.join()


def test_a_password_comes_from_netrc_and_goes_to_its_host_alone(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host that the file names hears it; another, a redirect and a plan do not; without it: one line."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    target = tmp_path / "b.zarr"
    with guarded(tmp_path) as server, guarded(tmp_path, "127.0.0.2", public=True) as other:
        source = f"{server.url}/{image.name}"
        with pytest.raises(AccessError, match=r"^[^\n]*refuses us \(401\)[^\n]*~/.netrc[^\n]*$"):
            open_image(source)
        file.write_text(
            "machine 127.0.0.1 login me password hunter2\ndefault login me password hunter2\n"
        )
        file.chmod(stat.S_IRUSR | stat.S_IWUSR)
        params = PyramidParams(source=source, target=str(target), **ASKED)
        plan = plan_pyramid(open_image(source).info, params)
        build_pyramid(params)
        storage = open_storage(source)
        server.elsewhere = other.url
        assert open_storage(f"{server.url}/away/{image.name}").read("zarr.json")
        assert open_storage(f"{other.url}/{image.name}").read("zarr.json")
        assert len(other.heard) >= 2
        assert set(other.heard) == {""}
    coded = base64.b64encode(b"me:hunter2")
    told = [repr(plan).encode(), pickle.dumps(plan), repr(storage).encode(), pickle.dumps(storage)]
    told += [path.read_bytes() for path in target.rglob("*") if path.is_file()]
    assert not [text for text in told if b"hunter2" in text or coded in text]
    assert verify_pyramid(str(target), "full").ok


def test_a_netrc_that_is_none_is_told_without_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is named, and not what stands there."""
    (tmp_path / "netrc").write_text("machine host login me hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(AccessError, match=r"netrc: line [12] is not as netrc has it$") as caught:
        open_storage("https://host/x.zarr")
    assert "hunter2" not in str(caught.value)
