"""Every level is what TensorStore makes of the level before it, read back by TensorStore too."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyramid_core.params import METHODS
from tests.stories import (
    Array,
    Shape,
    assert_pyramid,
    build,
    noise,
    read,
    steps_of,
    write_image,
)

LONG = bool(os.environ.get("PYRAMID_LONG"))
"""Set PYRAMID_LONG=1 for a campaign of minutes."""

DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17, 23]


@dataclass
class Case:
    """An image and a request that may be anything we claim to build."""

    voxels: Array
    source: dict[str, Any]
    asked: dict[str, Any]
    elsewhere: bool


def scalars(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    """Voxels that hold ties and extremes; NaN has another rule here than in TensorStore."""
    if dtype.kind == "b":
        return st.booleans()
    if dtype.kind == "f":
        return st.sampled_from([0.0, -0.0, 0.1, 1.0, -1.5, 3.0, 1000.0])
    limits = np.iinfo(dtype)
    return st.sampled_from([0, 1, 2, 3, limits.min, limits.min + 1, limits.max - 1, limits.max])


@st.composite
def cases(draw: st.DrawFn, dtype: str) -> Case:
    """An image of 2 to 5 axes, and what may be asked of it."""
    zarr_format = draw(st.sampled_from([2, 3]))
    ordered = np.dtype(dtype).newbyteorder(draw(st.sampled_from("<>")))
    edges = draw(st.sampled_from(["partial", "trim", "exact"]))
    n = draw(st.integers(2, 5))
    step = tuple(draw(st.sampled_from([1, 2, 2, 3, 4])) for _ in range(n))
    shape = limited([draw(st.sampled_from(LENGTHS)) for _ in range(n)], 3000)
    chunks = tuple(draw(st.integers(min(m, 2 + m // 4), m)) for m in shape)
    if max(step) == 1:
        step = (*step[:-1], 2)
    asked: dict[str, Any] = {
        "step": list(step),
        "method": draw(st.sampled_from(METHODS)),
        "edges": edges,
        "compression": draw(st.sampled_from(["source", "zstd", "lz4", "none"])),
        "memory_limit": draw(st.sampled_from(["2GB", "1MB"])),
        "workers": draw(st.integers(1, 3)),
        "verify": draw(st.sampled_from(["none", "sample", "full"])),
    }
    if edges == "exact":
        shape = tuple(m * s for m, s in zip(limited(list(shape), 300), step, strict=True))
        asked["max_levels"] = 2
    chunks = tuple(map(min, chunks, shape))
    source: dict[str, Any] = {"zarr_format": zarr_format, "chunks": chunks}
    elsewhere = draw(st.booleans())
    if zarr_format == 3 and draw(st.booleans()):
        source["shards"] = tuple(c * draw(st.integers(1, 2)) for c in chunks)
    if zarr_format == 2:
        source["chunk_key_encoding"] = {"name": "v2", "separator": draw(st.sampled_from("./"))}
    version = draw(st.sampled_from(["0.4", "0.5"])) if elsewhere else "auto"
    asked["ngff_version"] = version
    if draw(st.booleans()):
        asked["chunks"] = [draw(st.integers(max(1, m // 3), m)) for m in shape]
    if (version == "0.5" or (not elsewhere and zarr_format == 3)) and draw(st.booleans()):
        whole = asked.get("chunks", chunks)
        asked["shards"] = [c * draw(st.integers(1, 3)) for c in whole]
    source["fill_value"] = draw(scalars(ordered))
    few = draw(st.lists(scalars(ordered), min_size=1, max_size=5))
    dice = np.random.default_rng(draw(st.integers(0, 99)))
    voxels = np.asarray(few, ordered)[dice.integers(len(few), size=shape)]
    if draw(st.booleans()):  # a corner of background, of which nothing may be stored
        voxels[tuple(slice(m // 2) for m in shape)] = source["fill_value"]
    return Case(voxels, source, asked, elsewhere)


def limited(shape: list[int], voxels: int) -> Shape:
    """Shorten the longest axis until there are few voxels."""
    while math.prod(shape) > voxels:
        shape[shape.index(max(shape))] //= 2
    return tuple(shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_level_is_the_oracles_reduction_of_the_one_before(dtype: str) -> None:
    """Whatever the type, the shape, the layout and the request, each level equals TensorStore's, bit for bit."""

    @settings(
        max_examples=300 if LONG else 8,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(cases(dtype))
    def check(case: Case) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "in.zarr"), Path(folder, "out.zarr")
            write_image(source, case.voxels, **case.source)
            result = build(source, target if case.elsewhere else None, **case.asked)
            built = target if case.elsewhere else source
            method, edges = case.asked["method"], case.asked["edges"]
            assert read(built / "0").tobytes() == native(case.voxels)
            assert_pyramid(built, steps_of(result), method, edges)

    check()


def native(voxels: Array) -> bytes:
    """Return the bytes of voxels in this machine's byte order."""
    return voxels.astype(voxels.dtype.newbyteorder("=")).tobytes()


@pytest.mark.parametrize("shards", [None, (64, 64, 64)])
@pytest.mark.parametrize("method", ["mean", "mode"])
def test_many_blocks_and_tiles_fit_together(
    tmp_path: Path, method: str, shards: tuple[int, ...] | None
) -> None:
    """A prime shape in many blocks of many tiles has no seam."""
    source = write_image(tmp_path / "in.zarr", noise((131, 127, 139), "u1"), (32, 32, 32))
    result = build(
        source,
        tmp_path / "out.zarr",
        method=method,
        step=[2, 2, 2],
        memory_limit="5MB" if shards else "1MB",
        shards=list(shards or []),
    )
    assert sum(level.blocks.size for level in result.plan.levels) > 8
    assert_pyramid(tmp_path / "out.zarr", steps_of(result), method)
