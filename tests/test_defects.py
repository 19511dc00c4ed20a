"""What verification finds of planted defects, line by line of the table in the README."""

from __future__ import annotations

import itertools
import math
import random
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pyramid_core import layout, verify_pyramid, voxels
from pyramid_core.verify import Verification
from tests.defects import (
    README,
    ROWS,
    Plant,
    Row,
    build_image,
    cut_off,
    delete_chunk,
    flip_bit,
    probability,
    readme_table,
    swap_chunks,
    table,
    wrong_by_oracle,
)
from tests.images import Pyramids
from tests.mutations import MUTATIONS
from tests.stories import chunk_files


@pytest.fixture(scope="module")
def small_blocks() -> Iterator[None]:
    """Let a block be one chunk, as in an image that is much larger than a test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_WORTHWHILE", 0)
        yield


class Images:
    """The images that defects are planted in, each built once; nobody may change one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = cache(self._place)

    def _place(self, name: str) -> Path:
        return build_image(self.folder / f"{name}.zarr", name)

    def copy(self, name: str, place: Path) -> Path:
        return Path(shutil.copytree(self.place(name), place))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, small_blocks: None) -> Images:  # noqa: ARG001 - builds with them
    return Images(tmp_path_factory.mktemp("defects"))


def is_found(found: Verification, row: Row) -> bool:
    """Return whether a finding tells of a defect; of a stray object a warning does."""
    if "untold" in row.images:
        return any("cannot be decoded" in finding.message for finding in found.findings)
    return bool(found.findings) and (not found.ok or "a warning" in row.defect)


def short(row: Row) -> Iterator[tuple[Plant, str, str]]:
    """Yield each plant, image and level at least once; of damage, each plant in each image."""
    if row.sample.isdigit():
        for turn, (plant, image) in enumerate(itertools.product(row.plants, row.images)):
            yield plant, image, row.levels[turn % len(row.levels)]
        return
    plants, images, levels = row.plants, row.images, row.levels
    for turn in range(max(len(plants), len(images), len(levels))):
        yield plants[turn % len(plants)], images[turn % len(images)], levels[turn % len(levels)]


def everywhere(row: Row) -> Iterator[tuple[Plant, str, str]]:
    """Yield each way to plant a defect in each level of each image."""
    for plant in row.plants:
        for image in row.images:
            for level in row.levels:
                yield plant, image, level


def hold(images: Images, tmp_path: Path, row: Row, cases: Iterator[tuple[Plant, str, str]],
         seed: int) -> None:  # fmt: skip
    """Plant, verify in both modes, and compare with what the table says."""
    for plant, image, level in cases:
        place = images.copy(image, tmp_path / "image.zarr")
        plant(place, level, random.Random(f"{plant.__name__} {image} {level} {seed}"))
        case = f"{plant.__name__} in level {level} of {image}, seed {seed}"
        full = is_found(verify_pyramid(str(place), "full"), row)
        if plant is flip_bit and not full:
            # A bit that no decoder looks at changes no voxel.
            assert not wrong_by_oracle(place), case
        else:
            assert full == (row.full == "always"), case
        if row.sample in ("always", "never"):
            sample = is_found(verify_pyramid(str(place), "sample"), row)
            assert sample == (row.sample == "always"), case
        shutil.rmtree(place)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.plants], ids=lambda row: row.defect[:40]
)
def test_the_table_says_what_is_found(
    images: Images, tmp_path: Path, row: Row, long_form: bool
) -> None:
    """What is said to be found always, or never, is; by full, and by a sample."""
    for seed in range(10 if long_form else 1):
        hold(images, tmp_path, row, everywhere(row) if long_form else short(row), seed)


@pytest.mark.parametrize("number", range(0, len(MUTATIONS), 13))
def test_structure_is_audited_by_every_mode(
    pyramids: Pyramids, tmp_path: Path, number: int
) -> None:
    """What an audit alone finds (test_audit.py holds that for each mutation) every mode finds."""
    mutation = MUTATIONS[number]
    for version in mutation.versions:
        place = tmp_path / f"{version}.zarr"
        shutil.copytree(pyramids.place(f"labelled-{version}"), place)
        mutation.break_it(place)
        found = [
            str(verify_pyramid(str(place), mode).findings) for mode in ("none", "sample", "full")
        ]
        assert all(mutation.says in said for said in found)


def inner(cells: int, apart: int) -> list[tuple[int, int]]:
    """Return cells of a square grid, none the first or last in any level, in distinct blocks above."""
    return [(i, j) for i in range(0, cells, apart) for j in range(0, cells, apart)
            if apart <= i < cells - apart or apart <= j < cells - apart]  # fmt: skip


def planted(place: Path, wrong: int, cell: tuple[int, int]) -> list[Path]:
    """Return the chunks that are damaged so that a number of blocks is wrong."""
    i, j = cell
    cells = {1: [(0, i, j)], 2: [(1, i, j)], 4: [(1, i, j), (1, i, (j + 4) % 16)]}[wrong]
    return [place / f"{level}/c/{y}/{x}" for level, y, x in cells]


def rate(place: Path, wrong: int, cells: list[tuple[int, int]]) -> int:
    """Damage one place after the other; return in how many a sample finds something."""
    hits = 0
    for cell in cells:
        files = planted(place, wrong, cell)
        before = [file.read_bytes() for file in files]
        for file in files:
            file.write_bytes(before[0][:-5])
        hits += not verify_pyramid(str(place), "sample").ok
        for file, content in zip(files, before, strict=True):
            file.write_bytes(content)
    return hits


def surprise(hits: int, trials: int, p: float) -> float:
    """Return how probable a number of hits is that lies as far out, on its side of the mean."""
    odds = [math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)]
    return min(sum(odds[: hits + 1]), sum(odds[hits:]))


def test_surprise_is_a_tail_of_the_binomial() -> None:
    """Of ten throws of a coin, none or one is heads in 11 of 1,024."""
    assert surprise(1, 10, 0.5) == pytest.approx(11 / 1024)
    assert surprise(9, 10, 0.5) == pytest.approx(11 / 1024)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, small_blocks: None) -> Path:  # noqa: ARG001 - builds with them
    """An image of 32 x 32, 16 x 16 and 8 x 8 blocks of one chunk."""
    return build_image(tmp_path_factory.mktemp("wide") / "image.zarr", "zstd", (256, 256), 3)


@pytest.mark.parametrize("wrong", [1, 2, 4])
def test_as_many_blocks_are_wrong_as_the_table_says(wide: Path, tmp_path: Path, wrong: int) -> None:
    """A chunk of level 0 spoils one block, one of another level two, and two of them four."""
    place = Path(shutil.copytree(wide, tmp_path / "image.zarr"))
    for file in planted(place, wrong, (6, 6)):
        file.write_bytes(file.read_bytes()[:-5])
    found = verify_pyramid(str(place), "full")
    assert len(found.findings) == wrong
    claimed = {int(row.sample) for row in ROWS if row.sample.isdigit()}
    assert wrong in claimed


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("wrong", "one_in"), [(1, 4), (2, 8)])
def test_a_sample_finds_as_often_as_the_formula_says(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, one_in: int,
    long_form: bool,
) -> None:  # fmt: skip
    """With b blocks wrong and one in n drawn, 1 - (1 - 1/n)^b of the places are found, as dice fall."""
    places = [Path(shutil.copytree(wide, tmp_path / "image.zarr"))]
    cells = inner(16, 2) if wrong > 1 else [(2 * i, 2 * j) for i, j in inner(16, 2)]
    if long_form:
        # One in a hundred, as it is, over images of many shapes: the shape is the seed of the dice.
        one_in = 100
        places = [
            build_image(tmp_path / f"{more}.zarr", "zstd", (256, 256 + more), 3)
            for more in range(0, 96, 8)
        ]
    monkeypatch.setattr(voxels, "SAMPLE", one_in)
    cells = cells if long_form else cells[::2]
    hits, trials = sum(rate(place, wrong, cells) for place in places), len(places) * len(cells)
    said = f"{wrong} wrong: {hits} of {trials}, expected {trials * probability(wrong, one_in):.1f}"
    print(said)
    assert surprise(hits, trials, probability(wrong, one_in)) > 0.01, said


@pytest.mark.parametrize("end", [0, -1])
@pytest.mark.parametrize("image", ["zstd", "sparse"])
def test_the_first_and_the_last_block_that_hold_data_are_always_drawn(
    images: Images, tmp_path: Path, image: str, end: int
) -> None:
    """Also where the corners of the image are background."""
    place = images.copy(image, tmp_path / "image.zarr")
    numbers = sorted((int(f.parent.name), int(f.name)) for f in chunk_files(place / "1"))
    file = place / "1/c/{}/{}".format(*numbers[end])
    file.write_bytes(file.read_bytes()[:-5])
    assert not verify_pyramid(str(place), "sample").ok


def test_the_table_in_the_readme_is_this_one() -> None:
    """``python -m tests.defects`` writes it; nobody else."""
    assert readme_table() == table(), f"run python -m tests.defects to write {README.name}"


def test_every_way_to_damage_a_chunk_is_in_the_table() -> None:
    """The table names those that the probabilities were measured for too."""
    planted = {plant for row in ROWS for plant in row.plants}
    assert {cut_off, delete_chunk, flip_bit, swap_chunks} <= planted
