"""Real volumes of awkward shapes and types, if they are at hand: built, read back, held against the oracle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pyramid_core import verify_pyramid
from tests.stories import assert_pyramid, build, document, read, steps_of

FOLDER = Path(
    os.environ.get("PYRAMID_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data")
)
NAMES = [
    "anatomical_i16be",
    "colin27_hires_u8",
    "epi_4d_i16",
    "inia19_labels_i16",
    "inia19_t1_f32",
    "mouse_brain_u16",
]

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(),
    reason=f"no real volumes at {FOLDER}; PYRAMID_TEST_DATA names their folder",
)


@pytest.fixture(scope="session", params=NAMES)
def volume(request: pytest.FixtureRequest) -> Any:
    """One volume: voxels, axes, spacing, unit, and where known the translation."""
    with np.load(FOLDER / f"{request.param}.npz") as file:
        return {"name": request.param, **{key: file[key] for key in file.files}}


@pytest.mark.parametrize(
    ("zarr_format", "version", "shards"),
    [
        (2, None, None),
        (3, None, None),
        (3, None, 2),
        (2, "0.4", None),
        (3, "0.4", None),
        (2, "0.5", 2),
        (3, "0.5", None),
        (3, "0.5", 2),
    ],
)
def test_a_real_volume_becomes_a_right_pyramid(
    tmp_path: Path, volume: Any, zarr_format: Any, version: str | None, shards: int | None
) -> None:
    """In either version, in place (None) or elsewhere, in shards or not: voxels, sizes and units are right."""
    voxels, axes = volume["data"], str(volume["axes"])
    if voxels.nbytes > 2**24:
        voxels = voxels[: voxels.shape[0] // 2 | 1]  # still odd, and half the time
    chunks = tuple(min(n, 1 if a in "tc" else 32) for n, a in zip(voxels.shape, axes, strict=True))
    source = tmp_path / f"{volume['name']}.zarr"
    array: Any = zarr.open_group(source, mode="w", zarr_format=zarr_format).create_array(
        "0", shape=voxels.shape, chunks=chunks, dtype=voxels.dtype
    )
    array[...] = voxels
    method = "mode" if "labels" in volume["name"] else "mean"
    result = build(
        source,
        tmp_path / "out.zarr" if version else None,
        method=method,
        ngff_version=version or "auto",
        axes=axes,
        voxel_size=[float(s) for s in volume["spacing"]],
        unit=str(volume["unit"]),
        shards=[c * shards for c in chunks] if shards else [],
        memory_limit="60MB",
    )
    built = tmp_path / "out.zarr" if version else source
    np.testing.assert_array_equal(read(built / "0"), voxels)
    assert len(result.plan.levels) >= 2
    assert_pyramid(built, steps_of(result), method)
    assert_sizes(built, axes, volume, steps_of(result))
    verification = verify_pyramid(str(built), "full")
    assert verification.ok, str(verification)


def assert_sizes(built: Path, axes: str, volume: Any, steps: list[tuple[int, ...]]) -> None:
    """Scales are those of the volume times whole factors, and each level lies where its voxels lie."""
    entry = document(built)["multiscales"][0]
    for axis, name in zip(entry["axes"], axes, strict=True):
        assert axis["name"] == name
        assert axis.get("unit") == (str(volume["unit"]) if name in "zyx" else None)
    factor = np.ones(len(axes))
    for dataset, step in zip(entry["datasets"], [(1,) * len(axes), *steps], strict=True):
        factor = factor * step
        scale, translation = dataset["coordinateTransformations"]
        np.testing.assert_allclose(scale["scale"], volume["spacing"] * factor)
        np.testing.assert_allclose(translation["translation"], volume["spacing"] * (factor - 1) / 2)


def test_labels_are_built_in_place_beside_their_image(tmp_path: Path) -> None:
    """The atlas and its label volume, as one image with labels, pass all validators after a build in place."""
    import yaozarrs

    place, placed = tmp_path / "inia19.zarr", {}
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    for at, file in (("", "inia19_t1_f32"), ("labels/atlas", "inia19_labels_i16")):
        with np.load(FOLDER / f"{file}.npz") as found:
            voxels, spacing = found["data"][:64, :101, :83], found["spacing"]
        group = zarr.open_group(place, path=at, mode="a", zarr_format=3)
        array: Any = group.create_array(
            "0", shape=voxels.shape, chunks=(16, 16, 16), dtype=voxels.dtype,
            dimension_names=["z", "y", "x"],
        )  # fmt: skip
        array[...] = voxels
        scale = {"type": "scale", "scale": [float(s) for s in spacing]}
        datasets = [{"path": "0", "coordinateTransformations": [scale]}]
        ome: dict[str, Any] = {
            "version": "0.5",
            "multiscales": [{"axes": axes, "datasets": datasets}],
        }
        group.attrs.put({"ome": ome | ({"image-label": {}} if at else {})})
        placed[at] = place / at
    labels = zarr.open_group(place, path="labels", mode="a", zarr_format=3)
    labels.attrs.put({"ome": {"version": "0.5", "labels": ["atlas"]}})
    result = build(place, step=[2, 2, 2], verify="full")
    assert_pyramid(placed[""], steps_of(result), "mean")
    assert_pyramid(placed["labels/atlas"], steps_of(result), "mode")
    yaozarrs.validate_zarr_store(str(place))
    assert verify_pyramid(str(place), "full").ok
