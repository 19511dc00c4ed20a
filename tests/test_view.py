"""The viewer: what it serves and to whom, what it refuses, and what is seen of it in a browser."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import obstore
import psutil
import pytest
from obstore.store import from_url
from playwright.sync_api import Browser, ConsoleMessage

from pyramid_core import PyramidParams, build_pyramid
from pyramid_core.cli import main
from pyramid_core.errors import LocationError
from pyramid_core.view import View, served_view
from tests.images import OMERO, Pyramids, change_document, write_base
from tests.stories import Array, chunk_files, noise, write_image

PYRAMID = [sys.executable, "-m", "pyramid_core.cli"]


def layers(view: View) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = view.viewer.state.to_json()["layers"]
    return found


def address(view: View) -> str:
    """Return where the image is served, with the slash at its end."""
    return str(layers(view)[0]["source"]).partition("://")[2]


def asked(url: str, part: str = "", method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an answer."""
    headers = {"Range": part} if part else {}
    try:
        with urlopen(Request(url, headers=headers, method=method), timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except HTTPError as error:
        with error:
            return error.code, dict(error.headers), b""


def assert_served(view: View, place: Path) -> None:
    """Every object of a pyramid is served as it is stored."""
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        assert asked(address(view) + str(path.relative_to(place)))[2] == path.read_bytes()


# What is served.


def test_every_object_and_any_part_of_one(pyramids: Pyramids) -> None:
    """Whole, from the start, to the end, the last bytes (the index of a shard), and the size alone."""
    place = pyramids.place("stack-0.5-sharded")
    shard = chunk_files(place / "0")[0]
    key, content = str(shard.relative_to(place)), shard.read_bytes()
    n = len(content)
    with served_view(str(place)) as view:
        assert_served(view, place)
        for part, expected, said in (
            ("bytes=3-9", content[3:10], f"bytes 3-9/{n}"),
            (f"bytes=5-{10**18 - 1}", content[5:], f"bytes 5-{n - 1}/{n}"),
            ("bytes=7-", content[7:], f"bytes 7-{n - 1}/{n}"),
            ("bytes=-20", content[-20:], f"bytes {n - 20}-{n - 1}/{n}"),
            (f"bytes=-{10 * n}", content, f"bytes 0-{n - 1}/{n}"),
        ):
            status, headers, body = asked(address(view) + key, part)
            assert (status, body, headers["Content-Range"]) == (206, expected, said)
        assert asked(address(view) + key, f"bytes={n}-")[0] == 416
        assert asked(address(view) + key, "lines=1-2")[2] == content
        status, headers, body = asked(address(view) + key, method="HEAD")
        assert (status, int(headers["Content-Length"]), body) == (200, n, b"")


def test_nothing_beside_the_image(pyramids: Pyramids, tmp_path: Path) -> None:
    """No way up, no link that leads out, no folder, no pipe, nothing without the token."""
    place = tmp_path / "in" / "a.zarr"
    shutil.copytree(pyramids.place("stack-0.5"), place)
    secret = tmp_path / "in" / "secret"
    secret.write_text("secret")
    (place / "link").symlink_to(secret)
    (place / "out").symlink_to(tmp_path / "in")
    (place / "inside").symlink_to("zarr.json")
    with served_view(str(place)) as view:
        url = urlsplit(address(view))
        for path in (
            "../secret", "%2e%2e/secret", "..%2fsecret", "0/../../secret", "0/%2e%2e/%2e%2e/secret",
            "/" + str(secret), "%2f" + str(secret), str(secret), "link", "out/secret", "", "0", "0/",
            "//zarr.json", "..\\secret", "no", "0/c/9/9/9", "link%00",
        ):  # fmt: skip
            # Not by urlopen, which might tidy the path before it asks.
            with socket.create_connection((url.hostname, url.port)) as line:
                line.sendall(f"GET {url.path}{path} HTTP/1.0\r\n\r\n".encode())
                answer = line.makefile("rb").read()
            assert answer.split()[1] in (b"404", b"400"), path
            assert b"secret" not in answer
        assert asked(address(view) + "inside")[0] == 200
        root = f"http://{url.netloc}/"
        for path in ("zarr.json", "0" * 40 + "/zarr.json", "a.zarr/zarr.json", ""):
            assert asked(root + path)[0] == 404


def test_a_level_that_is_a_link_is_a_part_of_the_image(pyramids: Pyramids, tmp_path: Path) -> None:
    """A base is often linked from where it lies; its chunks are served, and nothing beside them."""
    place = tmp_path / "a.zarr"
    shutil.copytree(pyramids.place("stack-0.5"), place)
    shutil.move(place / "0", tmp_path / "base")
    (tmp_path / "beside").write_text("secret")
    (place / "0").symlink_to(tmp_path / "base")
    (place / "0" / "up").symlink_to(tmp_path / "beside")
    with served_view(str(place)) as view:
        assert asked(address(view) + "0/c/0/0/0")[2] == (tmp_path / "base/c/0/0/0").read_bytes()
        assert asked(address(view) + "0/up")[0] == 404


def test_an_image_in_a_zip(pyramids: Pyramids, tmp_path: Path) -> None:
    """With the image at its root, or in its only folder."""
    place = pyramids.place("stack-0.5-sharded")
    for name, top in (("a.zip", place), ("b.zip", place.parent)):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for path in place.rglob("*"):
                file.write(path, path.relative_to(top))
        with served_view(str(tmp_path / name)) as view:
            assert_served(view, place)
            assert asked(address(view) + "0/c/0/0/0", "bytes=-9")[0] == 206


def zipped(place: Path, file: Path, *, without: str = "?") -> str:
    """Write an image into a zip, below a folder of its own; leave out what a word names."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in place.rglob("*"):
            if without not in str(path.relative_to(place)):
                archive.write(path, path.relative_to(place.parent))
    return str(file)


def test_labels_in_a_zip_are_shown(pyramids: Pyramids, tmp_path: Path) -> None:
    """The same layers as of the folder, in the same colours, and their chunks are served."""
    place = pyramids.place("labelled-0.5")
    with served_view(str(place)) as view:
        expected = [{**layer, "source": ""} for layer in layers(view)]
    with served_view(zipped(place, tmp_path / "a.zip")) as view:
        assert [{**layer, "source": ""} for layer in layers(view)] == expected
        assert [layer["name"] for layer in expected][-1] == "cells"
        assert_served(view, place)
    with pytest.raises(LocationError, match=r"b\.zip/labels/cells is listed .* no image is there"):
        served_view(zipped(place, tmp_path / "b.zip", without="labels/cells/")).__enter__()


def test_an_image_on_a_web_server(pyramids: Pyramids, tmp_path: Path, served: str) -> None:
    """Through us, whatever the server thinks of pages of other hosts; what it lacks is a 404."""
    place = pyramids.place("labelled-0.5")
    shutil.copytree(place, tmp_path / "a.zarr")
    with served_view(f"{served}/a.zarr") as view:
        assert_served(view, place)
        assert [layer["type"] for layer in layers(view)] == ["image", "segmentation"]
        assert asked(address(view) + "0/c/99/0/0")[0] == 404


@pytest.mark.s3
def test_an_image_in_a_bucket(
    pyramids: Pyramids,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the credentials that are ours, not the browser's; a store that fails is said once, in one line."""
    place = pyramids.place("stack-0.5-sharded")
    store = from_url(f"{bucket}/a.zarr")
    for path in place.rglob("*"):
        if path.is_file():
            obstore.put(store, str(path.relative_to(place)), path.read_bytes())
    caplog.clear()  # of the pyramid, where this test is the first to ask for it
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with served_view(f"{bucket}/a.zarr") as view:
        assert_served(view, place)
        shard = (place / "0/c/0/0/0").read_bytes()
        assert asked(address(view) + "0/c/0/0/0", "bytes=-20")[2] == shard[-20:]
        assert asked(address(view) + "0/c/0/0/0", method="HEAD")[1]["Content-Length"] == str(
            len(shard)
        )
        assert asked(address(view) + "0/c/9/9/9")[0] == 404
        assert asked(address(view) + "../a.zarr/zarr.json")[0] == 404
        assert caplog.messages == []


def test_it_listens_on_loopback_unless_told_otherwise(pyramids: Pyramids) -> None:
    """One port, which is closed at the end; another address is one word."""
    before = {c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN"}
    for bind in ("127.0.0.1", "127.0.0.2"):
        options = {} if bind == "127.0.0.1" else {"bind": bind}
        with served_view(str(pyramids.place("stack-0.5")), **options) as view:
            opened = {c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN"}
            assert [place.ip for place in opened - before] == [bind]
            port = urlsplit(view.url).port
            assert view.url.startswith(f"http://{bind}:{port}/v/")
            assert address(view).startswith(f"http://{bind}:{port}/")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((bind, port))


# What is shown at first.


def test_contrast_and_colours_are_those_that_the_image_says(pyramids: Pyramids) -> None:
    """A layer for each channel, of its own place on the axis of channels, and labels over them."""
    with served_view(str(pyramids.place("coloured-0.5"))) as view:
        state = view.viewer.state.to_json()
    said = [(c["label"], f"#{c['color'].lower()}", c["window"]) for c in OMERO["channels"]]
    for number, (name, color, window) in enumerate(said):
        layer = state["layers"][number]
        controls = layer["shaderControls"]
        assert (layer["name"], layer["type"], controls["color"]) == (name, "image", color)
        assert controls["contrast"]["range"] == [window["start"], window["end"]]
        assert (layer["localDimensions"], layer["localPosition"]) == ({"c'": [1, ""]}, [number])
    assert [(layer["name"], layer["type"]) for layer in state["layers"][2:]] == [
        ("cells", "segmentation")
    ]
    assert state["layers"][2]["source"].endswith("/labels/cells/")
    assert state["dimensions"] == {
        "x": (5e-7, "m"), "y": (5e-7, "m"), "z": (2e-6, "m"), "t": (3.0, "s"),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_contrast_that_the_image_does_not_say_is_that_of_its_voxels(
    tmp_path: Path, dtype: str
) -> None:
    """From the first percentile to the last thousandth, which are voxels that occur."""
    voxels = np.arange(1000).reshape(10, 10, 10).astype(dtype)
    place = write_base(tmp_path / "a.zarr", voxels, scale=(1.0, 1.0, 1.0))
    with served_view(str(place)) as view:
        (layer,) = layers(view)
    assert layer["shaderControls"]["contrast"]["range"] == pytest.approx([9, 998], abs=1)


def test_the_whole_image_fits_in_the_window(tmp_path: Path) -> None:
    """A plane twice as large as its panel is seen at half its size, a stack by its physical extent."""
    plane = write_base(tmp_path / "a.zarr", noise((96, 1440)), axes="yx", scale=(0.5, 0.5))
    with served_view(str(plane)) as view:
        state = view.viewer.state.to_json()
    assert (state["layout"], state["displayDimensions"]) == ("xy", ["x", "y"])
    assert state["crossSectionScale"] == 2.0
    stack = write_base(tmp_path / "b.zarr", noise((36, 10, 12)), scale=(20.0, 1.0, 1.0))
    with served_view(str(stack)) as view:
        state = view.viewer.state.to_json()
    assert (state["layout"], state["crossSectionScale"]) == ("4panel", 2.0)


def test_many_channels_labels_that_cannot_be_shown_and_names_that_are_the_same(
    tmp_path: Path,
) -> None:
    """What is not shown is said; every name is another."""
    channel = {
        "label": "same",
        "color": "FF0000",
        "window": {"min": 0, "start": 0, "end": 9, "max": 9},
    }
    place = write_base(
        tmp_path / "a.zarr", noise((9, 8, 8), "u1"), axes="cyx", scale=(1.0, 1.0, 1.0),
        labels={"far": np.ones((8, 8), "i8"), "cells": np.ones((8, 8), "i4")},
        more={"omero": {"channels": [channel] * 9}},
    )  # fmt: skip
    with served_view(str(place)) as view:
        names = [layer["name"] for layer in layers(view)]
        notes = view.notes
    assert names == ["same", *(f"same ({n})" for n in range(1, 7)), "cells"]
    assert notes == (
        "labels/far is left out: Neuroglancer cannot show int64",
        "of 9 channels the first 7 are shown",
    )


def test_a_label_image_by_itself_is_shown_as_labels(pyramids: Pyramids) -> None:
    """Where it is named alone; an image made by mode too."""
    with served_view(str(pyramids.place("labelled-0.4") / "labels" / "cells")) as view:
        assert [layer["type"] for layer in layers(view)] == ["segmentation"]


def test_labels_have_the_colours_that_they_say(pyramids: Pyramids, tmp_path: Path) -> None:
    """Over an image and by themselves, in the state that the browser gets."""
    place = tmp_path / "a.zarr"
    shutil.copytree(pyramids.place("coloured-0.5"), place)
    colors = [{"label-value": 3, "rgba": [10, 200, 30, 255]}]
    change_document(
        place / "labels" / "cells", lambda own: own.update({"image-label": {"colors": colors}})
    )
    for shown_place in (place, place / "labels" / "cells"):
        with served_view(str(shown_place)) as view:
            assert layers(view)[-1]["segmentColors"] == {"3": "#0ac81e"}


# What is refused, before anything starts.


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the line with which a command is refused."""
    assert main(["view", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("dtype", "version", "name"),
    [
        ("f8", "0.4", "float64"), ("f8", "0.5", "float64"), ("bool", "0.5", "bool"),
        ("f2", "0.5", "float16"), ("i8", "0.5", "int64"),
    ],
)  # fmt: skip
def test_a_type_that_would_be_black_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, version: str, name: str
) -> None:
    """In one line that names the type and two ways to see the image all the same."""
    place = write_base(tmp_path / "a.zarr", noise((8, 8), dtype), axes="yx", version=version)
    assert refusal(capsys, str(place)) == (
        f"pyramid: {place} is of type {name}, which Neuroglancer cannot show; pyramid preview "
        f"draws it, and napari shows it (pyramid view --napari)"
    )


def test_an_array_that_has_no_document_yet_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the command that makes it an image."""
    place = write_image(tmp_path / "a.zarr", noise((8, 8)), (8, 8))
    assert "is no OME-Zarr image yet; run pyramid build on it" in refusal(capsys, str(place))
    assert "nothing" in refusal(capsys, str(tmp_path / "b.zarr"))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_document_that_the_viewer_would_not_take_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    """One without a version, or with a unit that is a symbol; each is said."""
    place = write_base(
        tmp_path / "a.zarr", noise((8, 8)), axes="yx", version=version, scale=(1.0, 1.0)
    )
    change_document(place, lambda said: said["multiscales"][0]["axes"][0].update(unit="furlong"))
    assert "does not know the unit 'furlong'" in refusal(capsys, str(place))

    def unsaid(document: dict[str, Any]) -> None:
        document.pop("version", None)
        document["multiscales"][0].pop("version", None)

    change_document(place, unsaid)
    assert "does not say its version" in refusal(capsys, str(place))


def test_an_address_that_is_not_ours_is_refused(
    pyramids: Pyramids, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one that will do."""
    for bind in ("203.0.113.7", "no.such.host.invalid"):
        line = refusal(capsys, str(pyramids.place("stack-0.5")), "--bind", bind)
        assert line.startswith(f"pyramid: cannot serve at '{bind}': ")
        assert line.endswith("name an address of this machine, like 127.0.0.1")


def test_a_viewer_that_is_not_installed_is_one_line(pyramids: Pyramids) -> None:
    """Of Neuroglancer and of napari: what to type."""
    place = str(pyramids.place("stack-0.5"))
    for words, line in (
        ([place], "pyramid: the viewer is not installed: pip install 'zarr-pyramid-flow[view]'"),
        (
            [place, "--napari"],
            "pyramid: napari is not installed: pip install 'napari[all]' napari-ome-zarr",
        ),
    ):
        code = (
            "import sys; sys.modules['neuroglancer'] = None; sys.path_importer_cache.clear()\n"
            f"from pyramid_core.cli import main; sys.exit(main(['view', *{words!r}]))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line + "\n")


# The command.


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")],
)
def test_it_prints_where_serves_and_stops_while_a_browser_looks(
    pyramids: Pyramids, number: signal.Signals, status: int, name: str
) -> None:
    """Two lines, the first the URL; then status 130 or 143, at once, with pages still open."""
    command = [*PYRAMID, "view", str(pyramids.place("stack-0.5")), "--no-browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert process.stdout.readline() == "Ctrl-C stops\n"
        assert b"<title>" in asked(url)[2]
        events = url.replace("/v/", "/events/").rstrip("/") + "?c=a&gc=&gs="
        with urlopen(events, timeout=30) as stream:
            assert b"zarr3://" in stream.readline() + stream.readline() + stream.readline()
            process.send_signal(number)
            out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (status, "")
    assert err.startswith(f"pyramid: stopped by {name}")


# In a browser.

THEIRS = {
    r"/favicon\.ico ": "the icon of the browser's tab, which Neuroglancer has not",
    r"/state/.* 412 ": "the page and the test change the view at the same moment",
    r"/\.zarray ": "a group of Zarr v2 is asked whether it is an array",
}
"""What the browser complains of in Neuroglancer's page, and why it is no fault of ours."""

N, SIDE = 96, 384
"""Length of the image, and of a picture of it in which a voxel has four pixels."""


@dataclass(frozen=True)
class Seen:
    """What was seen of a pyramid: pictures of red, green and blue."""

    whole: Array
    """As it opens, but for the lines that Neuroglancer draws around it."""
    bare: Array
    """The same without labels."""
    fine: dict[str, Array]
    """Level 0, by plane."""
    coarse: dict[str, Array]
    """The level with factor 4, by plane."""
    complaints: list[str]
    """What the browser said."""


def picture(view: View) -> Array:
    """Return what is seen when all of it has arrived: the first picture that is like the one before.

    On a busy machine Neuroglancer calls itself ready before the chunks of a new scale are asked for.
    """
    before: Array = np.empty(0)
    while True:
        found: Array = view.viewer.screenshot(size=[SIDE, SIDE]).screenshot.image_pixels[..., :3]
        if np.array_equal(found, before):
            return found
        before = found


SHOWN = """([layout, pixels]) => {
    const said = viewer.state.toJSON();
    return said.layout === layout && (said.layers[0].crossSectionRenderScale ?? 1) === pixels;
}"""
"""Whether the page has heard what plane and scale it is to show."""


def look(chromium: Browser, place: Path) -> Seen:
    """Open a pyramid as a person does, then look at two planes of two levels."""
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{message.location.get('url', '')} {message.text}")

    with served_view(str(place)) as view:
        page = chromium.new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(view.url)
        with view.viewer.txn() as state:
            state.show_scale_bar = state.show_default_annotations = False
            state.cross_section_background_color = "#000000"
        whole = picture(view)
        with view.viewer.txn() as state:
            for layer in list(state.layers)[1:]:
                layer.visible = layer.type == "image"
        bare = picture(view)
        planes: dict[float, dict[str, Array]] = {1.0: {}, 1000.0: {}}
        for pixels, found in planes.items():
            for plane in ("xy", "xz"):
                with view.viewer.txn() as state:
                    state.layout, state.cross_section_scale = plane, N / SIDE
                    state.layers[0].layer.cross_section_render_scale = pixels
                page.wait_for_function(SHOWN, arg=[plane, pixels])
                found[plane] = picture(view)
        page.close()
    return Seen(whole, bare, planes[1.0], planes[1000.0], complaints)


@pytest.fixture(scope="module")
def seen(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Seen]:
    """A bright cell off the middle, in pyramids of each kind; each is looked at once."""
    folder = tmp_path_factory.mktemp("view")
    z, y, x = np.ogrid[:N, :N, :N]
    light = 4000 * np.exp(-(((z - 44) / 9) ** 2 + ((y - 42) / 10) ** 2 + ((x - 56) / 8) ** 2) / 2)
    voxels = np.where(light < 4, 0, light).astype("u2")
    ids = (light > 300).astype("u2") + (light > 2000)
    window = {"min": 0, "start": 0, "end": 4000, "max": 65535}
    channel = {"label": "cell", "color": "FFFFFF", "window": window}

    @cache
    def find(kind: str) -> Seen:
        place = write_base(
            folder / f"{kind}.zarr", voxels, version="0.4" if kind == "0.4" else "0.5",
            scale=(0.5,) * 3, chunks=(32,) * 3, labels={"cells": ids},
            more={"omero": {"channels": [channel]}},
        )  # fmt: skip
        asked: dict[str, Any] = {"step": [2, 2, 2], "max_levels": 3}
        if kind == "sharded":
            place = folder / "elsewhere.zarr"
            asked |= {"shards": [64, 64, 64], "target": str(place)}
        build_pyramid(PyramidParams(source=str(folder / f"{kind}.zarr"), **asked))
        if kind == "unshifted":
            change_document(place, lambda said: unshift(said["multiscales"][0]["datasets"]))
        return look(chromium, place)

    return find


def unshift(datasets: list[dict[str, Any]]) -> None:
    """Leave out that the first voxel of a coarse level lies further inside."""
    for dataset in datasets:
        del dataset["coordinateTransformations"][1]


def middle(picture: Array) -> Array:
    """Return where the light of a picture has its middle, in voxels of level 0, down and right."""
    light = picture.astype("f8").sum(axis=2)
    assert light.max() > 500
    places = np.indices(light.shape).reshape(2, -1)
    return np.asarray(places @ light.reshape(-1) / light.sum() / (SIDE / N))


def shifts(seen: Seen) -> Array:
    """Return by how much the coarse level lies elsewhere: y, x, z, x, in voxels of level 0."""
    planes = ("xy", "xz")
    return np.concatenate([middle(seen.coarse[p]) - middle(seen.fine[p]) for p in planes])


KINDS = ("0.4", "0.5", "sharded")


@pytest.mark.browser
@pytest.mark.parametrize("kind", KINDS)
def test_a_browser_shows_the_image_and_has_nothing_to_complain_of(
    seen: Callable[[str], Seen], kind: str
) -> None:
    """At once, with the contrast that the image says: more than 50 shades of grey, up to white."""
    found = seen(kind)
    assert [c for c in found.complaints if not any(re.search(e, c) for e in THEIRS)] == []
    colours = np.unique(found.bare.reshape(-1, 3), axis=0)
    assert len(colours) > 50
    assert np.ptp(colours, axis=1).max() == 0
    assert (colours.min(), colours.max() > 200) == (0, True)


@pytest.mark.browser
@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_browser_shows_labels_in_colours(seen: Callable[[str], Seen], kind: str) -> None:
    """A colour for each of two labels over the grey image, the one that is said of the first, more red than green and more green than blue; without their layer there is none."""
    whole = seen(kind).whole.astype(int)
    hues = {tuple(map(int, p.argsort())) for p in whole.reshape(-1, 3) if np.ptp(p) > 60}
    assert len(hues) > 1
    assert (2, 1, 0) in hues


@pytest.mark.browser
def test_a_browser_shows_the_same_in_every_format(seen: Callable[[str], Seen]) -> None:
    """0.4, 0.5 and shards, pixel by pixel, of every plane and level that was looked at."""
    first, *others = map(seen, KINDS)
    for other in others:
        assert np.array_equal(other.bare, first.bare)
        for plane in ("xy", "xz"):
            assert np.array_equal(other.fine[plane], first.fine[plane])
            assert np.array_equal(other.coarse[plane], first.coarse[plane])


@pytest.mark.browser
@pytest.mark.parametrize("kind", KINDS)
def test_coarse_and_fine_lie_on_each_other_in_a_browser(
    seen: Callable[[str], Seen], kind: str
) -> None:
    """A voxel of 4 x 4 x 4 covers those that it was made of, within 0.6 voxels of level 0."""
    # Centred on 48, a picture begins half a voxel inside the image: edges lie at 14, 30, ...
    fine, coarse = (
        levels["xy"][14:-2, 14:-2].reshape(23, 16, 23, 16, 3)
        for levels in (seen(kind).fine, seen(kind).coarse)
    )
    assert np.ptp(coarse, axis=(1, 3)).max() == 0  # it is that level which is seen
    assert np.ptp(fine, axis=(1, 3)).max() > 20
    assert np.abs(shifts(seen(kind))).max() < 0.6


@pytest.mark.browser
def test_the_test_before_finds_a_translation_that_is_not_there(
    seen: Callable[[str], Seen],
) -> None:
    """Without it, a level with factor 4 lies (4 - 1) / 2 voxels off."""
    assert shifts(seen("unshifted")) == pytest.approx([-1.5] * 4, abs=0.2)


@pytest.mark.browser
def test_a_browser_shows_channels_in_their_colours(chromium: Browser, pyramids: Pyramids) -> None:
    """Blue and green that add up, of an image of five axes; no red."""
    bare = look(chromium, pyramids.place("channels-0.5")).bare
    assert bare[..., 0].max() == 0
    assert bare[..., 1:].max(axis=(0, 1)).tolist() == [255, 255]
