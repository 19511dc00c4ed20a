"""Kernels that average windows; each runs on one core and releases the GIL."""

from __future__ import annotations

import numpy as np

from pyramid_core.lines import Array, jit, lines_of_row, reaching


@jit
def mean_integer_16(
    voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]
) -> None:
    """Mean of integers of up to 16 bits: 2**15 of them cannot overflow an int32."""
    if step[0] * step[1] * step[2] * step[3] * step[4] <= 2**15:
        _mean_by(voxels, reduced, shape, step, np.empty(shape[4], np.int32))
    else:
        _mean_by(voxels, reduced, shape, step, np.empty(shape[4], np.int64))


@jit
def mean_integer_32(
    voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]
) -> None:
    """Mean of integers of up to 32 bits: 2**31 of them cannot overflow an int64."""
    _mean_by(voxels, reduced, shape, step, np.empty(shape[4], np.int64))


@jit
def _mean_by(
    voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...], sums: Array
) -> None:
    """Mean of integers: *sums* of the lines of a row first, then along them.

    Written so that the compiler works on many voxels at once: five times as fast as a sum per
    window and a division each.
    """
    width, along = shape[4], step[4]
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    total = np.empty(reduced.shape[1], sums.dtype)
    for row in range(reduced.shape[0]):
        count = lines_of_row(row, shape, step, lines)
        sums[:] = 0
        for line in lines[:count]:
            values = voxels[line]
            for x in range(width):
                sums[x] += values[x]
        if along == 2:
            for x in range(width // 2):
                total[x] = sums[2 * x] + sums[2 * x + 1]
            total[width // 2 :] = sums[width - 1]
        else:
            for x in range(total.size):
                total[x] = sums[x * along : (x + 1) * along].sum()
        _round_means(total, count, along, width, reduced[row])


@jit
def _round_means(total: Array, count: int, along: int, width: int, means: Array) -> None:
    """Divide sums of *count* times *along* voxels, the last of fewer; halves go to even."""
    size, whole, power = count * along, width // along, 0
    while size >> power > 1:
        power += 1
    if size == 1 << power and power > 0:
        # A rest above a half carries, and so does a half where the quotient is odd. Unlike a
        # division, this is done for many windows at once.
        below = (size >> 1) - 1
        for x in range(whole):
            means[x] = (total[x] + below + (total[x] >> power & 1)) >> power
    else:
        whole = 0
    for x in range(whole, total.size):
        size = count * min(along, width - x * along)
        quotient = total[x] // size
        twice = 2 * (total[x] - quotient * size)
        means[x] = quotient + (twice > size or (twice == size and quotient & 1))


@jit
def mean_integer_64(
    voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]
) -> None:
    """Mean of 64-bit integers, whose halves of 32 bits are summed apart."""
    width, along = shape[4], step[4]
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    high = np.empty(reduced.shape[1], np.int64)
    low = np.empty(reduced.shape[1], np.int64)
    for row in range(reduced.shape[0]):
        count = lines_of_row(row, shape, step, lines)
        high[:] = 0
        low[:] = 0
        for line in lines[:count]:
            values = voxels[line]
            for s in range(along):
                for x in range(reaching(width, s, along)):
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


@jit
def mean_float(
    voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]
) -> None:
    """Mean of the floats that are not NaN: one sum in float64 in C order, one division."""
    width, along = shape[4], step[4]
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    total = np.empty(reduced.shape[1], np.float64)
    size = np.empty(reduced.shape[1], np.int64)
    for row in range(reduced.shape[0]):
        count = lines_of_row(row, shape, step, lines)
        total[:] = 0
        size[:] = 0
        for line in lines[:count]:
            values = voxels[line]
            for s in range(along):
                for x in range(reaching(width, s, along)):
                    value = values[x * along + s]
                    if not np.isnan(value):
                        total[x] += value
                        size[x] += 1
        for x in range(total.size):
            reduced[row, x] = total[x] / size[x] if size[x] else np.nan
