"""The story from source to published image: what is copied, left out, written and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pyramid_core import PyramidParams, open_image, plan_pyramid, verify_pyramid
from pyramid_core.writer import prepare
from tests.stories import (
    assert_pyramid,
    attributes,
    build,
    chunk_files,
    document,
    noise,
    paths,
    read,
    steps_of,
    tree,
    write_image,
)

# --- what is copied ---------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_a_copied_base_keeps_the_bits_of_every_float(
    tmp_path: Path, zarr_format: int, version: str, dtype: str
) -> None:
    """Minus zero and the payload of NaN are copied as they are, also where they equal the fill."""
    bits = np.dtype(f"u{dtype[1]}")
    odd_nan = np.array(np.nan, dtype).view(bits) | bits.type(5)
    voxels = np.zeros((9, 16), bits)
    voxels[:, :4] = np.array(-0.0, dtype).view(bits)
    voxels[:, 4:8] = odd_nan
    voxels[2, 8:] = voxels[0, 0]
    voxels[5, 9] = odd_nan
    source = write_image(
        tmp_path / "in.zarr", voxels.view(dtype), (3, 4), zarr_format=zarr_format, fill_value=0.0
    )
    assert read(source / "0").tobytes() == voxels.tobytes()
    build(source, tmp_path / "out.zarr", ngff_version=version, chunks=[4, 4])
    assert read(tmp_path / "out.zarr" / "0").tobytes() == voxels.tobytes()


@pytest.mark.parametrize("dtype", [">i2", ">f4", ">u8"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_foreign_byte_order_is_swapped_on_the_way(
    tmp_path: Path, dtype: str, zarr_format: int
) -> None:
    """A big-endian source becomes little-endian with the same numbers."""
    voxels = noise((7, 9, 11), dtype)
    source = write_image(tmp_path / "in.zarr", voxels, (3, 4, 5), zarr_format=zarr_format)
    result = build(source, tmp_path / "out.zarr")
    np.testing.assert_array_equal(read(tmp_path / "out.zarr" / "0"), voxels)
    assert_pyramid(tmp_path / "out.zarr", steps_of(result), "mean")
    assert np.dtype(result.plan.dtype).str == "<" + dtype[1:]


# --- background -------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [None, [16, 16, 16]])
@pytest.mark.parametrize("fill", [0, 7])
def test_background_costs_no_objects(tmp_path: Path, fill: int, shards: list[int] | None) -> None:
    """Of a large sparse image, only what lies below its two stored chunks is built and stored."""
    group = zarr.open_group(tmp_path / "in.zarr", mode="w", zarr_format=3)
    array: Any = group.create_array(
        "0", shape=(128, 128, 128), chunks=(8, 8, 8), dtype="u1", fill_value=fill
    )
    array[8:16, 16:24, 0:8] = noise((8, 8, 8), "u1")
    array[112:120, 120:128, 112:120] = noise((8, 8, 8), "u1")
    result = build(
        tmp_path / "in.zarr",
        tmp_path / "out.zarr",
        step=[2, 2, 2],
        shards=shards or [],
        memory_limit="200kB",
        verify="sample",
    )
    for level in result.plan.levels:
        stored = chunk_files(tmp_path / "out.zarr" / level.path)
        assert 1 <= len(stored) <= 2, level.path
    blocks = sum(level.level.blocks.size for level in result.levels)
    assert result.blocks_built <= 2 * len(result.levels) < blocks
    assert_pyramid(tmp_path / "out.zarr", steps_of(result), "mean")
    np.testing.assert_array_equal(read(tmp_path / "out.zarr" / "0"), array[...])


def test_a_chunk_of_background_that_is_stored_is_left_out_of_the_copy(tmp_path: Path) -> None:
    """All-fill results leave no object, in chunks and in shards, whoever stored them."""
    voxels = np.zeros((32, 32), "u2")
    voxels[:8, :8] = noise((8, 8))
    source = write_image(tmp_path / "in.zarr", voxels, (8, 8))
    assert len(chunk_files(source / "0")) == 16
    build(source, tmp_path / "out.zarr")
    assert len(chunk_files(tmp_path / "out.zarr" / "0")) == 1
    build(source, tmp_path / "sharded.zarr", shards=[16, 16])
    assert len(chunk_files(tmp_path / "sharded.zarr" / "0")) == 1
    np.testing.assert_array_equal(read(tmp_path / "sharded.zarr" / "0"), voxels)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_fill_that_its_mean_does_not_preserve_is_built_everywhere(
    tmp_path: Path, zarr_format: Any, in_place: bool
) -> None:
    """The mean of three times 0.1 is not 0.1, so background is reduced like all else."""
    assert (0.1 + 0.1 + 0.1) / 3 != 0.1
    group = zarr.open_group(tmp_path / "in.zarr", mode="w", zarr_format=zarr_format)
    array: Any = group.create_array("0", shape=(54, 27), chunks=(9, 9), dtype="f8", fill_value=0.1)
    array[9:18, 9:18] = noise((9, 9), "f8")
    target = None if in_place else tmp_path / "out.zarr"
    result = build(tmp_path / "in.zarr", target, step=[3, 3], max_levels=3, verify="full")
    assert result.plan.background is None
    assert_pyramid(target or tmp_path / "in.zarr", steps_of(result), "mean")
    assert result.verification is not None
    assert result.verification.ok


@pytest.mark.parametrize(("fill", "mean"), [(np.nan, np.nan), (-0.0, 0.0), (np.inf, np.inf)])
def test_background_of_special_floats_is_reduced_bit_for_bit(
    tmp_path: Path, fill: float, mean: float
) -> None:
    """Fill values that compare unlike themselves, or like another, are not taken for each other."""
    group = zarr.open_group(tmp_path / "in.zarr", mode="w", zarr_format=3)
    array: Any = group.create_array("0", shape=(32, 32), chunks=(8, 8), dtype="f4", fill_value=fill)
    array[8:16, 8:16] = noise((8, 8), "f4")
    build(tmp_path / "in.zarr", tmp_path / "out.zarr", step=[2, 2], verify="full")
    base, coarser = read(tmp_path / "out.zarr" / "0"), read(tmp_path / "out.zarr" / "1")
    assert base.tobytes() == read(tmp_path / "in.zarr" / "0").tobytes()
    assert len(chunk_files(tmp_path / "out.zarr" / "0")) == 1
    assert coarser[-1, -1].tobytes() == np.float32(mean).tobytes()
    np.testing.assert_array_equal(
        coarser[4:8, 4:8], base[8:16, 8:16].reshape(4, 2, 4, 2).mean((1, 3))
    )


# --- what is said -----------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, "out.zarr"])
def test_what_the_image_says_of_its_channels_is_kept(tmp_path: Path, target: str | None) -> None:
    """Names and colours of omero stay, the contrast comes from the voxels, other attributes stay in place."""
    source = write_image(tmp_path / "in.zarr", noise((2, 40, 40)), (1, 8, 8))
    group = zarr.open_group(source, mode="a")
    channels = [{"label": "DAPI", "color": "0000FF"}, {"label": "GFP", "color": "00FF00"}]
    ome: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [multiscales("cyx", [1.0, 0.5, 0.25], name="cells")],
        "omero": {"channels": channels},
    }
    group.attrs.put({"ome": ome, "sample": {"id": 7}})
    where = tmp_path / target if target else None
    build(source, where, verify="full")
    built = where or source
    omero = document(built)["omero"]["channels"]
    assert [channel["label"] for channel in omero] == ["DAPI", "GFP"]
    assert [channel["color"] for channel in omero] == ["0000FF", "00FF00"]
    for number, channel in enumerate(omero):
        window, voxels = channel["window"], read(built / "0")[number]
        assert voxels.min() <= window["start"] < window["end"] <= voxels.max()
    assert document(built)["multiscales"][0]["name"] == "cells"
    assert verify_pyramid(str(built), "full").ok
    if target is None:
        assert attributes(built)["sample"] == {"id": 7}


def multiscales(
    axes: str, scale: list[float], levels: tuple[str, ...] = ("0",), **options: Any
) -> dict[str, Any]:
    """Return a multiscales entry as other programs write it."""
    types = {"t": "time", "c": "channel"}
    transforms = [
        [
            {
                "type": "scale",
                "scale": [s * 2**k if a in "zyx" else s for a, s in zip(axes, scale, strict=True)],
            }
        ]
        for k in range(len(levels))
    ]
    return {
        "axes": [
            {"name": name, "type": types.get(name, "space")}
            | ({"unit": "micrometer"} if name in "zyx" else {})
            for name in axes
        ],
        "datasets": [
            {"path": path, "coordinateTransformations": transform}
            for path, transform in zip(levels, transforms, strict=True)
        ],
        **options,
    }


# --- labels -----------------------------------------------------------------------------------


def labelled(place: Path, zarr_format: Any) -> Path:
    """Write an image with two label images, one of them without the image's channel axis."""
    write_image(place, noise((1, 40, 44)), (1, 8, 8), zarr_format=zarr_format)
    group = zarr.open_group(place, mode="a", zarr_format=zarr_format)
    put_document(
        group, zarr_format, {"multiscales": [multiscales("cyx", [1.0, 0.5, 0.5], name="x")]}
    )
    labels = group.create_group("labels")
    put_document(labels, zarr_format, {"labels": ["cells", "nuclei"]})
    for name, axes, shape, chunks in (
        ("cells", "cyx", (1, 40, 44), (1, 8, 8)),
        ("nuclei", "yx", (40, 44), (16, 16)),
    ):
        label = write_image(
            place / "labels" / name, noise(shape, "i4", seed=3), chunks, zarr_format=zarr_format
        )
        entry = multiscales(axes, [1.0, 0.5, 0.5][-len(axes) :], name=name)
        put_document(
            zarr.open_group(label, mode="a"),
            zarr_format,
            {"multiscales": [entry], "image-label": {}},
        )
    return place


def put_document(group: Any, zarr_format: int, ome: dict[str, Any]) -> None:
    """Write a document where its version has it."""
    if zarr_format == 3:
        group.attrs.put({"ome": {"version": "0.5", **ome}})
        return
    for name in ("multiscales", "image-label"):
        for entry in [ome[name]] if name == "image-label" and name in ome else ome.get(name, []):
            entry["version"] = "0.4"
    group.attrs.put(ome)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_labels_get_the_levels_of_their_image(tmp_path: Path, zarr_format: int) -> None:
    """In place, each label image has as many levels, by mode, and validators take the whole."""
    import yaozarrs

    place = labelled(tmp_path / "in.zarr", zarr_format)
    result = build(place, verify="full")
    assert len(result.plan.levels) == 4
    assert_pyramid(place, steps_of(result), "mean")
    assert_pyramid(place / "labels" / "cells", steps_of(result), "mode")
    assert_pyramid(place / "labels" / "nuclei", [s[1:] for s in steps_of(result)], "mode")
    yaozarrs.validate_zarr_store(str(place))
    assert verify_pyramid(str(place), "full").ok
    before = tree(place)
    assert build(place).blocks_built == 0
    assert tree(place) == before
    assert document(place / "labels")["labels"] == ["cells", "nuclei"]


def test_labels_are_left_out_elsewhere(tmp_path: Path) -> None:
    """An image that is written elsewhere has no labels, and its plan says so."""
    place = labelled(tmp_path / "in.zarr", 3)
    result = build(place, tmp_path / "out.zarr", verify="full")
    assert not (tmp_path / "out.zarr" / "labels").exists()
    assert "labels of the source (cells, nuclei) are left out" in str(result.plan)
    assert verify_pyramid(str(tmp_path / "out.zarr"), "full").ok


# --- consolidated metadata --------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("above", [False, True])
def test_consolidated_metadata_shows_the_new_levels(
    tmp_path: Path, zarr_format: Any, above: bool
) -> None:
    """A copy of the metadata that exists, in the image or above it, is brought up to date."""
    root = tmp_path / "root.zarr"
    zarr.open_group(root, mode="w", zarr_format=zarr_format)
    zarr.open_group(root / "plate", mode="w", zarr_format=zarr_format)
    image = write_image(root / "plate" / "image", noise((32, 32)), (8, 8), zarr_format=zarr_format)
    top = root if above else image
    zarr.consolidate_metadata(str(top), zarr_format=zarr_format)
    requests: list[dict[str, Any]] = [{}, {"existing": "replace", "max_levels": 2}]
    for request in requests:
        build(image, verify="full", **request)
        group = zarr.open_group(top, mode="r", use_consolidated=True)
        found: Any = group["plate/image"] if above else group
        named = paths(image)
        assert sorted(found.array_keys()) == named
        # TensorStore reads no consolidated metadata, so it tells the truth of the arrays.
        for path in named:
            np.testing.assert_array_equal(found[path][...], read(image / path))
        said = found.attrs["ome"] if zarr_format == 3 else found.attrs
        assert [d["path"] for d in said["multiscales"][0]["datasets"]] == named
    plain: Any = zarr.open_group(image, mode="r", use_consolidated=False)
    assert sorted(plain.array_keys()) == ["0", "1"]


# --- nothing but levels -------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_beside_a_base_in_a_folder_only_levels_are_made(tmp_path: Path, zarr_format: Any) -> None:
    """What was given stays as it is: the folder of the base gets no metadata of its own."""
    place = tmp_path / "in.zarr"
    group = zarr.open_group(place, mode="w", zarr_format=zarr_format)
    write_image(place / "a", noise((32, 32)), (8, 8), zarr_format=zarr_format)
    for name in ("zarr.json", ".zgroup", ".zattrs"):
        (place / "a" / name).unlink(missing_ok=True)
    put_document(group, zarr_format, {"multiscales": [multiscales("yx", [1.0, 1.0], ("a/0",))]})
    result = build(place, verify="full")
    assert [level.path for level in result.plan.levels] == ["a/0", "a/1", "a/2"]
    assert sorted(path.name for path in (place / "a").iterdir()) == ["0", "1", "2"]
    assert_pyramid(place, steps_of(result), "mean")


def test_attributes_of_a_level_that_were_lost_are_written_again(tmp_path: Path) -> None:
    """Of Zarr v2 they are an object of their own, which a power loss may take."""
    source = write_image(tmp_path / "in.zarr", noise((32, 32)), (8, 8), zarr_format=2)
    build(source, tmp_path / "whole.zarr", ngff_version="0.4")
    params = PyramidParams(
        source=str(source), target=str(tmp_path / "out.zarr"), edges="partial", ngff_version="0.4"
    )
    prepare(plan_pyramid(open_image(str(source)).info, params))
    (tmp_path / "out.zarr" / "1" / ".zattrs").unlink()
    build(source, tmp_path / "out.zarr", ngff_version="0.4")
    assert tree(tmp_path / "out.zarr") == tree(tmp_path / "whole.zarr")
