"""What the commands answer: in words, or as JSON whose keys stay (docs/json.md)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from pyramid_core.build import BuildResult
from pyramid_core.grid import times
from pyramid_core.model import PyramidPlan
from pyramid_core.opening import next_steps
from pyramid_core.params import human
from pyramid_core.stores import shown
from pyramid_core.verify import Verification
from pyramid_core.version import VERSION


def summary(result: BuildResult) -> str:
    """Return what a person wants to know at the end, and what to do next in three lines."""
    plan = result.plan
    count = len(plan.levels)
    lines = [
        f"{shown(plan.target)}: {count} level{'s' * (count > 1)}, "
        f"{result.blocks_built:,} blocks built, {result.blocks_found:,} found finished, "
        f"{result.seconds:.1f} s, {human(plan.cost.bytes_written)} before compression",
        result.verdict,
        *(f"note: {note}" for note in plan.notes),
        "",
        *next_steps(plan),
    ]
    return "\n".join(lines)


def work_of(plan: PyramidPlan) -> str:
    """Return how the work on each level is cut, for who wants to know more than the plan says."""
    rows = [["level", "blocks", "block", "tile", "memory", "threads", "reads of a chunk"]]
    for image in plan.images:
        for level in image.written:
            path = image.target.removeprefix(plan.target).strip("/")
            rows.append([
                f"{path}/{level.path}".strip("/"), f"{level.blocks.size:,}", times(level.block),
                times(level.tile), human(level.memory), str(level.tile_threads),
                f"{level.reads:.3g}",
            ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def plan_answer(plan: PyramidPlan) -> dict[str, Any]:
    """Return a plan as JSON: what would be built, and what it costs."""
    return {
        "version": VERSION,
        **_image_answer(plan),
        "labels": [_image_answer(labels) for labels in plan.labels],
        "cost": asdict(plan.cost),
        "memory_limit": plan.memory_limit,
        "workers": plan.workers,
        "notes": list(plan.notes),
    }


def _image_answer(plan: PyramidPlan) -> dict[str, Any]:
    codec = plan.codec
    return {
        "name": plan.source.name,
        "source": shown(plan.source.location),
        "target": shown(plan.target),
        "in_place": plan.in_place,
        "ngff_version": plan.ngff_version,
        "dtype": np.dtype(plan.dtype).name,
        "axes": [{"name": axis.name, "type": axis.type, "unit": axis.unit} for axis in plan.axes],
        "method": plan.method,
        "edges": plan.edges,
        "codec": f"{codec.name}-{codec.cname}" if codec.cname else codec.name,
        "levels": [
            {
                "path": level.path,
                "shape": list(level.shape),
                "step": list(level.step),
                "factor": list(level.factor),
                "scale": list(level.scale),
                "translation": list(level.translation),
                "chunks": list(level.chunks),
                "shards": list(level.shards) if level.shards else None,
                "objects": level.units.size,
                "bytes": plan.size(level),
                "blocks": level.blocks.size,
                "written": level in plan.written,
            }
            for level in plan.levels
        ],
    }


def build_answer(result: BuildResult) -> dict[str, Any]:
    """Return what a build did as JSON."""
    images = [image for image in result.plan.images for _ in image.written]
    return {
        "version": VERSION,
        "target": shown(result.plan.target),
        "seconds": result.seconds,
        "blocks_built": result.blocks_built,
        "blocks_found": result.blocks_found,
        "levels": [
            {
                "target": shown(image.target),
                "path": report.level.path,
                "built": report.built,
                "found": report.found,
                "empty": report.empty,
                "seconds": report.seconds,
                "bytes": report.size,
            }
            for image, report in zip(images, result.levels, strict=True)
        ],
        "verification": verify_answer(result.verification) if result.verification else None,
        "plan": plan_answer(result.plan),
    }


def verify_answer(verification: Verification) -> dict[str, Any]:
    """Return what was found of an image as JSON."""
    return {
        "version": VERSION,
        "location": shown(verification.location),
        "mode": verification.mode,
        "ok": verification.ok,
        "blocks": verification.blocks,
        "blocks_checked": verification.blocks_checked,
        "objects_decoded": verification.decoded,
        "levels": list(verification.levels),
        "findings": [
            {"severity": found.severity, "where": found.where, "message": found.message}
            for found in verification.findings
        ],
    }
