"""Pictures of many volumes on one sheet, to be looked at: ``python -m tests.sheet FOLDER -o sheet.png``.

Each volume is an .npz of ``data``, ``axes``, ``spacing`` per axis and ``unit``; its pyramid is
built in a temporary folder. One whose name holds ``labels`` is built as labels.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import zarr
from PIL import Image

from pyramid_core import PyramidParams, build_pyramid
from pyramid_core.preview import render_preview

WIDTH, GAP = 700, 12
"""Of a picture, and between two, in pixels."""

CHUNK = 32
"""Voxels of a chunk along each spatial axis."""


def main(arguments: list[str] | None = None) -> int:
    """Write the sheet that is asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.sheet", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the .npz volumes lie")
    parser.add_argument("-o", "--output", type=Path, default=Path("sheet.png"), help="[sheet.png]")
    parser.add_argument("--columns", type=int, default=2, help="pictures side by side [2]")
    asked = parser.parse_args(arguments)
    volumes = sorted(asked.folder.glob("*.npz"))
    if not volumes:
        print(f"{asked.folder} holds no .npz; name a folder that does", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as places:
        pictures = [picture(build_volume(volume, Path(places))) for volume in volumes]
    sheet(pictures, asked.columns).save(asked.output)
    return 0


def build_volume(volume: Path, folder: Path) -> Path:
    """Write a volume as OME-Zarr 0.5 of the same name, with its pyramid."""
    with np.load(volume) as file:
        voxels, axes, unit = file["data"], str(file["axes"]), str(file["unit"])
        voxel_size = [float(s) for s in file["spacing"]]
    chunks = tuple(
        1 if a in "tc" else min(n, CHUNK) for n, a in zip(voxels.shape, axes, strict=True)
    )
    place = folder / f"{volume.stem}.zarr"
    zarr.open_group(place, mode="w").create_array("0", data=voxels, chunks=chunks)
    params = PyramidParams(
        source=str(place),
        method="mode" if "labels" in volume.stem else "mean",
        edges="partial",
        axes=axes,
        voxel_size=voxel_size,
        unit=unit,
    )
    build_pyramid(params)
    return place


def picture(place: Path) -> Image.Image:
    """Return the preview of an image, its name at the top."""
    return Image.open(io.BytesIO(render_preview(str(place), width=WIDTH))).convert("RGB")


def sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Lay pictures out in order, each below the column that is the shortest so far."""
    tall = [GAP] * min(columns, len(pictures))
    corners = []
    for one in pictures:
        column = tall.index(min(tall))
        corners.append((GAP + column * (WIDTH + GAP), tall[column]))
        tall[column] += one.height + GAP
    page = Image.new("RGB", (GAP + len(tall) * (WIDTH + GAP), max(tall)), "white")
    for one, corner in zip(pictures, corners, strict=True):
        page.paste(one, corner)
    return page


if __name__ == "__main__":
    raise SystemExit(main())
