"""The command line as a person meets it: statuses, lines, and a build that is stopped and goes on."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zarr

from pyramid_core import cli
from pyramid_core.cli import main
from pyramid_core.options import given_params
from pyramid_core.params import PyramidParams
from pyramid_core.shell import painted
from pyramid_core.version import VERSION
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
    assert "Verified (sample): " in capsys.readouterr().out
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


def test_help_imports_nothing_heavy() -> None:
    """Who only asks for help does not wait for what is not used."""
    code = (
        "import sys; from pyramid_core.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('zarr', 'numba', 'dask', 'ome_zarr', 'prefect', 'numpy', 'obstore', "
        "'PIL', 'rich') if m in sys.modules])"
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


# How much is said, and how it looks.


def test_a_build_ends_with_what_to_do_next_in_three_lines(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """View, preview, and Python, whose line opens the coarsest level; on standard output, no line twice."""
    assert main(["build", "a.zarr", "--step", "2,2,2"]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[-4:] == [
        "",
        f"view:    pyramid view {image}",
        f"preview: pyramid preview {image}",
        f"Python:  zarr.open_array('{image}', path='3', mode='r')",
    ]
    everything = [line for line in [*lines, *told.err.splitlines()] if line]
    assert len(set(everything)) == len(everything)
    assert sum("bit for bit" in line or "verified" in line for line in everything) == 1
    assert sum("nothing tells the voxel size" in line for line in everything) == 1
    level = eval(lines[-1].removeprefix("Python:  "), {"zarr": zarr})
    assert level.shape == (5, 4, 3)


def test_quiet_prints_only_what_is_wrong(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing on either stream as long as all is well, and the finding where it is not."""
    for words in (
        ["plan", "a.zarr"],
        ["build", "a.zarr", "--edges", "partial"],
        ["verify", "a.zarr"],
    ):
        assert main([*words, "-q"]) == 0
        assert capsys.readouterr() == ("", "")
    (image / "1" / "c" / "0" / "0" / "0").unlink()
    assert main(["verify", "a.zarr", "-q"]) == 1
    assert "error: 1: voxels [" in capsys.readouterr().out


def test_verbose_prints_more(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a plan, how the work is cut; of a build, every line of the log with its time."""
    assert main(["plan", "a.zarr", "--step", "2,2,2", "-v"]) == 0
    table = capsys.readouterr().out.partition("\n\nlevel  blocks")[2].splitlines()[1:]
    assert [line.split()[0] for line in table] == ["1", "2", "3"]
    assert main(["build", "a.zarr", "--step", "2,2,2", "-v"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line) for line in lines)
    assert f" published {image} after " in lines[-1]


class Terminal(io.StringIO):
    """Stands for a stream that a person looks at."""

    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a pipe gets them, nor a terminal whose user asks for none, or that has none."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert painted("right", "green", Terminal()) == "\x1b[32mright\x1b[0m"
    assert painted("right", "green", io.StringIO()) == "right"
    monkeypatch.setenv("TERM", "dumb")
    assert painted("right", "green", Terminal()) == "right"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert painted("right", "green", Terminal()) == "right"


@pytest.mark.parametrize(
    ("words", "most"),
    [
        ([], 24),
        (["plan"], 40),
        (["build"], 40),
        (["verify"], 24),
        (["preview"], 24),
        (["phantom"], 24),
    ],
)
def test_help_fits_on_a_screen_and_ends_with_examples(
    words: list[str], most: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In 80 columns; 40 lines for the two commands that take every parameter."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([*words, "-h"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= most
    assert max(map(len, lines)) <= 82
    examples = lines[lines.index("examples:") + 1 :]
    assert examples
    assert all(line.startswith("  pyramid ") for line in examples)


def test_the_examples_of_the_help_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever they name exists for argparse and the model; each stops at the image that is not there."""
    parser = cli._parser()
    for command in ([], ["plan"], ["build"], ["verify"], ["preview"], ["phantom"]):
        with pytest.raises(SystemExit, match="0"):
            main([*command, "-h"])
        examples = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
        for line in examples:
            words = shlex.split(re.split(r" [|&]", line)[0], comments=True)[1:]
            given = parser.parse_args(words)
            if words[0] in ("plan", "build"):
                given_params(given)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """The name of the package and its version, in one line."""
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"zarr-pyramid-flow {VERSION}\n"


@pytest.mark.parametrize("lists", [["1,2,2"], ["1", "2", "2"], ["1, 2, 2"], ["[1, 2, 2]"]])
def test_lists_have_commas_or_spaces_and_the_image_may_stand_after_them(
    lists: list[str],
) -> None:
    """Argparse alone would take the image for a fourth number."""
    parser = cli._parser()
    for words in (["plan", "a.zarr", "--step", *lists], ["plan", "--step", *lists, "a.zarr"]):
        params = given_params(parser.parse_args([*words, "--memory-limit", "512MiB"]))
        assert (params.source, params.step, params.memory_bytes) == ("a.zarr", [1, 2, 2], 2**29)


@pytest.mark.parametrize(
    ("options", "say", "is_told"),
    [
        ([], "USUAL", False),
        ([], "QUIET", False),
        ([], "VERBOSE", True),
        (["-Wdefault"], "USUAL", True),
    ],
)
def test_what_libraries_warn_of_is_told_to_who_asks(
    options: list[str], say: str, is_told: bool
) -> None:
    """In any thread; -v asks, and so does Python's own -W."""
    code = (
        "import threading, warnings\n"
        f"from pyramid_core.shell import {say}, silent_libraries\n"
        f"with silent_libraries({say}):\n"
        "    thread = threading.Thread(target=warnings.warn, args=('beware',))\n"
        "    thread.start(); thread.join()\n"
    )
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ("beware" in done.stderr) == is_told
