"""What we publish is OME-Zarr: by its schemas and validators, and by what they leave out."""

from __future__ import annotations

import json
import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import zarr

from pyramid_core import PyramidParams, build_pyramid
from pyramid_core.errors import RequestError
from pyramid_core.params import SPACE_UNITS, TIME_UNITS, parse_params
from pyramid_core.version import VERSION
from tests.images import (
    IMAGES,
    MADE,
    UNITS,
    Pyramids,
    blobs,
    groups,
    read_attributes,
    transforms,
    write_base,
)
from tests.stories import Shape, document, noise, paths, read, tree

every_pyramid = pytest.mark.parametrize("name", MADE)
LABELLED = [name for name in MADE if "labels" in IMAGES[MADE[name][0]][1] and not MADE[name][2]]


def nodes(place: Path) -> list[Path]:
    """Return every metadata file."""
    names = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
    return sorted(p for p in place.rglob("*") if p.name in names)


def strict_json(path: Path) -> Any:
    """Read a JSON file as every other language does: NaN and Infinity are refused."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


def version(name: str) -> str:
    return name.split("-")[1]


# Geometry: assertions 2 to 7 and 10; the ramp and the pixels themselves have tests of their own.

GEOMETRY: dict[str, list[tuple[Shape, list[float], list[float]]]] = {
    "plane-0.4": [
        ((181, 233), [0.5, 0.25], [7.0, -3.0]),
        ((181, 117), [0.5, 0.5], [7.0, -2.875]),
        ((91, 59), [1.0, 1.0], [7.25, -2.625]),
        ((46, 59), [2.0, 1.0], [7.75, -2.625]),
    ],
    "stack-0.5": [
        ((12, 24, 40), [2.0, 0.5, 0.5], [10.0, 0.0, -4.0]),
        ((12, 12, 20), [2.0, 1.0, 1.0], [10.0, 0.25, -3.75]),
        ((12, 6, 10), [2.0, 2.0, 2.0], [10.0, 0.75, -3.25]),
        ((6, 6, 5), [4.0, 2.0, 4.0], [11.0, 0.75, -2.25]),
    ],
    "stack-0.5-stride": [
        ((12, 24, 40), [2.0, 0.5, 0.5], [10.0, 0.0, -4.0]),
        ((12, 12, 20), [2.0, 1.0, 1.0], [10.0, 0.0, -4.0]),
        ((12, 6, 10), [2.0, 2.0, 2.0], [10.0, 0.0, -4.0]),
        ((6, 6, 5), [4.0, 2.0, 4.0], [10.0, 0.0, -4.0]),
    ],
    "stack-0.4-trim": [
        ((12, 24, 40), [2.0, 0.5, 0.5], [10.0, 0.0, -4.0]),
        ((12, 8, 13), [2.0, 1.5, 1.5], [10.0, 0.5, -3.5]),
        ((12, 2, 4), [2.0, 4.5, 4.5], [10.0, 2.0, -2.0]),
    ],
    "channels-0.5": [
        ((2, 2, 10, 20, 16), [3.0, 1.0, 2.0, 0.5, 0.5], [9.0, 0.0, 1.0, 2.0, 3.0]),
        ((2, 2, 10, 10, 8), [3.0, 1.0, 2.0, 1.0, 1.0], [9.0, 0.0, 1.0, 2.25, 3.25]),
        ((2, 2, 10, 5, 8), [3.0, 1.0, 2.0, 2.0, 1.0], [9.0, 0.0, 1.0, 2.75, 3.25]),
        ((2, 2, 5, 5, 8), [3.0, 1.0, 4.0, 2.0, 1.0], [9.0, 0.0, 2.0, 2.75, 3.25]),
    ],
    "thin-0.5": [
        ((1, 40, 24), [2.0, 0.5, 0.5], [10.0, 0.0, -4.0]),
        ((1, 20, 12), [2.0, 1.0, 1.0], [10.0, 0.25, -3.75]),
        ((1, 10, 6), [2.0, 2.0, 2.0], [10.0, 0.75, -3.25]),
        ((1, 5, 6), [2.0, 4.0, 2.0], [10.0, 1.75, -3.25]),
    ],
}
"""Shape, scale and translation of every level, done by hand."""


@pytest.mark.parametrize("name", GEOMETRY)
def test_every_level_lies_where_its_voxels_lie(pyramids: Pyramids, name: str) -> None:
    """Sizes in physical units, half-pixel shifts of block methods, none of stride, nor of t, c."""
    place = pyramids.place(name)
    shapes = [read(place / path).shape for path in paths(place)]
    found = [(n, *t) for n, t in zip(shapes, transforms(place), strict=True)]
    assert found == GEOMETRY[name]


@every_pyramid
def test_scales_are_whole_multiples_and_shapes_follow(pyramids: Pyramids, name: str) -> None:
    """Factors as the metadata tells them, never ratios of shapes; no axis ends, none repeats."""
    for place in groups(pyramids.place(name)):
        kwargs = document(place)["multiscales"][0]["metadata"]["kwargs"]
        levels = list(zip(paths(place), transforms(place), kwargs["factors"], strict=True))
        base = transforms(place)[0][0]
        shapes = [read(place / path).shape for path, _, _ in levels]
        for (_, (scale, _), factors), shape in zip(levels, shapes, strict=True):
            assert scale == [s * f for s, f in zip(base, factors, strict=True)]
            assert all(isinstance(f, int) for f in factors)
            for s, n, s0, n0 in zip(scale, shape, base, shapes[0], strict=True):
                assert abs(s * n - s0 * n0) < s
        for (finer, coarser), step in zip(pairwise(shapes), kwargs["steps"], strict=True):
            up = 0 if kwargs["edges"] == "trim" else 1
            expected = tuple(n // s + up * (n % s > 0) for n, s in zip(finer, step, strict=True))
            assert coarser == expected != finer
            assert min(coarser) >= 1


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("u1", 255),
        ("u2", 65535),
        ("i2", -32768),
        ("i2", -7),
        ("u8", 2**64 - 1),
        ("f4", 0.1),
        ("f8", 0.3),
    ],
)
def test_a_constant_image_stays_constant(tmp_path: Path, dtype: str, value: float) -> None:
    """No zero leaks in where a window sticks out, nothing overflows, nothing is rounded away."""
    place = write_base(tmp_path / "x.zarr", np.full((13, 27), value, dtype), axes="yx")
    build_pyramid(PyramidParams(source=str(place), edges="partial", chunks=[4, 4]))
    assert len(paths(place)) == 4
    for path in paths(place):
        assert set(read(place / path).ravel().tolist()) == {np.dtype(dtype).type(value).item()}


def test_means_have_no_bias(tmp_path: Path) -> None:
    """Rounded to nearest, ties to even: the mean of a level is that of the image, within 0.01."""
    voxels = np.random.default_rng(0).integers(0, 65536, (1024, 1024), "u2")
    place = write_base(tmp_path / "x.zarr", voxels, axes="yx", chunks=(256, 256))
    build_pyramid(PyramidParams(source=str(place), max_levels=2))
    exact = voxels.reshape(512, 2, 512, 2).mean(axis=(1, 3))
    level = read(place / "1")
    assert abs(level.mean() - exact.mean()) < 0.01
    assert np.array_equal(level, np.rint(exact))


@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_ids_of_level_0_only(pyramids: Pyramids, name: str) -> None:
    """No label is made up between two others, and their type stays."""
    place = pyramids.place(name) / "labels/cells"
    levels = [read(place / path) for path in paths(place)]
    assert set(np.unique(levels[0])) == {0, 1, 2, 700}
    assert all(set(np.unique(level)) <= {0, 1, 2, 700} for level in levels)
    assert {level.dtype.str for level in levels} == {"<u2"}
    assert len(np.unique(levels[1])) > 2


# Metadata: assertions 11 to 22.


@every_pyramid
def test_the_strict_schemas_hold(pyramids: Pyramids, name: str) -> None:
    """The specification's own JSON schemas, strict, take the image and each of its labels."""
    validate = pytest.importorskip("ngff_zarr.validate").validate
    image, *labels = groups(pyramids.place(name))
    validate(read_attributes(image), version=version(name), model="image", strict=True)
    for label in labels:
        validate(read_attributes(label), version=version(name), model="image", strict=True)
        validate(read_attributes(label), version=version(name), model="label", strict=True)


@every_pyramid
def test_the_validators_accept_everything_without_a_warning(pyramids: Pyramids, name: str) -> None:
    """Both yaozarrs and ome-zarr-models: the image, the list of labels, each label image."""
    import ome_zarr_models
    import yaozarrs

    place = pyramids.place(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for group in groups(place):
            yaozarrs.validate_zarr_store(str(group))
            ome_zarr_models.open_ome_zarr(zarr.open_group(group, mode="r"))
        if len(groups(place)) > 1:
            ome_zarr_models.open_ome_zarr(zarr.open_group(place / "labels", mode="r"))
            if version(name) == "0.5":  # a group of 0.4 does not say its version
                yaozarrs.validate_zarr_store(str(place / "labels"))


@every_pyramid
def test_the_version_stands_where_each_version_wants_it(pyramids: Pyramids, name: str) -> None:
    """0.4 in each entry and nothing below ome; 0.5 once in ome, of image, list and labels."""
    place = pyramids.place(name)
    for group in groups(place):
        attributes = read_attributes(group)
        entry = document(group)["multiscales"][0]
        if version(name) == "0.4":
            assert "ome" not in attributes
            assert entry["version"] == "0.4"
        else:
            assert list(attributes) == ["ome"]
            assert attributes["ome"]["version"] == "0.5"
            assert "version" not in entry
    if len(groups(place)) > 1 and version(name) == "0.5":
        assert read_attributes(place / "labels") == {"ome": {"version": "0.5", "labels": ["cells"]}}


@every_pyramid
def test_transformations_are_a_scale_and_a_translation(pyramids: Pyramids, name: str) -> None:
    """In this order, finite, one number per axis, scale above zero; none of the whole image."""
    for place in groups(pyramids.place(name)):
        entry = document(place)["multiscales"][0]
        assert "coordinateTransformations" not in entry
        for scale, translation in transforms(place):
            assert len(scale) == len(translation) == len(entry["axes"])
            assert all(math.isfinite(v) for v in scale + translation)
            assert min(scale) > 0


@every_pyramid
def test_every_axis_has_its_type_and_unit(pyramids: Pyramids, name: str) -> None:
    """Time, channel, then space; long names of units, none for channels."""
    types = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
    for place in groups(pyramids.place(name)):
        axes = document(place)["multiscales"][0]["axes"]
        names = [axis["name"] for axis in axes]
        assert names == [n for n in "tczyx" if n in names]
        assert axes == [
            {"name": n, "type": types[n], **({"unit": UNITS[n]} if n in UNITS else {})}
            for n in names
        ]


@pytest.mark.parametrize("symbol", ["um", "µm", "μm", "micron", "micrometer"])
def test_symbols_of_units_become_names(tmp_path: Path, symbol: str) -> None:
    """What people type is written as NGFF wants it."""
    place = write_base(tmp_path / "x.zarr", noise((20, 20)), axes="yx")
    build_pyramid(PyramidParams(source=str(place), unit=symbol, edges="partial"))
    axes = document(place)["multiscales"][0]["axes"]
    assert [axis["unit"] for axis in axes] == ["micrometer", "micrometer"]


def test_an_unknown_unit_is_refused() -> None:
    """A unit that viewers do not know is an error before anything is read."""
    with pytest.raises(RequestError, match="'furlong' is not a unit of length"):
        parse_params({"source": "x.zarr", "unit": "furlong"})


def test_units_are_those_of_the_specification() -> None:
    """The lists of length and of time are those that yaozarrs took from the specification."""
    from yaozarrs import _axis

    assert set(get_args(_axis.ValidSpaceUnit)) == SPACE_UNITS
    assert set(get_args(_axis.ValidTimeUnit)) == TIME_UNITS


@every_pyramid
def test_every_array_is_a_level_and_every_level_an_array(pyramids: Pyramids, name: str) -> None:
    """Paths are unique, relative and finest first, and nothing else lies in the group."""
    for place in groups(pyramids.place(name)):
        found = paths(place)
        assert found == [str(number) for number in range(len(found))]
        hidden = {"zarr.json", ".zattrs", ".zgroup", "labels"}
        assert {p.name for p in place.iterdir()} - hidden == set(found)


@every_pyramid
def test_the_document_tells_how_it_was_made(pyramids: Pyramids, name: str) -> None:
    """Name, type and metadata, the function and release that made it, and no secret."""
    for place in groups(pyramids.place(name)):
        entry = document(place)["multiscales"][0]
        method = "mode" if "labels" in place.parts else MADE[name][3].get("method", "mean")
        assert (entry["name"], entry["type"]) == ("scan", method)
        kept = {"args", "description", "kwargs", "method", "version"}
        assert set(entry["metadata"]) - {"contrast"} == kept
        assert entry["metadata"]["method"] == "pyramid_core.kernels.reduce_block"
        assert entry["metadata"]["version"] == VERSION
        assert str(place.parent) not in str(entry)


@every_pyramid
def test_all_metadata_is_strict_json_without_null(pyramids: Pyramids, name: str) -> None:
    """No NaN, which JavaScript refuses, and no null where the schema wants nothing."""
    place = pyramids.place(name)
    for node in nodes(place):
        strict_json(node)
    for group in groups(place):
        told = document(group)
        for entry in told["multiscales"]:
            entry["metadata"].pop("kwargs")  # ours: shards may be null there
        assert "None" not in str(told)


OMERO = {
    "stack-0.5": [("scan", "FFFFFF", 0.0, 65535.0)],
    "movie-0.4": [("scan", "FFFFFF", 1.0, 199.0)],
    "thin-0.5": [("scan", "FFFFFF", -32768.0, 32767.0)],
    "small-0.4": [("scan", "FFFFFF", 1.0, 199.0)],
    "channels-0.4-inplace": [("DAPI", "0000FF", 0.0, 255.0), ("GFP", "00FF00", 0.0, 255.0)],
    "coloured-0.5": [("DAPI", "0000FF", 0.0, 255.0), ("GFP", "00FF00", 0.0, 255.0)],
}
"""Label, colour, min and max of every channel; floats and wide integers have the range found."""


@every_pyramid
def test_omero_has_one_good_channel_per_entry(pyramids: Pyramids, name: str) -> None:
    """Six hexadecimal digits and min <= start < end <= max, what the source said goes first."""
    told = document(pyramids.place(name))
    axes = [axis["name"] for axis in told["multiscales"][0]["axes"]]
    channels = told["omero"]["channels"]
    assert len(channels) == (2 if "c" in axes else 1)
    for channel in channels:
        window = [channel["window"][k] for k in ("min", "start", "end", "max")]
        assert window[0] <= window[1] < window[2] <= window[3]
        assert all(map(math.isfinite, window))
    found = [(c["label"], c["color"], c["window"]["min"], c["window"]["max"]) for c in channels]
    assert found == OMERO.get(name, found)


@pytest.mark.parametrize("name", LABELLED)
def test_labels_have_the_levels_of_the_image(pyramids: Pyramids, name: str) -> None:
    """As many levels, of the same axes, scales, translations; listed once; what was said stays."""
    image, label = groups(pyramids.place(name))
    assert document(image / "labels")["labels"] == ["cells"]
    more = len(document(image)["multiscales"][0]["axes"]) - 3
    assert (
        document(label)["multiscales"][0]["axes"]
        == document(image)["multiscales"][0]["axes"][more:]
    )
    assert transforms(label) == [(s[more:], t[more:]) for s, t in transforms(image)]
    told = document(label)["image-label"]
    assert told["source"] == {"image": "../../"}
    assert told["colors"] == [{"label-value": 1, "rgba": [230, 60, 20, 255]}]
    assert "omero" not in document(label)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    """Nothing is listed or said twice: not a byte differs after the same request again."""
    place = write_base(
        tmp_path / "x.zarr", noise((12, 24, 40)), labels={"cells": blobs((12, 24, 40))}
    )
    asked = PyramidParams(source=str(place), edges="partial")
    build_pyramid(asked)
    before = tree(place)
    assert build_pyramid(asked).blocks_built == 0
    assert tree(place) == before
