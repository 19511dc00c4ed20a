"""Does one thing in a process of its own and says the most memory that it held; see test_memory.py."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak(process: object = "self") -> int:
    """Return the peak of a process in bytes; not getrusage: a child inherits that of its parent."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Children(threading.Thread):
    """Looks again and again at the processes that this one has started."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, int] = {}
        self.end = threading.Event()

    def run(self) -> None:
        while not self.end.wait(0.1):
            for place in Path("/proc").glob("[0-9]*"):
                try:
                    parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
                    if int(parent) == os.getpid():
                        self.peaks[place.name] = peak(place.name)
                except (OSError, StopIteration):
                    continue  # it has ended


def main(what: str, asked: dict[str, Any]) -> None:
    from pyramid_core import PyramidParams, build_pyramid, verify_pyramid, write_phantom
    from pyramid_core.preview import render_preview

    baseline = peak()
    children = Children()
    if asked.get("dask_address"):
        children.start()
    do: dict[str, Callable[[], object]] = {
        "flow": lambda: _flow(asked),
        "build": lambda: build_pyramid(PyramidParams(**asked)),
        "verify": lambda: verify_pyramid(**asked),
        "preview": lambda: render_preview(**asked),
        "phantom": lambda: write_phantom(**{**asked, "shape": tuple(asked["shape"])}),
    }
    do[what]()
    children.end.set()
    print(json.dumps({"baseline": baseline, "peaks": [peak(), *children.peaks.values()]}))


def _flow(asked: dict[str, Any]) -> None:
    """Run the script, as the README begins; its answer goes where its log goes."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
    sys.argv = ["pyramid.py", *words]
    with contextlib.redirect_stdout(sys.stderr):
        from flows.pyramid import main

        assert main() == 0


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
