"""What the stories share: images on disk, trees of bytes, and TensorStore as reader and oracle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from pyramid_core import PyramidParams
from pyramid_core.build import BuildResult, build_pyramid

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


def write_image(
    place: Path, voxels: Array, chunks: Shape, *, zarr_format: Any = 3, **options: Any
) -> Path:
    """Write voxels as the array ``0`` of a group; every chunk is stored, background too."""
    group = zarr.open_group(place, mode="a", zarr_format=zarr_format)
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = group.create_array(
            "0", shape=voxels.shape, chunks=chunks, dtype=voxels.dtype, **options
        )
        array[...] = voxels
    return place


def noise(shape: Shape, dtype: str = "u2", seed: int = 0) -> Array:
    """Return voxels of which no two neighbours are alike for long."""
    return np.random.default_rng(seed).integers(1, 200, shape).astype(dtype)


def build(source: Path, target: Path | None = None, **options: Any) -> BuildResult:
    """Build with few words; whatever the shape, and without a gate unless one is asked for."""
    asked = {"edges": "partial", "verify": "none", "workers": 2, **options}
    where = None if target is None else str(target)
    return build_pyramid(PyramidParams(source=str(source), target=where, **asked))


def tree(root: Path) -> dict[str, str]:
    """Return a digest of every file below a folder."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def identities(root: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of change of every file: both stay while nobody writes it."""
    return {
        str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def chunk_files(array: Path) -> list[Path]:
    """Return the stored chunks or shards of an array."""
    metadata = {"zarr.json", ".zarray", ".zattrs", ".zgroup"}
    return sorted(p for p in array.rglob("*") if p.is_file() and p.name not in metadata)


def attributes(group: Path) -> dict[str, Any]:
    """Return the attributes of a group, in either format."""
    if (group / "zarr.json").is_file():
        found: dict[str, Any] = json.loads((group / "zarr.json").read_text())["attributes"]
    else:
        found = json.loads((group / ".zattrs").read_text())
    return found


def document(group: Path) -> dict[str, Any]:
    """Return what a group says of itself in NGFF's words."""
    found = attributes(group)
    ome: dict[str, Any] = found.get("ome", found)
    return ome


def paths(group: Path) -> list[str]:
    """Return the levels that the document names."""
    return [dataset["path"] for dataset in document(group)["multiscales"][0]["datasets"]]


def read(array: Path) -> Array:
    """Read an array by TensorStore's own driver; none of our code, nor zarr's, is involved."""
    ts = pytest.importorskip("tensorstore")
    driver = "zarr3" if (array / "zarr.json").is_file() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{array}/"}}
    found: Array = ts.open(spec, open=True, read=True).result().read().result()
    return found


def reduced(finer: Array, step: Shape, method: str, edges: str = "partial") -> Array:
    """Reduce by TensorStore's ``downsample``; means of floats in float64, and cast back."""
    ts = pytest.importorskip("tensorstore")
    if edges == "trim":
        finer = finer[tuple(slice(n - n % s) for n, s in zip(finer.shape, step, strict=True))]
    native = finer.astype(finer.dtype.newbyteorder("="))
    wide = native.astype("f8") if method == "mean" and native.dtype.kind == "f" else native
    found = ts.downsample(ts.array(wide), list(step), method).read().result()
    return np.asarray(found, native.dtype)


def assert_pyramid(group: Path, steps: list[Shape], method: str, edges: str = "partial") -> None:
    """Every level that the document names is the oracle's reduction of the one before it."""
    named = paths(group)
    assert len(named) == len(steps) + 1
    finer = read(group / named[0])
    for path, step in zip(named[1:], steps, strict=True):
        found, expected = read(group / path), reduced(finer, step, method, edges)
        assert found.dtype.str[1:] == expected.dtype.str[1:]
        assert found.shape == expected.shape
        if expected.dtype.kind == "f" and method in ("median", "mode"):
            # TensorStore's sort is not stable, so the sign of its zero is nobody's rule.
            found, expected = found + 0, expected + 0
        assert found.tobytes() == expected.tobytes(), f"level {path} by {method}"
        finer = read(group / path)


def steps_of(result: BuildResult) -> list[Shape]:
    """Return the steps between the levels of a plan."""
    return [level.step for level in result.plan.levels[1:]]
