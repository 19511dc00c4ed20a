"""Memory is a promise: the peak of every process stays under ``memory_limit`` + 300 MB, or the plan says that it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec

from pyramid_core import PyramidParams, open_image, plan_pyramid
from pyramid_core.errors import MemoryLimitError

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from /proc"
)

ROOT = Path(__file__).parent.parent

ALLOWANCE = 300
"""Megabytes that Python and its libraries may take beside the limit."""

V2 = {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}}


def _numcodecs(name: str) -> Any:
    import numcodecs

    return {"zlib": numcodecs.Zlib(1), "lzma": numcodecs.LZMA(preset=0)}[name]


SOURCES: dict[str, dict[str, Any]] = {
    "chunks of 64": {},
    "float16": {"dtype": "f2"},
    "float64": {"dtype": "f8", "shape": (256, 256, 512)},
    "bytes": {"dtype": "u1"},
    "shards of 256": {"shards": (256,) * 3},
    "a shard of 512": {"shape": (512,) * 3, "shards": (512,) * 3},
    "chunks of 512": {"shape": (512,) * 3, "chunks": (512,) * 3},
    "one plane": {"shape": (11000, 12000), "chunks": (11000, 12000)},
    "gzip, chunks of 256": {"chunks": (256,) * 3, "compressors": GzipCodec(level=1)},
    "blosc, chunks of 256": {"chunks": (256,) * 3, "compressors": BloscCodec(cname="lz4", typesize=2)},
    "raw big-endian chunks of 256": {
        "chunks": (256,) * 3, "compressors": None, "serializer": BytesCodec(endian="big")},
    "v2 zlib big-endian": {"dtype": ">u2", **V2, "compressors": "zlib"},
    "v2 lzma": {"chunks": (128,) * 3, "shape": (256,) * 3, **V2, "compressors": "lzma"},
}  # fmt: skip
"""What is built from: 134 MB where nothing else is said."""


class Images:
    """Writes each image when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.place: Callable[[str], Path] = cache(self._place)

    def _place(self, name: str) -> Path:
        if name.endswith(".zip"):
            place = self.place(name.removesuffix(".zip"))
            return Path(shutil.make_archive(str(place), "zip", place))
        options = {"shape": (256, 512, 512), "dtype": "u2", "chunks": (64,) * 3, "zarr_format": 3,
                   **SOURCES[name]}  # fmt: skip
        if isinstance(options.get("compressors"), str):
            options["compressors"] = _numcodecs(options["compressors"])
        place = self.folder / f"{len(list(self.folder.iterdir()))}.zarr"
        array: Any = zarr.open_group(
            place, mode="w", zarr_format=options.pop("zarr_format")
        ).create_array("0", **options)
        dice = np.random.default_rng(0)
        rows = (array.shards or array.chunks)[0]
        for start in range(0, array.shape[0], rows):
            count = min(rows, array.shape[0] - start)
            voxels = dice.integers(0, 250, (count, *array.shape[1:]), "u1")
            array[start : start + count] = voxels.astype(array.dtype)
        return place


@pytest.fixture(scope="module")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The images, which nobody changes."""
    return Images(tmp_path_factory.mktemp("images"))


class Case(NamedTuple):
    """One build."""

    source: str
    limit: int
    workers: int = 4
    asked: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


def peaks(
    what: str, asked: dict[str, Any], environment: dict[str, str] | None = None
) -> list[float]:
    """Return the peak of a process that does one thing, and of those that it starts, in megabytes."""
    argv = [sys.executable, "-W", "ignore", "-m", "tests.memory", what, json.dumps(asked)]
    done = subprocess.run(
        argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    found = [number / 1e6 for number in said["peaks"]]
    print(f"{what} {asked}: {', '.join(f'{n:.0f}' for n in found)} MB,"
          f" of them {said['baseline'] / 1e6:.0f} for the imports")  # fmt: skip
    return found


RISKY = [
    Case("chunks of 64", 100),
    Case("float16", 100, 4, {"method": "median", "verify": "full"}),
    Case("shards of 256", 150, 4, {"shards": [256] * 3, "chunks": [64] * 3}),
    Case("shards of 256.zip", 100, 4, {"chunks": [64] * 3}),
    Case("gzip, chunks of 256", 250),
    Case("chunks of 64", 450, 1, {"shards": [512] * 3, "verify": "full"}),
    Case("v2 zlib big-endian", 100, 4, {"step": [1, 8, 8], "chunks": [64] * 3}),
    Case("shards of 256", 500, 4, {"shards": [256] * 3}),
    Case("chunks of 64", 2000, 4, {"shards": [512] * 3}),
    Case("chunks of 64", 100, 2, {"dask_address": "local"}),
]
"""What was found to take more than was planned, and what reads or writes in a way of its own."""

SHARDED: dict[str, Any] = {"shards": [256] * 3}
MATRIX = [
    *(Case("chunks of 64", limit, workers, asked) for limit in (100, 500, 2000) for workers in (1, 4)
      for asked in ({}, SHARDED, {"shards": [512] * 3})),
    *(Case("chunks of 64", limit, 2, {"dask_address": "local", **asked})
      for limit in (100, 500, 2000) for asked in ({}, SHARDED)),
    *(Case(source, limit) for limit in (100, 250, 500, 2000) for source in SOURCES),
    *(Case(f"{source}.zip", limit) for limit in (100, 250) for source in
      ("shards of 256", "gzip, chunks of 256", "chunks of 64")),
    *(Case(source, 100, 4, {"method": method, "step": step, "chunks": [32] * 3})
      for source in ("bytes", "float16", "float64") for method in ("median", "mode", "mean")
      for step in ([2] * 3, [16] * 3, [1, 8, 8])),
    *(Case(source, 2000, 4, {"max_levels": 1}) for source in ("chunks of 512", "one plane")),
]  # fmt: skip


def asked_of(case: Case, images: Images, target: Path) -> dict[str, Any]:
    return {"source": str(images.place(case.source)), "target": str(target), "edges": "partial",
            "memory_limit": f"{case.limit}MB", "workers": case.workers, **case.asked}  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", RISKY, ids=str)
def test_a_build_stays_under_its_memory_limit(
    tmp_path: Path, large_images: Images, case: Case
) -> None:
    """The peak of each process is under memory_limit + 300 MB, gate and commit included."""
    found = peaks("build", asked_of(case, large_images, tmp_path / "out.zarr"))
    assert max(found) < case.limit + ALLOWANCE


@pytest.mark.s3
@pytest.mark.timeout(600)
def test_a_build_to_and_from_a_bucket_stays_under_its_memory_limit(
    tmp_path: Path, large_images: Images, bucket: str
) -> None:
    """Shards of 34 MB sent to S3, and read from there in chunks: what the client holds is under memory_limit + 300 MB too."""
    case = Case("chunks of 64", 150, 4, {"shards": [256] * 3, "chunks": [64] * 3, "max_levels": 1})
    asked = asked_of(case, large_images, tmp_path) | {"target": f"{bucket}/a.zarr"}
    assert max(peaks("build", asked)) < case.limit + ALLOWANCE
    asked |= {"source": f"{bucket}/a.zarr", "target": str(tmp_path / "out.zarr"), "shards": []}
    assert max(peaks("build", asked)) < case.limit + ALLOWANCE


@pytest.mark.flow
@pytest.mark.timeout(600)
def test_the_flow_stays_under_its_memory_limit(tmp_path: Path, large_images: Images) -> None:
    """With a server of its own, as the README begins: under memory_limit + 300 MB, picture and report included: the server is in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    asked = asked_of(Case("chunks of 64", 100), large_images, tmp_path / "out.zarr")
    found = peaks("flow", asked, {**kept, "PREFECT_HOME": str(tmp_path / "prefect")})
    assert max(found) < 100 + ALLOWANCE


@pytest.mark.timeout(7200)
def test_every_build_keeps_its_limit_or_is_refused(
    tmp_path: Path, large_images: Images, long_form: bool
) -> None:
    """Over limits, shards, workers, processes, codecs, formats and methods: kept, or refused before anything is written."""
    if not long_form:
        pytest.skip("takes half an hour; --long runs it")
    over = []
    for case in MATRIX:
        target = tmp_path / "out.zarr"
        asked = asked_of(case, large_images, target)
        try:
            plan_pyramid(open_image(asked["source"]).info, PyramidParams(**asked))
        except MemoryLimitError as error:
            print(f"{case}: refused: {error}")
            assert not target.exists()
            continue
        found = peaks("build", asked)
        if max(found) >= case.limit + ALLOWANCE:
            over.append((case, found))
        shutil.rmtree(target)
    assert not over


def test_what_cannot_be_kept_is_refused_with_all_numbers(tmp_path: Path) -> None:
    """Shards of 512^3 do not fit in 100 MB: needed, read, written and allowed are named, and nothing is written."""
    group = zarr.open_group(tmp_path / "in.zarr", mode="w", zarr_format=3)
    group.create_array("0", shape=(512,) * 3, chunks=(64,) * 3, dtype="u2")
    argv = [sys.executable, "-m", "pyramid_core.cli", "build", str(tmp_path / "in.zarr")]
    argv += ["--target", str(tmp_path / "out.zarr"), "--shards", "512,512,512"]
    argv += ["--memory-limit", "100MB"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "one block of level 0 needs 805 MB" in done.stderr
    assert "write 805 MB in units of 512x512x512) but memory_limit is 100 MB" in done.stderr
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.timeout(3600)
def test_the_peak_does_not_grow_with_the_image(tmp_path: Path, long_form: bool) -> None:
    """Eight times the voxels, the same peak but for 40 MB: what threads free is used again."""
    edges = (256, 512, 1024) if long_form else (192, 384)
    found = []
    for edge in edges:
        source = tmp_path / f"{edge}.zarr"
        group = zarr.open_group(source, mode="w", zarr_format=3)
        array: Any = group.create_array("0", shape=(edge,) * 3, chunks=(32,) * 3, dtype="u1")
        slab = np.random.default_rng(0).integers(0, 200, (32, edge, edge), "u1")
        for start in range(0, edge, 32):
            array[start : start + 32] = slab
        asked = {"source": str(source), "workers": 4, "memory_limit": "100MB", "max_levels": 3}
        found.append(max(peaks("build", asked)))
    assert max(found) < min(found) + 40


@pytest.mark.timeout(600)
def test_test_images_and_pictures_are_bounded(tmp_path: Path) -> None:
    """A test image of 268 MB and its picture are made in less than 400 MB."""
    place = str(tmp_path / "phantom.zarr")
    assert max(peaks("phantom", {"location": place, "kind": "random", "shape": [512] * 3})) < 400
    assert max(peaks("preview", {"location": place})) < 400
