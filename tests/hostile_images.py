"""Images that lie: each a right image with one thing in it that no honest program writes."""

from __future__ import annotations

import base64
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.images import OMERO, change, change_document, write_base
from tests.stories import noise

SHAPE, CHUNKS = (40, 48), (16, 16)
CANARY = "canary-7c1f"
"""Stands in what lies outside of every image; nobody may read it, or even say it."""

HUGE = 10**18


class Unpickled:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def image(place: Path, version: str = "0.5", **options: Any) -> Path:
    """Write the right image that the lies are told of."""
    return write_base(
        place,
        noise(SHAPE, "u1"),
        version=version,
        axes="yx",
        chunks=CHUNKS,
        more={"omero": {"channels": OMERO["channels"][:1]}},
        **options,
    )


def surroundings(folder: Path) -> None:
    """Write what lies around the images: another image, and a file, that nobody named."""
    secret = write_base(folder / "outside.zarr", noise(SHAPE, "u1", 5), axes="yx", chunks=CHUNKS)
    change(secret / "zarr.json", lambda node: node["attributes"].update(secret=CANARY))
    (folder / "outside.txt").write_text(CANARY)


Lie = Callable[[Path], object]
LIES: dict[str, Lie] = {}


def lie(function: Lie) -> Lie:
    LIES[function.__name__.replace("_", " ")] = function
    return function


# --- metadata of an array ---------------------------------------------------------------------


def of_array(name: str, **fields: Any) -> None:
    """Tell a lie in the metadata of a Zarr v3 base."""

    def tell(place: Path) -> None:
        image(place)
        change(place / "0/zarr.json", lambda node: node.update(fields))

    LIES[f"array: {name}"] = tell


def of_array_v2(name: str, **fields: Any) -> None:
    """Tell a lie in the metadata of a Zarr v2 base."""

    def tell(place: Path) -> None:
        image(place, "0.4")
        change(place / "0/.zarray", lambda node: node.update(fields))

    LIES[f"array v2: {name}"] = tell


def grid(*chunk: Any) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}
of_array("exabytes", shape=[HUGE, HUGE])
of_array("exabytes along one axis", shape=[1, HUGE])
of_array("exabytes in large chunks", shape=[HUGE, HUGE], chunk_grid=grid(10**15, 10**15))
of_array("a chunk of exabytes", chunk_grid=grid(10**9, 10**9))
of_array("10 GB in one chunk", shape=[10**5, 10**5], chunk_grid=grid(10**5, 10**5))
of_array("huge numbers", shape=[10**300, 10**300])
of_array("negative shape", shape=[-40, 48])
of_array("no length", shape=[0, 48])
of_array("no shape", shape=[])
of_array("33 axes", shape=[1] * 33, chunk_grid=grid(*[1] * 33), dimension_names=None)
of_array("shape of floats", shape=[40.5, 48.0])
of_array("shape of bools", shape=[True, True])
of_array("shape of texts", shape=["40", "48"])
of_array("shape as a text", shape="40,48")
of_array("chunks of zero", chunk_grid=grid(0, 16))
of_array("negative chunks", chunk_grid=grid(-16, 16))
of_array("chunks of floats", chunk_grid=grid(1.5, 16))
of_array("unknown grid", chunk_grid={"name": "hexagons", "configuration": {}})
of_array("grid is a number", chunk_grid=5)
of_array("negative fill of unsigned", fill_value=-1)
of_array("fill too large", fill_value=256)
of_array("fill is NaN", fill_value="NaN")
of_array("fill is Infinity", fill_value="Infinity")
of_array("fill is a bare NaN", fill_value=float("nan"))
of_array("fill is a list", fill_value=[1, 2])
of_array("fill is null", fill_value=None)
of_array("fill is 10^400", fill_value=10**400)
of_array("too few names", dimension_names=["y"])
of_array("names are numbers", dimension_names=[1, 2])
of_array("names are objects", dimension_names={"y": 1})
of_array("names that escape", dimension_names=["\x1b[31my", "x\n"])
of_array("unknown codec", codecs=[BYTES, {"name": "rot13"}])
of_array("no codecs", codecs=[])
of_array("codecs in the wrong order", codecs=[ZSTD, BYTES])
of_array("codecs are a text", codecs="zstd")
of_array("a pickle as codec", codecs=[BYTES, {"name": "numcodecs.pickle"}])
of_array("a transpose that repeats",
         codecs=[{"name": "transpose", "configuration": {"order": [0, 0]}}, BYTES])  # fmt: skip
of_array("unknown type", data_type="float1024")
of_array("structured type", data_type={"name": "structured", "configuration": {"fields": []}})
of_array("variable texts", data_type="string")
of_array("dates", data_type={"name": "numpy.datetime64",
                             "configuration": {"unit": "s", "scale_factor": 1}})  # fmt: skip
of_array("raw bytes", data_type="r64")
of_array("keys unknown", chunk_key_encoding={"name": "spiral"})
of_array("separator", chunk_key_encoding={"name": "default", "configuration": {"separator": "../"}})
of_array("a group where an array should be", node_type="group")
of_array("format 4", zarr_format=4)
of_array("attributes are a list", attributes=[1])
of_array("transformers", storage_transformers=[{"name": "x"}])


def sharding(*inner: int, codecs: Any = (BYTES, ZSTD)) -> dict[str, Any]:
    index: Any = [BYTES, {"name": "crc32c"}]
    told = {"chunk_shape": list(inner), "codecs": list(codecs), "index_codecs": index}
    return {"name": "sharding_indexed", "configuration": told}


of_array("shards in shards", codecs=[sharding(16, 16, codecs=[sharding(8, 8)])])
of_array("inner chunks that do not divide", codecs=[sharding(7, 7)])
of_array("a billion inner chunks", shape=[2**18] * 2, chunk_grid=grid(2**18, 2**18),
         codecs=[sharding(8, 8)])  # fmt: skip

of_array_v2("negative fill of unsigned", fill_value=-1)
of_array_v2("structured type", dtype=[["a", "<u2"], ["b", "<f4"]])
of_array_v2("objects", dtype="|O")
of_array_v2("texts", dtype="<U10")
of_array_v2("complex numbers", dtype="<c16")
of_array_v2("dates", dtype="<M8[s]")
of_array_v2("void", dtype="|V7")
of_array_v2("filters", filters=[{"id": "delta", "dtype": "|u1"}])
of_array_v2("unknown filter", filters=[{"id": "rot13"}])
of_array_v2("shuffled order", order="Z")
of_array_v2("compressor is a list", compressor=[1])
of_array_v2("exabytes with dots", shape=[HUGE, HUGE], dimension_separator=".")
of_array_v2("billions of chunks with dots", shape=[10**6, 10**6], chunks=[1, 1],
            dimension_separator=".")  # fmt: skip


def of_pickles(name: str, **fields: Any) -> None:
    def tell(place: Path) -> None:
        image(place, "0.4")
        boom = pickle.dumps(Unpickled(place.parent / "unpickled"))
        told = {k: base64.b64encode(boom).decode() if v == "boom" else v for k, v in fields.items()}
        change(place / "0/.zarray", lambda node: node.update(told))
        for chunk in (place / "0").glob("*/*"):
            chunk.write_bytes(boom)

    LIES[f"pickle: {name}"] = tell


PICKLE = {"id": "pickle", "protocol": 5}
of_pickles("compressor", compressor=PICKLE)
of_pickles("filter", compressor=None, filters=[PICKLE])
of_pickles("second filter", filters=[{"id": "vlen-utf8"}, PICKLE], compressor=None)
of_pickles("behind a delta", filters=[{"id": "delta", "dtype": "|u1"}], compressor=PICKLE)
of_pickles("objects", dtype="|O", filters=[PICKLE], compressor=None)
of_pickles("objects of texts", dtype="|O", filters=[{"id": "vlen-utf8"}, PICKLE], compressor=None)
of_pickles("fill", dtype="|O", filters=[PICKLE], compressor=None, fill_value="boom")


# --- the document -----------------------------------------------------------------------------


def putting(*way: Any) -> Callable[[dict[str, Any]], object]:
    """Return an edit that follows keys and indexes, of which the last but one gets the last."""
    *keys, last, value = way

    def edit(document: Any) -> None:
        for key in keys:
            document = document[key]
        document[last] = value

    return edit


def of_document(name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    def tell(place: Path) -> None:
        image(place)
        change_document(place, edit)

    LIES[f"document: {name}"] = tell


def entry(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["multiscales"][0]
    return found


def of_scale(name: str, *scale: Any) -> None:
    def edit(document: dict[str, Any]) -> None:
        transforms = entry(document)["datasets"][0]["coordinateTransformations"]
        transforms[0]["scale"] = list(scale)

    of_document(f"scale {name}", edit)


of_scale("of zero", 0, 0)
of_scale("negative", -1.0, 1.0)
of_scale("NaN", float("nan"), 1.0)
of_scale("1e308", 1e308, 1e308)
of_scale("5e-324", 5e-324, 5e-324)
of_scale("of texts", "1", "1")
of_scale("too short", 1.0)
of_scale("10^400", 10**400, 1)
VALUES: list[Any] = [{}, [], None, 0, 5, "x", [5], [[]], [{}], True, {"a": 1}]
for value in VALUES:
    of_document(f"multiscales are {json.dumps(value)}", putting("multiscales", value))
    of_document(f"datasets are {json.dumps(value)}", putting("multiscales", 0, "datasets", value))
of_document("10^5 datasets", lambda d: entry(d).update(datasets=entry(d)["datasets"] * 10**5))
of_document("10^5 entries", lambda d: d.update(multiscales=d["multiscales"] * 10**5))
of_document("10^5 axes", lambda d: entry(d).update(axes=entry(d)["axes"] * 10**5))
of_document("10^5 channels", lambda d: d["omero"].update(channels=d["omero"]["channels"] * 10**5))
PATHS: list[Any] = [
    "../outside.zarr/0", "..", "", ".", "/", "0/../../outside.zarr/0", "a\\b", "\0", "0\n",
    "s3://bucket/0", "file:///etc", "0/", "./0", "zarr.json", "labels", "labels/cells/0",
    "\udc80", "x" * 5000, "\x1b]0;owned\x07", "c/0/0", "0/c", 5, None, ["0"],
]  # fmt: skip


def second(path: Any) -> Callable[[dict[str, Any]], object]:
    def edit(document: dict[str, Any]) -> None:
        datasets = entry(document)["datasets"]
        datasets.append({**datasets[0], "path": path})

    return edit


for path in PATHS:
    shown = repr(str(path)[:30])
    of_document(f"path {shown}", putting("multiscales", 0, "datasets", 0, "path", path))
    of_document(f"second path {shown}", second(path))
of_document("the same level twice", lambda d: entry(d)["datasets"].append(entry(d)["datasets"][0]))
ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\n# <script>alert(1)</script> | ![x](http://evil/x)"
of_document("a name that escapes", lambda d: entry(d).update(name=ESCAPES))
of_document("a name of a megabyte", lambda d: entry(d).update(name="x" * 10**6))
of_document("a channel that escapes", lambda d: d["omero"]["channels"][0].update(label=ESCAPES))
of_document("a unit that escapes", lambda d: entry(d)["axes"][0].update(unit=ESCAPES))


@lie
def absolute_path(place: Path) -> None:
    image(place)
    path = str(place.parent / "outside.zarr/0")
    change_document(place, lambda d: entry(d)["datasets"][0].update(path=path))


@lie
def labels_that_lead_out(place: Path) -> None:
    image(place, labels={"cells": noise(SHAPE, "u1")})
    change_document(place / "labels", lambda d: d.update(labels=["../../outside.zarr"]))


@lie
def labels_that_are_linked(place: Path) -> None:
    image(place, labels={"cells": noise(SHAPE, "u1")})
    (place / "labels/cells").rename(place / "labels/old")
    (place / "labels/cells").symlink_to(place.parent / "outside.zarr")


@lie
def labels_of_a_hundred_thousand(place: Path) -> None:
    image(place, labels={"cells": noise(SHAPE, "u1")})
    names = [f"cells{number}" for number in range(10**5)]
    change_document(place / "labels", lambda d: d.update(labels=names))


@lie
def labels_of_themselves(place: Path) -> None:
    image(place, labels={"cells": noise(SHAPE, "u1")})
    (place / "labels/cells/labels").symlink_to(place / "labels")


# --- JSON -------------------------------------------------------------------------------------


def of_bytes(name: str, make: Callable[[str], bytes]) -> None:
    """Write something else in the place of the metadata of the group, or of the array."""
    for key in ("zarr.json", "0/zarr.json"):

        def tell(place: Path, key: str = key) -> None:
            image(place)
            (place / key).write_bytes(make((place / key).read_text()))

        LIES[f"{key}: {name}"] = tell


def with_attribute(text: str, value: str) -> bytes:
    document = json.loads(text)
    document["attributes"]["more"] = "@"
    return json.dumps(document).replace('"@"', value).encode()


of_bytes("empty", lambda _: b"")
of_bytes("cut", lambda text: text[: len(text) // 2].encode())
of_bytes("deep", lambda text: with_attribute(text, "[" * 10000 + "]" * 10000))
of_bytes("somewhat deep", lambda text: with_attribute(text, '{"a":' * 500 + "1" + "}" * 500))
of_bytes("deeper", lambda text: with_attribute(text, '{"a":' * 900 + "1" + "}" * 900))
of_bytes("100 MB", lambda text: with_attribute(text, "[" + "[]," * (33 * 10**6) + "[]]"))
of_bytes("5000 digits", lambda text: with_attribute(text, "9" * 5000))
of_bytes("1e400", lambda text: with_attribute(text, "1e400"))
of_bytes("NaN", lambda text: with_attribute(text, "NaN"))
of_bytes("a lone surrogate", lambda text: with_attribute(text, '"\\udc80"'))
of_bytes("no UTF-8", lambda text: text.encode() + b"\xff\xfe")
of_bytes("UTF-16", lambda text: text.encode("utf-16"))
of_bytes("a byte order mark", lambda text: b"\xef\xbb\xbf" + text.encode())
of_bytes("a key twice", lambda text: text.replace("{", '{"node_type": "x",', 1).encode())
of_bytes("a list", lambda _: b"[1]")
of_bytes("a number", lambda _: b"7")
of_bytes("zeros", lambda _: bytes(1000))
for more in ["5", "[]", '"x"', '{"metadata": 5}', '{"metadata": []}', '{"kind": "inline"}']:
    of_bytes(
        f"consolidated {more}",
        lambda text, m=more: text.replace("{", '{"consolidated_metadata": ' + m + ",", 1).encode(),  # type: ignore[misc] # a default
    )


# --- files ------------------------------------------------------------------------------------


@lie
def metadata_is_a_link(place: Path) -> None:
    image(place)
    (place / "zarr.json").unlink()
    (place / "zarr.json").symlink_to(place.parent / "outside.txt")


@lie
def metadata_is_a_folder(place: Path) -> None:
    image(place)
    (place / "0/zarr.json").unlink()
    (place / "0/zarr.json").mkdir()


@lie
def a_link_to_itself(place: Path) -> None:
    image(place)
    (place / "labels").symlink_to(place / "labels")


@lie
def the_place_of_a_level_is_a_link(place: Path) -> None:
    image(place)
    (place / "1").symlink_to(place.parent / "outside.zarr/0")


@lie
def the_base_is_a_link(place: Path) -> None:
    image(place)
    (place / "0").rename(place.parent / "base")
    change(place.parent / "base/zarr.json", lambda node: node.pop("dimension_names"))
    (place / "0").symlink_to(place.parent / "base")


# --- a record that lies -----------------------------------------------------------------------


def of_record(name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    def tell(place: Path) -> None:
        image(place)
        record = {"state": "building", "in_place": True, "plan": {"paths": ["0", "1"]},
                  "source": "0" * 64}  # fmt: skip
        edit(record)
        change(
            place / "zarr.json",
            lambda node: node["attributes"].update({"zarr-pyramid-flow": record}),
        )

    LIES[f"record: {name}"] = tell


of_record("as it is", lambda _: None)
RECORDED: list[Any] = [None, 5, "x", [], {}, [5], {"paths": 5}, {"paths": [5]}, {"paths": []}]
for field in ("state", "in_place", "plan", "source", "delete"):
    for value in RECORDED:
        of_record(f"{field} {json.dumps(value)}", putting(field, value))


def clearing(path: str) -> Callable[[dict[str, Any]], object]:
    return lambda record: record.update(state="clearing", delete=[path])


for path in ["../outside.zarr", "..", ".", "", "/", "0", "labels", "\0", "1/../../outside.zarr"]:
    of_record(f"clearing {path!r}", clearing(path))
    of_record(f"levels {path!r}", putting("plan", "paths", ["0", path]))
for value in (5, None, "x", [], True):

    def tell_attribute(place: Path, value: Any = value) -> None:
        image(place)
        change(place / "zarr.json",
               lambda node: node["attributes"].update({"zarr-pyramid-flow": value}))  # fmt: skip

    LIES[f"record is {json.dumps(value)}"] = tell_attribute


# --- chunks -----------------------------------------------------------------------------------


def zstd_of(size: int, claimed: int) -> bytes:
    """Return a zstd frame of repeated bytes: 4 bytes for each 128 kB."""
    frame = bytearray(b"\x28\xb5\x2f\xfd\xc0\x58" + struct.pack("<Q", claimed))
    while size:
        part = min(size, 2**17)
        size -= part
        frame += struct.pack("<I", part << 3 | 2 | (size == 0))[:3] + b"\x07"
    return bytes(frame)


def of_chunk(name: str, content: Callable[[], bytes], codec: Any = None) -> None:
    def tell(place: Path) -> None:
        image(place, compressors=codec) if codec else image(place)
        (place / "0/c/1/1").write_bytes(content())

    LIES[f"chunk: {name}"] = tell


of_chunk("garbage", lambda: b"garbage")
of_chunk("empty", lambda: b"")
of_chunk("zstd of 2 GB", lambda: zstd_of(2 * 10**9, 2 * 10**9))
of_chunk("zstd that claims a terabyte", lambda: zstd_of(256, 10**12))
of_chunk("zstd that claims an exabyte", lambda: zstd_of(256, 2**62))


def gzip_bomb() -> bytes:
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(10**7)
    return b"".join(packer.compress(zeros) for _ in range(100)) + packer.flush()


def blosc_bomb() -> bytes:
    import numcodecs
    import numpy as np

    return bytes(numcodecs.Blosc("zstd", 9, 0).encode(np.zeros(10**9, "u1")))


def gzip_codec() -> Any:
    from zarr.codecs import GzipCodec

    return GzipCodec()


def blosc_codec() -> Any:
    from zarr.codecs import BloscCodec

    return BloscCodec(typesize=1, shuffle="noshuffle")


of_chunk("gzip of 1 GB", gzip_bomb, gzip_codec())
of_chunk("blosc of 1 GB", blosc_bomb, blosc_codec())


# --- zip --------------------------------------------------------------------------------------


def of_zip(name: str, write: Callable[[zipfile.ZipFile, Path], object]) -> None:
    def tell(place: Path) -> None:
        folder = image(place.with_name("inside.zarr"))
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    file.write(path, path.relative_to(folder))
            write(file, place)

    LIES[f"zip: {name}"] = tell


of_zip("members that lead out", lambda z, _: z.writestr("../outside.txt", "x"))
of_zip("absolute members", lambda z, p: z.writestr(str(p.parent / "outside.txt"), "x"))
of_zip("two documents", lambda z, _: z.writestr("zarr.json", "{}"))
of_zip("a member of a gigabyte", lambda z, _: z.writestr("0/zarr.json", bytes(10**9)))
of_zip("a document of a gigabyte", lambda z, _: z.writestr("zarr.json", bytes(10**9)))


@lie
def zip_that_is_cut(place: Path) -> None:
    LIES["zip: two documents"](place)
    place.write_bytes(place.read_bytes()[:-100])


@lie
def zip_of_a_wrong_member(place: Path) -> None:
    LIES["zip: members that lead out"](place)
    content = bytearray(place.read_bytes())
    content[40:60] = bytes(20)
    place.write_bytes(content)


@lie
def zip_that_is_encrypted(place: Path) -> None:
    LIES["zip: members that lead out"](place)
    content = bytearray(place.read_bytes())
    at = 0
    while (at := content.find(b"PK\x01\x02", at)) >= 0:
        content[at + 8] |= 1
        at += 4
    at = 0
    while (at := content.find(b"PK\x03\x04", at)) >= 0:
        content[at + 6] |= 1
        at += 4
    place.write_bytes(content)
