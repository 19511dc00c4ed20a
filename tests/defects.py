"""Defects that are planted in finished images, and the table of what verification finds of them.

``python -m tests.defects`` writes the table into README.md; tests/test_defects.py holds each line of
it against what happens.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pyramid_core import PyramidParams, build_pyramid
from pyramid_core.voxels import SAMPLE
from tests.images import blobs, change, change_document, write_base
from tests.mutations import MUTATIONS
from tests.stories import Array, chunk_files, noise, read, reduced

SHAPE, CHUNK = (128, 128), (8, 8)
LEVELS = ("0", "1", "2", "3")
"""Of 256, 64, 16 and 4 chunks; in tests a block is one chunk."""

Plant = Callable[[Path, str, random.Random], object]
"""Plants a defect in an image, in a level, at a place that the dice choose."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    defect: str
    """What is wrong."""
    sample: str
    """``always``, ``never``, or how many blocks are wrong, of which a sample draws one in fifty."""
    why: str
    """By what it is found."""
    plants: tuple[Plant, ...]
    """What plants it."""
    images: tuple[str, ...] = ("zstd",)
    """Where it is planted."""
    levels: tuple[str, ...] = ("1",)
    """In which of the levels."""
    full: str = "always"
    """``always`` or ``never``."""


def build_image(place: Path, name: str, shape: tuple[int, ...] = SHAPE, levels: int = 4) -> Path:
    """Build one of the images that defects are planted in, in place."""
    codecs: dict[str, Any] = {
        "checksum": {"compressors": zarr.codecs.ZstdCodec(level=1, checksum=True)},
        "blosc": {"compressors": zarr.codecs.BloscCodec(cname="lz4", clevel=5)},
        "raw": {"compressors": None},
        "sharded": {"shards": (32, 32)},
    }
    voxels = noise(shape)
    if name == "sparse":
        voxels[:32] = voxels[96:] = voxels[:, :32] = voxels[:, 96:] = 0
    labels = {"cells": cells(shape)} if name == "labelled" else None
    options = codecs.get(name, {})
    write_base(place, voxels, axes="yx", chunks=CHUNK, labels=labels, **options)
    asked: dict[str, Any] = {"shards": [32, 32]} if name == "sharded" else {}
    build_pyramid(
        PyramidParams(source=str(place), max_levels=levels, edges="partial", workers=2, **asked)
    )
    if name == "untold":
        change_document(place, lambda d: d["multiscales"][0].pop("metadata"))
    return place


def cells(shape: tuple[int, ...]) -> Array:
    """Return ids of which every second voxel belongs to another cell."""
    ids: Array = blobs(shape) + noise(shape) % 3
    return ids


# --- what is stored -----------------------------------------------------------------------------


def some_file(place: Path, level: str, dice: random.Random) -> Path:
    return dice.choice(chunk_files(place / level))


def flip_bit(place: Path, level: str, dice: random.Random) -> None:
    file = some_file(place, level, dice)
    content = bytearray(file.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def flip_bit_of_index(place: Path, level: str, dice: random.Random) -> None:
    """The index of a shard of 16 chunks is its last 16 x 16 + 4 bytes."""
    file = some_file(place, level, dice)
    content = bytearray(file.read_bytes())
    content[-1 - dice.randrange(16)] ^= 1 << dice.randrange(8)
    file.write_bytes(content)


def cut_off(place: Path, level: str, dice: random.Random) -> None:
    file = some_file(place, level, dice)
    content = file.read_bytes()
    file.write_bytes(content[: dice.randrange(1, len(content))])


def cut_last_byte(place: Path, level: str, dice: random.Random) -> None:
    file = some_file(place, level, dice)
    file.write_bytes(file.read_bytes()[:-1])


def cut_to_nothing(place: Path, level: str, dice: random.Random) -> None:
    some_file(place, level, dice).write_bytes(b"")


def append(place: Path, level: str, dice: random.Random) -> None:
    file = some_file(place, level, dice)
    file.write_bytes(file.read_bytes() + dice.randbytes(20))


def swap_chunks(place: Path, level: str, dice: random.Random) -> None:
    first, second = dice.sample(chunk_files(place / level), 2)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def swap_inner_chunks(place: Path, level: str, dice: random.Random) -> None:
    array = opened(place, level)
    i, j = dice.sample(range(array.shape[0] // 8), 2)
    voxels = array[...]
    voxels[8 * i : 8 * i + 8], voxels[8 * j : 8 * j + 8] = (
        voxels[8 * j : 8 * j + 8].copy(),
        voxels[8 * i : 8 * i + 8].copy(),
    )
    array[...] = voxels


def other_chunk(place: Path, level: str, dice: random.Random) -> None:
    first, second = dice.sample(chunk_files(place / level), 2)
    first.write_bytes(second.read_bytes())


def delete_chunk(place: Path, level: str, dice: random.Random) -> None:
    some_file(place, level, dice).unlink()


def delete_all(place: Path, level: str, _: random.Random) -> None:
    for file in chunk_files(place / level):
        file.unlink()


def chunk_in_background(place: Path, level: str, dice: random.Random) -> None:
    (place / level / "c/0/0").parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(some_file(place, level, dice), place / level / "c/0/0")


def chunk_beyond(place: Path, level: str, dice: random.Random) -> None:
    (place / level / "c/99").mkdir()
    shutil.copy(some_file(place, level, dice), place / level / "c/99/0")


# --- whole levels -------------------------------------------------------------------------------


def opened(place: Path, level: str) -> Any:
    return zarr.open_array(place / level, mode="r+")


def store(place: Path, level: str, voxels: Array) -> None:
    """Write a level, and let all of it be stored, background too."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        opened(place, level)[...] = voxels


def finer(place: Path, level: str) -> Array:
    return read(place / str(int(level) - 1))


def write_zeros(place: Path, level: str, _: random.Random) -> None:
    store(place, level, np.zeros_like(read(place / level)))


def of_another_image(place: Path, level: str, _: random.Random) -> None:
    store(place, level, noise(read(place / level).shape, seed=7))


def by_another_method(place: Path, level: str, _: random.Random) -> None:
    store(place, level, reduced(finer(place, level), (2, 2), "max"))


def by_truncation(place: Path, level: str, _: random.Random) -> None:
    voxels = finer(place, level).astype("u4")
    total = voxels[::2, ::2] + voxels[1::2, ::2] + voxels[::2, 1::2] + voxels[1::2, 1::2]
    store(place, level, (total // 4).astype("u2"))


def from_level_0(place: Path, level: str, _: random.Random) -> None:
    factor = 2 ** int(level)
    store(place, level, reduced(read(place / "0"), (factor, factor), "mean"))


def shifted(place: Path, level: str, _: random.Random) -> None:
    store(place, level, np.roll(read(place / level), 1, axis=1))


def labels_by_mean(place: Path, level: str, _: random.Random) -> None:
    cells = place / "labels/cells"
    store(cells, level, reduced(finer(cells, level), (2, 2), "mean"))


def other_level_0(place: Path, level: str, _: random.Random) -> None:
    store(place, level, noise(SHAPE, seed=9))


def other_byte_order(place: Path, level: str, _: random.Random) -> None:
    node = place / level / "zarr.json"
    text = node.read_text()
    assert '"little"' in text
    node.write_text(text.replace('"little"', '"big"'))


def other_fill(place: Path, level: str, _: random.Random) -> None:
    change(place / level / "zarr.json", lambda node: node.update(fill_value=5))


# --- levels and their document ------------------------------------------------------------------


def swap_levels(place: Path, level: str, _: random.Random) -> None:
    (place / level).rename(place / "x")
    (place / "2").rename(place / level)
    (place / "x").rename(place / "2")


def swap_chunks_of_levels(place: Path, level: str, _: random.Random) -> None:
    (place / level / "c").rename(place / "x")
    (place / "1/c").rename(place / level / "c")
    (place / "x").rename(place / "1/c")


def lose_level(place: Path, level: str, _: random.Random) -> None:
    shutil.rmtree(place / level)


def leftover_level(place: Path, _: str, __: random.Random) -> None:
    shutil.copytree(place / "3", place / "4")


def leave_out(place: Path, level: str, _: random.Random) -> None:
    """Neither on the disk nor in the document, as if there had never been such a level."""
    shutil.rmtree(place / level)

    def edit(document: dict[str, Any]) -> None:
        datasets = document["multiscales"][0]["datasets"]
        datasets[:] = [dataset for dataset in datasets if dataset["path"] != level]

    change_document(place, edit)


# --- level 0 after the build --------------------------------------------------------------------


def middle(dice: random.Random) -> tuple[int, int]:
    return dice.randrange(16, 112), dice.randrange(16, 112)


def change_voxel(place: Path, level: str, dice: random.Random) -> None:
    y, x = middle(dice)
    array = opened(place, level)
    array[y, x] = array[y, x] + 5000


def change_chunk(place: Path, level: str, dice: random.Random) -> None:
    y, x = (n // 8 * 8 for n in middle(dice))
    opened(place, level)[y : y + 8, x : x + 8] = 7


def change_unseen(place: Path, level: str, dice: random.Random) -> None:
    """Two voxels of one window change places: no mean can tell."""
    array = opened(place, level)
    y, x = (n // 2 * 2 for n in middle(dice))
    while array[y, x] == array[y, x + 1]:
        y, x = (n // 2 * 2 for n in middle(dice))
    array[y, x : x + 2] = array[y, x : x + 2][::-1]


CODECS = ("zstd", "checksum", "blosc", "raw")
ALL = ("0", "1", "2", "3")
COARSER = ALL[1:]
DAMAGE = (flip_bit, cut_off, cut_last_byte, append)

ROWS = (
    Row(f"any of {len(MUTATIONS)} faults in the document, in an array's metadata, in the labels",
        "always", "metadata", ()),
    Row("a level missing, exchanged with another, left out of the document, or left over from an "
        "earlier pyramid", "always", "metadata",
        (lose_level, swap_levels, leave_out, leftover_level)),
    Row("another fill value in the metadata of a level", "always", "metadata", (other_fill,),
        levels=ALL),
    Row("a chunk deleted, or all of a level", "always", "listing", (delete_chunk, delete_all),
        levels=COARSER),
    Row("a chunk of no bytes", "always", "listing", (cut_to_nothing,), CODECS, ALL),
    Row("a chunk where the finer level has none", "always", "listing", (chunk_in_background,),
        ("sparse",), ("1", "2")),
    Row("an object beside the chunks of a level (a warning: nobody reads it)", "always", "listing",
        (chunk_beyond,), levels=ALL),
    Row("a level of zeros, of another image, by another method, by a mean that truncates, from "
        "level 0 instead of the level before, shifted by a voxel; the chunks of two levels "
        "exchanged", "always", "wrong everywhere",
        (write_zeros, of_another_image, by_another_method, by_truncation, from_level_0, shifted,
         swap_chunks_of_levels), ("zstd", "sparse"), ("2",)),
    Row("levels of labels by mean instead of mode, where cells meet everywhere", "always",
        "wrong everywhere", (labels_by_mean,), ("labelled",), COARSER),
    Row("another byte order in the metadata of a level", "always", "wrong everywhere",
        (other_byte_order,), levels=ALL),
    Row("level 0 replaced after the build", "always", "wrong everywhere", (other_level_0,),
        levels=("0",)),
    Row("two chunks of a level exchanged", "4", "wrong", (swap_chunks,), levels=COARSER),
    Row("a chunk of a level with a bit flipped, cut off, longer, or from elsewhere", "2", "wrong",
        (*DAMAGE, other_chunk), CODECS, COARSER),
    Row("a bit flipped in a shard or in its index, a shard cut off, its chunks exchanged", "2",
        "wrong", (*DAMAGE, flip_bit_of_index, swap_inner_chunks), ("sharded",),
        ("0", "1", "2")),
    Row("a chunk of level 0 deleted, cut off, or changed after the build, in one voxel or in all",
        "1", "wrong", (delete_chunk, cut_off, change_voxel, change_chunk), levels=("0",)),
    Row("an image that does not say how it was made: a chunk that cannot be decoded", "1",
        "not decoded", (cut_off, cut_last_byte, append), ("untold",), ALL),
    Row("the same, but the chunk can be decoded", "never", "", (other_chunk, change_chunk),
        ("untold",), ("0",), full="never"),
    Row("level 0 changed in a way that no coarser voxel shows", "never", "", (change_unseen,),
        levels=("0",), full="never"),
)  # fmt: skip


def probability(wrong: int, sample: int) -> float:
    """Return how often a sample of one in *sample* draws one of the blocks that are wrong."""
    return 1 - (1 - 1 / sample) ** wrong


def table() -> str:
    """Return the table as the README has it."""
    lines = ["| what is wrong | `sample` | `full` |", "|---|---|---|"]
    for row in ROWS:
        by = f" ({row.why})" if row.why else ""
        sample = row.sample + by
        if row.sample.isdigit():
            wrong = int(row.sample)
            what = "tile" if "shard" in row.defect else "block"
            blocks = what if wrong == 1 else f"{what}s"
            sample = f"{probability(wrong, SAMPLE):.1%} ({wrong} {blocks} {row.why})"
        lines.append(f"| {row.defect} | {sample} | {row.full} |")
    return "\n".join(lines)


README = Path(__file__).parent.parent / "README.md"
START = "<!-- defects: written by python -m tests.defects -->"
END = "<!-- defects: end -->"


def readme_table() -> str:
    """Return what stands between the two comments."""
    text = README.read_text(encoding="utf-8")
    return text.partition(START)[2].partition(END)[0].strip()


def wrong_by_oracle(place: Path, method: str = "mean") -> bool:
    """Return whether TensorStore cannot read a level, or reduces one to something else."""
    try:
        levels = [read(place / level) for level in LEVELS]
    except Exception:
        return True
    return any(
        reduced(fine, (2, 2), method).tobytes() != coarse.tobytes()
        for fine, coarse in itertools.pairwise(levels)
    )


if __name__ == "__main__":
    head, _, rest = README.read_text(encoding="utf-8").partition(START)
    README.write_text(f"{head}{START}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
