"""What file systems and machines do to a build: mounts, permissions, limits, and what is told then."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyramid_core.cli import main

ROOT = Path(__file__).parent.parent

ASKED = ("--step", "2,2", "--chunks", "4,4", "--edges", "partial", "--workers", "1",
         "--memory-limit", "100kB", "--unit", "um")  # fmt: skip
"""What the builds of these tests ask for: four levels, many chunks, little memory."""

WITHOUT_POWERS = """
import ctypes, os, sys
prctl = ctypes.CDLL(None, use_errno=True).prctl
for power in range(64):
    prctl(24, power, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Runs Python as a user whom permissions hold up: root with none of its powers, or who we are."""


class Told:
    """Status and standard error of a command."""

    def __init__(self, status: int, text: str):
        self.status = status
        self.text = text
        self.message = "\n".join(x for x in text.splitlines() if x.startswith("pyramid:"))

    def says(self, status: int, *words: str) -> None:
        """Hold that the command ended so, with one message, at the end, that holds the words."""
        assert self.status == status, self.text
        assert "Traceback" not in self.text
        lines = self.text.splitlines()
        assert [line.startswith("pyramid:") for line in lines].count(True) == 1, self.text
        assert lines[-1].startswith("pyramid:"), self.text
        assert len(lines[-1]) < 1000 or "File name too long" in lines[-1], self.text
        for word in words:
            assert word in self.message, f"{word!r} is not in {self.message!r}"


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Told:
    """Run ``pyramid`` in this process."""
    capsys.readouterr()
    try:
        status = main([str(word) for word in words])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    return Told(status, capsys.readouterr().err)


def run_without_powers(*words: str | Path) -> Told:
    """Run ``pyramid`` in a process that may do no more than the permissions say."""
    probe = "print(open('/proc/self/status').read().split('CapEff:')[1].split()[0])"
    powers = subprocess.run(
        [sys.executable, "-c", WITHOUT_POWERS, "-c", probe],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if int(powers.stdout, 16) & 0b110:  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        pytest.skip(f"a process cannot be kept from overriding permissions: {powers.stdout}")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POWERS, "-m", "pyramid_core.cli", *map(str, words)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=180,
    )  # fmt: skip
    return Told(done.returncode, done.stderr)


class Mount:
    """A small file system of its own, in memory."""

    def __init__(self, place: Path):
        self.place = place

    def set(self, options: str) -> None:
        """Change its size, or whether it can be written."""
        _system("mount", "-o", f"remount,{options}", str(self.place))


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Mount]:
    """Mount a file system while the block runs; skip where this machine does not allow it."""
    place.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    try:
        _system("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place))
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {getattr(error, 'stderr', error)}")
    try:
        yield Mount(place)
    finally:
        while place.is_mount():  # a test that fails may leave another one over it
            _system("umount", "-l", str(place))


def _system(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
