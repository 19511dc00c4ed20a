"""One contestant builds one case once, in a process of its own; prints what it took as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.benchmarks.cases import case_of, make_volume
from tests.benchmarks.contestants import CONTESTANTS


def family() -> list[psutil.Process]:
    """Return this process and all that it has started."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def used() -> dict[str, float]:
    """Return what all of the family has used until now: CPU seconds, bytes read and written."""
    sums = {"cpu": 0.0, "read": 0.0, "written": 0.0}
    for process in family():
        spent, moved = process.cpu_times(), process.io_counters()
        sums["cpu"] += spent.user + spent.system
        sums["read"] += moved.read_chars
        sums["written"] += moved.write_chars
    return sums


def forget_peak() -> None:
    """Make the kernel forget what was the most memory until now (proc(5), clear_refs)."""
    for process in family():
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def touch_memory() -> None:
    """Let a virtual machine fetch memory from its host before the measurement, not during it."""
    np.ones(2**30, np.uint8)


def peak() -> int:
    """Return the most memory that one process of the family has held, in bytes."""

    def high(process: psutil.Process) -> int:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

    return max(map(high, family()))


def main() -> None:
    """Warm up on a small volume, so that imports and compilation are not measured; then measure."""
    name, case, place, spare = sys.argv[1], case_of(json.loads(sys.argv[2])), *sys.argv[3:5]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    small = replace(case, size=max(4 * case.chunk, 2 * case.shard), remote=False)
    with CONTESTANTS[name](case) as run:
        run(small, str(make_volume(small, Path(spare))))
        touch_memory()
        forget_peak()
        before, start = used(), time.perf_counter()
        ending = run(case, place) or 0.0
        wall, after = time.perf_counter() - start, used()
        found: dict[str, Any] = {key: after[key] - before[key] for key in after}
        print(json.dumps({**found, "wall": wall, "peak": peak(), "ending": ending}))


if __name__ == "__main__":
    main()
