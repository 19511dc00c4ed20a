"""pyramid_sampler's two names, on our engine: the same calls, the same means, an OME-Zarr image."""

from __future__ import annotations

import importlib.metadata
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr

from pyramid_core import Downsampler, initialize_test_image, verify_pyramid
from pyramid_core.errors import LocationError, RequestError
from tests.stories import Array, Shape, attributes, noise, paths, read, reduced, tree, write_image

peer = pytest.importorskip("pyramid_sampler")
logging.getLogger("pyramid_sampler").setLevel(logging.WARNING)


def readme(package: str, edge: int, chunk: int) -> str:
    """Return the code of pyramid_sampler's README, of smaller images and another package."""
    text = importlib.metadata.distribution("pyramid_sampler").read_text("METADATA") or ""
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert code.count("from pyramid_sampler import") == 2
    code = code.replace("64, 64, 64", f"{chunk}, {chunk}, {chunk}").replace("1024", str(edge))
    return code.replace("from pyramid_sampler import", f"from {package} import")


def field_of(store: Path, voxels: Array, chunks: Shape, **options: Any) -> Path:
    """Write a base at ``field/0`` of a store and return the path of the field."""
    return write_image(store / "field", voxels, chunks, **options)


def downsampled(store: Path, base: Array, factor: Shape, chunks: Shape) -> list[Array]:
    """Return all levels that ours makes of a base."""
    field = field_of(store, base, chunks)
    Downsampler(str(store), factor, base.shape, chunks).downsample(10, "field")
    return [read(field / path) for path in paths(field)]


def downsampled_by_peer(store: Path, base: Array, factor: Shape, chunks: Shape) -> list[Array]:
    """Return all levels that pyramid_sampler makes of a base."""
    field = field_of(store, base, chunks)
    peer.Downsampler(str(store), factor, base.shape, chunks).downsample(10, "field")
    return [read(field / str(n)) for n in range(len(list(zarr.open_group(field).array_keys())))]


def test_the_readme_of_pyramid_sampler_works_with_the_import_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its three steps, at a sixteenth of their size; what results is a valid image of 4 levels."""
    monkeypatch.chdir(tmp_path)
    exec(readme("pyramid_core", 64, 8), {})
    field = tmp_path / "test_image.zarr/field1"
    assert paths(field) == ["0", "1", "2", "3"]
    assert [read(field / path).shape for path in paths(field)] == [
        (n,) * 3 for n in (64, 32, 16, 8)
    ]
    yaozarrs.validate_zarr_store(str(field))
    assert verify_pyramid(str(field), "full").ok


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("factor", [(2, 2, 2), (3, 3, 3)])
def test_means_of_floats_are_those_of_pyramid_sampler_bit_for_bit(
    tmp_path: Path, dtype: str, factor: Shape
) -> None:
    """Both add up in float64 in C order and divide once, so all levels agree.

    Along every axis as many chunks as along the others: pyramid_sampler can do no other.
    """
    chunks = (4, 8, 4)
    shape = tuple(c * f**2 for c, f in zip(chunks, factor, strict=True))
    base = np.random.default_rng(1).normal(0, 1e3, shape).astype(dtype)
    ours = downsampled(tmp_path / "ours.zarr", base, factor, chunks)
    theirs = downsampled_by_peer(tmp_path / "theirs.zarr", base, factor, chunks)
    assert len(ours) == len(theirs) == 3
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype == np.dtype(dtype)
        assert our.tobytes() == their.tobytes()


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4"])
def test_means_of_integers_are_rounded_where_pyramid_sampler_drops_the_rest(
    tmp_path: Path, dtype: str
) -> None:
    """From the exact sums: nearest, ties to even, against what is left of the point."""
    low = -100 if dtype[0] == "i" else 0
    base = np.random.default_rng(2).integers(low, 120, (16, 16, 16)).astype(dtype)
    ours = downsampled(tmp_path / "ours.zarr", base, (2, 2, 2), (8, 8, 8))
    theirs = downsampled_by_peer(tmp_path / "theirs.zarr", base, (2, 2, 2), (8, 8, 8))
    sums = base.astype("i8").reshape(8, 2, 8, 2, 8, 2).sum((1, 3, 5))
    floor, rest = np.divmod(sums, 8)
    nearest = floor + ((rest > 4) | ((rest == 4) & (floor % 2 == 1)))
    np.testing.assert_array_equal(ours[1], nearest)
    np.testing.assert_array_equal(theirs[1], np.sign(sums) * (np.abs(sums) // 8))
    assert (ours[1] != theirs[1]).any()


@pytest.mark.parametrize(
    ("shape", "factor", "chunks"),
    [
        ((1024, 1024, 1024), (2, 2, 2), (64, 64, 64)),
        ((1024, 1024, 1024), (2, 2, 2), None),
        ((1024, 512, 256), (2, 2, 2), (64, 64, 64)),
        ((64, 1024, 1024), (2, 2, 2), (64, 64, 64)),
        ((64, 1024, 1024), (1, 2, 2), (64, 64, 64)),
        ((243, 243, 243), (3, 3, 3), (1, 1, 1)),
        ((100, 100, 100), (2, 2, 2), (25, 25, 25)),
        ((127, 128, 129), (2, 2, 2), (32, 32, 32)),
        ((127, 127, 127), (2, 3, 5), (4, 4, 4)),
        ((7, 7, 7), (2, 2, 2), (8, 8, 8)),
        ((1, 1, 1), (2, 2, 2), (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("max_levels", [1, 3, 10])
def test_there_are_as_many_levels_as_by_pyramid_sampler(
    monkeypatch: pytest.MonkeyPatch,
    shape: Shape,
    factor: Shape,
    chunks: Shape | None,
    max_levels: int,
) -> None:
    """By its own ``downsample``, told to count the levels rather than to write them."""
    made = [0]
    monkeypatch.setattr(
        peer.Downsampler, "_downsample_by_one_level", lambda _, level, __: made.append(level)
    )
    peer.Downsampler("x.zarr", factor, shape, chunks).downsample(max_levels, "field")
    assert Downsampler("x.zarr", factor, shape, chunks).levels(max_levels) == len(made)


@pytest.mark.parametrize(
    ("shape", "factor", "chunks", "levels"),
    [
        ((32, 32, 32), (2, 2, 2), (8, 8, 8), 3),
        ((32, 16, 8), (2, 2, 2), (8, 4, 2), 3),
        ((81, 27, 54), (3, 3, 3), (9, 3, 6), 3),
        ((8, 8, 8), (2, 2, 2), (8, 8, 8), 1),
    ],
)
def test_the_levels_that_are_written_are_those_of_pyramid_sampler(
    tmp_path: Path, shape: Shape, factor: Shape, chunks: Shape, levels: int
) -> None:
    """As many, and of the same shapes, of images that it can do."""
    base = noise(shape, "f4")
    ours = downsampled(tmp_path / "ours.zarr", base, factor, chunks)
    theirs = downsampled_by_peer(tmp_path / "theirs.zarr", base, factor, chunks)
    assert [level.shape for level in ours] == [level.shape for level in theirs]
    assert len(ours) == levels


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("shape", "factor", "chunks"),
    [
        ((37, 53), (2, 2), (8, 8)),
        ((19, 23, 37), (2, 2, 2), (4, 4, 4)),
        ((3, 19, 23, 21), (1, 2, 3, 2), (1, 4, 4, 4)),
        ((2, 3, 9, 17, 18), (1, 1, 2, 2, 2), (1, 1, 4, 4, 4)),
    ],
)
def test_any_shape_of_2_to_5_axes_is_downsampled(
    tmp_path: Path, shape: Shape, factor: Shape, chunks: Shape, zarr_format: int
) -> None:
    """The last window of an axis is the mean of what there is, as TensorStore has it, too."""
    field = field_of(tmp_path / "x.zarr", noise(shape), chunks, zarr_format=zarr_format)
    Downsampler(tmp_path / "x.zarr", factor, shape, chunks).downsample(10, "field")
    assert len(paths(field)) > 1
    finer = read(field / "0")
    for path in paths(field)[1:]:
        coarser = read(field / path)
        np.testing.assert_array_equal(coarser, reduced(finer, factor, "mean"))
        finer = coarser
    assert verify_pyramid(str(field)).ok
    yaozarrs.validate_zarr_store(str(field))


def test_downsampling_again_changes_nothing(tmp_path: Path) -> None:
    """What is finished is found finished."""
    base = noise((16, 16, 16))
    downsampled(tmp_path / "x.zarr", base, (2, 2, 2), (4, 4, 4))
    before = tree(tmp_path)
    Downsampler(str(tmp_path / "x.zarr"), (2, 2, 2), (16, 16, 16), (4, 4, 4)).downsample(
        10, "field"
    )
    assert tree(tmp_path) == before


def test_one_level_is_the_base_alone(tmp_path: Path) -> None:
    """And yet an image afterwards."""
    field = field_of(tmp_path / "x.zarr", noise((16, 16)), (4, 4))
    Downsampler(str(tmp_path / "x.zarr"), (2, 2), (16, 16), (4, 4)).downsample(1, "field")
    assert paths(field) == ["0"]


@pytest.mark.parametrize("max_levels", [0, -1])
def test_no_levels_at_all_is_a_value_error_as_in_pyramid_sampler(max_levels: int) -> None:
    """Before anything is opened."""
    for package in (Downsampler, peer.Downsampler):
        with pytest.raises(ValueError, match=r"must exceed|must be above zero"):
            package("x.zarr", (2, 2, 2), (8, 8, 8)).downsample(max_levels, "field")


def test_another_shape_than_that_of_the_array_is_refused(tmp_path: Path) -> None:
    """Both are said, and nothing is written."""
    field_of(tmp_path / "x.zarr", noise((16, 24)), (4, 4))
    before = tree(tmp_path)
    sampler = Downsampler(str(tmp_path / "x.zarr"), (2, 2), (16, 16), (4, 4))
    with pytest.raises(RequestError, match=r"level_0_res is 16x16 but.*16x24"):
        sampler.downsample(10, "field")
    with pytest.raises(LocationError):
        sampler.downsample(10, "no such field")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("factor", "shape", "chunks", "match"),
    [
        ((2, 2), (8, 8, 8), None, "refine_factor .*one number per axis"),
        ((2, 2, 2), (8, 8, 8), (4, 4), "chunks .*one number per axis"),
        ((2, 0, 2), (8, 8, 8), None, "refine_factor .*above zero"),
        ((2, 2.5, 2), (8, 8, 8), None, "refine_factor .*whole"),
        ((2, 2, 2), (8, -8, 8), None, "level_0_res .*above zero"),
        ((2, 2, 2), (8, 8, 8), 0, "chunks .*above zero"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    factor: Any, shape: Shape, chunks: Any, match: str
) -> None:
    """When the sampler is made, as in pyramid_sampler, but in words."""
    with pytest.raises(RequestError, match=match):
        Downsampler("x.zarr", factor, shape, chunks)


def test_arrays_of_numpy_are_taken_for_numbers() -> None:
    """As pyramid_sampler takes whatever NumPy takes."""
    sampler = Downsampler("x.zarr", np.array([2, 2]), np.array([64.0, 64.0]), 8)  # type: ignore[arg-type]
    assert sampler.refine_factor == (2, 2)
    assert sampler.finest_resolution == (64, 64)
    assert sampler.chunks == (8, 8)


@pytest.mark.parametrize(("dtype", "top"), [(None, 1), ("f4", 1), ("u1", 100), ("i8", 100)])
def test_the_test_image_is_noise_that_is_brighter_in_the_low_corner(
    tmp_path: Path, dtype: Any, top: int
) -> None:
    """Noise below ``top``, and half of it more in the first half of every axis."""
    store = zarr.group(tmp_path / "x.zarr")
    initialize_test_image(store, "field", (40, 50, 61), chunks=16, dtype=dtype)
    voxels = read(tmp_path / "x.zarr/field/0")
    assert voxels.dtype == np.dtype(dtype or "f8")
    corner = np.zeros(voxels.shape, bool)
    corner[:20, :25, :30] = True
    assert voxels[~corner].min() >= 0
    assert voxels[~corner].max() < top
    assert voxels[~corner].max() > 0.95 * top
    assert voxels[corner].min() >= top / 2
    assert 1.45 * top < voxels[corner].max() < 1.5 * top
    assert len({voxels[i : i + 4, :16, :16].tobytes() for i in (0, 16, 32)}) == 3
    assert zarr.open_array(tmp_path / "x.zarr/field/0").chunks == (16, 16, 16)


def test_the_test_image_has_the_range_of_that_of_pyramid_sampler(tmp_path: Path) -> None:
    """The same shape, type, chunks and mean, though not the same noise."""
    found = []
    for name, package in (("ours", initialize_test_image), ("theirs", peer.initialize_test_image)):
        package(zarr.group(tmp_path / name), "field", (64, 64, 64), chunks=(32, 32, 32))
        array = zarr.open_array(tmp_path / name / "field/0")
        found.append((array.shape, array.dtype, array.chunks))
        assert read(tmp_path / name / "field/0").mean() == pytest.approx(0.5 + 0.5 / 8, abs=0.01)
    assert found[0] == found[1]


def test_the_test_image_of_int8_ends_at_its_last_value(tmp_path: Path) -> None:
    """It does not begin again below zero."""
    initialize_test_image(zarr.group(tmp_path / "x.zarr"), "field", (40, 40), dtype="int8")
    voxels = read(tmp_path / "x.zarr/field/0")
    assert (voxels.min(), voxels.max()) == (0, 127)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "S4", "datetime64[s]"])
def test_other_types_are_a_runtime_error_as_in_pyramid_sampler(tmp_path: Path, dtype: str) -> None:
    """Before a field is created or deleted."""
    store = zarr.group(tmp_path / "x.zarr")
    with pytest.raises(RuntimeError):
        initialize_test_image(store, "field", (8, 8), dtype=dtype)
    assert list(store) == []


def test_a_field_is_overwritten_unless_it_shall_not_be(tmp_path: Path) -> None:
    """Levels and document of before are gone; without leave, nothing is touched."""
    store = zarr.group(tmp_path / "x.zarr")
    initialize_test_image(store, "field", (16, 16), chunks=4)
    Downsampler(str(tmp_path / "x.zarr"), (2, 2), (16, 16), 4).downsample(5, "field")
    before = tree(tmp_path)
    with pytest.raises(Exception, match="field"):
        initialize_test_image(store, "field", (8, 8), chunks=4, overwrite_field=False)
    assert tree(tmp_path) == before
    initialize_test_image(store, "field", (8, 8), chunks=4)
    assert list(zarr.open_group(tmp_path / "x.zarr/field")) == ["0"]
    assert attributes(tmp_path / "x.zarr/field") == {}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_test_image_goes_into_any_store(tmp_path: Path, zarr_format: Any) -> None:
    """In memory as on disk, in both formats of Zarr."""
    memory = zarr.group(zarr.storage.MemoryStore(), zarr_format=zarr_format)
    disk = zarr.group(tmp_path / "disk.zarr", zarr_format=zarr_format)
    for store in (memory, disk):
        initialize_test_image(store, "field", (20, 30, 9), chunks=(4, 5, 6), dtype="u2")
    np.testing.assert_array_equal(memory["field/0"][...], read(tmp_path / "disk.zarr/field/0"))  # type: ignore[index]
    sampler = Downsampler(tmp_path / "disk.zarr", (2, 2, 1), (20, 30, 9), (4, 5, 6))
    sampler.downsample(9, "field")
    assert paths(tmp_path / "disk.zarr/field") == ["0", "1", "2"]


# Dask leaves a socket open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_active_dask_client_draws_the_same_image(tmp_path: Path, dask_threads: Any) -> None:
    """And it is the client's workers that draw; into memory, which they might not see, we do."""
    disk, memory = zarr.group(tmp_path / "x.zarr"), zarr.group(zarr.storage.MemoryStore())

    def tasks() -> int:
        found: int = dask_threads.run_on_scheduler(
            lambda dask_scheduler: len(dask_scheduler.task_prefixes)
        )
        return found

    initialize_test_image(memory, "field", (20, 30), chunks=8)
    assert tasks() == 0
    initialize_test_image(disk, "field", (20, 30), chunks=8)
    assert tasks() > 0
    np.testing.assert_array_equal(memory["field/0"][...], read(tmp_path / "x.zarr/field/0"))  # type: ignore[index]


@pytest.mark.parametrize("shape", [(8,), (2,) * 6, (8, 0)])
def test_a_test_image_that_cannot_be_is_refused(tmp_path: Path, shape: Shape) -> None:
    """Before a field is created or deleted."""
    store = zarr.group(tmp_path / "x.zarr")
    with pytest.raises(RequestError, match="base_resolution"):
        initialize_test_image(store, "field", shape)
    assert list(store) == []
    shutil.rmtree(tmp_path / "x.zarr")
