"""How kernels walk a block: a table of *lines*, its rows along the last axis, in C order.

One row of windows covers a handful of lines, and every kernel walks the same way: row of windows,
line, voxel of the line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy.typing as npt

Array = npt.NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """Compile a function when it is first called; keep the machine code on disk if possible.

    ``error_model``: dividing by zero gives NaN as in numpy, so no kernel pays
    for a check that cannot fail. What is kept follows from the file of the function alone: after a
    change of this file, remove ``__pycache__``.
    """
    try:
        compiled = numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # no folder can be written: read-only install without a home
        compiled = numba.njit(function, nogil=True, error_model="numpy")
    return cast(F, compiled)


@jit
def lines_of_row(row: int, shape: tuple[int, ...], step: tuple[int, ...], lines: Array) -> int:
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


@jit
def reaching(width: int, offset: int, step: int) -> int:
    """Count the windows along a line of *width* voxels that have a voxel at *offset*."""
    return (width - offset + step - 1) // step
