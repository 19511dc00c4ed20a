"""Means of windows of 2 x 2 x 2 and 1 x 2 x 2, none of which sticks out: what most pyramids need.

The compiler knows how many voxels a window has, so it keeps their sum in a register and works on
many windows at once: 3 to 5 times as fast as the kernels for any step, and the same bits. So each
kernel is called with a literal 1 or 2; with a variable it is slower than those.
"""

from __future__ import annotations

import numpy as np

from pyramid_core.lines import Array, jit


def are_halves(shape: tuple[int, ...], step: tuple[int, ...]) -> bool:
    """Return whether all windows of a block are whole, and of one of the two kinds.

    >>> are_halves((1, 1, 4, 6, 8), (1, 1, 2, 2, 2)), are_halves((1, 1, 4, 6, 9), (1, 1, 1, 2, 2))
    (True, False)
    """
    whole = all(n % s == 0 for n, s in zip(shape, step, strict=True))
    return whole and step in ((1, 1, 2, 2, 2), (1, 1, 1, 2, 2))


@jit
def mean_integer_halves(
    voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]
) -> None:
    """Mean of integers of up to 32 bits; halves go to even."""
    if step[2] == 2:
        _mean_integer(voxels, reduced, shape[3], 2)
    else:
        _mean_integer(voxels, reduced, shape[3], 1)


@jit
def mean_float_halves(
    voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]
) -> None:
    """Mean of the floats that are not NaN: one sum in float64 in C order, one division."""
    if step[2] == 2:
        _mean_float(voxels, reduced, shape[3], 2)
    else:
        _mean_float(voxels, reduced, shape[3], 1)


@jit
def _mean_integer(voxels: Array, reduced: Array, height: int, deep: int) -> None:
    power = deep + 1
    below, row = (1 << deep) - 1, 0
    for plane in range(0, voxels.shape[0], height * deep):
        for line in range(plane, plane + height, 2):
            for x in range(voxels.shape[1] // 2):
                total = 0
                for z in range(deep):
                    for y in range(2):
                        for s in range(2):
                            total += voxels[line + z * height + y, 2 * x + s]
                # A rest above a half carries, and so does a half where the quotient is odd.
                reduced[row, x] = (total + below + (total >> power & 1)) >> power
            row += 1


@jit
def _mean_float(voxels: Array, reduced: Array, height: int, deep: int) -> None:
    row = 0
    for plane in range(0, voxels.shape[0], height * deep):
        for line in range(plane, plane + height, 2):
            for x in range(voxels.shape[1] // 2):
                total, size = 0.0, 0
                for z in range(deep):
                    for y in range(2):
                        for s in range(2):
                            value = voxels[line + z * height + y, 2 * x + s]
                            is_nan = np.isnan(value)
                            total += 0.0 if is_nan else value
                            size += 0 if is_nan else 1
                reduced[row, x] = total / size if size else np.nan
            row += 1
