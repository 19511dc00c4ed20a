"""Window reducers: a block of voxels in, a block of fewer voxels out.

Arrays only: no stores, no threads, no plan. The kernels release the GIL and
run on one core; who calls them decides what runs side by side.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from pyramid_core.grid import MAX_AXES
from pyramid_core.halves import are_halves, mean_float_halves, mean_integer_halves
from pyramid_core.lines import Array
from pyramid_core.means import mean_float, mean_integer_16, mean_integer_32, mean_integer_64
from pyramid_core.params import METHODS, Method
from pyramid_core.ranks import max_of, median_of, min_of, mode_of

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = ("bool", *INTEGERS, "float16", "float32", "float64")
"""What a voxel may be, in either byte order."""

Kernel = Callable[[Array, Array, tuple[int, ...], tuple[int, ...]], None]


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
    extent, window = ones + block.shape, ones + step
    kernel = _kernel(method, native, are_halves(extent, window))
    kernel(lines, reduced.reshape(-1, shape[-1]), extent, window)
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


def _kernel(method: Method, dtype: np.dtype[Any], halves: bool) -> Kernel:
    """Return the function that reduces by *method*, *halves* or windows of any size."""
    if method != "mean":
        return {"median": median_of, "mode": mode_of, "min": min_of, "max": max_of}[method]
    if dtype.kind == "f":
        return mean_float_halves if halves else mean_float
    if halves and dtype.itemsize <= 4:
        return mean_integer_halves
    return {4: mean_integer_32, 8: mean_integer_64}.get(dtype.itemsize, mean_integer_16)
