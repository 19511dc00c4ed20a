"""Drawings of a report as SVG: a level as a box to scale, and a histogram with its window."""

from __future__ import annotations

import math

from pyramid_core.grid import Shape
from pyramid_core.histogram import Histogram
from pyramid_core.markup import Markup, tag

Point = tuple[float, float]

WIDTH, HEIGHT = 250.0, 190.0
"""Pixels that the box of the finest level takes at most."""

_DEEP: Point = (0.42, 0.28)
"""How far right and up one goes in the drawing for a voxel along z."""

_THINNEST = 1.5
"""Pixels of an axis at least, else a plane or a small level could not be seen."""

_CLOSEST = 4.0
"""Pixels between the lines of a grid; closer ones are left out."""


def scale_of(shape: Shape) -> float:
    """Return the pixels per voxel that the drawing of all levels has.

    Args:
        shape: Voxels of the finest level along z, y, x.
    """
    z, y, x = shape
    return min(WIDTH / (x + z * _DEEP[0]), HEIGHT / (y + z * _DEEP[1]))


def draw_level(shape: Shape, chunks: Shape, shards: Shape | None, scale: float) -> Markup:
    """Draw a level as a box with the lines of its chunks, and stronger ones of its shards.

    Args:
        shape: Voxels along z, y, x.
        chunks: Chunk along z, y, x.
        shards: Shard along z, y, x; None without.
        scale: Pixels per voxel.
    """
    flat = shape[0] == 1
    z, y, x = (max(n * scale, _THINNEST) for n in shape)
    z = 0.0 if flat else z
    width, height = x + z * _DEEP[0] + 2, y + z * _DEEP[1] + 2

    def at(*zyx: float) -> Point:
        return 1 + zyx[2] + zyx[0] * _DEEP[0], height - 1 - y + zyx[1] - zyx[0] * _DEEP[1]

    front = [at(0, 0, 0), at(0, 0, x), at(0, y, x), at(0, y, 0)]
    top = [at(0, 0, 0), at(z, 0, 0), at(z, 0, x), at(0, 0, x)]
    side = [at(0, 0, x), at(z, 0, x), at(z, y, x), at(0, y, x)]
    faces = [("front", front), *([] if flat else [("top", top), ("side", side)])]

    def lines(unit: Shape) -> str:
        """Return the lines where one unit ends and the next begins, over all faces."""
        steps = [n * scale for n in unit]
        d, v, h = (
            [i * step for i in range(1, math.ceil(length / step - 1e-9))]
            if step >= _CLOSEST
            else []
            for step, length in zip(steps, (z, y, x), strict=True)
        )
        paths = [
            *([at(0, y, b), at(0, 0, b), at(z, 0, b)] for b in h),
            *([at(0, b, 0), at(0, b, x), at(z, b, x)] for b in v),
            *([at(b, 0, 0), at(b, 0, x), at(b, y, x)] for b in d),
        ]
        return " ".join(f"M{_points(path)}" for path in paths)

    grids = [("chunks", lines(chunks)), *([("shards", lines(shards))] if shards else [])]
    return tag(
        "svg",
        *(tag("polygon", class_=name, points=_points(points)) for name, points in faces),
        *(tag("path", class_=name, d=d) for name, d in grids if d),
        width=f"{width:.1f}",
        height=f"{height:.1f}",
        viewBox=f"0 0 {width:.1f} {height:.1f}",
        aria_hidden="true",
    )


def _points(points: list[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def draw_histogram(histogram: Histogram) -> Markup:
    """Draw the bars of a histogram, as high as the logarithm of the voxels, over its window.

    It takes the width that there is; so it holds no text, which would be squeezed.
    """
    most = math.log1p(max(histogram.counts))
    heights = [100 * math.log1p(n) / most if most else 0.0 for n in histogram.counts]
    bars = " ".join(f"V{100 - h:.1f} H{i + 1}" for i, h in enumerate(heights))
    bins = len(heights)
    start, end = (bins * share for share in window_of(histogram))
    return tag(
        "svg",
        tag("rect", class_="window", x=f"{start:.2f}", y=0, width=f"{end - start:.2f}", height=100),
        tag("path", class_="bars", d=f"M0,100 {bars} V100 Z"),
        tag("path", class_="ends", d=f"M{start:.2f},0 V100 M{end:.2f},0 V100"),
        viewBox=f"0 0 {bins} 100",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def window_of(histogram: Histogram) -> tuple[float, float]:
    """Return where the window starts and ends along a histogram, 0 to 1.

    >>> window_of(Histogram("a", "#ffffff", (25.0, 75.0), 0.0, 100.0, (1,)))
    (0.25, 0.75)
    """
    low, high = histogram.low / 2, histogram.high / 2  # the whole range of floats is no float
    start, end = ((value / 2 - low) / (high - low) for value in histogram.window)
    return start, end
