"""Levels of test images whose voxels are known in closed form, through the whole build."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyramid_core import write_phantom
from pyramid_core.errors import RequestError
from pyramid_core.params import METHODS
from pyramid_core.phantom import phantom_answer
from tests.stories import Array, Shape, build, document, read

RAMPS = [
    # shape, chunks, voxel size, step
    ((16, 24, 32), (4, 4, 4), (1.0, 1.0, 1.0), [2, 2, 2]),
    ((37, 53, 41), (8, 8, 8), (1.0, 1.0, 1.0), [2, 2, 2]),
    ((13, 53, 89), (13, 8, 8), (0.5, 0.25, 0.75), [1, 2, 4]),
    ((19, 70, 90), (8, 16, 16), (4.0, 1.0, 1.0), []),
    ((27, 82, 64), (9, 9, 16), (0.5, 0.25, 2.0), [3, 3, 2]),
    ((125, 67), (5, 16), (1.0, 1.5), [5, 2]),
    ((2, 3, 9, 21, 18), (1, 1, 4, 4, 4), (10.0, 1.0, 2.0, 0.5, 0.5), [1, 1, 2, 2, 2]),
    ((8, 3, 16, 18), (2, 1, 4, 4), (10.0, 1.0, 2.0, 0.5), [2, 1, 2, 2]),
]


def phantom(place: Path, kind: Any, shape: Shape, **options: Any) -> Array:
    """Write a phantom and read it by TensorStore."""
    write_phantom(str(place), kind, shape, **options)
    return read(place / "0")


def transforms(group: Path) -> list[tuple[str, list[float], list[float]]]:
    """Return path, scale and translation of every level, from the document on disk."""
    return [
        (level["path"], *(t[t["type"]] for t in level["coordinateTransformations"]))
        for level in document(group)["multiscales"][0]["datasets"]
    ]


def coordinates(shape: Shape, scale: list[float], translation: list[float]) -> Array:
    """Return ``scale * index + translation``, added up over the axes with exact fractions."""
    total = np.zeros(shape, object)
    for axis, (n, s, t) in enumerate(zip(shape, scale, translation, strict=True)):
        centres = np.array([Fraction(s) * i + Fraction(t) for i in range(n)], object)
        total = total + centres.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return total.astype("f8")


def whole_windows(shape: Shape, base: Shape, factor: Shape) -> tuple[slice, ...]:
    """Return the voxels that stand for as many voxels of the base as their factor says."""
    return tuple(
        slice(0, n if b % f == 0 else n - 1) for n, b, f in zip(shape, base, factor, strict=True)
    )


def test_a_ramp_is_the_sum_of_physical_coordinates(tmp_path: Path) -> None:
    """At two and a half micrometers per row and half a one per column."""
    voxels = phantom(tmp_path / "x.zarr", "ramp", (3, 4), voxel_size=(2.5, 0.5))
    assert voxels.dtype == np.float32
    assert voxels.tolist() == [[0.0, 0.5, 1.0, 1.5], [2.5, 3.0, 3.5, 4.0], [5.0, 5.5, 6.0, 6.5]]


@pytest.mark.parametrize(("shape", "chunks", "voxel", "step"), RAMPS)
def test_every_voxel_of_a_ramp_by_mean_is_its_own_coordinate(
    tmp_path: Path, shape: Shape, chunks: Shape, voxel: tuple[float, ...], step: list[int]
) -> None:
    """Value and transformation agree exactly; a last, partial window holds at most half less."""
    place = tmp_path / "ramp.zarr"
    base = write_phantom(str(place), "ramp", shape, chunks=chunks, voxel_size=voxel)
    plan = build(place, step=step).plan
    found = transforms(place)
    assert len(found) > 2
    for level, (path, scale, translation) in zip(plan.levels, found, strict=True):
        voxels = read(place / path)
        expected = coordinates(voxels.shape, scale, translation)
        whole = whole_windows(voxels.shape, shape, level.factor)
        assert voxels[whole].size
        np.testing.assert_array_equal(voxels[whole], expected[whole])
        less = expected - voxels
        assert less.min() >= -1e-3  # a third is rounded
        assert less.max() <= sum(scale) / 2
        np.testing.assert_array_equal(phantom_answer("ramp", base, level), expected)


def test_a_partial_window_of_a_ramp_is_at_the_centre_of_what_it_holds(tmp_path: Path) -> None:
    """Of 7 voxels at 0..6 by twos: 0.5, 2.5, 4.5 and 6 alone; then 1.5 and 5.25; written out."""
    place = tmp_path / "ramp.zarr"
    write_phantom(str(place), "ramp", (4, 7), chunks=(1, 1))
    build(place, step=[2, 2])
    assert read(place / "1").tolist() == [[1.0, 3.0, 5.0, 6.5], [3.0, 5.0, 7.0, 8.5]]
    assert read(place / "2").tolist() == [[3.0, 6.75]]


@pytest.mark.parametrize(("shape", "chunks", "voxel", "step"), RAMPS[2:6])
def test_every_voxel_of_a_ramp_by_stride_is_its_own_coordinate(
    tmp_path: Path, shape: Shape, chunks: Shape, voxel: tuple[float, ...], step: list[int]
) -> None:
    """The first voxel of a window is there in a partial one, too; so no voxel is apart."""
    place = tmp_path / "ramp.zarr"
    base = write_phantom(str(place), "ramp", shape, chunks=chunks, voxel_size=voxel)
    plan = build(place, step=step, method="stride").plan
    for level, (path, scale, translation) in zip(plan.levels, transforms(place), strict=True):
        voxels = read(place / path)
        np.testing.assert_array_equal(voxels, coordinates(voxels.shape, scale, translation))
        np.testing.assert_array_equal(phantom_answer("ramp", base, level, "stride"), voxels)


@pytest.mark.parametrize(("shape", "chunks", "voxel", "step"), RAMPS[2:6])
def test_every_voxel_of_a_ramp_by_median_is_within_half_a_voxel(
    tmp_path: Path, shape: Shape, chunks: Shape, voxel: tuple[float, ...], step: list[int]
) -> None:
    """The lower of the two in the middle is below the centre, never by more than half a voxel."""
    place = tmp_path / "ramp.zarr"
    write_phantom(str(place), "ramp", shape, chunks=chunks, voxel_size=voxel)
    plan = build(place, step=step, method="median").plan
    for level, (path, scale, translation) in zip(plan.levels, transforms(place), strict=True):
        voxels = read(place / path)
        whole = whole_windows(voxels.shape, shape, level.factor)
        less = (coordinates(voxels.shape, scale, translation) - voxels)[whole]
        assert less.min() >= 0
        assert less.max() <= sum(scale) / 2


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("min", [[0, 2, 4], [2, 4, 6]]),
        ("max", [[2, 4, 5], [4, 6, 7]]),
        ("mode", [[1, 3, 4], [3, 5, 6]]),
        ("median", [[1, 3, 4], [3, 5, 6]]),
        ("mean", [[1, 3, 4.5], [3, 5, 6.5]]),
        ("stride", [[0, 2, 4], [2, 4, 6]]),
    ],
)
def test_a_small_ramp_by_hand(tmp_path: Path, method: str, expected: list[list[float]]) -> None:
    """Rows 0 to 3 plus columns 0 to 4; a window holds n, n+1 twice and n+2, the last but two."""
    place = tmp_path / "ramp.zarr"
    write_phantom(str(place), "ramp", (4, 5), chunks=(3, 3))
    build(place, step=[2, 2], method=method)
    assert read(place / "1").tolist() == expected


def test_a_ramp_that_float32_cannot_hold_is_of_float64(tmp_path: Path) -> None:
    """Half a unit of 2**-9 along ten thousand voxels needs more than 24 bits."""
    fine = phantom(tmp_path / "a.zarr", "ramp", (10001, 2), voxel_size=(2.001953125, 1.0))
    assert fine.dtype == np.float64
    assert fine[10000].tolist() == [20019.53125, 20020.53125]


def test_labels_are_boxes_of_24_in_cells_of_32(tmp_path: Path) -> None:
    """Numbered in C order from 1; here are two by two by three."""
    voxels = phantom(tmp_path / "x.zarr", "labels", (40, 64, 70))
    assert voxels.dtype == np.uint32
    assert voxels[0, 0, 0] == voxels[23, 23, 23] == 1
    assert voxels[24, 0, 0] == voxels[0, 24, 0] == voxels[0, 0, 31] == 0
    assert (voxels[0, 0, 32], voxels[0, 0, 69], voxels[0, 32, 0]) == (2, 3, 4)
    assert (voxels[32, 0, 0], voxels[39, 55, 69]) == (7, 12)
    assert np.unique(voxels).tolist() == list(range(13))


@pytest.mark.parametrize("method", METHODS)
def test_labels_survive_down_to_an_eighth_whatever_the_method(tmp_path: Path, method: Any) -> None:
    """Windows hold a single label, so each level is the base at ``factor * index``."""
    place = tmp_path / "labels.zarr"
    info = write_phantom(str(place), "labels", (2, 71, 90), axes="cyx", chunks=(1, 8, 8))
    plan = build(place, step=[1, 2, 2], method=method, max_levels=4).plan
    base = read(place / "0")
    assert [level.factor for level in plan.levels] == [(1, f, f) for f in (1, 2, 4, 8)]
    for level in plan.levels:
        step = level.factor[1]
        np.testing.assert_array_equal(read(place / level.path), base[:, ::step, ::step])
        expected = phantom_answer("labels", info, level, method)
        np.testing.assert_array_equal(read(place / level.path), expected)


@pytest.mark.parametrize("method", ["mode", "median", "min", "max", "stride"])
def test_coarse_labels_are_labels_of_the_base(tmp_path: Path, method: str) -> None:
    """Beyond an eighth, windows mix labels but never invent one."""
    place = tmp_path / "labels.zarr"
    write_phantom(str(place), "labels", (162, 162), chunks=(6, 6))
    assert len(build(place, step=[3, 3], method=method).plan.levels) == 4
    ids = set(np.unique(read(place / "0")).tolist())
    for level in "123":
        assert set(np.unique(read(place / level)).tolist()) <= ids


def test_what_has_no_closed_form_is_refused(tmp_path: Path) -> None:
    """An answer is exact or none."""
    place = tmp_path / "x.zarr"
    info = write_phantom(str(place), "labels", (90, 90), chunks=(30, 30))
    level = build(place, step=[3, 3]).plan.levels[1]
    for kind, method in (("labels", "mode"), ("ramp", "median"), ("blobs", "mean")):
        with pytest.raises(RequestError, match="no answer in closed form"):
            phantom_answer(kind, info, level, method)  # type: ignore[arg-type]
