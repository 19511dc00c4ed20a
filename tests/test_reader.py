"""An image is opened as it says of itself; where there is none, the message says what is there."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from pyramid_core.errors import LocationError
from pyramid_core.image import Axis, Channel, Codec, Fill, ImageInfo
from pyramid_core.reader import open_image

VOXELS = np.arange(6 * 8 * 10, dtype="u2").reshape(6, 8, 10)

OMERO = {
    "channels": [
        {
            "label": "DAPI",
            "color": "0000ff",
            "window": {"min": 0, "start": 5, "end": 50, "max": 255},
        },
        {"color": "not a colour"},
    ]
}


def write(place: Path, zarr_format: Any = 3, **options: Any) -> Path:
    """Write the voxels as an array."""
    settings = {"shape": VOXELS.shape, "chunks": (3, 4, 5), "dtype": "u2", **options}
    array = zarr.create_array(place, zarr_format=zarr_format, **settings)
    if array.shape == VOXELS.shape and array.dtype.kind in "iuf":
        array[...] = VOXELS.astype(array.dtype)
    return place


def group(place: Path, zarr_format: Any = 3, attributes: Any = None) -> Path:
    zarr.create_group(place, zarr_format=zarr_format, attributes=attributes or {})
    return place


def document(version: str, *paths: str, **more: Any) -> dict[str, Any]:
    """A document of an image whose voxels are 2 x 0.5 x 0.5 um, 10 um from the origin in z."""
    datasets = [
        {
            "path": path,
            "coordinateTransformations": [
                {"type": "scale", "scale": [2.0, 0.5 * 2**k, 0.5 * 2**k]},
                {"type": "translation", "translation": [10.0, 0.25, 0.0]},
            ],
        }
        for k, path in enumerate(paths or ("0",))
    ]
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    entry = {"name": "scan 1", "axes": axes, "datasets": datasets, **more.pop("entry", {})}
    if version == "0.4":
        return {"multiscales": [{"version": "0.4", **entry}], **more}
    return {"ome": {"version": "0.5", "multiscales": [entry], **more}}


def image(place: Path, version: str = "0.5", **more: Any) -> Path:
    """Write an OME-Zarr image of one level."""
    zarr_format = 2 if version == "0.4" else 3
    group(place, zarr_format, document(version, **more))
    write(place / "0", zarr_format)
    return place


def info(place: Path | str) -> ImageInfo:
    return open_image(str(place)).info


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zarr_format", "options", "prefix", "separator"),
    [
        (2, {}, "", "."),
        (2, {"chunk_key_encoding": {"name": "v2", "separator": "/"}}, "", "/"),
        (3, {}, "c", "/"),
        (3, {"chunk_key_encoding": {"name": "default", "separator": "."}}, "c", "."),
        (3, {"chunk_key_encoding": {"name": "v2", "separator": "."}}, "", "."),
    ],
)
def test_a_bare_array_is_an_image(
    tmp_path: Path, zarr_format: int, options: Any, prefix: str, separator: str
) -> None:
    """Either format and any chunk keys; without metadata, voxels are 1 and axes unknown."""
    write(tmp_path / "my.scan.zarr", zarr_format, **options)
    found = open_image(str(tmp_path / "my.scan.zarr"))
    assert found.info == ImageInfo(
        location=str(tmp_path / "my.scan.zarr"),
        path="",
        in_group=False,
        shape=(6, 8, 10),
        dtype="<u2",
        chunks=(3, 4, 5),
        shards=None,
        fill=0,
        zarr_format=zarr_format,  # type: ignore[arg-type] # 2 or 3
        key_prefix=prefix,
        separator=separator,
        codec=Codec("zstd", 0),  # zarr's default
        axes=(),
        scale=(1.0, 1.0, 1.0),
        translation=(0.0, 0.0, 0.0),
        name="my.scan",
    )
    np.testing.assert_array_equal(found.array[...], VOXELS)


def test_the_array_of_an_image_cannot_be_written(tmp_path: Path) -> None:
    """What is opened for reading stays as it is."""
    write(tmp_path / "0")
    with pytest.raises(ValueError, match=r"(?i)read.?only"):
        open_image(str(tmp_path / "0")).array[...] = 7
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "0", mode="r")[...], VOXELS)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_that_lies_in_a_group_is_its_base(tmp_path: Path, zarr_format: int) -> None:
    """Named itself, it is still the base of its group, so levels can lie beside it."""
    group(tmp_path / "g.zarr", zarr_format)
    write(tmp_path / "g.zarr" / "raw", zarr_format)
    found = info(tmp_path / "g.zarr" / "raw")
    assert (found.location, found.path, found.in_group) == (str(tmp_path / "g.zarr"), "raw", True)
    assert found.name == "g"


def test_an_array_named_inside_an_image_is_described_by_its_document(tmp_path: Path) -> None:
    """The group around the array says what its voxels are; a coarser level is no base."""
    place = group(tmp_path / "i.zarr", 3, document("0.5", "0", "1"))
    write(place / "0")
    write(place / "1", shape=(6, 4, 5), chunks=(3, 4, 5))
    base, coarser = info(place / "0"), info(place / "1")
    assert (base.path, base.in_group, base.scale) == ("0", True, (2.0, 0.5, 0.5))
    assert base == info(place)
    assert (coarser.path, coarser.in_group, coarser.scale) == ("1", False, (2.0, 1.0, 1.0))
    assert coarser.shape == (6, 4, 5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fill_value": 7}, 7),
        ({"dtype": "i8", "fill_value": -(2**63)}, -(2**63)),
        ({"dtype": "u8", "fill_value": 2**64 - 1}, 2**64 - 1),
        ({"dtype": "bool", "fill_value": True}, True),
        ({"dtype": "f4", "fill_value": math.nan}, "NaN"),
        ({"dtype": "f8", "fill_value": -math.inf}, "-Infinity"),
        ({"dtype": "f2", "fill_value": 0.5}, 0.5),
    ],
)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_fill_value_is_what_json_can_say(
    tmp_path: Path, zarr_format: int, options: Any, expected: Fill
) -> None:
    """Integers stay exact, and NaN and the infinities are words."""
    found = info(write(tmp_path / "0", zarr_format, **options)).fill
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("dtype", "expected"), [("u2", 0), ("f4", 0.0), ("bool", False)])
def test_a_fill_value_of_null_is_zero(tmp_path: Path, dtype: str, expected: Fill) -> None:
    """Zarr v2 may leave open what is not stored."""
    write(tmp_path / "0", 2, dtype=dtype)
    metadata = json.loads((tmp_path / "0" / ".zarray").read_text())
    (tmp_path / "0" / ".zarray").write_text(json.dumps({**metadata, "fill_value": None}))
    found = info(tmp_path / "0").fill
    assert found == expected
    assert type(found) is type(expected)


def test_a_big_endian_array_is_read(tmp_path: Path) -> None:
    """Zarr v2 may be of foreign byte order; it is told, and the voxels are right."""
    found = open_image(str(write(tmp_path / "0", 2, dtype=">i2")))
    assert found.info.dtype == ">i2"
    np.testing.assert_array_equal(np.asarray(found.array[...]), VOXELS)


def test_the_inner_chunks_of_shards_are_the_chunks(tmp_path: Path) -> None:
    """What can be decoded is the inner chunk; what is stored is the shard."""
    found = info(write(tmp_path / "0", shards=(6, 8, 10)))
    assert (found.chunks, found.shards) == ((3, 4, 5), (6, 8, 10))
    assert found.write_unit == (6, 8, 10)


BLOSC = Codec("blosc", 7, "zstd", "bitshuffle")
CODECS: list[tuple[int, Any, Codec, str]] = [
    (2, None, Codec("none"), ""),
    (3, None, Codec("none"), ""),
    (2, numcodecs.Zstd(level=9), Codec("zstd", 9), ""),
    (3, ZstdCodec(level=9), Codec("zstd", 9), ""),
    (2, numcodecs.GZip(level=4), Codec("gzip", 4), ""),
    (3, GzipCodec(level=4), Codec("gzip", 4), ""),
    (2, numcodecs.Zlib(level=2), Codec("zlib", 2), ""),
    (2, numcodecs.Blosc("zstd", 7, numcodecs.Blosc.BITSHUFFLE), BLOSC, ""),
    (3, BloscCodec(cname="zstd", clevel=7, shuffle="bitshuffle"), BLOSC, ""),
    # What not every viewer reads is not inherited, and the plan will say so.
    (2, numcodecs.BZ2(level=1), Codec("zstd", 3), "compressed by bz2"),
    (2, numcodecs.LZMA(), Codec("zstd", 3), "compressed by lzma"),
    (
        3,
        [ZstdCodec(level=1), Crc32cCodec()],
        Codec("zstd", 3),
        "compressed by zstd+crc32c",
    ),
]


@pytest.mark.parametrize(("zarr_format", "codec", "expected", "note"), CODECS, ids=repr)
def test_levels_inherit_the_codec_of_the_base_if_viewers_read_it(
    tmp_path: Path, zarr_format: int, codec: Any, expected: Codec, note: str
) -> None:
    """Name, level and settings are kept; a codec that few know gives zstd and a note."""
    found = info(write(tmp_path / "0", zarr_format, compressors=codec))
    assert found.codec == expected
    assert bool(found.notes) == bool(note)
    assert note in "".join(found.notes)


@pytest.mark.parametrize(
    ("names", "axes", "kept"),
    [
        (["z", "y", "x"], "zyx", ("z", "y", "x")),
        (["t", "y", "x"], "tyx", ("t", "y", "x")),
        (["x", "y", "z"], "", ("x", "y", "z")),  # not in NGFF's order
        (["a", "y", "x"], "", ("a", "y", "x")),
        (["t", "c", "x"], "", ("t", "c", "x")),  # no plane
        ([None, "y", "x"], "", ("", "y", "x")),
        ([None, None, None], "", ()),  # as good as none
        (None, "", ()),
    ],
)
def test_dimension_names_are_axes_where_they_are_those_of_the_format(
    tmp_path: Path, names: Any, axes: str, kept: tuple[str, ...]
) -> None:
    """Names that are letters of tczyx in order tell the axes; others are kept as they are."""
    found = info(write(tmp_path / "0", dimension_names=names))
    assert "".join(axis.name for axis in found.axes) == axes
    assert found.dimension_names == kept


# --- groups and images ----------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_base_of_a_group_is_its_array_0(tmp_path: Path, zarr_format: int) -> None:
    """A group without a document is an image if it holds an array 0."""
    write(group(tmp_path / "g.ome.zarr", zarr_format) / "0", zarr_format)
    found = info(tmp_path / "g.ome.zarr")
    assert (found.location, found.path, found.in_group) == (
        str(tmp_path / "g.ome.zarr"), "0", True,
    )  # fmt: skip
    assert found.name == "g"
    assert found.levels == ()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_says_what_its_voxels_are(tmp_path: Path, version: str) -> None:
    """Axes, units, scale, translation, channels and name come from the document."""
    found = info(image(tmp_path / "file.zarr", version, omero=OMERO))
    assert found.ngff_version == version
    assert found.axes == tuple(Axis(name, "micrometer") for name in "zyx")
    assert found.scale == (2.0, 0.5, 0.5)
    assert found.translation == (10.0, 0.25, 0.0)
    assert found.name == "scan 1"
    assert found.channels == (
        Channel("DAPI", "0000FF", (0, 5, 50, 255)),
        Channel("channel 1", found.channels[1].color, None),
    )
    assert found.levels == ("0",)
    assert found.in_group


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_transformation_of_the_whole_image_is_folded_in(tmp_path: Path, version: str) -> None:
    """It comes after that of the level: scales multiply, and it moves what was scaled."""
    whole = [
        {"type": "scale", "scale": [1.0, 10.0, 10.0]},
        {"type": "translation", "translation": [100.0, 1.0, 0.0]},
    ]
    place = image(tmp_path / "i.zarr", version, entry={"coordinateTransformations": whole})
    found = info(place)
    assert found.scale == (2.0, 5.0, 5.0)
    assert found.translation == (110.0, 3.5, 0.0)  # 10 x 1 + 100, 0.25 x 10 + 1


def test_the_finest_dataset_is_the_base_whatever_its_name(tmp_path: Path) -> None:
    """The document names the base, also in a folder of its own."""
    place = group(tmp_path / "i.zarr", 3, document("0.5", "deep/s0", "deep/s1"))
    group(place / "deep")
    write(place / "deep" / "s0")
    write(place / "0")
    found = info(place)
    assert found.path == "deep/s0"
    assert found.levels == ("deep/s0", "deep/s1")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_seen(tmp_path: Path, version: str) -> None:
    """Every label image that the group labels names is an image of the image."""
    place = image(tmp_path / "i.zarr", version)
    names = {"labels": ["cells", "deep/nuclei"]}
    zarr_format = 2 if version == "0.4" else 3
    group(place / "labels", zarr_format, names if version == "0.4" else {"ome": names})
    group(place / "labels" / "deep", zarr_format)
    for name in names["labels"]:
        image(place / "labels" / name, version, entry={"name": name})
    found = info(place)
    assert [label.name for label in found.labels] == ["cells", "deep/nuclei"]
    assert [label.location for label in found.labels] == [
        str(place / "labels" / "cells"), str(place / "labels" / "deep" / "nuclei"),
    ]  # fmt: skip


# --- places ---------------------------------------------------------------------------------------


def test_a_path_may_be_relative_and_end_with_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The location is told in full, for workers that have another current folder."""
    image(tmp_path / "my scan.zarr")
    monkeypatch.chdir(tmp_path)
    expected = info(tmp_path / "my scan.zarr")
    assert info("my scan.zarr/") == expected
    assert info("./x/../my scan.zarr") == expected
    assert info(f"file://{tmp_path}/my%20scan.zarr") == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert info("~/my scan.zarr") == expected


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("inside", ["", "i.zarr"], ids=["top level", "inside one folder"])
def test_a_zip_is_an_image(tmp_path: Path, version: str, inside: str) -> None:
    """The same image, packed; levels cannot be written beside its base."""
    image(tmp_path / "img" / "i.zarr", version)
    root = tmp_path / "img" if inside else tmp_path / "img" / "i.zarr"
    place = shutil.make_archive(str(tmp_path / "packed.zarr"), "zip", root, inside or None)
    found = open_image(place)
    assert found.info.location == place
    assert found.info.scale == (2.0, 0.5, 0.5)
    assert not found.info.in_group
    np.testing.assert_array_equal(found.array[...], VOXELS)


def test_a_bare_array_may_lie_in_a_zip(tmp_path: Path) -> None:
    """Its metadata is at the top of the archive."""
    write(tmp_path / "a")
    place = shutil.make_archive(str(tmp_path / "a.zarr"), "zip", tmp_path / "a")
    np.testing.assert_array_equal(open_image(place).array[...], VOXELS)
    assert info(place).name == "a"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_web_server_may_hold_an_image(tmp_path: Path, served: str, version: str) -> None:
    """It is read like a folder; what it does not have has to be trusted."""
    image(tmp_path / "i.zarr", version)
    found = open_image(f"{served}/i.zarr/")
    assert found.info.location == f"{served}/i.zarr"
    assert found.info.scale == (2.0, 0.5, 0.5)
    assert not found.info.listable
    np.testing.assert_array_equal(found.array[...], VOXELS)
    assert open_image(f"{served}/i.zarr/0").info == found.info


@pytest.mark.s3
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_object_store_may_hold_an_image(tmp_path: Path, bucket: str, version: str) -> None:
    """The objects of a bucket are an image like the files of a folder."""
    from pyramid_core.stores import open_storage

    place = image(tmp_path / "i.zarr", version)
    storage = open_storage(f"{bucket}/deep/i.zarr")
    for path in place.rglob("*"):
        if path.is_file():
            storage.write(str(path.relative_to(place)), path.read_bytes())
    found = open_image(f"{bucket}/deep/i.zarr/")
    assert found.info.location == f"{bucket}/deep/i.zarr"
    assert found.info.in_group
    assert found.info.listable
    assert found.info.scale == (2.0, 0.5, 0.5)
    np.testing.assert_array_equal(found.array[...], VOXELS)
    assert open_image(f"{bucket}/deep/i.zarr/0").info == found.info
    with pytest.raises(LocationError, match=r"deep/other.zarr holds no Zarr array or group"):
        open_image(f"{bucket}/deep/other.zarr")


# --- what is no image -----------------------------------------------------------------------------


def tiffs(place: Path) -> None:
    place.mkdir()
    for number in range(7):
        (place / f"z{number}.tif").write_bytes(b"II*\0")


def around(place: Path) -> None:
    place.mkdir()
    image(place / "b.zarr")
    (place / "a.txt").write_text("")


def plate(place: Path) -> None:
    group(place, 2, {"plate": {"name": "P"}})


def well(place: Path) -> None:
    group(place, 3, {"ome": {"version": "0.5", "well": {}}})


def series(place: Path) -> None:
    image(group(place) / "0")


def other_array(place: Path) -> None:
    write(group(place) / "raw")


def bad_json(place: Path) -> None:
    place.mkdir()
    (place / "zarr.json").write_text('{"zarr_format": 3,')


def json_list(place: Path) -> None:
    place.mkdir()
    (place / "zarr.json").write_text("[3]")


def no_node(place: Path) -> None:
    place.mkdir()
    (place / "zarr.json").write_text('{"zarr_format": 3}')


def bad_attributes(place: Path) -> None:
    group(place)
    metadata = json.loads((place / "zarr.json").read_text())
    (place / "zarr.json").write_text(json.dumps({**metadata, "attributes": [1]}))


def bad_array(place: Path) -> None:
    write(place)
    metadata = json.loads((place / "zarr.json").read_text())
    (place / "zarr.json").write_text(json.dumps({**metadata, "codecs": [{"name": "jpeg-of-1999"}]}))


def missing_base(place: Path) -> None:
    image(place)
    shutil.rmtree(place / "0")


def group_for_base(place: Path) -> None:
    missing_base(place)
    group(place / "0")


def wrong_axes(place: Path) -> None:
    image(place)
    shutil.rmtree(place / "0")
    write(place / "0", shape=(8, 8), chunks=(4, 4))


def typed(dtype: Any, zarr_format: int = 3) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        with warnings.catch_warnings():
            # Zarr warns of types that its specification does not know yet.
            warnings.simplefilter("ignore")
            write(place, zarr_format, dtype=dtype)

    return make


def said(version: str = "0.5", **more: Any) -> Callable[[Path], None]:
    """An image whose document says something wrong."""

    def make(place: Path) -> None:
        image(place, version, **more)

    return make


def leading(path: str, version: str = "0.5") -> Callable[[Path], None]:
    """An image whose document names a dataset outside of it."""

    def make(place: Path) -> None:
        write(place.parent / "secret")
        group(place, 2 if version == "0.4" else 3, document(version, path))

    return make


def label_outside(place: Path) -> None:
    image(place)
    group(place / "labels", 3, {"ome": {"labels": ["../../secret"]}})


def wrong_label(place: Path) -> None:
    image(place)
    group(place / "labels", 3, {"ome": {"labels": ["lost"]}})


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda _: None, "holds no Zarr array or group: nothing was found"),
    "an empty folder": (Path.mkdir, "holds no Zarr array or group: nothing was found"),
    "tiffs": (tiffs, r"but 7 other things: z0.tif, z1.tif, .* \.\.\.$"),
    "a folder of images": (around, r"a.txt, b.zarr; did you mean .*x.zarr/b.zarr\?"),
    "a file": (lambda place: place.write_text("x"), "is a file, not a Zarr array or group"),
    "a plate": (plate, r"is a plate of several images; give one of them"),
    "a well": (well, r"is a well of several images; give one of them"),
    "a series": (series, r"several images or groups; give one of them, like .*x.zarr/0"),
    "an empty group": (group, "without a multiscales document.* it holds: nothing"),
    "another array": (other_array, "without a multiscales document.* it holds: raw"),
    "bad JSON": (bad_json, r"zarr.json is not JSON"),
    "a list": (json_list, r"zarr.json is not a JSON object"),
    "no node": (no_node, r"zarr.json is neither array nor group"),
    "bad attributes": (bad_attributes, "attributes"),
    "an unknown codec": (bad_array, "metadata cannot be used: .*jpeg-of-1999"),
    "a missing base": (missing_base, "there is no array at '0', which its metadata names"),
    "a group for a base": (group_for_base, "'?0'?"),
    "too few axes": (wrong_axes, r"the document names 3 axes but 0 has shape \(8, 8\)"),
    "complex": (typed("c8"), "is of type complex64; bool, integers and floats"),
    "complex, v2": (typed("c16", 2), "is of type complex128"),
    "structured": (typed([("a", "u1"), ("b", "f4")]), r"is of type .*'a'"),
    "structured, v2": (typed([("a", "u1"), ("b", "f4")], 2), r"is of type .*'a'"),
    "strings": (typed("U4"), "is of type"),
    "texts": (typed(str), "is of type"),
    "times": (typed("M8[s]"), "is of type datetime64"),
    "0-d": (lambda place: write(place, shape=(), chunks=()), r"has shape \(\); .* 2 to 5 axes"),
    "6-d": (lambda place: write(place, shape=(2,) * 6, chunks=(2,) * 6), "2 to 5 axes"),
    "length zero": (lambda place: write(place, shape=(0, 8), chunks=(1, 8)), "none of length zero"),
    "path ..": (leading("../secret"), r"'../secret' leads out of the image"),
    "path .., 0.4": (leading("a/../../secret", "0.4"), "leads out of the image"),
    "absolute path": (leading("/secret"), "leads out of the image"),
    "path .": (leading("."), "leads out of the image"),
    "label ..": (label_outside, r"label '../../secret' leads out of the image"),
    "a lost label": (wrong_label, "labels/lost holds no Zarr array or group"),
    "version 0.1": (said("0.4", entry={"version": "0.1"}), "says version '0.1'; 0.4 and 0.5 are"),
    "no datasets": (said(entry={"datasets": []}), r"not valid OME-Zarr 0.5: .*datasets"),
    "multiscales of words": (said(multiscales="many"), "not valid OME-Zarr 0.5"),
    "multiscales of numbers": (said(multiscales=7), "not valid OME-Zarr 0.5"),
    "a mapping": (said("0.4", multiscales={"a": 1}), "not valid OME-Zarr 0.4"),
    "unknown axes": (
        said(entry={"axes": [{"name": n, "type": "space"} for n in "zab"]}),
        r"not valid OME-Zarr 0.5: .*'a'",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_no_image_is_told(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    """One line names the place and says what was found there; nothing is written."""
    place = tmp_path / "x.zarr"
    make(place)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LocationError, match=message) as caught:
        open_image(str(place))
    text = str(caught.value)
    assert "x.zarr" in text or "multiscales document" in text
    assert "\n" not in text
    assert len(text) < 600
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_reached_is_told(served: str) -> None:
    """A server that does not have it, and a name that is no scheme."""
    with pytest.raises(LocationError, match=f"{served}/no.zarr holds no Zarr array or group"):
        open_image(f"{served}/no.zarr")
    with pytest.raises(LocationError, match="cannot open gopher://host/x"):
        open_image("gopher://host/x")
