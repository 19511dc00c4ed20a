"""Programs from the npm registry, for the tests marked ``install``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def install(folder: Path, package: str) -> None:
    """Install a package into a folder; skip the test where there is no npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), package],
        check=True, capture_output=True,
    )  # fmt: skip
