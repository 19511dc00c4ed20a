"""The benchmark works, small: nothing is said here of how long anything takes."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr

from tests.benchmarks.cases import Case, make_volume
from tests.benchmarks.contestants import CONTESTANTS, able
from tests.benchmarks.driver import drive
from tests.child import ROOT

SMALL = Case("small", size=64, chunk=16)


@pytest.mark.parametrize(
    "name", [name for name in CONTESTANTS if "rocess" not in name and "floor" not in name]
)
def test_every_contestant_makes_the_levels_that_are_asked(tmp_path: Path, name: str) -> None:
    """So all do the same work: shapes and chunks of every level, and voxels within a rounding per level of the mean."""
    place = make_volume(SMALL, tmp_path)
    with CONTESTANTS[name](SMALL) as run:
        run(SMALL, str(place))
    out = place / "out.zarr"
    folder = out if out.exists() else place / "field"
    fine = ts.cast(_opened(place / "field" / "0"), ts.float64)
    for level, (z, y, x) in enumerate(SMALL.levels):
        at = next(p for p in (folder / str(level), folder / f"s{level}", folder / f"scale{level}" / "image") if p.exists())  # fmt: skip
        array = zarr.open_array(at, mode="r")
        assert (array.shape, array.chunks) == ((z, y, x), (16, 16, 16))
        factor = 2**level
        mean = ts.downsample(fine, [factor] * 3, "mean").read().result()
        voxels = np.asarray(array[:], float)
        if "ome-zarr" in name:  # it interpolates instead, so only the whole is like the mean
            voxels, mean = voxels.mean(), mean.mean()
        assert np.abs(voxels - mean).max() <= max(level, 1)


def _opened(path: Path) -> ts.TensorStore:
    kvstore = {"driver": "file", "path": str(path)}
    return ts.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()


def test_the_benchmark_prints_a_table_and_keeps_every_run(tmp_path: Path) -> None:
    """As the README starts it: medians on the screen, single runs with machine and versions in a file."""
    command = [sys.executable, "-m", "tests.benchmarks", "--size", "64", "--runs", "1",
               "--cases", "chunks of 32", "--only", "ours", "codec floor",
               "--csv", str(tmp_path / "runs.csv")]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| ours | " in done.stdout
    assert "| codec floor | " in done.stdout
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    assert "CPUs" in lines[0]
    assert "zarrs" in lines[1]
    rows = list(csv.DictReader(lines[2:]))
    assert {row["contestant"] for row in rows} == {"ours", "codec floor"}
    assert len(rows) == 2


def test_a_contestant_is_not_asked_for_what_it_cannot_do() -> None:
    """pyramid_sampler raises where the grid of chunks is no cube, and knows no mode and no shards."""
    name = "pyramid_sampler, threads"
    assert able(name, SMALL)
    assert not able(name, Case("flat", step=(1, 2, 2)))
    assert not able(name, Case("labels", "labels"))
    assert not able(name, Case("shards", shard=128))


def test_the_driver_hands_out_every_block_once() -> None:
    """What is measured with ten million holds for a thousand."""
    assert drive(1000)[0] == 1000
