"""Others read what we publish: ome-zarr, TensorStore and zarr see every level, voxel and size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pyramid_core import PyramidParams, build_pyramid, verify
from pyramid_core.contrast import contrast_windows
from pyramid_core.errors import DefectError
from pyramid_core.model import PyramidPlan
from pyramid_core.stores import Storage
from tests.images import IMAGES, MADE, Pyramids, blobs, groups, transforms, write_base
from tests.stories import document, noise, paths, read, tree

every_pyramid = pytest.mark.parametrize("name", MADE)


@every_pyramid
def test_ome_zarr_reads_back_what_was_written(pyramids: Pyramids, name: str) -> None:
    """The reference reader has shapes, voxels, axes, units, sizes and contrast right."""
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    place = pyramids.place(name)
    nodes = [node for node in Reader(parse_url(place))() if node.data]  # not the list of labels
    for group, node in zip(groups(place), nodes, strict=True):
        assert [tuple(d.shape) for d in node.data] == [read(group / p).shape for p in paths(group)]
        assert np.array_equal(np.asarray(node.data[-1]), read(group / paths(group)[-1]))
        assert node.metadata["axes"] == document(group)["multiscales"][0]["axes"]
        found = node.metadata["coordinateTransformations"]
        assert [(a["scale"], b["translation"]) for a, b in found] == transforms(group)
    windows = [channel["window"] for channel in document(place)["omero"]["channels"]]
    assert nodes[0].metadata["contrast_limits"] == [[w["start"], w["end"]] for w in windows]


@every_pyramid
def test_the_classes_of_ome_zarr_read_back_too(pyramids: Pyramids, name: str) -> None:
    """OMEZarrMultiscale has levels, spacing, units, contrast and the names of labels right."""
    from ome_zarr import OMEZarrMultiscale

    place = pyramids.place(name)
    told = document(place)
    axes = told["multiscales"][0]["axes"]
    found: Any = OMEZarrMultiscale.from_ome_zarr(str(place))
    assert len(found.images) == len(paths(place))
    for image, path, (scale, _) in zip(found.images, paths(place), transforms(place), strict=True):
        assert tuple(image.data.shape) == read(place / path).shape
        assert [image.scale[axis["name"]] for axis in axes] == scale
        units = {axis["name"]: axis["unit"] for axis in axes if "unit" in axis}
        assert {n: unit for n, unit in image.axes_units.items() if unit} == units
    assert [c.window.start for c in found.omero.channels] == [
        channel["window"]["start"] for channel in told["omero"]["channels"]
    ]
    assert list(found.labels or {}) == [group.name for group in groups(place)[1:]]


@every_pyramid
def test_level_0_is_the_source_bit_for_bit(pyramids: Pyramids, name: str) -> None:
    """Copied, re-chunked or left in place: TensorStore and zarr read the voxels of the source."""
    place = pyramids.place(name)
    voxels = IMAGES[MADE[name][0]][0]
    level = read(place / "0")
    assert level.dtype.str == voxels.dtype.str
    assert level.tobytes() == voxels.tobytes()
    for group in groups(place):
        levels = [read(group / path) for path in paths(group)]
        assert len({level.dtype for level in levels}) == 1
        for path, expected in zip(paths(group), levels, strict=True):
            array: Any = zarr.open_array(group / path, mode="r")
            assert np.asarray(array[...]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", [">u2", ">i4", ">f4"])
def test_big_endian_becomes_little_endian(tmp_path: Path, dtype: str, version: str) -> None:
    """Viewers read little-endian everywhere, so all levels are written so, of equal values."""
    voxels = noise((16, 16), dtype)
    source = write_base(tmp_path / "x.zarr", voxels, version="0.4", axes="yx", chunks=(4, 4))
    target = tmp_path / "y.zarr"
    build_pyramid(PyramidParams(source=str(source), target=str(target), ngff_version=version))
    for path in paths(target):
        assert read(target / path).dtype.str == "<" + dtype[1:]
        if version == "0.4":
            assert json.loads((target / path / ".zarray").read_text())["dtype"] == "<" + dtype[1:]
    assert np.array_equal(read(target / "0"), voxels)


@every_pyramid
def test_keys_and_names_of_arrays_are_those_that_viewers_want(
    pyramids: Pyramids, name: str
) -> None:
    """0.4: '/' between the numbers and C order; 0.5: dimension_names are the axes, '/' too."""
    for place in groups(pyramids.place(name)):
        axes = [axis["name"] for axis in document(place)["multiscales"][0]["axes"]]
        for path in paths(place):
            if (place / path / ".zarray").exists():
                metadata = json.loads((place / path / ".zarray").read_text())
                assert metadata["dimension_separator"] == "/"
                assert (metadata["order"], metadata["filters"]) == ("C", None)
                assert all(p.is_dir() or p.name == ".zarray" for p in (place / path).iterdir()
                           if p.name != ".zattrs")  # fmt: skip
            else:
                metadata = json.loads((place / path / "zarr.json").read_text())
                assert metadata["dimension_names"] == axes
                assert metadata["chunk_key_encoding"]["configuration"] == {"separator": "/"}


READABLE = {"bytes", "blosc", "zstd", "gzip", "crc32c", "sharding_indexed"}


def codecs(metadata: Any) -> set[str]:
    """Return the names of all codecs of an array of Zarr v3, those inside shards too."""
    found = {codec["name"] for codec in metadata}
    for codec in metadata:
        inner = codec.get("configuration", {})
        for key in ("codecs", "index_codecs"):
            found |= codecs(inner.get(key, []))
    return found


@every_pyramid
def test_chunks_shards_and_codecs_are_those_that_viewers_read(
    pyramids: Pyramids, name: str
) -> None:
    """No chunk is larger than its array, shards hold whole chunks, and no codec is exotic."""
    for place in groups(pyramids.place(name)):
        for path in paths(place):
            array: Any = zarr.open_array(place / path, mode="r")
            given = path == "0" and MADE[name][2] is None
            assert given or all(c <= n for c, n in zip(array.chunks, array.shape, strict=True))
            assert all(s % c == 0 for s, c in zip(array.shards or (), array.chunks, strict=False))
            if array.metadata.zarr_format == 3:
                metadata = json.loads((place / path / "zarr.json").read_text())
                assert codecs(metadata["codecs"]) <= READABLE
                assert ("sharding_indexed" in codecs(metadata["codecs"])) == (
                    "shards" in MADE[name][3]
                )
            else:
                compressor = json.loads((place / path / ".zarray").read_text())["compressor"]
                assert compressor is None or compressor["id"] in READABLE


GZIP = {"name": "gzip", "configuration": {"level": 1}}
BLOSC = {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}}
CODECS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("zstd", {}, {"compression": "zstd"}, "0.5"),
    ("zstd", {}, {"compression": "zstd"}, "0.4"),
    ("lz4", {}, {"compression": "lz4"}, "0.5"),
    ("none", {}, {"compression": "none"}, "0.5"),
    ("none", {}, {"compression": "none"}, "0.4"),
    ("gzip", {"compressors": [GZIP]}, {}, "0.5"),
    ("gzip", {"compressors": [GZIP]}, {}, "0.4"),
    ("blosc", {"compressors": [BLOSC]}, {}, "0.5"),
    ("blosc", {"compressors": [BLOSC]}, {}, "0.4"),
    ("sharded", {}, {"shards": [8, 16, 16], "compression": "lz4"}, "0.5"),
    ("sharded raw", {}, {"shards": [8, 8, 40], "compression": "none"}, "0.5"),
]


def test_voxels_do_not_depend_on_how_they_are_stored(tmp_path: Path) -> None:
    """TensorStore reads the same voxels of every level for each codec, in shards or not."""
    images = []
    for number, (_, options, asked, version) in enumerate(CODECS):
        source = write_base(tmp_path / f"{number}.in.zarr", noise((12, 24, 40), "i2"), **options)
        target = tmp_path / f"{number}.zarr"
        where = {"source": str(source), "target": str(target), "ngff_version": version}
        build_pyramid(PyramidParams(**{**where, **asked, "edges": "partial"}))
        images.append([read(target / path).tobytes() for path in paths(target)])
    assert [len(levels) for levels in images] == [4] * len(CODECS)
    assert all(levels == images[0] for levels in images)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_background_leaves_no_object_and_reads_as_background(tmp_path: Path, version: str) -> None:
    """An empty region has neither chunks nor other values than the fill value, at any level."""
    voxels = np.full((32, 32), 9, "u2")
    voxels[:8, :8] = noise((8, 8))
    place = write_base(
        tmp_path / "x.zarr", voxels, version=version, axes="yx", chunks=(8, 8), fill_value=9
    )
    build_pyramid(PyramidParams(source=str(place)))
    for path in ("1", "2"):
        level = read(place / path)
        assert set(np.delete(level.ravel(), np.flatnonzero(level != 9)).tolist()) == {9}
        chunks = [p for p in (place / path).rglob("*") if p.is_file() and p.name.isdecimal()]
        assert len(chunks) == 1


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_document_is_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """A build that ends early leaves no image; the next gives the bytes of an undisturbed one."""
    image: dict[str, Any] = {"version": version, "labels": {"cells": blobs((12, 24, 40))}}
    asked: dict[str, Any] = {"edges": "partial"}
    places = [write_base(tmp_path / n / "x.zarr", noise((12, 24, 40)), **image) for n in "ab"]
    build_pyramid(PyramidParams(source=str(places[0]), **asked))

    def stop(*_: Any) -> None:
        raise DefectError("stopped")

    monkeypatch.setattr("pyramid_core.build.gate", stop)
    with pytest.raises(DefectError):
        build_pyramid(PyramidParams(source=str(places[1]), **asked))
    for group in groups(places[1]):
        assert paths(group) == ["0"]
    monkeypatch.setattr("pyramid_core.build.gate", verify.gate)
    build_pyramid(PyramidParams(source=str(places[1]), **asked))
    assert tree(places[1]) == tree(places[0])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_is_published_is_what_was_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """The contrast is found once; what someone has written meanwhile in the attributes stays."""
    place = write_base(tmp_path / "x.zarr", noise((12, 24, 40)), version=version)
    asked: list[str] = []
    found = verify.gate

    def noted(plan: PyramidPlan, storage: Storage) -> list[Any]:
        asked.append(plan.target)
        return contrast_windows(plan, storage)

    monkeypatch.setattr("pyramid_core.writer.contrast_windows", noted)
    build_pyramid(PyramidParams(source=str(place)))
    assert asked == [str(place)]

    def while_it_goes_on(*given: Any) -> Any:
        verification = found(*given)
        zarr.open_group(place).attrs["seen"] = "by a person"
        return verification

    monkeypatch.setattr("pyramid_core.build.gate", while_it_goes_on)
    build_pyramid(PyramidParams(source=str(place), existing="replace"))
    assert zarr.open_group(place, mode="r").attrs["seen"] == "by a person"
    assert verify.verify_pyramid(str(place), "full").findings == ()
