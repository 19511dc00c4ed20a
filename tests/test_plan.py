"""The plan is decided before anything is written, by rules that can be followed by hand."""

from __future__ import annotations

import builtins
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_core import arrays, stores
from pyramid_core.errors import MemoryLimitError, PlanError
from pyramid_core.grid import Shape
from pyramid_core.image import Axis, Channel, Codec, ImageInfo, fill_scalar
from pyramid_core.kernels import reduce_block
from pyramid_core.model import PyramidPlan
from pyramid_core.params import METHODS, PyramidParams
from pyramid_core.plan import plan_pyramid


def image(shape: Shape = (256, 256, 256), **known: Any) -> ImageInfo:
    """An image that nothing is written of: the base ``0`` of a group, without a document."""
    n = len(shape)
    chunk = known.pop("chunk", 64)
    facts: dict[str, Any] = {
        "location": "/data/img.zarr",
        "path": "0",
        "in_group": True,
        "dtype": "|u1",
        "chunks": (chunk,) * n if isinstance(chunk, int) else chunk,
        "shards": None,
        "fill": 0,
        "zarr_format": 3,
        "key_prefix": "c",
        "separator": "/",
        "codec": Codec("zstd", 3),
        "axes": (),
        "scale": (1.0,) * n,
        "translation": (0.0,) * n,
        "name": "img",
    }
    return ImageInfo(shape=shape, **{**facts, **known})


def plan(info: ImageInfo, **asked: Any) -> PyramidPlan:
    return plan_pyramid(info, PyramidParams(**{"source": "/data/img.zarr", "workers": 1, **asked}))


def shapes(found: PyramidPlan) -> list[Shape]:
    return [level.shape for level in found.levels]


def steps(found: PyramidPlan) -> list[Shape]:
    return [level.step for level in found.levels[1:]]


# --- how many levels ------------------------------------------------------------------------------


class IndivisibleError(Exception):
    """A shape that edges="exact" refuses."""


def levels_by_the_rule(
    shape: Shape, chunks: Shape, step: Shape, edges: str, max_levels: int | None
) -> list[Shape]:
    """Follow section 4 of the design, word by word.

    Levels are added while an axis with step > 1 is longer than its chunk, at most max_levels in
    all; never a level with an axis of length zero or with its parent's shape.
    """
    found = [shape]
    while max_levels is None or len(found) < max_levels:
        parent = found[-1]
        reduced_and_long = False
        for axis in range(len(shape)):
            if step[axis] > 1 and parent[axis] > chunks[axis]:
                reduced_and_long = True
        if not reduced_and_long:
            break
        child = []
        for axis in range(len(shape)):
            whole, rest = parent[axis] // step[axis], parent[axis] % step[axis]
            if rest and edges == "exact":
                raise IndivisibleError
            child.append(whole + 1 if rest and edges == "partial" else whole)
        if 0 in child or tuple(child) == parent:
            break
        found.append(tuple(child))
    return found


@st.composite
def stacks(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.integers(2, 3))
    return {
        "shape": draw(st.tuples(*[st.integers(1, 96)] * n)),
        "chunks": draw(st.tuples(*[st.integers(1, 24)] * n)),
        "step": draw(st.tuples(*[st.integers(1, 5)] * n).filter(lambda step: max(step) > 1)),
        "edges": draw(st.sampled_from(["exact", "partial", "trim"])),
        "max_levels": draw(st.none() | st.integers(1, 6)),
    }


@given(stacks())
def test_the_levels_are_those_of_the_rule(stack: dict[str, Any]) -> None:
    """A slow twin that follows the rule gives the same shapes, or refuses too."""
    info = image(stack["shape"], chunk=stack["chunks"])
    asked = {"step": list(stack["step"]), "edges": stack["edges"]}
    try:
        expected = levels_by_the_rule(**stack)
    except IndivisibleError:
        with pytest.raises(PlanError, match="cannot be exact"):
            plan(info, max_levels=stack["max_levels"], **asked)
        return
    found = plan(info, max_levels=stack["max_levels"], **asked)
    assert shapes(found) == expected
    assert all(min(shape) > 0 for shape in expected)
    assert len(set(expected)) == len(expected)


CHOSEN: list[tuple[str, ImageInfo, list[Shape]]] = [
    ("a cube", image((256, 256, 256)), [(2, 2, 2), (2, 2, 2)]),
    # 2 um apart in z, 0.5 um in the plane: the plane first, until all are within sqrt(2).
    (
        "an anisotropic stack",
        image((256, 1024, 1024), scale=(2.0, 0.5, 0.5)),
        [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)],
    ),
    # After (1, 2, 2) voxels are (2, 2, 2); z is short from then on and does not block the plane.
    (
        "a short axis",
        image((48, 512, 512), scale=(2.0, 1.0, 1.0)),
        [(1, 2, 2), (1, 2, 2), (1, 2, 2)],
    ),
    # The short axis is the finest, but it is not among those that are halved.
    ("a short fine axis", image((8, 256, 256), scale=(0.1, 1.0, 1.0)), [(1, 2, 2), (1, 2, 2)]),
    ("within sqrt(2)", image((128, 128, 128), scale=(1.4142, 1.0, 1.0)), [(2, 2, 2)]),
    (
        "beyond sqrt(2)",
        image((128, 128, 128), scale=(1.4143, 1.0, 1.0)),
        [(1, 2, 2), (2, 1, 1)],
    ),
    ("a plane", image((200, 130)), [(2, 2), (2, 2)]),  # 200x130, 100x65, 50x33
    ("two axes of three", image((64, 128, 64)), [(1, 2, 1)]),
    (
        "time and channels",
        image((100, 3, 64, 128, 128), chunk=(1, 1, 64, 64, 64)),
        [(1, 1, 1, 2, 2)],
    ),
    ("nothing is long", image((64, 64, 64)), []),
]


@pytest.mark.parametrize(("info", "expected"), [c[1:] for c in CHOSEN], ids=[c[0] for c in CHOSEN])
def test_steps_that_we_choose_keep_voxels_near_cubes(
    info: ImageInfo, expected: list[Shape]
) -> None:
    """Long spatial axes whose voxel is within sqrt(2) of the finest of them are halved."""
    assert steps(plan(info, edges="partial")) == expected


@given(
    st.tuples(*[st.integers(1, 300)] * 3),
    st.tuples(*[st.integers(1, 64)] * 3),
    st.tuples(*[st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0, 2.0, 5.0])] * 3),
)
def test_chosen_steps_end_when_no_spatial_axis_is_longer_than_its_chunk(
    shape: Shape, chunks: Shape, scale: tuple[float, ...]
) -> None:
    """However flat the image or the voxels, the last level is one chunk, and each level coarser."""
    found = plan(image(shape, chunk=chunks, scale=scale), edges="partial")
    last = found.levels[-1].shape
    assert all(n <= c for n, c in zip(last, chunks, strict=True))
    for finer, level in itertools.pairwise(found.levels):
        halved = [s == 2 for s in level.step]
        assert any(halved)
        assert set(level.step) <= {1, 2}
        voxel = [v for v, half in zip(finer.scale, halved, strict=True) if half]
        assert max(voxel) <= min(voxel) * 1.41422
        assert all(n > c for n, c, half in zip(finer.shape, chunks, halved, strict=True) if half)


def test_no_level_is_added_to_a_small_image_and_the_plan_says_so() -> None:
    """One level is a valid image; the note says what would give more."""
    found = plan(image((64, 64, 64)), voxel_size=[1.0, 1.0, 1.0])
    assert len(found.levels) == 1
    assert found.notes == (
        "no level is added: no axis that is halved is longer than its chunk of 64x64x64; "
        "smaller --chunks give levels",
    )
    assert "note   no level is added" in str(found)
    assert len(plan(image((64, 64, 64)), chunks=[32] * 3).levels) == 2


def test_a_step_of_ones_is_refused() -> None:
    """A level that is as fine as its parent is never built."""
    with pytest.raises(PlanError, match="step is 1 along every axis"):
        plan(image(), step=[1, 1, 1])


def test_an_image_of_five_axes_takes_three_numbers_for_its_spatial_axes() -> None:
    """Numbers for z, y, x alone leave t and c at 1; five numbers are taken as they are."""
    info = image((4, 3, 128, 128, 128), chunk=(1, 1, 64, 64, 64))
    found = plan(info, step=[2, 2, 2], chunks=[32, 32, 32])
    assert steps(found) == [(1, 1, 2, 2, 2), (1, 1, 2, 2, 2)]
    assert found.levels[1].chunks == (1, 1, 32, 32, 32)
    five = plan(info, step=[2, 1, 2, 2, 2], max_levels=2)
    assert steps(five) == [(2, 1, 2, 2, 2)]
    with pytest.raises(PlanError, match=r"step has 2 entries but the image has 5 axes"):
        plan(info, step=[2, 2])


# --- what cannot be -------------------------------------------------------------------------------


def test_a_shape_that_does_not_divide_is_refused_with_the_command_that_would_do() -> None:
    """Level, axis and both numbers are named, and the whole command with partial edges is there."""
    info = image((256, 250, 256), location="/data/my img.zarr")
    asked = {"source": "/data/my img.zarr", "step": [2, 2, 2], "workers": 3}
    with pytest.raises(PlanError) as caught:
        plan(info, **asked)
    text = str(caught.value)
    # 250 -> 125, which is odd.
    assert (
        "level 2 cannot be exact: along y, level 1 has 125 voxels, no multiple of the step 2"
        in text
    )
    command = next(line for line in text.splitlines() if line.strip().startswith("pyramid build"))
    assert shlex.split(command) == [
        "pyramid", "build", "--source", "/data/my img.zarr", "--step", "2,2,2",
        "--edges", "partial", "--workers", "3",
    ]  # fmt: skip
    assert "--max-levels 2 stops before" in text
    assert shapes(plan(info, **asked, edges="partial"))[2] == (64, 63, 64)
    assert shapes(plan(info, **asked, edges="trim"))[2] == (64, 62, 64)
    assert shapes(plan(info, **asked, max_levels=2))[1:] == [(128, 125, 128)]


REFUSED: list[tuple[ImageInfo, dict[str, Any], str]] = [
    (image(), {"chunks": [64, 64], "target": "/o"}, "chunks has 2 entries .* 3 axes.*256x256x256"),
    (image(), {"voxel_size": [1.0]}, "voxel_size has 1 entries but the image has 3 axes"),
    (image((8,)), {}, "2 to 5 axes"),
    (image(), {"axes": "yx"}, "axes 'yx' do not describe an image of shape 256x256x256"),
    (image((9, 9)), {"axes": "cx"}, "two or three of them of zyx"),
    (image(axes=tuple(map(Axis, "tyx"))), {"axes": "zyx"}, "'zyx' contradict .* says 'tyx'"),
    (image(dimension_names=("a", "b", "c")), {}, "calls its dimensions .* name a --target"),
    (image(), {"shards": [100, 128, 128]}, "shards 100x128x128 are no multiple of .* 64x64x64"),
    (image(zarr_format=2), {"shards": [128] * 3}, "shards need Zarr v3"),
    (image(), {"target": "/o", "ngff_version": "0.4", "shards": [64] * 3}, "shards need Zarr v3"),
    (image(), {"ngff_version": "0.4"}, "0.4 cannot be written in place: the base is Zarr v3"),
    (image(zarr_format=2), {"ngff_version": "0.5"}, "0.5 cannot be written in place.*Zarr v2"),
    (image(in_group=False, path=""), {}, "no Zarr group.*--target"),
    (image(), {"target": "/data/img.zarr"}, "target is the source"),
    (image(), {"target": "/data/./x/../img.zarr/"}, "target is the source"),
    (image(), {"target": "file:///data/img.zarr"}, "target is the source"),
    (image(), {"target": "/data/img.zarr/0"}, "target is the source"),
    (image(), {"target": "/data/img.zarr/pyramid"}, "one inside the other"),
    (image(), {"target": "/data"}, "one inside the other"),
    (image(), {"target": "/"}, "one inside the other"),
    (image(location="s3://b/i"), {"target": "s3://b/i/"}, "target is the source"),
    (image(location="s3://b/i"), {"target": "s3://b"}, "one inside the other"),
    (image(location="s3://b/i"), {"target": "s3://b/i/o"}, "one inside the other"),
]


@pytest.mark.parametrize(
    ("info", "asked", "message"), REFUSED, ids=[str(c[1])[:40] for c in REFUSED]
)
def test_what_does_not_fit_is_refused(info: ImageInfo, asked: dict[str, Any], message: str) -> None:
    """One message of a few lines that says what was asked, what was found and what to do."""
    with pytest.raises(PlanError, match=message) as caught:
        plan(info, **asked)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("target", ["/data/img.zarr2", "/data/img", "/other/img.zarr", "s3://b/i"])
def test_a_target_beside_the_source_is_another_place(target: str) -> None:
    """A name that only begins alike is no folder inside."""
    found = plan(image(), target=target)
    assert not found.in_place
    assert found.target == target
    assert [level.path for level in found.written] == ["0", "1", "2"]


def test_a_link_to_the_source_is_the_source(tmp_path: Path) -> None:
    """Spelling does not decide where a place is."""
    (tmp_path / "img.zarr").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "img.zarr")
    with pytest.raises(PlanError, match="target is the source"):
        plan(image(location=str(tmp_path / "img.zarr")), target=str(tmp_path / "link"))


@pytest.mark.parametrize(
    ("zarr_format", "asked", "target", "expected"),
    [
        (2, "auto", None, "0.4"),
        (3, "auto", None, "0.5"),
        (2, "0.4", None, "0.4"),
        (2, "auto", "/o", "0.5"),  # elsewhere, the new one
        (3, "0.4", "/o", "0.4"),
    ],
)
def test_the_version_in_place_is_what_the_format_of_the_base_allows(
    zarr_format: int, asked: str, target: str | None, expected: str
) -> None:
    """OME-Zarr 0.4 is Zarr v2, 0.5 is Zarr v3."""
    found = plan(image(zarr_format=zarr_format), ngff_version=asked, target=target)
    assert found.ngff_version == expected
    assert found.zarr_format == {"0.4": 2, "0.5": 3}[expected]


# --- where voxels lie -----------------------------------------------------------------------------


def test_a_level_lies_where_the_centres_of_its_windows_lie() -> None:
    """Scale s0 F and translation t0 + s0 (F - 1) / 2, worked out by hand for steps 2 and 3."""
    info = image((64, 64), chunk=8, scale=(0.5, 0.25), translation=(10.0, -1.0))
    found = plan(info, step=[2, 3], edges="partial", max_levels=3)
    assert [level.factor for level in found.levels] == [(1, 1), (2, 3), (4, 9)]
    assert [level.scale for level in found.levels] == [(0.5, 0.25), (1.0, 0.75), (2.0, 2.25)]
    assert [level.translation for level in found.levels] == [
        (10.0, -1.0),  # that of the source survives
        (10.25, -0.75),  # half a voxel of 0.5 further; one voxel of 0.25
        (10.75, 0.0),  # 1.5 voxels; 4 voxels
    ]


@pytest.mark.parametrize("method", METHODS)
def test_only_stride_keeps_the_place_of_the_first_voxel(method: str) -> None:
    """A level by stride starts where level 0 starts; every other one is half a voxel further."""
    found = plan(image(translation=(5.0, 5.0, 5.0)), method=method)
    expected = 5.0 if method == "stride" else 5.5
    assert found.levels[1].translation == (expected,) * 3
    assert found.levels[1].scale == (2.0,) * 3


def test_scales_are_never_ratios_of_shapes() -> None:
    """A level of 33 voxels out of 65 has voxels of 2, and not of 65 / 33."""
    assert plan(image((65, 65)), edges="partial").levels[1].scale == (2.0, 2.0)


def test_what_is_asked_of_the_voxel_goes_before_the_metadata() -> None:
    """voxel_size and unit replace those of the image; the unit is that of the spatial axes."""
    info = image((4, 128, 128), axes=(Axis("t", "second"), Axis("y", "meter"), Axis("x")))
    found = plan(info, voxel_size=[2.0, 0.5, 0.5], unit="um", step=[2, 2])
    assert found.axes == (
        Axis("t", "second"), Axis("y", "micrometer"), Axis("x", "micrometer"),
    )  # fmt: skip
    assert found.levels[1].scale == (2.0, 1.0, 1.0)


@pytest.mark.parametrize(("n", "expected"), [(2, "yx"), (3, "zyx"), (4, "czyx"), (5, "tczyx")])
def test_axes_without_metadata_are_the_last_letters(n: int, expected: str) -> None:
    """A bare array of three axes is a stack."""
    assert "".join(a.name for a in plan(image((8,) * n)).axes) == expected


# --- layout ---------------------------------------------------------------------------------------


def test_chunks_and_shards_are_no_larger_than_their_level() -> None:
    """They are as asked while a level is large, and shrink with it; the base stays as it is."""
    found = plan(image((256, 256)), chunks=[32, 32], shards=[128, 128])
    assert [(v.shape, v.chunks, v.shards) for v in found.levels] == [
        ((256, 256), (64, 64), None),
        ((128, 128), (32, 32), (128, 128)),
        ((64, 64), (32, 32), (64, 64)),
        ((32, 32), (32, 32), (32, 32)),
    ]
    short = plan(image((100, 300)), target="/o", chunks=[128, 128], shards=[256, 256])
    assert short.levels[0].chunks == (100, 128)
    assert short.levels[0].shards == (100, 256)


def test_levels_elsewhere_have_no_shards_unless_asked() -> None:
    """Empty means chunks as the source, and no shards."""
    found = plan(image(shards=(128,) * 3), target="/o")
    assert {level.shards for level in found.levels} == {None}
    assert found.levels[0].chunks == (64,) * 3


@given(
    st.tuples(*[st.integers(1, 400)] * 2),
    st.tuples(*[st.integers(1, 40)] * 2),
    st.integers(1, 4),
    st.integers(20_000, 2_000_000),
    st.integers(1, 16),
    st.sampled_from([None, "/o"]),
)
def test_a_plan_never_exceeds_the_memory_limit(
    shape: Shape, chunk: Shape, shard: int, limit: int, workers: int, target: str | None
) -> None:
    """What all workers hold at once fits, with few workers or threads sharing tiles; or no plan."""
    try:
        found = plan(
            image(shape, chunk=chunk, dtype="<u2"),
            edges="partial",
            shards=[shard * c for c in chunk],
            memory_limit=limit,
            workers=workers,
            target=target,
        )
    except MemoryLimitError:
        return
    assert 1 <= found.workers <= workers
    assert found.cost.memory <= limit
    for level in found.written:
        assert level.memory * min(found.workers, level.blocks.size) <= limit
        assert level.tile_threads * min(found.workers, level.blocks.size) <= found.workers


def test_blocks_that_are_sent_to_a_cluster_are_eight_times_as_large() -> None:
    """What it costs to send one counts less so; what is written is the same, and less memory is kept to."""
    info = image((1024,) * 3, chunks=(64,) * 3, dtype="<u2")
    here, there = plan(info, workers=2), plan(info, dask_address="tcp://host:1")
    assert [level.block for level in here.written] == [(64,) * 3] * 4
    assert [level.block for level in there.written] == [(128,) * 3] * 3 + [(64,) * 3]
    assert {level.tile for level in (*here.written, *there.written)} == {(64,) * 3}
    assert here.identity() == there.identity()
    little = plan(info, dask_address="tcp://host:1", memory_limit="8MB")
    assert {level.block for level in little.written} == {(64, 128, 128), (64,) * 3}


def test_what_cannot_fit_is_refused_before_anything_is_written() -> None:
    """A shard of 512^3 does not fit in 100 MB; the plan says so and names the numbers."""
    with pytest.raises(MemoryLimitError, match=r"level 1 needs .*512x512x512.* is 100 MB"):
        plan(image((2048,) * 3), shards=[512] * 3, memory_limit="100MB")


def test_what_a_plan_costs_can_be_counted_by_hand() -> None:
    """Two levels over a base of 256^3 bytes in chunks of 64^3, in place."""
    cost = plan(image((256, 256, 256))).cost
    assert cost.objects_read == 64 + 8
    assert cost.bytes_read == 256**3 + 128**3
    assert cost.objects_written == 8 + 1
    assert cost.bytes_written == 128**3 + 64**3


def test_a_step_over_a_million_voxels_is_planned_without_holding_them() -> None:
    """Whether a window of fill gives fill is known without making the window."""
    info = image((4096,) * 3, chunk=1024, dtype="<f8", fill=0.0)
    asked = {"step": [512] * 3, "chunks": [4] * 3, "max_levels": 2, "memory_limit": "40GB"}
    assert plan(info, **asked).background == 0.0


# --- background -----------------------------------------------------------------------------------

BACKGROUND: list[tuple[str, Any, str, Shape, Any]] = [
    ("|u1", 7, "mean", (2, 2), 7),
    ("|b1", True, "mean", (2, 2), True),
    ("<f8", 0.0, "mean", (3, 3), 0.0),
    ("<f8", 0.1, "mean", (1, 3), None),  # (0.1 + 0.1 + 0.1) / 3 = 0.10000000000000002
    ("<f8", 0.1, "mean", (1, 2), 0.1),  # 0.2 / 2
    ("<f8", 0.1, "mean", (1, 4), None),  # a last window of 3: 300 = 75 x 4, 75 = 18 x 4 + 3
    ("<f8", 0.1, "max", (1, 3), 0.1),
    ("<f4", 0.1, "mean", (1, 3), 0.1),  # the float64 that sums a few float32 is exact
    ("<f8", "NaN", "mean", (3, 3), "NaN"),
    ("<f8", "Infinity", "mean", (3, 3), "Infinity"),
    ("<f8", 1e308, "mean", (2, 2), None),  # the sum is infinite
    ("<f8", -0.0, "mean", (2, 2), None),  # a mean is never -0.0
]


@pytest.mark.parametrize(("dtype", "fill", "method", "step", "expected"), BACKGROUND)
def test_background_is_left_out_only_where_windows_of_fill_give_fill(
    dtype: str, fill: Any, method: str, step: Shape, expected: Any
) -> None:
    """Where a mean of fill is another number, every voxel is written."""
    info = image((81, 300), chunk=(64, 16), dtype=dtype, fill=fill)
    found = plan(info, method=method, step=list(step), edges="partial")
    assert found.background == expected


@given(
    st.floats(allow_nan=True, width=64) | st.sampled_from([0.0, -0.0, 0.1, 1 / 3]),
    st.sampled_from(["<f2", "<f4", "<f8"]),
    st.integers(2, 12),
)
def test_background_agrees_with_the_kernel(value: float, dtype: str, count: int) -> None:
    """The plan knows without compiled code what the kernel makes of a window of fill."""
    with np.errstate(over="ignore"):
        scalar = np.array(math.nan if math.isnan(value) else value).astype(dtype)
    number = scalar.item()
    fill = (
        number if math.isfinite(number)
        else "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    )  # fmt: skip
    assert fill_scalar(fill, dtype).tobytes() == scalar.tobytes()
    kernel = reduce_block(np.full(count, scalar), (count,), "mean")
    info = image((4, count * 8), chunk=(4, count), dtype=dtype, fill=fill)
    found = plan(info, step=[1, count], max_levels=2)
    assert (found.background is not None) == (kernel.tobytes() == scalar.tobytes())


# --- the plan as data -----------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> PyramidPlan:
    """A plan of any kind: in place or not, with labels, channels, NaN for background."""
    n = draw(st.integers(2, 5))
    shape = draw(st.tuples(*[st.integers(1, 70)] * n))
    dtype, fill = draw(
        st.sampled_from(
            [("|u1", 0), (">i2", -1), ("<u8", 2**64 - 1), ("|b1", True), ("<f4", "NaN"),
             ("<f8", 0.1), ("<f2", "-Infinity"), ("<f8", -0.0), ("<f4", 1.0)]
        )
    )  # fmt: skip
    positive = st.floats(1e-9, 1e9)
    window = st.none() | st.just((0.0, 1.5, 2.5, 255.0))
    info = image(
        shape,
        chunk=draw(st.tuples(*[st.integers(4, 32)] * n)),
        dtype=dtype,
        fill=fill,
        scale=draw(st.tuples(*[positive] * n)),
        translation=draw(st.tuples(*[st.floats(-1e9, 1e9)] * n)),
        name=draw(st.text(max_size=8)),
        channels=tuple(draw(st.lists(st.builds(Channel, st.text(), st.just("FF0000"), window)))),
        axes=tuple(Axis(a, draw(st.sampled_from(["", "micrometer"]))) for a in "tczyx"[-n:]),
        levels=("0", "1"),
    )
    if draw(st.booleans()):
        info = replace(info, labels=(replace(info, dtype="<u4", fill=0, channels=()),))
    return plan(
        info,
        edges="partial",
        method=draw(st.sampled_from(METHODS)),
        target=draw(st.sampled_from([None, "/o", "s3://b/o"])),
        dask_address=draw(st.sampled_from([None, "local"])),
    )


@given(plans())
def test_a_plan_is_the_same_after_a_trip_through_json(made: PyramidPlan) -> None:
    """The text is strict JSON, and what is read back is equal in every value and type."""
    text = made.to_json()
    json.loads(text, parse_constant=pytest.fail)
    back = PyramidPlan.from_json(text)
    assert back == made
    assert repr(back) == repr(made)  # True is not 1, and -0.0 is not 0.0
    assert back.cost == made.cost


@given(plans())
def test_the_table_tells_of_every_level(made: PyramidPlan) -> None:
    """A person sees path, shape and chunks of every level, and what it costs."""
    lines = str(made).splitlines()
    for level in made.levels:
        row = next(line for line in lines if line.split()[:1] == [level.path])
        assert "x".join(map(str, level.shape)) in row.split()
        assert "x".join(map(str, level.chunks)) in row.split()
    for word in ("reads ", "writes ", "memory "):
        assert any(line.startswith(word) for line in lines)


@pytest.mark.parametrize(
    "other",
    [
        {"target": "/elsewhere/secret.zarr"},
        {"workers": 7},
        {"memory_limit": "60MB"},
        {"existing": "replace"},
        {"verify": "full"},
        {"dask_address": "tcp://host:1"},
        {"source": "/x"},
    ],
    ids=str,
)
def test_identity_is_what_is_published_and_nothing_else(other: dict[str, Any]) -> None:
    """Where, how fast and how carefully it is built changes nothing of the result."""
    asked = {"target": "/out/a.zarr", "step": [2, 2, 2]}
    identity = plan(image(), **asked).identity()
    assert plan(image(location="/in/b.zarr"), **{**asked, **other}).identity() == identity
    text = json.dumps(identity, allow_nan=False)
    assert not [word for word in ("/out", "/data", "secret", "host", "limit") if word in text]


@pytest.mark.parametrize(
    "other",
    [
        {"method": "max"},
        {"edges": "partial"},
        {"chunks": [32, 32, 32]},
        {"shards": [128, 128, 128]},
        {"compression": "lz4"},
        {"voxel_size": [1.0, 1.0, 2.0]},
        {"unit": "um"},
        {"step": [1, 2, 2]},
        {"max_levels": 2},
        {"ngff_version": "0.4"},
    ],
    ids=str,
)
def test_identity_tells_what_changes_the_result(other: dict[str, Any]) -> None:
    """Another result is another identity, so resume notices."""
    asked = {"target": "/o", "step": [2, 2, 2]}
    assert plan(image(), **{**asked, **other}).identity() != plan(image(), **asked).identity()


# --- labels and notes -----------------------------------------------------------------------------


def test_labels_get_the_same_levels_by_mode() -> None:
    """In place, the labels of an image follow its steps along the axes that they have."""
    axes = tuple(map(Axis, "czyx"))
    label = image((256, 256, 256), dtype="<u4", axes=axes[1:], location="/data/img.zarr/labels/a")
    info = image((3, 256, 256, 256), chunk=(1, 64, 64, 64), axes=axes, labels=(label,))
    found = plan(info, method="mean", step=[1, 1, 2, 2])
    (labels,) = found.labels
    assert labels.method == "mode"
    assert labels.in_place
    assert steps(labels) == [(1, 2, 2), (1, 2, 2)]
    assert found.images == (found, labels)
    assert found.cost.objects_written == sum(
        level.units.size for part in (found, labels) for level in part.written
    )
    elsewhere = plan(replace(info, labels=(replace(label, name="cells"),)), target="/o")
    assert elsewhere.labels == ()
    assert any("(cells) are left out" in note for note in elsewhere.notes)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [((256, 256, 128), "zyx", "shape 256x256x128"), ((256, 256, 256), "tyx", "axes tyx")],
)
def test_labels_of_another_shape_are_refused(shape: Shape, axes: str, message: str) -> None:
    """A pyramid of labels that do not fit would be half a pyramid."""
    label = image(shape, axes=tuple(map(Axis, axes)), name="a")
    info = image(axes=tuple(map(Axis, "zyx")), labels=(label,))
    with pytest.raises(PlanError, match=message):
        plan(info)


@pytest.mark.parametrize(
    ("known", "note"),
    [
        ({"separator": "."}, "the base has '.' in its chunk keys"),
        ({"dtype": ">u2"}, "the base is big-endian; the new levels are little-endian"),
        ({"listable": False}, "cannot be listed"),
        ({"notes": ("as the reader said",)}, "as the reader said"),
    ],
)
def test_what_the_user_should_know_is_in_the_notes(known: dict[str, Any], note: str) -> None:
    """A warning is part of the plan, and printed with it."""
    found = plan(image(**known))
    assert any(note in text for text in found.notes)
    assert note in str(found)
    assert found.dtype in ("|u1", "<u2")


def test_what_is_assumed_of_a_bare_array_is_told() -> None:
    """Nobody told its voxel size, and of four axes not what they are."""
    assert plan(image((64, 64, 64, 64), chunk=32)).notes == (
        "nothing tells the voxel size, so it is 1; --voxel-size and --unit would",
        "nothing names the axes, so they are taken for czyx; --axes would",
    )


def test_chunks_that_are_read_twice_are_told() -> None:
    """A write unit under a larger chunk, and no memory to take two."""
    info = image((256, 256, 256), chunk=128)
    size = [1.0, 1.0, 1.0]
    found = plan(info, chunks=[32] * 3, voxel_size=size, memory_limit="6MB")
    assert plan(info, chunks=[32] * 3, voxel_size=size).notes == ()
    assert any("reads each chunk" in note for note in found.notes)


# --- what it costs to plan ------------------------------------------------------------------------

PETABYTE = """
import resource, sys, tracemalloc
from tests.test_plan import image, plan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tracemalloc.start()
found = plan(image((100_000,) * 3, chunk=128, shards=(1024,) * 3), shards=[1024] * 3,
             edges="partial", memory_limit="20GB", workers=4)
str(found), found.to_json()
_, peak = tracemalloc.get_traced_memory()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(found.levels), found.cost.objects_read, peak, (after - before) * 1024)
"""


def test_a_petabyte_is_planned_in_kilobytes() -> None:
    """Regions are computed and never listed: a plan of 10^15 voxels allocates next to nothing."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", PETABYTE],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    levels, objects, allocated, grown = map(int, done.stdout.split())
    assert levels == 11  # 100000, 50000, ..., 98
    assert objects > 900_000
    assert allocated < 10 * 10**6
    assert grown < 100 * 10**6


def test_a_plan_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is pure: no file, no store, no listing, and no compiled code is loaded for it."""

    def refuse(*arguments: Any, **_: Any) -> None:
        pytest.fail(f"a plan opened {arguments}")

    info = image((256,) * 3, dtype="<f8", fill=0.1)
    for module, name in ((builtins, "open"), (os, "open"), (os, "listdir"), (os, "scandir")):
        monkeypatch.setattr(module, name, refuse)
    for name in ("open_storage", "_remote"):
        monkeypatch.setattr(stores, name, refuse)
    monkeypatch.setattr(arrays, "open_array", refuse)
    for target in (None, "/o", "s3://b/o"):
        assert len(shapes(plan(info, target=target))) == 3
