"""Test images are what they say: known voxels, the same bytes each time, never held as a whole."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pyramid_core import PyramidParams, build_pyramid, open_image, verify_pyramid, write_phantom
from pyramid_core.errors import BuildError, LocationError, RequestError, TargetError
from pyramid_core.params import PHANTOM_KINDS
from pyramid_core.patterns import Pattern, draw
from pyramid_core.phantom import foreseen, plan_phantom
from tests.stories import Array, Shape, build, chunk_files, document, read, tree

VOXEL = {"yx": (2.0, 0.5), "zyx": (2.0, 0.75, 0.5), "tczyx": (10.0, 1.0, 2.0, 0.5, 0.25)}


def phantom(place: Path, kind: Any, shape: Shape, **options: Any) -> Array:
    """Write a phantom and read it by TensorStore."""
    write_phantom(str(place), kind, shape, **options)
    return read(place / "0")


@pytest.mark.parametrize(
    "options", [{"voxel_size": (0.1, 0.1)}, {"dtype": "uint16"}, {"dtype": "float16"}]
)
def test_a_ramp_that_could_not_be_exact_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """A known answer that is not quite right would be worse than none."""
    with pytest.raises(RequestError, match=r"cannot be exact.*short in binary"):
        write_phantom(str(tmp_path / "x.zarr"), "ramp", (8, 8), **options)
    assert list(tmp_path.iterdir()) == []


def test_blobs_are_bright_and_few_on_a_dark_and_noisy_ground(tmp_path: Path) -> None:
    """Most voxels are background, no two neighbours alike for long; some are a hundred times it."""
    voxels = phantom(tmp_path / "x.zarr", "blobs", (96, 128, 128))
    assert voxels.dtype == np.uint16
    assert 200 < np.median(voxels) < 400
    assert voxels.max() > 10000
    dark = voxels[voxels < 300].astype("f8")
    assert 10 < dark.std() < 40
    assert (np.diff(voxels.astype("i8"), axis=2) == 0).mean() < 0.2
    projection = voxels.max(axis=0)
    assert 0.05 < (projection > 2000).mean() < 0.8


def test_blobs_differ_between_channels_and_swell_over_time(tmp_path: Path) -> None:
    """Channels show other blobs; time shows the same places at other brightness."""
    voxels = phantom(tmp_path / "x.zarr", "blobs", (2, 2, 256, 256), axes="tcyx").astype("f8")
    first, later = voxels[0, 0].ravel(), voxels[1, 0].ravel()
    assert np.corrcoef(first, later)[0, 1] > 0.9
    assert np.abs(first - later).max() > 300
    assert np.corrcoef(first, voxels[0, 1].ravel())[0, 1] < 0.5


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_random_voxels_fill_the_range_of_their_type(tmp_path: Path, dtype: str) -> None:
    """Integers from end to end, floats from 0 up to but not 1; all about as often."""
    voxels = phantom(tmp_path / "x.zarr", "random", (256, 256), dtype=dtype)
    low, high = (0, 1) if dtype[0] == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    share = (voxels.astype("f8") - low) / (float(high) - float(low))
    assert share.min() >= 0
    assert (voxels != 1).all() if dtype[0] == "f" else share.max() > 0.99
    counts = np.histogram(share, bins=8, range=(0, 1.0000001))[0]
    assert counts.min() > 0.95 * voxels.size / 8


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_one_chunk_in_a_hundred_of_sparse_is_stored(tmp_path: Path, dtype: str) -> None:
    """900 chunks, nine files, none of whose voxels is background; of few chunks one is stored."""
    place = tmp_path / "x.zarr"
    voxels = phantom(place, "sparse", (45, 60, 48), chunks=(5, 6, 5), dtype=dtype)
    assert len(chunk_files(place / "0")) == 9
    assert np.count_nonzero(voxels) >= 9 * 5 * 6 * 3  # at least, where the last along x is cut
    assert np.count_nonzero(voxels) == sum(
        (
            voxels[tuple(slice(i * c, (i + 1) * c) for i, c in zip(cell, (5, 6, 5), strict=True))]
            > 0
        ).sum()
        for cell in (tuple(map(int, p.parts[-3:])) for p in chunk_files(place / "0"))
    )
    assert len(chunk_files(tmp_path / "y.zarr/0")) == 0
    phantom(tmp_path / "y.zarr", "sparse", (20, 20), chunks=(5, 5))
    assert len(chunk_files(tmp_path / "y.zarr/0")) == 1


@pytest.mark.parametrize("kind", PHANTOM_KINDS)
def test_a_voxel_does_not_depend_on_the_region_it_is_drawn_with(kind: Any) -> None:
    """Odd pieces in a random order make the same image."""
    pattern = Pattern(kind, (3, 50, 71, 83), "czyx", (1, 16, 16, 16), (1.0,) * 4, "<f4", seed=5)
    if kind == "labels":
        pattern = Pattern(kind, pattern.shape, "czyx", pattern.chunks, (1.0,) * 4, "<u4", seed=5)
    whole = draw(pattern, tuple(slice(0, n) for n in pattern.shape))
    pieces = np.full_like(whole, 255)
    cuts = [[slice(a, b) for a, b in itertools.pairwise([0, n // 3, n // 2 + 1, n])]
            for n in pattern.shape]  # fmt: skip
    regions = list(itertools.product(*cuts))
    random.Random(0).shuffle(regions)
    for region in regions:
        pieces[region] = draw(pattern, region)
    assert pieces.tobytes() == whole.tobytes()


class Disorderly(ThreadPoolExecutor):
    """Runs what it is given in no order."""

    def submit(self, task: Any, /, *given: Any, **named: Any) -> Future[Any]:
        dice = random.Random(hash(given[1]))

        def late() -> Any:
            time.sleep(dice.random() / 50)
            return task(*given, **named)

        return super().submit(late)


DRAWN: dict[str, Any] = {"shape": (40, 90, 50), "chunks": (16, 16, 16), "seed": 3}


@pytest.mark.parametrize("kind", PHANTOM_KINDS)
def test_the_bytes_do_not_depend_on_the_order_of_the_blocks(tmp_path: Path, kind: Any) -> None:
    """One thread, and many in no order; the document too."""
    with ThreadPoolExecutor(1) as one, Disorderly(8) as many:
        write_phantom(str(tmp_path / "one/x.zarr"), kind, executor=one, **DRAWN)
        write_phantom(str(tmp_path / "many/x.zarr"), kind, executor=many, **DRAWN)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")


# Dask leaves a socket open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_active_dask_client_draws_the_same_bytes(tmp_path: Path, dask_threads: Any) -> None:
    """And it is the client's workers that draw."""
    write_phantom(str(tmp_path / "dask/x.zarr"), "blobs", **DRAWN)
    drawn = dask_threads.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.task_prefixes))
    assert drawn > 0
    with ThreadPoolExecutor(1) as one:
        write_phantom(str(tmp_path / "one/x.zarr"), "blobs", executor=one, **DRAWN)
    assert tree(tmp_path / "one") == tree(tmp_path / "dask")


@pytest.mark.parametrize("kind", ["blobs", "ramp", "labels", "random"])
def test_the_voxels_do_not_depend_on_the_chunks(tmp_path: Path, kind: Any) -> None:
    """``sparse`` apart, which is about chunks."""
    voxels = [
        phantom(tmp_path / f"{n}.zarr", kind, (70, 90), chunks=(n, 2 * n)) for n in (7, 16, 64)
    ]
    assert voxels[0].tobytes() == voxels[1].tobytes() == voxels[2].tobytes()


@pytest.mark.parametrize("kind", ["blobs", "random", "sparse"])
def test_another_seed_gives_another_image(tmp_path: Path, kind: Any) -> None:
    """And the same seed the same."""
    images = [
        phantom(tmp_path / f"{number}.zarr", kind, (40, 500), seed=seed, chunks=(10, 10))
        for number, seed in enumerate((0, 0, 1, -1))
    ]
    assert images[0].tobytes() == images[1].tobytes()
    assert len({image.tobytes() for image in images}) == 3


SHAPES = [(20, 30), (3, 20, 30), (2, 9, 20, 30), (2, 3, 9, 20, 30), (1, 1)]


@pytest.mark.parametrize("ngff_version", ["0.4", "0.5"])
@pytest.mark.parametrize(("kind", "shape"), list(zip(PHANTOM_KINDS, SHAPES, strict=True)))
def test_a_phantom_is_a_valid_image(
    tmp_path: Path, kind: Any, shape: Shape, ngff_version: Any
) -> None:
    """Others' validators agree, and what is returned is what a reader finds."""
    place = tmp_path / f"{kind}.ome.zarr"
    voxel = VOXEL.get("tczyx"[-len(shape) :])
    info = write_phantom(
        str(place), kind, shape, voxel_size=voxel, unit="nanometer", ngff_version=ngff_version
    )
    assert verify_pyramid(str(place)).findings == ()
    assert info == open_image(str(place)).info
    assert (info.shape, info.path, info.name) == (shape, "0", kind)
    assert info.ngff_version == ngff_version
    assert "".join(axis.name for axis in info.axes) == "tczyx"[-len(shape) :]
    assert {axis.unit for axis in info.axes if axis.name in "zyx"} == {"nanometer"}
    assert info.scale == (voxel or (1.0,) * len(shape))
    assert document(place)["multiscales"][0]["metadata"]["kwargs"] == {"kind": kind, "seed": 0}
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{kind}.ome.zarr"]  # no lock is left


@pytest.mark.parametrize("ngff_version", ["0.4", "0.5"])
def test_a_pyramid_can_be_built_in_place(tmp_path: Path, ngff_version: Any) -> None:
    """A phantom is a base; it does not pass for a finished pyramid."""
    place = tmp_path / "x.zarr"
    write_phantom(str(place), "blobs", (40, 50), chunks=(16, 16), ngff_version=ngff_version)
    assert len(build(place, verify="full").plan.levels) == 3
    assert verify_pyramid(str(place), "full").ok


def test_a_build_makes_the_test_image_that_it_is_asked_for(tmp_path: Path) -> None:
    """With the axes and the voxel size of the request; the next build uses it as it is."""
    params = PyramidParams(
        source=str(tmp_path / "x.zarr"), test_image="ramp", test_shape=[2, 100, 200], axes="cyx",
        voxel_size=[1, 0.5, 0.25], edges="partial", ngff_version="0.4",
    )  # fmt: skip
    plan = build_pyramid(params).plan
    assert plan.source.shape == (2, 100, 200)
    assert plan.levels[-1].scale == (1.0, 0.5, 0.5)
    assert read(tmp_path / "x.zarr/0")[1, 2, 3] == 2.75
    before = tree(tmp_path)
    build_pyramid(params.model_copy(update={"test_image": "blobs", "test_shape": [5, 5]}))
    assert tree(tmp_path) == before


def test_a_build_uses_what_is_at_the_source(tmp_path: Path) -> None:
    """An image of somebody is never taken for a place for a test image."""
    group = zarr.open_group(tmp_path / "x.zarr")
    group.create_array("0", data=np.ones((8, 8), "u1"), chunks=(4, 4))
    params = PyramidParams(source=str(tmp_path / "x.zarr"), test_image="blobs")
    assert build_pyramid(params).plan.source.shape == (8, 8)


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    """Neither a phantom, nor an array, nor a folder of something else, nor a file."""
    write_phantom(str(tmp_path / "phantom.zarr"), "ramp", (8, 8))
    zarr.open_group(tmp_path / "group.zarr").create_array("0", data=np.ones((8, 8)))
    zarr.create_array(tmp_path / "array.zarr", data=np.ones((8, 8)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for name in ("phantom.zarr", "group.zarr", "array.zarr", "folder", "file"):
        with pytest.raises(TargetError, match=name):
            write_phantom(str(tmp_path / name), "ramp", (8, 8))
    assert tree(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert write_phantom(str(tmp_path / "empty"), "ramp", (8, 8)).shape == (8, 8)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "ramps"}, "no test image 'ramps'.*blobs"),
        ({"shape": (8,)}, "2 to 5 axes"),
        ({"shape": (2, 2, 2, 2, 2, 2)}, "axes"),
        ({"shape": (8, 0)}, "test-shape"),
        ({"shape": (8, -8)}, "test-shape"),
        ({"shape": (8, 8), "chunks": (4, 4, 4)}, "chunks has 3 entries"),
        ({"shape": (8, 8), "voxel_size": (1.0, 1.0, 1.0)}, "voxel_size has 3 entries"),
        ({"shape": (8, 8), "axes": "xy"}, "axes"),
        ({"shape": (8, 8), "unit": "potato"}, "potato"),
        ({"shape": (8, 8), "dtype": "complex64"}, "complex64"),
        ({"shape": (8, 8), "dtype": "potato"}, "not a data type"),
        ({"shape": (8, 8), "kind": "labels", "dtype": "float32"}, "uint32|u4"),
    ],
)
def test_a_request_that_cannot_be_is_refused(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    """One message, and nothing is written."""
    with pytest.raises(RequestError, match=match):
        write_phantom(str(tmp_path / "x.zarr"), **options)
    assert list(tmp_path.iterdir()) == []


class Breaking(ThreadPoolExecutor):
    """Fails after some blocks, as a full disk or a kill would."""

    def __init__(self, blocks: int):
        super().__init__(1)
        self.left, self.lock = blocks, threading.Lock()

    def submit(self, task: Any, /, *given: Any, **named: Any) -> Future[Any]:
        def run() -> Any:
            with self.lock:
                self.left -= 1
            if self.left < 0:
                raise OSError("no more")
            return task(*given, **named)

        return super().submit(run)


def test_a_phantom_that_was_not_finished_is_no_image_and_is_gone_on_with(tmp_path: Path) -> None:
    """The same request ends with the bytes of a run that never stopped; another is refused."""
    place, shape, chunks = tmp_path / "a" / "x.zarr", (90, 90), (10, 10)
    options: dict[str, Any] = {"chunks": chunks, "dtype": "f8"}
    with Breaking(0) as executor, pytest.raises(BuildError, match="no more"):
        write_phantom(str(place), "random", shape, executor=executor, **options)
    with pytest.raises(LocationError, match="not finished"):
        open_image(str(place))
    with pytest.raises(TargetError, match=r"seed \(0, now 1\)"):
        write_phantom(str(place), "random", shape, seed=1, **options)
    with pytest.raises(TargetError, match="kind"):
        write_phantom(str(place), "blobs", shape, **options)
    torn = place / "0/c/3/3#1"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"torn")
    write_phantom(str(place), "random", shape, **options)
    write_phantom(str(tmp_path / "b" / "x.zarr"), "random", shape, **options)
    assert tree(place) == tree(tmp_path / "b" / "x.zarr")


def test_blocks_that_are_there_are_not_drawn_again(tmp_path: Path) -> None:
    """A run that goes on does what is missing."""
    place, shape, chunks = tmp_path / "x.zarr", (512, 4096), (512, 512)
    with Breaking(2) as executor, pytest.raises(BuildError):
        write_phantom(str(place), "random", shape, chunks=chunks, dtype="f8", executor=executor)
    done = {path: path.stat().st_ino for path in chunk_files(place / "0")}
    assert 0 < len(done) < 8
    write_phantom(str(place), "random", shape, chunks=chunks, dtype="f8")
    found = {path: path.stat().st_ino for path in chunk_files(place / "0")}
    assert len(found) == 8
    assert done.items() <= found.items()


MEMORY = """
import resource, sys
from pyramid_core import write_phantom
write_phantom(sys.argv[1] + "/small.zarr", "sparse", (64, 64, 64), dtype="uint8")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_phantom(sys.argv[1] + "/large.zarr", "sparse", (2048, 2048, 2048), dtype="uint8")
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_large_phantom_needs_little_memory(tmp_path: Path) -> None:
    """8.6 GB of voxels within 200 MB more than those of a single chunk take."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    small, large = map(int, done.stdout.split())
    assert large - small < 200_000  # in kB
    assert 0 <= len(chunk_files(tmp_path / "large.zarr/0")) - 32**3 // 100 <= 1
    assert json.loads((tmp_path / "large.zarr/0/zarr.json").read_text())["shape"] == [2048] * 3


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", ["blobs", "ramp"])
def test_what_is_foreseen_of_a_phantom_is_what_opening_it_tells(
    tmp_path: Path, kind: Any, version: Any
) -> None:
    """So a pyramid of a test image can be planned before anything is written."""
    asked = {"voxel_size": (2.0, 0.5), "ngff_version": version}
    plan, _ = plan_phantom(str(tmp_path / "p.zarr"), kind, (40, 200), **asked)
    foretold = foreseen(plan)
    assert not list(tmp_path.iterdir())
    written = write_phantom(str(tmp_path / "p.zarr"), kind, (40, 200), **asked)
    assert replace(written, channels=()) == foretold
