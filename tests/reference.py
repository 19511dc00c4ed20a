"""The plain twins of fast code: slow, obvious, and independent of it."""

from collections import Counter
from fractions import Fraction
from math import isnan, nan
from typing import Any

import numpy as np
import numpy.typing as npt


def reduce_windows(block: npt.NDArray[Any], step: tuple[int, ...], method: str) -> npt.NDArray[Any]:
    """Reduce every window of *block* with plain Python numbers."""
    native = block.dtype.newbyteorder("=")
    if all(s == 1 or n <= 1 for s, n in zip(step, block.shape, strict=True)):
        return block.astype(native)
    reduced = np.empty([-(-n // s) for n, s in zip(block.shape, step, strict=True)], native)
    for index in np.ndindex(reduced.shape):
        window = block[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, step, strict=True))]
        reduced[index] = reduce_window(window.ravel(order="C").tolist(), method)
    return reduced


def reduce_window(values: list[Any], method: str) -> Any:
    """Reduce the bools, ints or floats of one window, which come in C order."""
    if method == "stride":
        return values[0]
    values = [value for value in values if not isnan(value)]
    if not values:
        return nan
    if method == "mean":
        return mean(values)
    if method == "min":
        return min(values)
    if method == "max":
        return max(values)
    values = sorted(values)
    if method == "median":
        return values[(len(values) - 1) // 2]
    counts = Counter(values)
    winner = min(value for value in counts if counts[value] == max(counts.values()))
    return [value for value in values if value == winner][-1]


def mean(values: list[Any]) -> Any:
    """Return the exact mean, rounded half to even; of floats, their sum in order, divided once."""
    if isinstance(values[0], float):
        total = 0.0
        for value in values:
            total += value
        return total / len(values)
    return round(Fraction(sum(values), len(values)))
