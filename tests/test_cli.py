"""The command line as a person meets it: statuses, lines, and a build that is stopped and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyramid_core.cli import main
from pyramid_core.params import PyramidParams
from tests.stories import noise, tree, write_image

PYRAMID = [sys.executable, "-m", "pyramid_core.cli"]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image of 5 x 4 x 3 chunks in the current folder."""
    monkeypatch.chdir(tmp_path)
    return write_image(tmp_path / "a.zarr", noise((40, 32, 24)), (8, 8, 8))


def test_plan_prints_the_levels_and_writes_nothing(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run: the table of levels, what is read and written, and the memory."""
    before = tree(image)
    assert main(["plan", "a.zarr", "--step", "2,2,2", "--unit", "um"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a: <u2, 4 levels by mean, OME-Zarr 0.5, zstd, in place"
    table = [line.split() for line in lines[2:7]]
    assert [row[:4] for row in table[1:]] == [
        ["0", "40x32x24", "1x1x1", "1x1x1"],
        ["1", "20x16x12", "2x2x2", "2x2x2"],
        ["2", "10x8x6", "2x2x2", "4x4x4"],
        ["3", "5x4x3", "2x2x2", "8x8x8"],
    ]
    assert any(line.startswith("memory ") and "limit 2 GB" in line for line in lines)
    assert tree(image) == before


def test_build_then_verify_then_damage_then_verify(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 0 for what is right, 1 for what is wrong, with a line that says where."""
    assert main(["build", "a.zarr", "--step", "2", "2", "2", "--unit", "um"]) == 0
    assert "verified: " in capsys.readouterr().out
    assert main(["verify", "a.zarr", "--verify", "full"]) == 0
    assert " is right (full: 3 of 3 blocks" in capsys.readouterr().out
    (image / "1" / "c" / "0" / "0" / "0").unlink()
    assert main(["verify", "a.zarr"]) == 1
    out = capsys.readouterr().out
    assert "is WRONG" in out
    assert "error: 1: voxels [" in out


def test_phantom_then_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A test image in one command, its pyramid in the next; a second phantom is refused."""
    place = str(tmp_path / "p.zarr")
    asked = ["phantom", place, "--test-image", "ramp", "--test-shape", "128,64,64"]
    assert main(asked) == 0
    assert "ramp, 128x64x64" in capsys.readouterr().out
    assert main(["build", place]) == 0
    assert main(asked) == 2


def test_every_parameter_is_an_option_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The options are generated: each field is there, with its own text."""
    with pytest.raises(SystemExit, match="0"):
        main(["build", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in PyramidParams.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown
        assert " ".join((field.description or "?").split()[:6]) in shown


def test_help_imports_neither_zarr_nor_numba() -> None:
    """Who only asks for help does not wait for what is not used."""
    code = (
        "import sys; from pyramid_core.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('zarr', 'numba', 'dask', 'ome_zarr', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("number", "status", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")],
)
def test_a_signal_ends_the_build_with_one_line_and_the_same_command_goes_on(
    tmp_path: Path, number: signal.Signals, status: int, name: str
) -> None:
    """Stopped in the middle: status 130 or 143, not published; again: finds what is finished."""
    source = write_image(tmp_path / "a.zarr", noise((48, 64, 96), "f8"), (8, 8, 8))
    command = [*PYRAMID, "build", str(source), "--target", str(tmp_path / "b.zarr"),
               "--step", "2,2,2", "--workers", "1", "--method", "mode"]  # fmt: skip
    quiet = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # mode on noise of floats is slow enough to be caught at work.
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=quiet) as process:
        while not (tmp_path / "b.zarr" / "0" / "c").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert err.splitlines()[-1] == f"pyramid: stopped by {name}; run the same again to go on"
    assert "multiscales" not in (tmp_path / "b.zarr" / "zarr.json").read_text()
    subprocess.run(command, check=True, env=quiet, stderr=subprocess.PIPE)
    again = subprocess.run(command, check=True, env=quiet, capture_output=True, text=True)
    assert " 0 blocks built" in again.stdout
