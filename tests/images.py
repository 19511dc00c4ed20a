"""Finished images for the tests of documents, audit and verification, each built once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pyramid_core import PyramidParams, build_pyramid
from tests.stories import Array, Shape, document, noise

UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}
"""The unit of every axis that has one."""

TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def write_base(
    place: Path,
    voxels: Array,
    *,
    version: str = "0.5",
    axes: str = "zyx",
    scale: tuple[float, ...] = (),
    translation: tuple[float, ...] = (),
    chunks: Shape = (),
    labels: Mapping[str, Array] | None = None,
    more: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write an OME-Zarr image of one level by hand, with label images; none of our code helps."""
    zarr_format: Any = 2 if version == "0.4" else 3
    group = zarr.open_group(place, mode="w", zarr_format=zarr_format)
    if zarr_format == 2:
        options.setdefault("chunk_key_encoding", {"name": "v2", "separator": "/"})
    else:
        options.setdefault("dimension_names", list(axes))
    array = group.create_array(
        "0",
        shape=voxels.shape,
        dtype=voxels.dtype,
        chunks=chunks or tuple(min(8, n) for n in voxels.shape),
        **options,
    )
    array[...] = voxels
    transforms: list[dict[str, Any]] = [
        {"type": "scale", "scale": list(scale or (1.0,) * voxels.ndim)}
    ]
    if translation:
        transforms.append({"type": "translation", "translation": list(translation)})
    entry = {
        **({"version": "0.4"} if version == "0.4" else {}),
        "name": "scan",
        "axes": [
            {"name": n, "type": TYPES[n], **({"unit": UNITS[n]} if n in UNITS else {})}
            for n in axes
        ],
        "datasets": [{"path": "0", "coordinateTransformations": transforms}],
    }
    group.attrs.update(said(version, {"multiscales": [entry], **(more or {})}))
    if labels:
        names = zarr.open_group(place / "labels", mode="w", zarr_format=zarr_format)
        names.attrs.update(said(version, {"labels": list(labels)}))
    for name, ids in (labels or {}).items():
        source = {
            "source": {"image": "../../"},
            "colors": [{"label-value": 1, "rgba": [230, 60, 20, 255]}],
        }
        own = {"image-label": {**source, **({"version": "0.4"} if version == "0.4" else {})}}
        spatial = len(axes) - ids.ndim
        write_base(
            place / "labels" / name, ids, version=version, axes=axes[spatial:],
            scale=scale[spatial:], translation=translation[spatial:], chunks=chunks[spatial:],
            more=own, **{k: v for k, v in options.items() if k == "chunk_key_encoding"},
        )  # fmt: skip
    return place


def said(version: str, document: dict[str, Any]) -> dict[str, Any]:
    """Return a document as the attributes of a group hold it."""
    return document if version == "0.4" else {"ome": {"version": "0.5", **document}}


def read_attributes(place: Path) -> dict[str, Any]:
    """Return the attributes of a node in either format."""
    if (place / "zarr.json").exists():
        return dict(json.loads((place / "zarr.json").read_text())["attributes"])
    return dict(json.loads((place / ".zattrs").read_text()))


Transform = tuple[list[float], list[float]]


def transforms(place: Path) -> list[Transform]:
    """Return scale and translation of every level."""
    datasets = document(place)["multiscales"][0]["datasets"]
    found = []
    for dataset in datasets:
        scale, translation = dataset["coordinateTransformations"]
        assert (scale["type"], translation["type"]) == ("scale", "translation")
        found.append((scale["scale"], translation["translation"]))
    return found


def groups(place: Path) -> list[Path]:
    """Return the image and its label images."""
    names = document(place / "labels")["labels"] if (place / "labels").exists() else []
    return [place, *(place / "labels" / name for name in names)]


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file."""
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def change_document(place: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit what a group says in NGFF's words, in either version."""
    if (place / "zarr.json").exists():
        change(place / "zarr.json", lambda node: edit(node["attributes"]["ome"]))
    else:
        change(place / ".zattrs", edit)


def blobs(shape: Shape) -> Array:
    """Return label ids: boxes of 1, 2 and 700 on background."""
    ids = np.zeros(shape, "u2")
    for number, (start, value) in enumerate([(0, 1), (5, 2), (9, 700)]):
        ids[tuple(slice(start, start + 6 + 2 * number) for _ in shape)] = value
    return ids


OMERO: dict[str, Any] = {
    "channels": [
        {
            "label": "DAPI",
            "color": "0000FF",
            "window": {"min": 0, "start": 3, "end": 90, "max": 255},
        },
        {
            "label": "GFP",
            "color": "00FF00",
            "window": {"min": 0, "start": 5, "end": 80, "max": 255},
        },
    ]
}

PLANE: dict[str, Any] = {
    "axes": "yx",
    "scale": (0.5, 0.25),
    "translation": (7.0, -3.0),
    "chunks": (64, 64),
}
STACK: dict[str, Any] = {
    "axes": "zyx",
    "scale": (2.0, 0.5, 0.5),
    "translation": (10.0, 0.0, -4.0),
    "chunks": (8,) * 3,
}
MOVIE: dict[str, Any] = {"axes": "tzyx", "scale": (3.0, 1.0, 1.0, 1.0), "chunks": (1, 8, 8, 8)}
ALL5: dict[str, Any] = {
    "axes": "tczyx", "scale": (3.0, 1.0, 2.0, 0.5, 0.5), "chunks": (1, 1, 8, 8, 8),
    "translation": (9.0, 0.0, 1.0, 2.0, 3.0), "more": {"omero": OMERO},
}  # fmt: skip

IMAGES: dict[str, tuple[Array, dict[str, Any]]] = {
    "plane": (noise((181, 233)), PLANE),
    "stack": (noise((12, 24, 40)), STACK),
    "movie": (noise((3, 9, 20, 17), "f4"), MOVIE),
    "channels": (noise((2, 2, 10, 20, 16), "u1"), ALL5),
    "thin": (noise((1, 40, 24), "i2"), {**STACK, "chunks": (1, 8, 8)}),
    "small": (noise((5, 6, 7), "u4"), {**STACK, "chunks": (8, 8, 8)}),
    "labelled": (noise((12, 24, 40)), {**STACK, "labels": {"cells": blobs((12, 24, 40))}}),
    "coloured": (
        noise((2, 2, 10, 20, 16), "u1"),
        {**ALL5, "labels": {"cells": blobs((10, 20, 16))}},
    ),
}
"""Voxels of a base and what its document says, of 2 to 5 axes."""

MADE: dict[str, tuple[str, str, str | None, dict[str, Any]]] = {
    # name: image, version of its base, version of the target (None: in place), what is asked
    "plane-0.4": ("plane", "0.5", "0.4", {}),
    "plane-0.5-inplace": ("plane", "0.5", None, {}),
    "stack-0.4": ("stack", "0.5", "0.4", {"compression": "lz4"}),
    "stack-0.5": ("stack", "0.4", "0.5", {}),
    "stack-0.5-sharded": ("stack", "0.5", "0.5", {"shards": [8, 16, 16]}),
    "stack-0.4-inplace": ("stack", "0.4", None, {}),
    "stack-0.5-inplace": ("stack", "0.5", None, {}),
    "stack-0.5-stride": ("stack", "0.5", "0.5", {"method": "stride", "compression": "none"}),
    "stack-0.4-trim": ("stack", "0.5", "0.4", {"edges": "trim", "step": [1, 3, 3]}),
    "movie-0.4": ("movie", "0.5", "0.4", {}),
    "movie-0.5": ("movie", "0.5", "0.5", {"method": "max"}),
    "channels-0.4-inplace": ("channels", "0.4", None, {}),
    "channels-0.5": ("channels", "0.5", "0.5", {"shards": [1, 1, 16, 16, 16]}),
    "thin-0.5": ("thin", "0.5", "0.5", {"method": "median"}),
    "small-0.4": ("small", "0.5", "0.4", {"chunks": [4, 4, 4]}),
    "labelled-0.4": ("labelled", "0.4", None, {}),
    "labelled-0.5": ("labelled", "0.5", None, {}),
    "coloured-0.5": ("coloured", "0.5", None, {}),
}
"""Pyramids that the tests look at: of every number of axes, in place and elsewhere."""


class Pyramids:
    """Builds each pyramid when it is first asked for; nobody may change one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = cache(self._place)

    def _place(self, name: str) -> Path:
        image, base, target, asked = MADE[name]
        voxels, described = IMAGES[image]
        source = write_base(self.folder / f"{name}.source.zarr", voxels, version=base, **described)
        place = source if target is None else self.folder / f"{name}.zarr"
        where = {} if target is None else {"target": str(place), "ngff_version": target}
        build_pyramid(
            PyramidParams(
                **{"source": str(source), "edges": "partial", "workers": 2, **where, **asked}
            )
        )
        return place

    def levels(self, name: str) -> list[dict[str, Any]]:
        """Return the datasets that a pyramid's document names."""
        attributes = read_attributes(self.place(name))
        datasets: list[dict[str, Any]] = attributes.get("ome", attributes)["multiscales"][0][
            "datasets"
        ]
        return datasets
