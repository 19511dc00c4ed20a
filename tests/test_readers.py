"""Pyramids are read back, bit for bit, by readers that nobody here wrote."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import npm
from tests.images import MADE, OMERO, Pyramids, groups
from tests.stories import paths, read

NAPARI = """
napari-ome-zarr==0.10.0 napari==0.9.2 app-model==0.5.1 in-n-out==0.2.1 psygnal==0.16.1 vispy==0.17.0
hsluv==5.0.5 cachey==0.2.1 HeapDict==1.0.1 Pint==0.25.3 flexcache==0.3 flexparser==0.4 tqdm==4.70.1
""".split()
"""The reader, and what it imports; napari with all that its window needs would be 685 MB, not 43."""

ITK = "itk-ioomezarrngff==0.3.0 itk-core==5.4.7 itk-io==5.4.7".split()
"""The reader, and what it imports: 620 MB, where all of ITK would be 960."""

ZARRITA = "zarrita@0.7.5"


@contextmanager
def installed(*packages: str) -> Iterator[str]:
    """Yield a folder with packages that stand beside ours in no environment; it is not kept."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        subprocess.run(
            [*pip, "--only-binary", ":all:", "--disable-pip-version-check", *packages],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        yield folder


def told(command: list[str], program: str, *words: str, **variables: str) -> Any:
    """Return what a program prints as JSON on its last line."""
    done = subprocess.run(
        [*command, program, *words], env={**os.environ, **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def digest(array: Path) -> str:
    """Return a digest of the voxels, as TensorStore reads them, in C order and little-endian."""
    voxels = read(array)
    return hashlib.sha256(voxels.astype(voxels.dtype.newbyteorder("<")).tobytes()).hexdigest()


@pytest.mark.install
def test_zarrita_reads_every_level_of_every_pyramid(pyramids: Pyramids, tmp_path: Path) -> None:
    """In Node, which reads as web viewers do: shape and voxels are those that TensorStore reads."""
    npm.install(tmp_path, ZARRITA)
    (tmp_path / "read.mjs").write_text(
        """
        import { createHash } from "node:crypto";
        import * as zarr from "zarrita";
        import FileSystemStore from "@zarrita/storage/fs";
        const found = {};
        for (const place of process.argv.slice(2)) {
          const array = await zarr.open(new FileSystemStore(place), { kind: "array" });
          const { data, shape } = await zarr.get(array);
          const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
          found[place] = [shape, createHash("sha256").update(bytes).digest("hex")];
        }
        console.log(JSON.stringify(found));
        """
    )
    images = [group for name in MADE for group in groups(pyramids.place(name))]
    arrays = [image / path for image in images for path in paths(image)]
    assert len(arrays) > 50
    found = told(["node"], str(tmp_path / "read.mjs"), *map(str, arrays))
    assert found == {str(a): [list(read(a).shape), digest(a)] for a in arrays}


@pytest.mark.install
def test_itk_reads_0_4_with_spacing_and_origin(pyramids: Pyramids) -> None:
    """Each level lies where it should in space; axes are x, y, z there."""
    place = pyramids.place("stack-0.4")
    program = """
import hashlib, itk, json, sys
found = []
for number in range(4):
    io = itk.OMEZarrNGFFImageIO.New()
    io.SetDatasetIndex(number)
    reader = itk.ImageFileReader[itk.Image[itk.US, 3]].New(FileName=sys.argv[1], ImageIO=io)
    reader.Update()
    image = reader.GetOutput()
    voxels = itk.array_from_image(image).tobytes()
    digest = hashlib.sha256(voxels).hexdigest()
    found.append([list(image.GetSpacing()), list(image.GetOrigin()), digest])
print(json.dumps(found))
"""
    with installed(*ITK) as folder:
        found = told([sys.executable, "-c"], program, str(place), PYTHONPATH=folder)
    assert [level[:2] for level in found] == [
        [[0.5, 0.5, 2.0], [-4.0, 0.0, 10.0]],
        [[1.0, 1.0, 2.0], [-3.75, 0.25, 10.0]],
        [[2.0, 2.0, 2.0], [-3.25, 0.75, 10.0]],
        [[4.0, 2.0, 4.0], [-2.25, 0.75, 11.0]],
    ]
    assert [level[2] for level in found] == [digest(place / path) for path in paths(place)]


@pytest.mark.install
def test_napari_reads_levels_channels_labels_and_units(pyramids: Pyramids) -> None:
    """By its reader of OME-Zarr: all levels, with scale, unit, contrast and the colours of channels."""
    names = ("stack-0.4", "stack-0.5-sharded", "coloured-0.5", "labelled-0.4")
    places = {name: pyramids.place(name) for name in names}
    program = """
import hashlib, json, sys
from napari_ome_zarr import napari_get_reader
found = {}
for place in sys.argv[1:]:
    layers = found[place] = []
    for levels, said, kind in napari_get_reader(place)(place):
        maps = said.get("colormap") if kind == "image" else []
        colours = [m.colors[-1].tolist() for m in (maps if isinstance(maps, list) else [maps])]
        layers.append({
            "kind": kind,
            "levels": [hashlib.sha256(level.compute().tobytes()).hexdigest() for level in levels],
            "colours": colours,
            **{key: said.get(key) for key in ("scale", "units", "contrast_limits", "channel_axis")},
        })
print(json.dumps(found))
"""
    with installed(*NAPARI) as folder:
        command = [sys.executable, "-W", "ignore", "-c"]
        found = told(command, program, *map(str, places.values()), PYTHONPATH=folder)
    for place in places.values():
        for layer, group in zip(found[str(place)], groups(place), strict=True):
            assert layer["levels"] == [digest(group / path) for path in paths(group)]
            assert layer["kind"] == ("image" if group == place else "labels")
            assert layer["scale"][-3:] == [2.0, 0.5, 0.5]
            assert layer["units"][-3:] == ["micrometer"] * 3
    image = found[str(places["coloured-0.5"])][0]
    windows = [channel["window"] for channel in OMERO["channels"]]
    assert image["contrast_limits"] == [[w["start"], w["end"]] for w in windows]
    assert image["colours"] == [[0, 0, 1, 1], [0, 1, 0, 1]]
    assert (image["channel_axis"], image["scale"]) == (1, [3.0, 2.0, 0.5, 0.5])


@pytest.mark.parametrize("name", ["coloured-0.5", "labelled-0.4"])
def test_ome_zarr_info_lists_the_image_and_its_labels(pyramids: Pyramids, name: str) -> None:
    """The command of ome-zarr-py: every level of both, and it finds nothing to complain of."""
    place = pyramids.place(name)
    command = [str(Path(sys.executable).with_name("ome_zarr")), "info", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    for group in groups(place):
        start = next(n for n, line in enumerate(said) if line.startswith(f"{group} [zgroup]"))
        shapes = [f"   - {read(group / path).shape}" for path in paths(group)]
        first = said.index(" - data", start) + 1
        assert said[first : first + len(shapes)] == shapes
    assert "error" not in (done.stdout + done.stderr).lower()


def test_tensorstore_names_the_axes(pyramids: Pyramids) -> None:
    """From ``dimension_names`` of every level and label; that it reads the voxels, the oracle holds."""
    ts = pytest.importorskip("tensorstore")
    image, label = groups(pyramids.place("coloured-0.5"))
    for group, axes in ((image, "tczyx"), (label, "zyx")):
        for path in paths(group):
            spec = {"driver": "zarr3", "kvstore": f"file://{group / path}/"}
            assert "".join(ts.open(spec, open=True, read=True).result().domain.labels) == axes
