"""Meets every lie with every entry of the package, in one process of bounded memory.

Run by test_hostile.py: it prints a line of JSON for each entry and lie.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

ADDRESSES = 8 * 2**30
"""Bytes of address space, of which most is never touched."""

SECONDS = 120
"""Nothing here is large, so what takes longer hangs."""


def peak() -> int:
    """Return the most memory that was held since the last ``forget``, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget() -> None:
    """Begin to measure the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def hang(*_: object) -> None:
    """Say where it hangs, and end: what hangs may not hear of an exception."""
    where = "".join(traceback.format_stack()[-8:])
    print(json.dumps({**AT, "became": "hangs", "said": where, "printed": "", "held": 0}),
          file=sys.__stdout__, flush=True)  # fmt: skip
    os._exit(3)


AT: dict[str, Any] = {}
"""The lie and the entry that are met now."""


def entries(place: Path, apart: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what a user may do with an image."""
    from pyramid_core import (
        Downsampler,
        PyramidParams,
        build_pyramid,
        open_image,
        plan_pyramid,
        verify_pyramid,
    )
    from pyramid_core.cli import main
    from pyramid_core.inbox import find_images
    from pyramid_core.preview import render_preview

    def asked(**more: Any) -> PyramidParams:
        return PyramidParams(**{"source": str(place), "edges": "partial", "workers": 2,
                                "step": [2, 2], "chunks": [16, 16], "memory_limit": "200MB", **more})  # fmt: skip

    yield "open", lambda: open_image(str(place))
    yield (
        "plan",
        lambda: str(
            plan_pyramid(open_image(str(place)).info, asked(target=str(apart / "plan.zarr")))
        ),
    )
    yield "verify", lambda: str(verify_pyramid(str(place)))
    yield "preview", lambda: render_preview(str(place), width=400)
    yield "inbox", lambda: find_images(str(place.parent))
    small = _is_small(place)
    if small:
        yield "build", lambda: build_pyramid(asked(target=str(apart / "built.zarr")))
        yield "verify what was built", lambda: verify_pyramid(str(apart / "built.zarr"))
        yield "build in place", lambda: build_pyramid(asked())
        yield "replace in place", lambda: build_pyramid(asked(existing="replace"))
        yield (
            "replace it",
            lambda: build_pyramid(
                asked(
                    source=str(place.parent / "source.zarr"), target=str(place), existing="replace"
                )
            ),
        )
        yield (
            "sampler",
            lambda: Downsampler(str(place.parent), (2, 2), (40, 48), (16, 16)).downsample(
                3, place.name
            ),
        )
    yield "pyramid verify", lambda: main(["verify", str(place)])
    yield "pyramid plan", lambda: main(["plan", str(place), "--edges", "partial"])


def _is_small(place: Path) -> bool:
    """Return whether an image can be walked through: what is too large is planned only."""
    from pyramid_core import open_image

    try:
        info = open_image(str(place)).info
    except Exception:
        return True
    return all(n < 10**5 for n in info.shape)


def meet(run: Callable[[], object]) -> dict[str, Any]:
    """Run one entry; return what became of it."""
    from pyramid_core.errors import PyramidError

    forget()
    before = peak()
    out = StringIO()
    became, said = "done", ""
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(out), redirect_stderr(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = str(run())[:2000]
    except PyramidError as error:
        became, said = "refused", str(error)
    except BaseException as error:
        became = "traceback"
        said = f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"
    finally:
        signal.alarm(0)
    return {"became": became, "said": said, "printed": out.getvalue(), "held": peak() - before}


def main(folder: Path, names: list[str]) -> None:
    from tests.hostile_images import LIES, image, surroundings

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    signal.signal(signal.SIGALRM, hang)
    for number, name in enumerate(names):
        around = folder / str(number)
        place = around / "inbox/image.zarr"
        place.parent.mkdir(parents=True)
        surroundings(place.parent)
        image(place.parent / "source.zarr")
        LIES[name](place)
        apart = around / "apart"
        apart.mkdir()
        for entry, run in entries(place, apart):
            AT.update(lie=name, entry=entry)
            print(json.dumps({**AT, **meet(run)}), flush=True)
        shutil.rmtree(apart)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
