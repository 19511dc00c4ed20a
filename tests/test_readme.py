"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pyramid_core.cli import main
from pyramid_core.params import PyramidParams
from tests import parameters

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder that holds the image of the examples."""
    monkeypatch.chdir(tmp_path)
    assert main(["phantom", "scan.zarr", "--test-shape", "128,128,130"]) == 0


@pytest.mark.usefixtures("scan")
def test_the_commands_of_the_readme_run() -> None:
    """Each line that begins with pyramid ends with status 0, one after another."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("pyramid ")]
    assert [words[1] for words in commands] == ["plan", "build", "build", "verify"]
    # The dry run says what the next line mends: the shape does not divide.
    assert main(commands[0][1:]) == 2
    for words in commands[1:]:
        edges = ["--edges", "partial"] if "--target" in words else []
        assert main([*words[1:], *edges]) == 0, words


@pytest.mark.flow
@pytest.mark.usefixtures("scan", "prefect_harness")
@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_the_python_of_the_readme_runs(code: str) -> None:
    """Each block runs in a folder that holds scan.zarr, with a server that takes its events."""
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("name", re.findall(r"!\[.*?\]\((.*?)\)", README))
def test_the_pictures_of_the_readme_are_there(name: str) -> None:
    """Each is a PNG in the checkout."""
    assert (ROOT / name).read_bytes()[:4] == b"\x89PNG"


def test_the_options_that_the_readme_names_exist() -> None:
    """Nothing is promised that argparse does not know."""
    ours = "\n".join(line for line in README.splitlines() if not line.startswith("prefect "))
    named = set(re.findall(r"`--([a-z-]+)", ours)) | set(re.findall(r" --([a-z-]+) ", ours))
    known = {name.replace("_", "-") for name in PyramidParams.model_fields}
    assert named
    assert named <= known | {
        "help",
        "json",
        "long",
        "report",
    }  # the latter is pytest's, of tests/conftest.py


def test_the_table_of_parameters_is_what_the_parameters_say() -> None:
    """Names, defaults, choices and help, as ``python -m tests.parameters`` writes them."""
    inside = README.partition(parameters.BEGIN)[2].partition(parameters.END)[0]
    assert inside == parameters.table()
