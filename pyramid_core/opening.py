"""How to open an image: what is typed into which program."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass

import numpy as np

from pyramid_core.model import Level, PyramidPlan
from pyramid_core.stores import is_url, shown

_MOST_BYTES = 500_000_000
"""Voxels of a level that a program without levels is given."""

_ELEMENTS = {
    "u1": "UCHAR", "u2": "USHORT", "u4": "UINT", "u8": "ULONG_LONG",
    "i1": "CHAR", "i2": "SHORT", "i4": "INT", "i8": "LONG_LONG", "f4": "FLOAT", "f8": "DOUBLE",
}  # fmt: skip
"""What a MetaImage calls a data type, after ``MET_``."""


@dataclass(frozen=True, slots=True)
class Way:
    """How one program opens an image."""

    program: str
    """Its name."""
    how: str
    """What to do with the code, in a sentence."""
    code: str
    """What is typed."""


def ways_to_open(plan: PyramidPlan) -> tuple[Way, ...]:
    """Return how napari, Neuroglancer, ParaView and Python open the image of a plan."""
    place = shown(plan.target)
    word, coarsest = shlex.quote(place), plan.levels[-1]
    volume = _for_paraview(plan)
    name = f"{_file_name(plan)}-{_word(volume.path)}"
    layer = f" Elsewhere, the source of a layer is zarr://{place}/" if is_url(plan.target) else ""
    return (
        Way(
            "napari", "With the plugin napari-ome-zarr.", f"napari --plugin napari-ome-zarr {word}"
        ),
        Way("Neuroglancer", f"In your browser.{layer}", f"pyramid view {word}"),
        Way(
            "ParaView",
            f"Run this in Python: ParaView opens the file that it writes, {name}.mhd.",
            _to_metaimage(plan, volume, name),
        ),
        Way(
            "Python",
            f"The coarsest level; path={plan.levels[0].path!r} is the finest.",
            f"import zarr\n{_open_array(place, coarsest)}",
        ),
    )


def next_steps(plan: PyramidPlan) -> list[str]:
    """Return what to do with an image that was built, in three lines."""
    word = shlex.quote(shown(plan.target))
    return [
        f"view:    pyramid view {word}",
        f"preview: pyramid preview {word}",
        f"Python:  {_open_array(shown(plan.target), plan.levels[-1])}",
    ]


def _open_array(place: str, level: Level) -> str:
    return f"zarr.open_array({place!r}, path={level.path!r}, mode='r')"


def _file_name(plan: PyramidPlan) -> str:
    return _word(plan.source.name).strip("-")[:60] or "image"


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text)


def _for_paraview(plan: PyramidPlan) -> Level:
    """Return the finest level of which one volume is no burden, else the coarsest."""
    for level in plan.levels:
        size = math.prod(_spatial(plan, level.shape)) * np.dtype(plan.dtype).itemsize
        if size <= _MOST_BYTES:
            return level
    return plan.levels[-1]


def _spatial(plan: PyramidPlan, values: tuple[float, ...]) -> list[float]:
    return [v for v, axis in zip(values, plan.axes, strict=True) if axis.type == "space"]


def _to_metaimage(plan: PyramidPlan, level: Level, name: str) -> str:
    """Return Python that writes one volume of a level as a MetaImage: raw voxels and a header."""
    dtype = np.dtype(plan.dtype)
    kind = {"b1": "u1", "f2": "f4"}.get(f"{dtype.kind}{dtype.itemsize}", dtype.str[1:])
    first = ", ".join("0" for axis in plan.axes if axis.type != "space")

    def line(key: str, values: tuple[float, ...]) -> str:
        return f"{key} = {' '.join(f'{v:.15g}' for v in reversed(_spatial(plan, values)))}"

    header = [
        "ObjectType = Image",
        f"NDims = {len(_spatial(plan, level.shape))}",
        line("DimSize", level.shape),
        line("ElementSpacing", level.scale),
        line("Offset", level.translation),
        f"ElementType = MET_{_ELEMENTS[kind]}",
        "ElementByteOrderMSB = False",
        f"ElementDataFile = {name}.raw",
    ]
    return "\n".join([
        "import zarr",
        f"level = {_open_array(shown(plan.target), level)}",
        f"level[{first or '...'}].astype('<{kind}').tofile('{name}.raw')",
        f"with open('{name}.mhd', 'w') as header:",
        '    header.write("""' + "\n".join(header),
        '""")',
    ])  # fmt: skip
