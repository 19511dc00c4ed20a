"""A block is whole write units, fits in memory, and reads as little as can be."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyramid_core.errors import MemoryLimitError
from pyramid_core.grid import Shape
from pyramid_core.layout import Cut, Work, cut_level

MB = 10**6
DTYPES = ["|b1", "|u1", ">u2", "<i4", "<f2", "<f4", "<f8"]


@st.composite
def works(draw: st.DrawFn, n: int | None = None, longest: int = 40) -> Work:
    """A level to make, of chunks that need not divide anything."""
    n = n or draw(st.integers(1, 3))
    numbers = st.tuples(*[st.integers(1, 12)] * n)
    finer = draw(st.tuples(*[st.integers(1, longest)] * n))
    step = draw(st.tuples(*[st.integers(1, 4)] * n))
    trim = draw(st.booleans()) and all(s <= f for s, f in zip(step, finer, strict=True))
    shape = tuple(f // s if trim else -(-f // s) for f, s in zip(finer, step, strict=True))
    return Work(
        shape=shape,
        write_unit=draw(numbers),
        step=step,
        finer_shape=finer,
        finer_chunks=draw(numbers),
        dtype=draw(st.sampled_from(DTYPES)),
        method="mean",
    )


def cut_of(work: Work, limit: int = 10**12, share: int = 10**12) -> Cut:
    return cut_level(work, 1, limit, min(limit, share))


@given(works(), st.sampled_from([2_000, 20_000, 10**12]))
def test_a_block_is_whole_write_units(work: Work, share: int) -> None:
    """A border between blocks is one between write units, so no two blocks share an object."""
    cut = cut_of(work, share=share)
    for block, unit, n in zip(cut.block, work.write_unit, work.shape, strict=True):
        assert block == n or block % unit == 0
        assert 1 <= block <= n


@given(works(), st.integers(1, 60_000), st.integers(1, 60_000))
def test_a_block_never_needs_more_than_the_limit(work: Work, limit: int, share: int) -> None:
    """What is planned fits, or is refused; only one write unit may take more than its share."""
    try:
        cut = cut_of(work, limit, share)
    except MemoryLimitError:
        return
    assert cut.memory <= limit
    assert cut.memory >= math.prod(cut.block) * int(work.dtype[2:])  # what it holds, at the least
    if cut.memory > min(share, limit):
        smallest = tuple(map(min, work.write_unit, work.shape))
        assert cut.block == smallest


def borders(n: int, cell: int) -> set[int]:
    return set(range(cell, n, cell))


@given(works(), st.sampled_from([2_000, 20_000, 10**12]))
def test_a_tile_splits_no_source_chunk_that_its_block_does_not(work: Work, share: int) -> None:
    """A border between tiles, in voxels read, is one between chunks or between blocks."""
    cut = cut_of(work, share=share)
    for axis, n in enumerate(work.shape):
        step, chunk = work.step[axis], work.finer_chunks[axis]
        for border in borders(n, cut.tile[axis]):
            whole = border * step % chunk == 0
            assert whole or cut.tile[axis] == cut.block[axis]
        assert cut.tile[axis] <= cut.block[axis]


def touches(work: Work, block: Shape) -> float:
    """Count pairs of a block and a source chunk it reads, over the chunks that are read at all."""
    chunks: list[Shape] = []
    for index in itertools.product(
        *(range(-(-n // b)) for n, b in zip(work.shape, block, strict=True))
    ):
        voxels = [
            range(i * b * s, min((i + 1) * b * s, n * s, fine))
            for i, b, s, n, fine in zip(
                index, block, work.step, work.shape, work.finer_shape, strict=True
            )
        ]
        chunks += itertools.product(
            *({v // c for v in axis} for axis, c in zip(voxels, work.finer_chunks, strict=True))
        )
    return len(chunks) / len(set(chunks))


@given(works(longest=24), st.data())
def test_how_often_a_chunk_is_read_is_counted_right(work: Work, data: st.DataObject) -> None:
    """The number equals a count of every pair of a block and a chunk, one by one."""
    units = data.draw(st.tuples(*[st.integers(1, 3)] * len(work.shape)))
    block = tuple(min(u * w, n) for u, w, n in zip(units, work.write_unit, work.shape, strict=True))
    assert work.reads(block) == pytest.approx(touches(work, block), rel=1e-12)


@given(works(longest=60))
def test_a_chunk_is_read_once_where_write_units_meet_chunks(work: Work) -> None:
    """Where write unit x step is a multiple of the chunk, every chunk is read by one block."""
    assume(
        all(
            u * s % c == 0
            for u, s, c in zip(work.write_unit, work.step, work.finer_chunks, strict=True)
        )
    )
    # Even where memory leaves room for one write unit only.
    smallest = tuple(map(min, work.write_unit, work.shape))
    tight = cut_of(work, share=1)
    assert tight.block == smallest
    assert work.reads(tight.block) == 1
    assert work.reads(cut_of(work).block) == 1


@pytest.mark.parametrize(
    ("write_unit", "step", "chunk", "smallest"),
    [
        (64, 2, 128, 1.0),  # 128 meets 128
        (128, 2, 64, 1.0),  # larger units
        (64, 2, 64, 1.0),
        (32, 2, 128, 2.0),  # each chunk of 128 lies under two blocks of 64
        (64, 3, 64, 1.0),
        (48, 2, 64, 4 / 3),  # borders at 96, 192, 288, 384: every other one splits a chunk of 64
    ],
)
def test_the_number_of_reads_by_hand(
    write_unit: int, step: int, chunk: int, smallest: float
) -> None:
    """One axis of 6144 voxels, cut into single write units."""
    work = Work((6144 // step,), (write_unit,), (step,), (6144,), (chunk,), "|u1", "mean")
    assert work.reads((write_unit,)) == pytest.approx(smallest, rel=0.02)


def test_with_room_a_block_grows_until_it_splits_no_chunk() -> None:
    """A write unit of 32 under chunks of 128 becomes blocks of 64, which read every chunk once."""
    work = Work((512,) * 3, (32,) * 3, (2,) * 3, (1024,) * 3, (128,) * 3, "<u2", "mean")
    assert all(b * 2 % 128 == 0 for b in cut_of(work).block)
    assert work.reads(cut_of(work).block) == 1


def test_small_write_units_are_taken_many_at_once() -> None:
    """A call to the store costs as much as decoding half a megabyte, so blocks are worth one."""
    work = Work((4096, 4096), (16, 16), (2, 2), (8192, 8192), (16, 16), "|u1", "mean")
    assert math.prod(cut_of(work).block) * 4 >= 4 * 2**20


def test_a_large_shard_does_not_need_the_voxels_above_it_at_once() -> None:
    """A shard of 512^3 is made from 1024^3 voxels, a gigabyte, read in tiles of a few chunks."""
    work = Work((4096,) * 3, (512,) * 3, (2,) * 3, (8192,) * 3, (64,) * 3, "|u1", "mean")
    cut = cut_of(work, limit=500 * MB, share=500 * MB)
    assert cut.block == (512,) * 3
    assert cut.memory < 2**29


def test_a_refusal_names_all_numbers() -> None:
    """What is needed, of what, and what the limit is; and the number it names is enough."""
    work = Work((512,) * 3, (256,) * 3, (2,) * 3, (1024,) * 3, (128,) * 3, "<u2", "mean")
    with pytest.raises(MemoryLimitError) as caught:
        cut_level(work, 3, 20 * MB, 20 * MB)
    # Write: 3 x 256^3 x 2 bytes, the block twice and the encoded form of a unit. Read: twice the
    # 128^3 voxels of a tile, its 64^3 voxels, and two chunks in decoding, of 2 bytes each.
    assert str(caught.value) == (
        "one block of level 3 needs 101 MB (read 17.3 MB from chunks of 128x128x128, write 101 MB "
        "in units of 256x256x256) but memory_limit is 20 MB; smaller shards or chunks, or a "
        "memory_limit above 101 MB would do"
    )
    assert cut_of(work, limit=3 * 2 * 256**3).block == (256,) * 3
    with pytest.raises(MemoryLimitError):
        cut_of(work, limit=3 * 2 * 256**3 - 1)
