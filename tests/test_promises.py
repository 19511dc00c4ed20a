"""A promise that only the operating system can confirm: which files are opened and renamed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.stories import chunk_files, noise, write_image

ROOT = Path(__file__).parent.parent

# --- files ------------------------------------------------------------------------------------

LEVELS = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
from pyramid_core import PyramidParams, open_image, plan_pyramid
from pyramid_core.build import build_level
from pyramid_core.owner import Owner
from pyramid_core.writer import prepare

params = PyramidParams(**json.loads(sys.argv[1]))
plan = plan_pyramid(open_image(params.source).info, params)
prepare(plan)
with ThreadPoolExecutor(2) as threads:
    for level in plan.written:
        os.access(f"/marker/{level.path}", os.F_OK)
        build_level(plan, level, threads, Owner())
"""


def traced(tmp_path: Path, asked: dict[str, Any]) -> dict[str, list[str]]:
    """Build each level under strace; return what was done to files, level by level."""
    log = tmp_path / "strace.txt"
    calls = "trace=open,openat,openat2,creat,rename,renameat,renameat2,link,linkat,truncate,access,faccessat,faccessat2"
    argv = ["strace", "-f", "-qq", "-s", "500", "-e", calls, "-o", str(log)]
    argv += [sys.executable, "-c", LEVELS, json.dumps(asked)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"strace may not trace here: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr
    levels: dict[str, list[str]] = {}
    current = None
    for line in log.read_text().splitlines():
        if marker := re.search(r'"/marker/([^"]+)"', line):
            current = levels.setdefault(marker[1], [])
        elif current is not None and "ENOENT" not in line and "resumed>" not in line:
            current.append(line)
    return levels


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("shards", [[], [32, 32, 32]])
def test_files_are_read_once_and_written_by_a_rename(
    tmp_path: Path, in_place: bool, shards: list[int]
) -> None:
    """No chunk is read twice, no final file is opened for writing, and none of the target is read while it is written."""
    source = write_image(tmp_path / "in.zarr", noise((60, 64, 64)), (16, 16, 16))
    built = source if in_place else tmp_path / "out.zarr"
    asked = {
        "source": str(source),
        "target": None if in_place else str(built),
        "edges": "partial",
        "step": [2, 2, 2],
        "shards": shards,
    }
    levels = traced(tmp_path, asked)
    finer = source / "0"
    assert list(levels) == (["1", "2"] if in_place else ["0", "1", "2"])
    for path, lines in levels.items():
        target = built / path
        if finer == source / "0" or not shards:  # of a shard, the parts are opened one by one
            once = Counter({str(p): 1 for p in chunk_files(finer)})
            # We open without waiting, to read (plain.py) or to look at the header (swollen.py);
            # after the latter zarrs opens to read.
            ours = [line for line in lines if "O_NONBLOCK" in line]
            zarrs = [line for line in lines if "O_NONBLOCK" not in line]
            assert Counter(chunks_in(ours, finer, "open")) == once
            assert Counter(chunks_in(zarrs, finer, "open")) <= once
        assert [line for line in opens(lines, finer) if writes(line)] == []
        assert chunks_in(lines, target, "open") == []
        renamed = Counter(chunks_in(lines, target, "rename") + chunks_in(lines, target, "link"))
        assert renamed == Counter({str(p): 1 for p in chunk_files(target)})
        finer = target


def opens(lines: list[str], array: Path) -> list[str]:
    return [line for line in lines if "open" in line.split("(")[0] and f'"{array}/' in line]


def writes(line: str) -> bool:
    return any(flag in line for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"))


def chunks_in(lines: list[str], array: Path, call: str) -> list[str]:
    """Return the stored objects of an array that calls of one kind name, the last of each call."""
    found = []
    for line in lines:
        if call not in line.split("(")[0]:
            continue
        if "O_DIRECTORY" in line:  # a listing
            continue
        names = re.findall(rf'"({re.escape(str(array))}/c(?:/\d+)+)"', line)
        found += names[-1:]
    return found
