"""Window reducers: a block of voxels in, a block of fewer voxels out.

Arrays only: no stores, no threads, no plan. The kernels release the GIL and
run on one core; who calls them decides what runs side by side.

Inside, a block is a table: its *lines* are the rows along the last axis, in C
order. One row of windows covers a handful of lines (``_lines_of_row``), and
every kernel walks the same way: row of windows, line, voxel of the line.
"""

import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from pyramid_core.params import METHODS, Method

MAX_AXES = 5
"""The most axes an NGFF image has: t, c, z, y, x."""

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = ("bool", *INTEGERS, "float16", "float32", "float64")
"""What a voxel may be, in either byte order."""

Array = npt.NDArray[Any]
Kernel = Callable[[Array, Array, tuple[int, ...], tuple[int, ...]], None]
F = TypeVar("F", bound=Callable[..., Any])


def reduce_block(block: Array, step: tuple[int, ...], method: Method) -> Array:
    """Reduce every window of a block to one voxel.

    A window is the box of ``step`` voxels that starts at a multiple of
    ``step``. At the far edges a window may stick out of the block; then only
    the voxels inside count.

    Args:
        block: Voxels to reduce, 1 to 5 axes, for instance ``(z, y, x)``; bool,
            integers of 8 to 64 bits or floats of 16 to 64 bits, in any byte
            order and memory layout. It is not modified.
        step: Extent of a window in voxels along each axis of ``block``, each
            >= 1.
        method: What a window becomes.

            * ``mean``: of integers the exact mean, rounded to nearest, halves
              to even; of bools the majority, false when tied; of floats the
              sum in float64 in C order, divided once and rounded once.
            * ``median``: the middle value, the lower of the two in the middle
              when the count is even.
            * ``mode``: the most frequent value, the lowest of those tied.
            * ``min``, ``max``: the lowest and the highest value.
            * ``stride``: the first voxel, whatever it is.

    Returns:
        A new array of shape ``ceil(block.shape / step)`` and the dtype of
        ``block`` in native byte order.

    Raises:
        ValueError: If ``block`` has no or more than five axes or a dtype that
            is not listed above, if ``step`` has not one entry >= 1 per axis,
            or if ``method`` is not one of ``METHODS``.

    Example:
        The last window is one voxel wide; 3.5 is rounded to the even 4:

        >>> block = np.array([[1, 3, 9], [4, 6, 2]], dtype=np.uint16)
        >>> reduce_block(block, step=(2, 2), method="mean")
        array([[4, 6]], dtype=uint16)
        >>> reduce_block(block, step=(2, 2), method="median")
        array([[3, 2]], dtype=uint16)

    Note:
        NaN is skipped by every method but ``stride``, and a window of nothing
        but NaN gives NaN. Zeros of either sign are equal: ``min`` and ``max``
        give the first of them, ``median`` and ``mode`` choose after a stable
        sort, ``mode`` the last of its value. A mean is never -0.0. If no
        window holds more than one voxel, the result is a copy, bit for bit.

        The rules are those of TensorStore's downsample driver
        (``tensorstore/driver/downsample/schema.yml``), with three differences
        where it is of no use as a rule: NaN (its mean gives NaN, its min and
        max skip NaN but give an infinity where there is nothing else, its
        median and mode depend on the order of the voxels), the sign of a zero
        among zeros of both signs in a median or in a mode of more than 16
        voxels (that of an unstable sort), and means of float16 and float32
        (it sums in float32).
    """
    step = _checked_step(block, step, method)
    native = block.dtype.newbyteorder("=")
    if method == "stride" or max(step) == 1 or not block.size:
        return block[tuple(slice(None, None, s) for s in step)].astype(native, order="C")

    voxels = _as_compiled(np.require(block, native, ["C", "A"]))
    shape = tuple(-(-n // s) for n, s in zip(block.shape, step, strict=True))
    # A mean by way of float32 would be rounded twice.
    wide = method == "mean" and native == np.float16
    reduced = np.empty(shape, np.float64 if wide else voxels.dtype)
    # All blocks look alike, aligned and read-only and of five axes, or numba
    # would compile each kernel for each kind of block.
    lines = voxels.reshape(-1, block.shape[-1])
    lines.flags.writeable = False
    ones = (1,) * (MAX_AXES - block.ndim)
    _kernel(method, native)(lines, reduced.reshape(-1, shape[-1]), ones + block.shape, ones + step)
    return reduced.view(native) if native == np.bool_ else reduced.astype(native, copy=False)


def _checked_step(block: Array, step: tuple[int, ...], method: Method) -> tuple[int, ...]:
    """Refuse what no kernel can reduce; return the step, cut to the block's shape."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; it must be one of {', '.join(METHODS)}")
    if not 1 <= block.ndim <= MAX_AXES:
        raise ValueError(
            f"a block has 1 to {MAX_AXES} axes, but this one has {block.ndim} (shape {block.shape})"
        )
    if block.dtype.name not in DTYPES:
        raise ValueError(
            f"dtype {block.dtype} cannot be reduced; it must be one of {', '.join(DTYPES)}"
        )
    step = tuple(operator.index(s) for s in step)
    if len(step) != block.ndim or min(step) < 1:
        raise ValueError(
            f"step {step} must have {block.ndim} entries >= 1, one per axis of shape {block.shape}"
        )
    # A longer window holds no more voxels, and its length might not fit int64.
    return tuple(max(1, min(s, n)) for s, n in zip(step, block.shape, strict=True))


def _as_compiled(block: Array) -> Array:
    """Return the voxels in a dtype that numba compiles: it has no float16, and bool is a byte."""
    if block.dtype == np.bool_:
        return block.view(np.uint8)
    return block.astype(np.float32) if block.dtype == np.float16 else block


def _kernel(method: Method, dtype: np.dtype[Any]) -> Kernel:
    """Return the function that reduces by *method*."""
    if method != "mean":
        return {"median": _median, "mode": _mode, "min": _min, "max": _max}[method]
    if dtype.kind == "f":
        return _mean_float
    return _mean_integer if dtype.itemsize < 8 else _mean_integer_64


def _jit(function: F) -> F:
    """Compile a function when it is first called; keep the machine code on disk if possible.

    ``error_model``: dividing by zero gives NaN as in numpy, so no kernel pays
    for a check that cannot fail.
    """
    try:
        compiled = numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # no folder can be written: read-only install without a home
        compiled = numba.njit(function, nogil=True, error_model="numpy")
    return cast(F, compiled)


@_jit
def _lines_of_row(row: int, shape: tuple[int, ...], step: tuple[int, ...], lines: Array) -> int:
    """Number the lines under a row of windows in *lines*, in C order; return how many."""
    _, n1, n2, n3, _ = shape
    rest, d = divmod(row, -(-n3 // step[3]))
    rest, c = divmod(rest, -(-n2 // step[2]))
    a, b = divmod(rest, -(-n1 // step[1]))
    count = 0
    for i in range(a * step[0], min((a + 1) * step[0], shape[0])):
        for j in range(b * step[1], min((b + 1) * step[1], n1)):
            for k in range(c * step[2], min((c + 1) * step[2], n2)):
                for line in range(d * step[3], min((d + 1) * step[3], n3)):
                    lines[count] = ((i * n1 + j) * n2 + k) * n3 + line
                    count += 1
    return count


@_jit
def _reaching(width: int, offset: int, step: int) -> int:
    """Count the windows along a line of *width* voxels that have a voxel at *offset*."""
    return (width - offset + step - 1) // step


@_jit
def _mean_integer(
    voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]
) -> None:
    """Mean of integers of up to 32 bits: 2**31 of them cannot overflow an int64."""
    width, along = shape[4], step[4]
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    total = np.empty(reduced.shape[1], np.int64)
    for row in range(reduced.shape[0]):
        count = _lines_of_row(row, shape, step, lines)
        total[:] = 0
        for line in lines[:count]:
            values = voxels[line]
            for s in range(along):
                for x in range(_reaching(width, s, along)):
                    total[x] += values[x * along + s]
        for x in range(total.size):
            size = count * min(along, width - x * along)
            quotient = total[x] // size
            twice = 2 * (total[x] - quotient * size)
            reduced[row, x] = quotient + (twice > size or (twice == size and quotient & 1))


@_jit
def _mean_integer_64(
    voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]
) -> None:
    """Mean of 64-bit integers, whose halves of 32 bits are summed apart."""
    width, along = shape[4], step[4]
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    high = np.empty(reduced.shape[1], np.int64)
    low = np.empty(reduced.shape[1], np.int64)
    for row in range(reduced.shape[0]):
        count = _lines_of_row(row, shape, step, lines)
        high[:] = 0
        low[:] = 0
        for line in lines[:count]:
            values = voxels[line]
            for s in range(along):
                for x in range(_reaching(width, s, along)):
                    value = values[x * along + s]
                    high[x] += np.int64(value >> 32)
                    low[x] += np.int64(value & 0xFFFFFFFF)
        for x in range(high.size):
            size = count * min(along, width - x * along)
            # Long division with digits of 32 bits; neither step can overflow,
            # since a rest is less than the size and the size less than 2**31.
            upper = high[x] + (low[x] >> 32)
            quotient = upper // size
            rest = ((upper - quotient * size) << 32) + (low[x] & 0xFFFFFFFF)
            digit = rest // size
            twice = 2 * (rest - digit * size)
            quotient = (quotient << 32) + digit
            reduced[row, x] = quotient + (twice > size or (twice == size and quotient & 1))


@_jit
def _mean_float(
    voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]
) -> None:
    """Mean of the floats that are not NaN: one sum in float64 in C order, one division."""
    width, along = shape[4], step[4]
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    total = np.empty(reduced.shape[1], np.float64)
    size = np.empty(reduced.shape[1], np.int64)
    for row in range(reduced.shape[0]):
        count = _lines_of_row(row, shape, step, lines)
        total[:] = 0
        size[:] = 0
        for line in lines[:count]:
            values = voxels[line]
            for s in range(along):
                for x in range(_reaching(width, s, along)):
                    value = values[x * along + s]
                    if not np.isnan(value):
                        total[x] += value
                        size[x] += 1
        for x in range(total.size):
            reduced[row, x] = total[x] / size[x] if size[x] else np.nan


@_jit
def _min(voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]) -> None:
    """Lowest value; the first of equals, and NaN only where there is nothing else."""
    width, along = shape[4], step[4]
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    for row in range(reduced.shape[0]):
        count = _lines_of_row(row, shape, step, lines)
        lowest = reduced[row]
        for x in range(lowest.size):
            lowest[x] = voxels[lines[0], x * along]
        for line in lines[:count]:
            values = voxels[line]
            for s in range(along):
                for x in range(_reaching(width, s, along)):
                    value = values[x * along + s]
                    better = value < lowest[x] or np.isnan(lowest[x])
                    lowest[x] = value if better else lowest[x]


@_jit
def _max(voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]) -> None:
    """Highest value; the first of equals, and NaN only where there is nothing else."""
    width, along = shape[4], step[4]
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    for row in range(reduced.shape[0]):
        count = _lines_of_row(row, shape, step, lines)
        highest = reduced[row]
        for x in range(highest.size):
            highest[x] = voxels[lines[0], x * along]
        for line in lines[:count]:
            values = voxels[line]
            for s in range(along):
                for x in range(_reaching(width, s, along)):
                    value = values[x * along + s]
                    better = value > highest[x] or np.isnan(highest[x])
                    highest[x] = value if better else highest[x]


@_jit
def _median(voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]) -> None:
    """Middle value, the lower one of two."""
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    windows = np.empty((reduced.shape[1], lines.size * step[4]), voxels.dtype)
    sizes = np.empty(reduced.shape[1], np.int64)
    spare = np.empty(windows.shape[1], voxels.dtype)
    for row in range(reduced.shape[0]):
        count = _lines_of_row(row, shape, step, lines)
        _gather(voxels, lines[:count], step[4], windows, sizes)
        for x in range(sizes.size):
            _sort(windows[x, : sizes[x]], spare)
            reduced[row, x] = windows[x, max(0, sizes[x] - 1) // 2]


@_jit
def _mode(voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]) -> None:
    """Most frequent value, the lowest of those tied."""
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    windows = np.empty((reduced.shape[1], lines.size * step[4]), voxels.dtype)
    sizes = np.empty(reduced.shape[1], np.int64)
    spare = np.empty(windows.shape[1], voxels.dtype)
    for row in range(reduced.shape[0]):
        count = _lines_of_row(row, shape, step, lines)
        _gather(voxels, lines[:count], step[4], windows, sizes)
        for x in range(sizes.size):
            window = windows[x]
            _sort(window[: sizes[x]], spare)
            winner = run = longest = 0
            for i in range(sizes[x]):
                run = run + 1 if i and window[i] == window[i - 1] else 1
                if run > longest:
                    winner, longest = i, run
            reduced[row, x] = window[winner]


@_jit
def _gather(voxels: Array, lines: Array, along: int, windows: Array, sizes: Array) -> None:
    """Collect the windows of a row without NaN; of nothing but NaN, one that does not count."""
    width = voxels.shape[1]
    for x in range(sizes.size):
        windows[x, 0] = voxels[lines[0], x * along]
        sizes[x] = 0
    for line in lines:
        values = voxels[line]
        for s in range(along):
            for x in range(_reaching(width, s, along)):
                value = values[x * along + s]
                if not np.isnan(value):
                    windows[x, sizes[x]] = value
                    sizes[x] += 1


@_jit
def _sort(values: Array, spare: Array) -> None:
    """Sort in place and stably: insertion in runs of 16, then merge the runs."""
    run = 16
    for start in range(0, values.size, run):
        for i in range(start + 1, min(start + run, values.size)):
            value, hole = values[i], i
            while hole > start and value < values[hole - 1]:
                values[hole] = values[hole - 1]
                hole -= 1
            values[hole] = value
    while run < values.size:
        for start in range(0, values.size - run, 2 * run):
            _merge(values[start : start + 2 * run], run, spare)
        run *= 2


@_jit
def _merge(values: Array, middle: int, spare: Array) -> None:
    """Merge two sorted neighbours, the first *middle* values and the rest."""
    for i in range(middle):
        spare[i] = values[i]
    left, right = 0, middle
    for i in range(values.size):
        if left == middle:
            break
        if right < values.size and values[right] < spare[left]:
            values[i] = values[right]
            right += 1
        else:
            values[i] = spare[left]
            left += 1
