"""The pixels are exact: as a plain twin, TensorStore and cases done by hand have them."""

import os
import shutil
import subprocess
import sys
import warnings
from math import inf, nan
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid_core import kernels
from pyramid_core.kernels import reduce_block
from pyramid_core.params import METHODS, Method
from tests.reference import reduce_windows

Array = npt.NDArray[Any]

DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
FLOATS = ["f2", "f4", "f8"]


def assert_same(found: Array, expected: Array) -> None:
    """Every bit is equal, but for the many ways to write NaN."""
    assert found.dtype == expected.dtype
    assert found.dtype.isnative
    assert found.shape == expected.shape
    missing = np.isnan(expected) if expected.dtype.kind == "f" else np.zeros(expected.shape, bool)
    if expected.dtype.kind == "f":
        np.testing.assert_array_equal(np.isnan(found), missing)
    np.testing.assert_array_equal(found[~missing], expected[~missing])
    assert found[~missing].tobytes() == expected[~missing].tobytes(), "zeros differ in sign"


def voxels(dtype: np.dtype[Any], allow_nan: bool) -> st.SearchStrategy[Any]:
    """Voxels of all sizes, or few different ones so that windows hold ties."""
    if dtype.kind == "b":
        return st.booleans()
    if dtype.kind == "f":
        width: Any = 8 * dtype.itemsize
        few = [-0.0, 0.0, 1.0, -1.0, inf, *([nan] if allow_nan else [])]
        return st.sampled_from(few) | st.floats(width=width, allow_nan=allow_nan)
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    few = [low, low + 1, 0, 1, 2, 3, high - 1, high]
    return st.sampled_from(few) | st.integers(low, high)


@st.composite
def blocks_and_steps(
    draw: st.DrawFn, dtype: str, allow_nan: bool = False
) -> tuple[Array, tuple[int, ...]]:
    """A block of 1 to 5 axes in either byte order, and a step that may be longer than the block."""
    ordered = np.dtype(dtype).newbyteorder(draw(st.sampled_from("<>")))
    shape = draw(
        hnp.array_shapes(min_dims=1, max_dims=5, max_side=4)
        | hnp.array_shapes(max_dims=2, max_side=12)
    )
    few = draw(st.lists(voxels(np.dtype(dtype), allow_nan), min_size=1, max_size=6))
    block = draw(hnp.arrays(ordered, shape, elements=st.sampled_from(few)))
    return block, tuple(draw(st.integers(1, 7)) for _ in shape)


@st.composite
def halved_blocks(draw: st.DrawFn, dtype: str) -> tuple[Array, tuple[int, ...]]:
    """A block of whole windows of 2 x 2 x 2 or 1 x 2 x 2, with and without axes before."""
    z, y, x = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20)))
    deep = draw(st.sampled_from([1, 2]))
    before = draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    shape = (*before, deep * z, 2 * y, 2 * x)
    few = draw(st.lists(voxels(np.dtype(dtype), allow_nan=True), min_size=1, max_size=6))
    block = draw(hnp.arrays(dtype, shape, elements=st.sampled_from(few)))
    return block, (*(1 for _ in before), deep, 2, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_windows_of_two_are_averaged_as_by_the_plain_twin(dtype: str) -> None:
    """Kernels of their own do them, many at once: NaN, extremes and halves are no exception."""

    @settings(max_examples=60, deadline=None, database=None)
    @given(halved_blocks(dtype))
    def check(case: tuple[Array, tuple[int, ...]]) -> None:
        block, step = case
        assert_same(reduce_block(block, step, "mean"), reduce_windows(block, step, "mean"))

    check()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_is_reduced_as_by_its_plain_twin(dtype: str, method: Method) -> None:
    """Whatever the shape, step, byte order and voxels, NaN included, the result is exact."""

    @settings(max_examples=15, deadline=None, database=None)
    @given(blocks_and_steps(dtype, allow_nan=True))
    def check(case: tuple[Array, tuple[int, ...]]) -> None:
        block, step = case
        assert_same(reduce_block(block, step, method), reduce_windows(block, step, method))

    check()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_is_reduced_as_by_tensorstore(dtype: str, method: Method) -> None:
    """Its downsample driver is the oracle, bit for bit; for means of floats, in float64."""
    ts = pytest.importorskip("tensorstore")

    @settings(max_examples=25, deadline=None, database=None)
    @given(blocks_and_steps(dtype))
    def check(case: tuple[Array, tuple[int, ...]]) -> None:
        block, step = case
        native = block.astype(block.dtype.newbyteorder("="))
        oracle = native.astype("f8") if method == "mean" and native.dtype.kind == "f" else native
        expected = (
            ts.downsample(ts.array(oracle), list(step), method).read().result().astype(native.dtype)
        )
        found = reduce_block(block, step, method)
        # Its sort is not stable, so the sign of its zero is nobody's rule.
        if native.dtype.kind == "f" and method in ("median", "mode"):
            found, expected = found + native.dtype.type(0), expected + native.dtype.type(0)
        assert_same(found, expected)

    check()


@pytest.mark.parametrize("shape", [(17, 30, 41), (16, 34, 70)])
@pytest.mark.parametrize("step", [(2, 2, 2), (1, 2, 2), (2, 2, 1), (3, 2, 5)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "u4", "i8", "f2", "f4", "f8"])
def test_a_larger_block_of_noise_is_reduced_as_by_tensorstore(
    dtype: str, step: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """Sums in another order than C order would show in the last bit of some voxel."""
    ts = pytest.importorskip("tensorstore")
    noise = np.random.default_rng(7).normal(scale=100, size=shape)
    block = noise.astype(dtype) if dtype[0] == "f" else noise.astype("i8").astype(dtype)
    oracle = block.astype("f8") if dtype[0] == "f" else block
    expected = ts.downsample(ts.array(oracle), list(step), "mean").read().result().astype(dtype)
    assert_same(reduce_block(block, step, "mean"), expected)


@pytest.mark.parametrize(
    ("dtype", "window", "mean"),
    [
        ("u2", [65535] * 8, 65535),  # the sum needs more than 16 bits
        ("u4", [2**32 - 1] * 8, 2**32 - 1),
        ("u8", [2**64 - 1] * 8, 2**64 - 1),
        ("u8", [2**64 - 1, 2**64 - 2], 2**64 - 2),  # a half, to even
        ("u8", [2**64 - 1, 2**64 - 1, 2**64 - 2], 2**64 - 1),
        ("u8", [2**53 + 1] * 3, 2**53 + 1),  # not a float64
        ("u8", [2**32 - 1, 2**32], 2**32),  # across the two halves of a word
        ("i8", [-(2**63)] * 8, -(2**63)),
        ("i8", [-(2**63), 2**63 - 1], 0),  # -0.5
        ("i8", [2**63 - 1, 2**63 - 1, 2**63 - 3], 2**63 - 2),  # a third below
        ("i1", [-1, -2], -2),
        ("i1", [-1, 0], 0),
        ("i8", [-1, -2], -2),
        ("i8", [-1, 0], 0),
        ("i8", [-5, -4, -4], -4),  # to nearest, not down
        ("u1", [0, 1], 0),
        ("u1", [1, 2], 2),
        ("u1", [2, 3], 2),
        ("u1", [254, 255], 254),
        ("u1", [0, 0, 2], 1),
        ("bool", [True, False], False),
        ("bool", [True, False, True], True),
        ("bool", [True, False, True, False], False),
        ("f4", [16777216, 1, 1, 1], 4194305),  # a sum in float32 loses the ones
        ("f8", [1e16, 1.0, -1e16, 1.0], 0.25),  # C order: the first 1.0 is lost
        ("f2", [2, 2 + 2**-9, 0, 2**-24], 1 + 2**-10),  # by way of float32 it would be 1
        ("f2", [65504] * 8, 65504),
        ("f8", [inf, 1.0], inf),
        ("f8", [inf, -inf], nan),
        ("f8", [1e308, 1e308], inf),  # as float64 has it
        ("f4", [-0.0, -0.0, -0.0], 0.0),
    ],
)
def test_means_are_exact_and_halves_go_to_even(dtype: str, window: list[Any], mean: Any) -> None:
    """A mean is computed exactly and rounded once."""
    block = np.array(window, dtype)
    assert_same(reduce_block(block, (block.size,), "mean"), np.array([mean], dtype))
    assert_same(
        reduce_block(block[:, None, None], (block.size, 1, 1), "mean"), np.array([[[mean]]], dtype)
    )


@pytest.mark.parametrize(
    ("method", "window", "voxel"),
    [
        ("median", [4, 1, 3, 2], 2),
        ("median", [9, 1, 5], 5),
        ("median", list(range(400, 0, -1)), 200),
        ("mode", [3, 1, 3, 1, 2], 1),
        ("mode", [5, 4], 4),
        ("mode", [7] * 256 + [1] * 255, 7),  # a count of 8 bits would be 0
        ("mode", [9, 8] * 300 + [9], 9),
        ("min", [3, 1, 2], 1),
        ("max", [3, 1, 4], 4),
        ("stride", [3, 1, 4], 3),
    ],
)
@pytest.mark.parametrize("dtype", ["u2", ">i4", "f4"])
def test_one_window_becomes_the_voxel_found_by_hand(
    dtype: str, method: Method, window: list[int], voxel: int
) -> None:
    """Median and mode only return values that occur, and ties go to the lower one."""
    block = np.array(window, dtype)
    assert reduce_block(block, (block.size,), method).tolist() == [voxel]


@pytest.mark.parametrize(
    ("method", "voxel"),
    [
        ("mean", False),
        ("median", False),
        ("mode", False),
        ("min", False),
        ("max", True),
        ("stride", True),
    ],
)
def test_bools_tie_to_false(method: Method, voxel: bool) -> None:
    """A mask with as many voxels inside as outside is outside."""
    assert_same(reduce_block(np.array([True, False, False, True]), (4,), method), np.array([voxel]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("method", "window", "voxel"),
    [
        ("mean", [nan, 1, 2, nan], 1.5),
        ("median", [nan, 3, 1, 2], 2),
        ("median", [2, nan, 1, nan], 1),
        ("mode", [nan, nan, nan, 5, 4], 4),
        ("min", [nan, 2, 1], 1),
        ("max", [nan, 1, 2], 2),
        ("min", [nan, inf], inf),
        ("stride", [nan, 1, 2], nan),
        ("stride", [1, nan, 2], 1),
    ],
)
def test_nan_is_skipped_except_by_stride(
    dtype: str, method: Method, window: list[float], voxel: float
) -> None:
    """A voxel that was not measured has no say, wherever it stands in the window."""
    for turned in (
        [window] if method == "stride" else [window[i:] + window[:i] for i in range(len(window))]
    ):
        found = reduce_block(np.array(turned, dtype), (len(turned),), method)
        assert_same(found, np.array([voxel], dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", METHODS)
def test_a_window_of_nothing_but_nan_gives_nan(dtype: str, method: Method) -> None:
    """Not an infinity, not what was left of the window before, and no warning."""
    block = np.array([1, 2, 3, nan, nan, nan, 4, 5, 6], dtype)
    bits = block.view(f"u{block.itemsize}")
    bits[3] = np.array(inf, dtype).view(bits.dtype) + 1  # a NaN that signals
    with warnings.catch_warnings(action="error"):
        found = reduce_block(block, (3,), method)
    assert np.isnan(found).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("method", "window", "negative"),
    [
        ("min", [0.0, -0.0], False),
        ("min", [-0.0, 0.0], True),
        ("max", [-0.0, 0.0], True),
        ("max", [0.0, -0.0], False),
        ("median", [0.0, -0.0], False),
        ("median", [-0.0, -0.0, 0.0, 0.0], True),
        ("mode", [0.0, -0.0], True),
        ("mode", [-0.0, 0.0], False),
        ("mode", [0.0, -0.0] * 100, True),
        ("mean", [-0.0, -0.0], False),
    ],
)
def test_the_sign_of_a_zero_is_settled(
    dtype: str, method: Method, window: list[float], negative: bool
) -> None:
    """Zeros are equal, but which one comes out must not depend on the whims of a sort."""
    found = reduce_block(np.array(window, dtype), (len(window),), method)
    assert found.tolist() == [0.0]
    assert bool(np.signbit(found[0])) is negative


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_one_copies_bit_for_bit(method: Method) -> None:
    """Level 0 is a copy: neither the sign of a zero nor the bits of a NaN may change."""
    block = np.array([[-0.0, nan], [1.0, inf]], ">f4")
    block.view(">u4")[0, 1] |= 0x1234
    copied = reduce_block(block, (1, 1), method)
    assert copied.dtype == np.dtype("f4")
    assert copied.tobytes() == block.byteswap().tobytes()
    assert not np.shares_memory(copied, block)


@pytest.mark.parametrize("method", METHODS)
def test_windows_that_stick_out_count_only_what_is_there(method: Method) -> None:
    """A step longer than the axis makes one window of all that there is."""
    block = np.arange(1, 16, dtype="i4").reshape(3, 5)
    assert_same(reduce_block(block, (10**30, 2), method), reduce_windows(block, (3, 2), method))
    assert_same(reduce_block(block, (2, 100), method), reduce_windows(block, (2, 5), method))


@pytest.mark.parametrize("size", [15, 16, 17, 31, 33, 48, 64, 100, 1000])
def test_long_windows_are_sorted_right(size: int) -> None:
    """The sort works on runs of 16 and merges them; every odd end must come out in order."""
    rng = np.random.default_rng(size)
    block = rng.choice(np.array([-2.0, -0.0, 0.0, 1.0, 5.0]), size=(3, size)) * rng.integers(
        1, 6, (3, size)
    )
    for method in ("median", "mode"):
        assert_same(
            reduce_block(block, (1, size), method), reduce_windows(block, (1, size), method)
        )


@pytest.mark.parametrize("method", METHODS)
def test_the_block_may_lie_in_memory_as_it_likes_and_is_not_modified(method: Method) -> None:
    """Transposed, reversed, strided, read-only, unaligned or big-endian: it is the same block."""
    block = np.random.default_rng(3).integers(0, 9, (4, 5, 6)).astype("u2")
    expected = reduce_windows(block, (2, 2, 3), method)
    spread = np.zeros((8, 5, 12), "u2")
    spread[::2, :, ::2] = block
    frozen = block.copy()
    frozen.flags.writeable = False
    shifted = np.frombuffer(b"x" + block.tobytes(), "u2", offset=1).reshape(block.shape)
    for same in (
        np.asfortranarray(block),
        block[::-1, :, ::-1].copy()[::-1, :, ::-1],
        spread[::2, :, ::2],
        frozen,
        shifted,
        block.astype(">u2"),
    ):
        before = same.tobytes()
        assert_same(reduce_block(same, (2, 2, 3), method), expected)
        assert same.tobytes() == before


def test_a_block_without_voxels_gives_none() -> None:
    """An empty axis stays empty."""
    assert reduce_block(np.zeros((0, 5), "u1"), (2, 2), "mean").shape == (0, 3)


@pytest.mark.parametrize(
    ("block", "step", "method", "says"),
    [
        (np.zeros((4, 4), "u1"), (2,), "mean", r"step \(2,\) .* 2 entries .* shape \(4, 4\)"),
        (np.zeros((4, 4), "u1"), (2, 0), "mean", r"step \(2, 0\) .* >= 1"),
        (np.zeros((4, 4), "u1"), (2, -1), "stride", r"step \(2, -1\)"),
        (np.zeros((), "u1"), (), "mean", "1 to 5 axes, but this one has 0"),
        (np.zeros((1,) * 6, "u1"), (1,) * 6, "mean", "1 to 5 axes, but this one has 6"),
        (np.zeros(4, "c8"), (2,), "mean", "dtype complex64 cannot be reduced"),
        (np.zeros(4, "M8[s]"), (2,), "min", "dtype datetime64"),
        (np.zeros(4, "O"), (2,), "stride", "dtype object"),
        (np.zeros(4, "S3"), (2,), "mode", r"dtype \|S3"),
        (np.zeros(4, "T"), (2,), "mode", "dtype StringDType"),
        (np.zeros(4, "g"), (2,), "mean", "dtype float128|dtype longdouble"),
        (np.zeros(4, "u1"), (2,), "average", "method 'average' is unknown; .* mean, median, mode"),
    ],
)
def test_what_cannot_be_reduced_is_refused(
    block: Array, step: tuple[int, ...], method: Any, says: str
) -> None:
    """The message says what was asked and what would do."""
    with pytest.raises(ValueError, match=says):
        reduce_block(block, step, method)


REDUCE_ONCE = """
import numpy as np
from pyramid_core import kernels, means
print(kernels.reduce_block(np.array([1, 2, 6], "u2"), (3,), "mean"))
print(sum(means.mean_integer_16.stats.cache_hits.values()))
"""


def reduce_in_a_new_process(folder: Path, **environment: str) -> str:
    """Reduce in a process with a copy of the package in *folder* and only *environment*."""
    shutil.copytree(
        Path(kernels.__file__).parent,
        folder / "pyramid_core",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    kept = {
        name: os.environ[name]
        for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH")
        if name in os.environ
    }
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", REDUCE_ONCE],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_second_process_does_not_compile_again(tmp_path: Path) -> None:
    """Compiling takes a second, so each new worker would start late."""
    cache = str(tmp_path / "cache")
    assert reduce_in_a_new_process(tmp_path, NUMBA_CACHE_DIR=cache) == "[3]\n0\n"
    assert reduce_in_a_new_process(tmp_path, NUMBA_CACHE_DIR=cache) == "[3]\n1\n"


def test_a_process_that_can_write_nowhere_still_reduces(tmp_path: Path) -> None:
    """As in a container, read-only and without a home; files bar the way, for root too."""
    (tmp_path / "pyramid_core").mkdir()
    (tmp_path / "pyramid_core" / "__pycache__").write_text("not a folder")
    nowhere = os.devnull
    assert reduce_in_a_new_process(tmp_path, HOME=nowhere, XDG_CACHE_HOME=nowhere) == "[3]\n0\n"
    assert reduce_in_a_new_process(tmp_path, HOME=nowhere, XDG_CACHE_HOME=nowhere) == "[3]\n0\n"
