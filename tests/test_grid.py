"""Cells cover a shape once, and nothing of the geometry is rounded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_core.grid import (
    Grid,
    Region,
    Shape,
    ceil_div,
    finer_region,
    multiply,
    region_shape,
    shift,
    times,
)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """A grid of 1 to 4 axes, of cells that may be longer than the shape."""
    n = draw(st.integers(1, 4))
    shape = draw(st.tuples(*[st.integers(1, 9)] * n))
    cell = draw(st.tuples(*[st.integers(1, 11)] * n))
    return Grid(shape, cell)


@st.composite
def grids_and_regions(draw: st.DrawFn) -> tuple[Grid, Region]:
    """A grid, and a region of its shape that holds a voxel at least."""
    grid = draw(grids())
    region = []
    for n in grid.shape:
        start = draw(st.integers(0, n - 1))
        region.append(slice(start, draw(st.integers(start + 1, n))))
    return grid, tuple(region)


@given(grids())
def test_cells_cover_every_voxel_once(grid: Grid) -> None:
    """Every voxel lies in one cell, and no cell is empty."""
    covered = np.zeros(grid.shape, int)
    for index in grid:
        region = grid.region(index)
        assert min(region_shape(region)) >= 1
        covered[region] += 1
    assert (covered == 1).all()


@given(grids())
def test_a_cell_has_the_number_at_which_it_comes(grid: Grid) -> None:
    """A number finds the cell that iteration yields at that place, and size counts them all."""
    cells = list(grid)
    assert [grid.index(number) for number in range(len(cells))] == cells
    assert grid.size == len(cells) == len(set(cells))


@given(grids())
def test_only_the_last_cell_of_an_axis_is_shorter(grid: Grid) -> None:
    """Cells that do not end the shape have the full size."""
    for index in grid:
        for axis, n, cell in zip(grid.region(index), grid.shape, grid.cell, strict=True):
            assert axis.stop - axis.start == cell or axis.stop == n


@given(grids(), st.lists(st.integers(1, 4), min_size=4, max_size=4), st.data())
def test_what_the_cells_are_made_from_tiles_the_finer_level(
    grid: Grid, steps: list[int], data: st.DataObject
) -> None:
    """The finer voxels of the cells meet nowhere and leave nothing out, at a short edge too."""
    step = tuple(steps[: len(grid.shape)])
    # Any finer length that gives this level, when windows that stick out count.
    finer = tuple(
        data.draw(st.integers((n - 1) * s + 1, n * s))
        for n, s in zip(grid.shape, step, strict=True)
    )
    covered = np.zeros(finer, int)
    for index in grid:
        covered[finer_region(grid.region(index), step, finer)] += 1
    assert (covered == 1).all()


def test_the_rest_that_is_trimmed_belongs_to_no_cell() -> None:
    """Of 7 voxels, 3 windows of 2 use the first 6."""
    grid = Grid(shape=(3,), cell=(2,))
    assert [finer_region(grid.region(i), (2,), (7,)) for i in grid] == [
        (slice(0, 4),),
        (slice(4, 6),),
    ]


@given(grids_and_regions())
def test_pieces_tile_the_region_that_is_cut(case: tuple[Grid, Region]) -> None:
    """Cut along the lines of a grid, a region is covered once and no piece crosses a line."""
    grid, region = case
    covered = np.zeros(grid.shape, int)
    for piece in grid.within(region):
        assert min(region_shape(piece)) >= 1
        for axis, cell in zip(piece, grid.cell, strict=True):
            assert axis.start // cell == (axis.stop - 1) // cell
        covered[piece] += 1
    assert (covered[region] == 1).all()
    assert covered.sum() == np.prod(region_shape(region))


@given(grids_and_regions())
def test_a_region_touches_the_cells_that_share_a_voxel_with_it(
    case: tuple[Grid, Region],
) -> None:
    """The range of cells is that of the voxels' own cells."""
    grid, region = case
    touched = grid.touched(region)
    for axis, voxels, cell in zip(touched, region, grid.cell, strict=True):
        assert set(range(axis.start, axis.stop)) == {
            voxel // cell for voxel in range(voxels.start, voxels.stop)
        }


@pytest.mark.parametrize(
    ("shape", "by", "expected"),
    [
        ((7, 8, 9), (2, 2, 2), (4, 4, 5)),
        ((1,), (5,), (1,)),
        ((243,), (3,), (81,)),
        ((2**62 + 1,), (2,), (2**61 + 1,)),  # floats would lose the 1
    ],
)
def test_division_rounds_up_in_integers(shape: Shape, by: Shape, expected: Shape) -> None:
    """No float is involved, so the largest shapes are exact."""
    assert ceil_div(shape, by) == expected


def test_a_grid_of_a_petabyte_is_a_few_numbers() -> None:
    """A grid too large for ``len`` knows its size, and any of its cells."""
    grid = Grid(shape=(10**7,) * 3, cell=(1,) * 3)
    assert grid.size == 10**21
    assert grid.index(10**21 - 1) == (10**7 - 1,) * 3
    assert next(iter(Grid(shape=(10**5,), cell=(3,)))) == (0,)


@pytest.mark.parametrize(
    "call", [lambda: ceil_div((4, 4), (2,)), lambda: multiply((4,), (2, 2))], ids=["div", "mul"]
)
def test_shapes_of_other_lengths_do_not_mix(call: Callable[[], Shape]) -> None:
    """An axis that is forgotten is an error, never cut off silently."""
    with pytest.raises(ValueError, match="argument"):
        call()


def test_a_region_moves_with_its_origin() -> None:
    """What starts at the origin starts at zero."""
    assert shift((slice(6, 8), slice(3, 9)), origin=(4, 3)) == (slice(2, 4), slice(0, 6))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((100, 64), "100x64"),
        ((0.5, 2.0), "0.5x2"),
        ((100000, 1234567), "100000x1234567"),  # never 1.23457e+06
        (None, "-"),
    ],
)
def test_shapes_read_as_people_write_them(shape: tuple[float, ...] | None, expected: str) -> None:
    """Every digit of a shape is told."""
    assert times(shape) == expected
