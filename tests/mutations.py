"""Broken images: each a way in which a pyramid goes wrong, and what must be said of it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zarr

from tests.images import change, change_document

Document = dict[str, Any]
Place = Callable[[Path], object]
BOTH = ("0.4", "0.5")


@dataclass(frozen=True)
class Mutation:
    """One way to break a finished image with the levels 0 to 3 and one label image, ``cells``."""

    name: str
    break_it: Place
    says: str
    """Words of the finding."""
    versions: tuple[str, ...] = BOTH
    severity: Literal["error", "warning"] = "error"


def document(name: str, edit: Callable[[Document], object], says: str, *rest: Any) -> Mutation:
    """Break what the group says in NGFF's words."""
    return Mutation(name, lambda place: change_document(place, edit), says, *rest)


def entry(name: str, edit: Callable[[Document], object], says: str, *rest: Any) -> Mutation:
    """Break the multiscales entry."""
    return document(name, lambda d: edit(d["multiscales"][0]), says, *rest)


def axis(name: str, edit: Callable[[Document], object], says: str, *rest: Any) -> Mutation:
    """Break the last axis, x."""
    return entry(name, lambda e: edit(e["axes"][-1]), says, *rest)


def level(name: str, edit: Callable[[Document], object], says: str, *rest: Any) -> Mutation:
    """Break the dataset of level 1; its transformations are [scale, translation]."""
    return entry(name, lambda e: edit(e["datasets"][1]), says, *rest)


def scaled(name: str, scale: list[Any], says: str) -> Mutation:
    """Break the scale of level 1; [2, 1, 1] is right."""
    return level(name, lambda d: d["coordinateTransformations"][0].update(scale=scale), says)


def shifted(name: str, translation: list[Any], says: str) -> Mutation:
    """Break the translation of level 1; [10, 0.25, -3.75] is right."""
    return level(
        name, lambda d: d["coordinateTransformations"][1].update(translation=translation), says
    )


def channel(name: str, edit: Callable[[Document], object], says: str, *rest: Any) -> Mutation:
    """Break the only channel of omero."""
    return document(name, lambda d: edit(d["omero"]["channels"][0]), says, *rest)


def window(name: str, says: str = "min, start, end, max", **values: Any) -> Mutation:
    """Break the contrast window."""
    return channel(name, lambda c: c["window"].update(values), says)


def label(name: str, edit: Callable[[Document], object], says: str, *rest: Any) -> Mutation:
    """Break what the label image says."""
    return Mutation(name, lambda p: change_document(p / "labels/cells", edit), says, *rest)


def node(place: Path, path: str) -> Path:
    """Return the metadata of an array."""
    v3 = place / path / "zarr.json"
    return v3 if v3.exists() else place / path / ".zarray"


def array(
    name: str, path: str, edit: Callable[[Document], object], says: str, *rest: Any
) -> Mutation:
    """Break the metadata of one array."""
    return Mutation(name, lambda place: change(node(place, path), edit), says, *rest)


def group(place: Path) -> Path:
    v3 = place / "zarr.json"
    return v3 if v3.exists() else place / ".zattrs"


def remade(path: str, **options: Any) -> Place:
    """Return what makes an array anew, of another shape or type."""

    def make(place: Path) -> None:
        old = zarr.open_array(place / path, mode="r")
        metadata: Any = old.metadata
        v2 = metadata.zarr_format == 2
        shutil.rmtree(place / path)
        shape = options.get("shape", old.shape)
        names = None if v2 else metadata.dimension_names[-len(shape) :]
        zarr.create_array(
            place / path,
            shape=shape,
            chunks=tuple(min(8, n) for n in shape),
            dtype=options.get("dtype", old.dtype),
            zarr_format=metadata.zarr_format,
            chunk_key_encoding={"name": "v2", "separator": "/"} if v2 else None,
            dimension_names=names,
        )

    return make


def both_names(document: Document) -> None:
    """Let two levels name the same array, as a slip of copy and paste does."""
    document["datasets"][2]["path"] = document["datasets"][1]["path"]


def orphan(place: Path) -> None:
    shutil.copytree(place / "3", place / "4")


def deep(place: Path) -> None:
    text = group(place).read_text()
    nested = "[" * 200_000 + "]" * 200_000
    group(place).write_text(text.replace("{", f'{{"deep": {nested}, ', 1))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def outside(key: str) -> Place:
    """Return what moves a part of the document out of ``ome``."""

    def move(place: Path) -> None:
        def edit(metadata: Document) -> None:
            attributes = metadata["attributes"]
            attributes[key] = attributes["ome"].pop(key)

        change(place / "zarr.json", edit)

    return move


def attributes_list(place: Path) -> None:
    change(place / "zarr.json", lambda node: node.update(attributes=[1]))


def label_names(names: Any) -> Place:
    return lambda place: change_document(place / "labels", lambda d: d.update(labels=names))


def text(path: str, content: str) -> Place:
    """Return what writes something else than JSON objects into a metadata file."""

    def write(place: Path) -> None:
        file = place / path
        for name in ("zarr.json", ".zattrs" if (file / ".zattrs").exists() else ".zarray"):
            if (file / name).exists():
                (file / name).write_text(content)

    return write


V4, V5 = ("0.4",), ("0.5",)
TRANSFORMS = "coordinateTransformations"

DOCUMENTS = [
    document("no multiscales", lambda d: d.pop("multiscales"), "no multiscales"),
    document("multiscales is empty", lambda d: d.update(multiscales=[]), "no multiscales"),
    document("multiscales is a text", lambda d: d.update(multiscales="0"), "not valid OME-Zarr"),
    document(
        "two multiscales",
        lambda d: d["multiscales"].append({**d["multiscales"][0], "name": "b"}),
        "parent image has 2",
    ),
    entry("version missing", lambda e: e.pop("version"), "does not say its version", V4),
    entry("version 0.3", lambda e: e.update(version="0.3"), "says version '0.3'", V4),
    document("ome version missing", lambda d: d.pop("version"), "does not say its version", V5),
    document("ome version 0.7", lambda d: d.update(version="0.7"), "says version '0.7'", V5),
    entry(
        "version inside multiscales", lambda e: e.update(version="0.5"), "version stands inside", V5
    ),
    Mutation("omero outside ome", outside("omero"), "omero stands beside ome", V5),
    Mutation("multiscales outside ome", outside("multiscales"), "multiscales", V5),
    entry("name missing", lambda e: e.pop("name"), "no 'name'", BOTH, "warning"),
    entry("type missing", lambda e: e.pop("type"), "no 'type'", BOTH, "warning"),
    entry("metadata missing", lambda e: e.pop("metadata"), "no 'metadata'", BOTH, "warning"),
    entry("type of another method", lambda e: e.update(type="median"), "type is 'median'"),
    entry("name is a number", lambda e: e.update(name=7), "name"),
    entry("metadata is a list", lambda e: e.update(metadata=[1]), "metadata"),
    entry(
        "transformation of the whole image",
        lambda e: e.update({TRANSFORMS: [{"type": "scale", "scale": [2.0, 2.0, 2.0]}]}),
        "has scale (2.0, 0.5, 0.5), the image (4.0",
    ),
    document("NaN in attributes", lambda d: d.update(mine=math.nan), "NaN"),
    document("nested to any depth", lambda d: d.update(mine=nested(900)), ""),
    entry("axes missing", lambda e: e.pop("axes"), "not valid OME-Zarr"),
    entry("axes are texts", lambda e: e.update(axes=["z", "y", "x"]), "not valid OME-Zarr"),
    axis("two axes of one name", lambda a: a.update(name="y"), "name"),
    entry("axes in the wrong order", lambda e: e["axes"].reverse(), "order"),
    entry("channel axis last", lambda e: e["axes"].append({"name": "c", "type": "channel"}), ""),
    entry("one axis too few", lambda e: e["axes"].pop(0), ""),
    axis("axis type missing", lambda a: a.pop("type"), "type"),
    axis("axis type wrong", lambda a: a.update(type="time"), "type"),
    axis("axis name unknown", lambda a: a.update(name="w"), "'w'"),
    axis("axis name a list", lambda a: a.update(name=["x"]), ""),
    axis("unit missing", lambda a: a.pop("unit"), "no unit", BOTH, "warning"),
    axis("unit um", lambda a: a.update(unit="um"), "'um'"),
    axis("unit unknown", lambda a: a.update(unit="furlong"), "'furlong'"),
    axis("unit a list", lambda a: a.update(unit=["micrometer"]), "unit"),
]

LEVELS = [
    level("translation before scale", lambda d: d[TRANSFORMS].reverse(), ""),
    level("two scales", lambda d: d[TRANSFORMS].append(d[TRANSFORMS][0]), ""),
    level("two translations", lambda d: d[TRANSFORMS].append(d[TRANSFORMS][1]), ""),
    level("no scale", lambda d: d[TRANSFORMS].pop(0), ""),
    level("no transformations", lambda d: d.pop(TRANSFORMS), ""),
    level("path missing", lambda d: d.pop("path"), ""),
    level("path with ..", lambda d: d.update(path="../1"), "'../1'"),
    level("path absolute", lambda d: d.update(path="/1"), "'/1'"),
    level("path of nothing", lambda d: d.update(path="9"), "no array at '9'"),
    level("path of a group", lambda d: d.update(path="labels"), ""),
    level("path written another way", lambda d: d.update(path="./1"), "'./1'"),
    entry("path twice", both_names, "path twice"),
    entry("levels reversed", lambda e: e["datasets"].reverse(), "lower resolution"),
    entry(
        "levels exchanged",
        lambda e: e["datasets"].insert(1, e["datasets"].pop()),
        "lower resolution",
    ),
    entry("no levels", lambda e: e.update(datasets=[]), ""),
    entry("level not named", lambda e: e["datasets"].pop(), "orphan"),
    entry("level left out", lambda e: e["datasets"].pop(1), "orphan"),
    scaled("scale too short", [1.0, 1.0], ""),
    scaled("scale too long", [1.0, 2.0, 1.0, 1.0], ""),
    scaled("scale of texts", ["a", "b", "c"], ""),
    scaled("scale is NaN", [2.0, 1.0, math.nan], ""),
    scaled("scale is infinite", [2.0, 1.0, math.inf], ""),
    scaled("scale beyond floats", [2.0, 1.0, 10**400], ""),
    scaled("scale is zero", [2.0, 1.0, 0.0], ""),
    scaled("scale is negative", [2.0, 1.0, -1.0], ""),
    scaled("scale twice too large", [4.0, 2.0, 2.0], "scale"),
    scaled("scale twice too small", [1.0, 0.5, 0.5], "scale"),
    scaled("scale is the step", [1.0, 2.0, 2.0], "scale"),
    shifted("translation too short", [10.0, 0.25], ""),
    shifted("translation is NaN", [10.0, math.nan, 0.0], ""),
    shifted("translation in voxels", [5.0, 0.5, -7.5], "translation along z is 5.0"),
    shifted("half-pixel forgotten", [10.0, 0.0, -4.0], "translation along y is 0.0, but"),
    shifted("half-pixel of the wrong sign", [10.0, -0.25, -4.25], "translation along y is -0.25"),
    level("translation missing", lambda d: d[TRANSFORMS].pop(), "translation along z is 0.0"),
]

CHANNELS = [
    document("omero missing", lambda d: d.pop("omero"), "no omero", BOTH, "warning"),
    document("omero is a list", lambda d: d.update(omero=[1]), "no list of channels"),
    document("omero without channels", lambda d: d["omero"].pop("channels"), "no list of channels"),
    document("no channel", lambda d: d["omero"].update(channels=[]), "0 channels, the image 1"),
    document(
        "a channel too many",
        lambda d: d["omero"]["channels"].append(d["omero"]["channels"][0]),
        "2 channels, the image 1",
    ),
    document("a channel is a text", lambda d: d["omero"].update(channels=["red"]), "channel 0"),
    channel("colour with #", lambda c: c.update(color="#00FF00"), "'#00FF00'"),
    channel("colour by name", lambda c: c.update(color="green"), "'green'"),
    channel("colour missing", lambda c: c.pop("color"), "colour None"),
    channel("window missing", lambda c: c.pop("window"), "no contrast window"),
    channel("window a list", lambda c: c.update(window=[0, 1]), "no contrast window"),
    channel("window without end", lambda c: c["window"].pop("end"), "no contrast window"),
    window("window is NaN", "NaN", end=math.nan),
    window("window beyond floats", "no contrast window", end=10**400),
    window("window upside down", min=9.0, start=9.0, end=3.0, max=3.0),
    window("min above max", min=100.0, max=5.0),
    window("start is end", start=5.0, end=5.0),
    window("start below min", min=5.0, start=4.0),
]

ARRAYS = [
    Mutation("level missing on disk", lambda p: shutil.rmtree(p / "2"), "no array at '2'"),
    Mutation("level not named by anyone", orphan, "orphan"),
    Mutation("level of another type", remade("2", dtype="u1"), "of type |u1"),
    Mutation("level one voxel too long", remade("2", shape=(12, 7, 10)), "scale"),
    Mutation("level of other axes", remade("2", shape=(6, 10)), "but the document names axes"),
    Mutation("base of other axes", remade("0", shape=(24, 40)), "but the document names axes"),
    Mutation("level larger than its parent", remade("2", shape=(12, 13, 10)), "not smaller"),
    Mutation("level as large as its parent", remade("2", shape=(12, 12, 20)), "not smaller"),
    array(
        "'.' between the numbers of chunks",
        "1",
        lambda z: z.update(dimension_separator="."),
        "'.'",
        V4,
    ),
    array(
        "names of dimensions missing",
        "1",
        lambda z: z.pop("dimension_names"),
        "dimension_names",
        V5,
    ),
    array(
        "names of dimensions exchanged",
        "1",
        lambda z: z["dimension_names"].reverse(),
        "dimension_names",
        V5,
    ),
    array(
        "base without names of dimensions",
        "0",
        lambda z: z.pop("dimension_names"),
        "dimension_names",
        V5,
    ),
    array("another fill value", "1", lambda z: z.update(fill_value=1), "fill value 1"),
    array(
        "unknown codec",
        "1",
        lambda z: z.update(codecs=[{"name": "pied-piper"}]),
        "cannot be used",
        V5,
    ),
    array("unknown data type", "1", lambda z: z.update(dtype="quark"), "cannot be used", V4),
    Mutation("array is not JSON", text("1", "{"), "not JSON"),
    Mutation("array is nested", text("1", "[" * 200_000), "not JSON"),
    Mutation("group is not JSON", text(".", "{ nothing"), "not JSON"),
    Mutation("group is a list", text(".", "[]"), "not a JSON object"),
    Mutation("group is nested too deeply", deep, "not JSON"),
    Mutation("group is not text", lambda p: group(p).write_bytes(b"\xff\xfe\x00"), "not JSON"),
    Mutation("attributes are a list", attributes_list, "attributes", V5),
]

LABELS = [
    Mutation("label listed twice", label_names(["cells", "cells"]), "listed twice"),
    Mutation("label listed but missing", label_names(["cells", "nuclei"]), "listed but not there"),
    Mutation("label not listed", label_names([]), "not listed"),
    Mutation("label outside the image", label_names(["../../elsewhere"]), "out of the image"),
    Mutation("label of no name", label_names(["cells", "\0", "n" * 300]), "labels/n"),
    Mutation("labels are a text", label_names("cells"), "no list"),
    Mutation("labels are lists", label_names([["cells"]]), "no list"),
    Mutation("labels not JSON", text("labels", "{"), "not JSON"),
    Mutation("label not JSON", text("labels/cells", "{"), "not JSON"),
    Mutation(
        "labels without version",
        lambda p: change_document(p / "labels", lambda d: d.pop("version")),
        "version",
        V5,
    ),
    label("label without version", lambda d: d.pop("version"), "version", V5),
    label("image-label missing", lambda d: d.pop("image-label"), "no image-label"),
    label(
        "label of another image",
        lambda d: d["image-label"]["source"].update(image="../../../x"),
        "source",
    ),
    label(
        "label colour beyond 255",
        lambda d: d["image-label"]["colors"][0].update(rgba=[0, 0, 0, 256]),
        "",
    ),
    label(
        "label coloured twice", lambda d: d["image-label"]["colors"].append({"label-value": 1}), ""
    ),
    label("label has fewer levels", lambda d: d["multiscales"][0]["datasets"].pop(), ""),
    label(
        "label of another scale",
        lambda d: [
            t.update(scale=[2 * s for s in t["scale"]], translation=[0.0, 0.0, 0.0])
            for s in d["multiscales"][0]["datasets"]
            for t in s[TRANSFORMS][:1]
        ],
        "scale",
    ),
    Mutation("label of floats", remade("labels/cells/1", dtype="f4"), "of type <f4"),
    Mutation("label level of another shape", remade("labels/cells/3", shape=(6, 6, 4)), "shape"),
    Mutation(
        "label level missing on disk",
        lambda p: shutil.rmtree(p / "labels/cells/2"),
        "no array at '2'",
    ),
]

MUTATIONS = [*DOCUMENTS, *LEVELS, *CHANNELS, *ARRAYS, *LABELS]
