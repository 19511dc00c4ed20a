"""Chunks that are read without a pipeline hold what zarr's own says; all others are left to zarrs."""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import Blosc, Delta, Zstd
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from pyramid_core.arrays import open_array
from pyramid_core.direct import DirectArray, direct
from pyramid_core.grid import Grid
from pyramid_core.plain import PlainChunks, plain_chunks
from pyramid_core.stores import open_storage
from tests.stories import noise, write_image

SHAPE, CHUNK = (16, 24, 32), (8, 8, 16)
DTYPES = ["bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
V3 = {
    "none": None,
    "zstd": ZstdCodec(level=3),
    "zstd, checksum": ZstdCodec(level=0, checksum=True),
    "lz4": BloscCodec(cname="lz4", typesize=2),
    "blosclz": BloscCodec(cname="blosclz", shuffle="bitshuffle", typesize=2),
    "blosc of zlib": BloscCodec(cname="zlib", shuffle="noshuffle"),
    "blosc of zstd": BloscCodec(cname="zstd", clevel=9, typesize=2),
}
V2 = {"none": None, "zstd": Zstd(3), "lz4": Blosc("lz4"), "bits": Blosc("lz4hc", 5, 2)}
CELL = (1, 2, 1)
REGION = tuple(slice(i * n, (i + 1) * n) for i, n in zip(CELL, CHUNK, strict=True))


def opened(image: Path) -> Any:
    return open_array(open_storage(str(image)), "0")


def read(array: Any) -> tuple[bool, Any]:
    """Read one chunk the plain way: whether it could be, and the voxels."""
    plain = plain_chunks(array)
    assert plain is not None
    voxels = np.empty(CHUNK, array.dtype)
    return plain.read(CELL, voxels), voxels


def stacked(array: Any, chunks: list[tuple[slice, ...]]) -> Any:
    """Read chunks as a build does."""
    found = direct(array)
    assert isinstance(found, DirectArray)
    grid = Grid(array.shape, array.chunks)
    return np.concatenate(found.stacked([next(grid.cells(chunk)) for chunk in chunks]))


def chunk_of(image: Path) -> Path:
    return image.joinpath("0/c", *map(str, CELL))


@pytest.mark.parametrize("codec", [(3, name) for name in V3] + [(2, name) for name in V2], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_chunk_holds_what_was_written(
    tmp_path: Path, dtype: str, codec: tuple[int, str]
) -> None:
    """Of every data type and every codec that zarr writes itself, in both formats."""
    zarr_format, name = codec
    voxels = noise(SHAPE).astype(dtype)
    options = {"zarr_format": zarr_format, "compressors": (V3 if zarr_format == 3 else V2)[name]}
    array = opened(write_image(tmp_path / "a.zarr", voxels, CHUNK, **options))
    assert isinstance(direct(array), DirectArray)
    done, found = read(array)
    assert done
    assert found.tobytes() == voxels[REGION].tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": GzipCodec()},
        {"compressors": [ZstdCodec(), Crc32cCodec()]},
        {"filters": [TransposeCodec(order=(2, 1, 0))]},
        {"serializer": BytesCodec(endian="big")},
        {"shards": (16, 24, 32)},
        {"zarr_format": 2, "order": "F"},
        {"zarr_format": 2, "filters": [Delta(dtype="<u2")]},
    ],
    ids=str,
)
def test_what_is_not_plain_is_left_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    """One codec more, another order of axes or bytes: then zarrs reads, and reads right."""
    voxels = noise(SHAPE)
    array = opened(write_image(tmp_path / "a.zarr", voxels, CHUNK, **options))
    assert plain_chunks(array) is None
    assert np.array_equal(np.asarray(direct(array)[REGION]), voxels[REGION])


@pytest.mark.parametrize("fill", [0, 7])
def test_a_chunk_that_is_not_there_is_fill(tmp_path: Path, fill: int) -> None:
    """As for every reader of Zarr; whether it should be there is for a listing to say."""
    image = write_image(tmp_path / "a.zarr", noise(SHAPE), CHUNK, fill_value=fill)
    chunk_of(image).unlink()
    done, found = read(opened(image))
    assert done
    assert (found == fill).all()


def raw_frame(voxels: bytes, *, says_size: bool) -> bytes:
    """A zstd frame of raw blocks (RFC 8878), as a stream writes it: of no size, or of one."""
    head = b"\x28\xb5\x2f\xfd" + (
        b"\xa0" + struct.pack("<I", len(voxels)) if says_size else b"\0\x58"
    )
    blocks = [voxels[n : n + 1000] for n in range(0, len(voxels), 1000)]
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        head += struct.pack("<I", last | len(block) << 3)[:3] + block
    return head


WHOLE = noise(SHAPE)[REGION].tobytes()
HALF = len(WHOLE) // 2
UNCOMMON = {
    "a frame that says no size": raw_frame(WHOLE, says_size=False),
    "a frame that says its size": raw_frame(WHOLE, says_size=True),
    "two frames": raw_frame(WHOLE[:HALF], says_size=True) + raw_frame(WHOLE[HALF:], says_size=True),
}


@pytest.mark.parametrize("name", UNCOMMON)
def test_an_uncommon_frame_is_read_all_the_same(tmp_path: Path, name: str) -> None:
    """What the plain way does not take is taken by zarrs, in the same stack of chunks."""
    voxels = noise(SHAPE)
    image = write_image(tmp_path / "a.zarr", voxels, CHUNK)
    chunk_of(image).write_bytes(UNCOMMON[name])
    array = opened(image)
    assert read(array)[0] == (name == "a frame that says its size")
    other = (slice(0, 8), *REGION[1:])
    found = stacked(array, [other, REGION])
    assert np.array_equal(found, np.concatenate([voxels[other], voxels[REGION]]))


def damaged(stored: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "a few bytes": stored[:10],
        "cut short": stored[:-7],
        "half": stored[: len(stored) // 2],
        "not its codec": b"abc" * 50,
        "much too long": stored + bytes(3 * 2**20),
        "zeros": bytes(len(stored)),
    }


@pytest.mark.parametrize("name", damaged(b""))
@pytest.mark.parametrize("codec", ["none", "zstd", "lz4"])
def test_a_damaged_chunk_is_an_error(tmp_path: Path, codec: str, name: str) -> None:
    """Never what was in the memory before, and never fill; zeros are voxels if nothing is compressed."""
    image = write_image(tmp_path / "a.zarr", noise(SHAPE), CHUNK, compressors=V3[codec])
    chunk = chunk_of(image)
    chunk.write_bytes(damaged(chunk.read_bytes())[name])
    array = opened(image)
    if codec == "none" and name == "zeros":
        assert not stacked(array, [REGION]).any()
        return
    assert not read(array)[0]
    with pytest.raises((ValueError, RuntimeError, OSError)):
        stacked(array, [REGION])


@pytest.mark.parametrize("at", [4, 12], ids=["voxels", "stored"])
@pytest.mark.parametrize("size", [0, 1, 1024, 2**20, 2**31])
def test_a_blosc_header_is_not_believed(tmp_path: Path, at: int, size: int) -> None:
    """A size that is not that of the chunk, or of the file, would lead the decoder astray."""
    image = write_image(tmp_path / "a.zarr", noise(SHAPE), CHUNK, compressors=V3["lz4"])
    chunk = chunk_of(image)
    stored = bytearray(chunk.read_bytes())
    assert struct.unpack("<I", stored[at : at + 4])[0] != size
    stored[at : at + 4] = struct.pack("<I", size)
    chunk.write_bytes(stored)
    assert not read(opened(image))[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("kind", ["pipe", "pipe that is written to", "folder", "/dev/zero"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    """A pipe, a folder or a device in the place of a chunk is told of at once."""
    image = write_image(tmp_path / "a.zarr", noise(SHAPE), CHUNK)
    chunk = chunk_of(image)
    chunk.unlink()
    if kind == "folder":
        chunk.mkdir()
    elif kind == "/dev/zero":
        chunk.symlink_to(kind)
    else:
        os.mkfifo(chunk)
    if kind == "pipe that is written to":
        writer = os.open(chunk, os.O_RDWR)
    array = opened(image)
    assert not read(array)[0]
    with pytest.raises(ValueError, match="1/2/1 is no file"):
        stacked(array, [REGION])
    if kind == "pipe that is written to":
        os.close(writer)


def test_a_chunk_that_may_not_be_read_is_no_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the system refuses is raised as it is."""
    array = opened(write_image(tmp_path / "a.zarr", noise(SHAPE), CHUNK))

    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pyramid_core.plain.os.open", refuse)
    with pytest.raises(PermissionError):
        stacked(array, [REGION])


def test_a_file_that_is_given_in_pieces_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some network file systems do: then zarrs asks until all is there."""
    voxels = noise(SHAPE)
    array = opened(write_image(tmp_path / "a.zarr", voxels, CHUNK))
    real = os.read
    monkeypatch.setattr("pyramid_core.plain.os.read", lambda file, n: real(file, min(n, 100)))
    assert not read(array)[0]
    assert np.array_equal(stacked(array, [REGION]), voxels[REGION])


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_no_flipped_bits_bring_a_decoder_down(
    tmp_path_factory: pytest.TempPathFactory, codec: str
) -> None:
    """It decodes something, or says that it cannot; the process goes on, and takes no more memory."""
    image = write_image(tmp_path_factory.mktemp("a") / "a.zarr", noise(SHAPE), CHUNK,
                        compressors=V3[codec])  # fmt: skip
    array = opened(image)
    plain: PlainChunks | None = plain_chunks(array)
    assert plain is not None
    stored = chunk_of(image).read_bytes()
    flips = st.lists(st.tuples(st.integers(0, len(stored) - 1), st.integers(1, 255)), min_size=1)

    @settings(max_examples=300, deadline=None, database=None)
    @given(flips)
    def check(flips: list[tuple[int, int]]) -> None:
        spoiled = bytearray(stored)
        for at, bits in flips:
            spoiled[at] ^= bits
        chunk_of(image).write_bytes(spoiled)
        assert plain.read(CELL, np.empty(CHUNK, "u2")) in (True, False)

    check()
