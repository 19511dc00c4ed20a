"""Kernels that choose a voxel of each window; each runs on one core and releases the GIL."""

from __future__ import annotations

import numpy as np

from pyramid_core.lines import Array, jit, lines_of_row, reaching


@jit
def min_of(voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]) -> None:
    """Lowest value; the first of equals, and NaN only where there is nothing else."""
    width, along = shape[4], step[4]
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    for row in range(reduced.shape[0]):
        count = lines_of_row(row, shape, step, lines)
        lowest = reduced[row]
        for x in range(lowest.size):
            lowest[x] = voxels[lines[0], x * along]
        for line in lines[:count]:
            values = voxels[line]
            for s in range(along):
                for x in range(reaching(width, s, along)):
                    value = values[x * along + s]
                    better = value < lowest[x] or np.isnan(lowest[x])
                    lowest[x] = value if better else lowest[x]


@jit
def max_of(voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]) -> None:
    """Highest value; the first of equals, and NaN only where there is nothing else."""
    width, along = shape[4], step[4]
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    for row in range(reduced.shape[0]):
        count = lines_of_row(row, shape, step, lines)
        highest = reduced[row]
        for x in range(highest.size):
            highest[x] = voxels[lines[0], x * along]
        for line in lines[:count]:
            values = voxels[line]
            for s in range(along):
                for x in range(reaching(width, s, along)):
                    value = values[x * along + s]
                    better = value > highest[x] or np.isnan(highest[x])
                    highest[x] = value if better else highest[x]


@jit
def median_of(voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]) -> None:
    """Middle value, the lower one of two."""
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    windows = np.empty((reduced.shape[1], lines.size * step[4]), voxels.dtype)
    sizes = np.empty(reduced.shape[1], np.int64)
    spare = np.empty(windows.shape[1], voxels.dtype)
    for row in range(reduced.shape[0]):
        count = lines_of_row(row, shape, step, lines)
        _gather_row(voxels, lines[:count], step[4], windows, sizes)
        for x in range(sizes.size):
            _sort(windows[x, : sizes[x]], spare)
            reduced[row, x] = windows[x, max(0, sizes[x] - 1) // 2]


@jit
def mode_of(voxels: Array, reduced: Array, shape: tuple[int, ...], step: tuple[int, ...]) -> None:
    """Most frequent value, the lowest of those tied."""
    lines = np.empty(step[0] * step[1] * step[2] * step[3], np.int64)
    window = np.empty(lines.size * step[4], voxels.dtype)
    spare = np.empty(window.size, voxels.dtype)
    alike = np.empty(reduced.shape[1], np.bool_)
    for row in range(reduced.shape[0]):
        count = lines_of_row(row, shape, step, lines)
        _find_alike(voxels, lines[:count], step[4], alike)
        for x in range(reduced.shape[1]):
            if alike[x]:
                last = min((x + 1) * step[4], shape[4]) - 1
                reduced[row, x] = voxels[lines[count - 1], last]
                continue
            size = _gather(voxels, lines[:count], x * step[4], (x + 1) * step[4], window)
            _sort(window[:size], spare)
            winner = run = longest = 0
            for i in range(size):
                run = run + 1 if i and window[i] == window[i - 1] else 1
                if run > longest:
                    winner, longest = i, run
            reduced[row, x] = window[winner]


@jit
def _find_alike(voxels: Array, lines: Array, along: int, alike: Array) -> None:
    """Find the windows of a row that hold one value only, as nearly all of labels do."""
    first = voxels[lines[0]]
    alike[:] = True
    for line in lines:
        values = voxels[line]
        for s in range(along):
            for x in range(reaching(values.size, s, along)):
                alike[x] &= values[x * along + s] == first[x * along]


@jit
def _gather_row(voxels: Array, lines: Array, along: int, windows: Array, sizes: Array) -> None:
    """Collect all windows of a row as ``_gather`` does one: faster where all are needed."""
    width = voxels.shape[1]
    for x in range(sizes.size):
        windows[x, 0] = voxels[lines[0], x * along]
        sizes[x] = 0
    for line in lines:
        values = voxels[line]
        for s in range(along):
            for x in range(reaching(width, s, along)):
                value = values[x * along + s]
                if not np.isnan(value):
                    windows[x, sizes[x]] = value
                    sizes[x] += 1


@jit
def _gather(voxels: Array, lines: Array, start: int, stop: int, window: Array) -> int:
    """Collect a window without NaN and return its size; of nothing but NaN, one of size 0."""
    size = 0
    window[0] = voxels[lines[0], start]
    for line in lines:
        for value in voxels[line, start:stop]:
            if not np.isnan(value):
                window[size] = value
                size += 1
    return size


@jit
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


@jit
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
