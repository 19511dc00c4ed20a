"""What the commands answer as JSON: the keys that docs/json.md promises, and nothing beside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyramid_core.cli import main
from pyramid_core.version import VERSION
from tests.images import write_base
from tests.stories import noise, tree

PAGE = (Path(__file__).parent.parent / "docs" / "json.md").read_text(encoding="utf-8")

Capture = pytest.CaptureFixture[str]


def promised(heading: str) -> list[str]:
    """Return the keys that the page lists under a heading, in their order."""
    (section,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S)
    items = re.findall(r"^- (.*?):", section, re.M | re.S)
    return [key for item in items for key in re.findall(r"`(\w+)`", item)]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image of two levels to come, with labels, in the current folder."""
    monkeypatch.chdir(tmp_path)
    ids = np.ones((16, 16, 16), "u1")
    return write_base(tmp_path / "a.zarr", noise((16, 16, 16)), labels={"cells": ids})


def answered(capsys: Capture, *words: str, status: int = 0) -> Any:
    """Run a command, and return what it answers."""
    assert main([*words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_the_answer_of_plan_has_the_keys_of_the_page(image: Path, capsys: Capture) -> None:
    """And says of the levels what is written out here; nothing is written."""
    before = tree(image)
    plan = answered(capsys, "plan", "a.zarr")
    assert list(plan) == promised("`pyramid plan --json`")
    assert list(plan["cost"]) == promised("Cost")
    for part in (plan, *plan["labels"]):
        assert [key for key in part if key in promised("An image")] == promised("An image")
        assert [list(level) for level in part["levels"]] == [promised("A level of a plan")] * 2
    assert set(plan["labels"][0]) == set(promised("An image"))
    assert plan["axes"][0] == {"name": "z", "type": "space", "unit": "micrometer"}
    assert plan["levels"][1] == {
        "path": "1", "shape": [8, 8, 8], "step": [2, 2, 2], "factor": [2, 2, 2],
        "scale": [2.0, 2.0, 2.0], "translation": [0.5, 0.5, 0.5], "chunks": [8, 8, 8],
        "shards": None, "objects": 1, "bytes": 1024, "blocks": 1, "written": True,
    }  # fmt: skip
    assert (plan["version"], plan["target"], plan["dtype"]) == (VERSION, str(image), "uint16")
    assert tree(image) == before


def test_the_answer_of_build_has_the_keys_of_the_page(image: Path, capsys: Capture) -> None:
    """What was done, the verification and the plan; once more, the image is there and none is made."""
    planned = answered(capsys, "plan", "a.zarr")
    built = answered(capsys, "build", "a.zarr")
    assert list(built) == promised("`pyramid build --json`")
    assert [list(level) for level in built["levels"]] == [promised("A level of a build")] * 2
    assert [(x["target"], x["path"], x["built"], x["bytes"]) for x in built["levels"]] == [
        (str(image), "1", 1, 1024), (f"{image}/labels/cells", "1", 1, 512),
    ]  # fmt: skip
    assert list(built["verification"]) == promised("`pyramid verify --json`")
    assert built["plan"] == planned
    assert (built["blocks_built"], built["blocks_found"]) == (2, 0)
    again = answered(capsys, "build", "a.zarr")
    assert (again["blocks_built"], again["blocks_found"]) == (0, 2)
    assert again["verification"] is None


def test_the_answer_of_verify_has_the_keys_of_the_page(image: Path, capsys: Capture) -> None:
    """Right, and wrong: the status is 1 then, and a finding says where."""
    assert main(["build", "a.zarr", "-q"]) == 0
    right = answered(capsys, "verify", "a.zarr")
    assert list(right) == promised("`pyramid verify --json`")
    assert (right["ok"], right["findings"], right["blocks"]) == (True, [], 2)
    (image / "1" / "c" / "0" / "0" / "0").unlink()
    wrong = answered(capsys, "verify", "a.zarr", status=1)
    assert [list(finding) for finding in wrong["findings"]] == [promised("A finding")]
    assert wrong["findings"][0]["severity"] == "error"
    assert wrong["findings"][0]["where"] == "1"
    assert not wrong["ok"]


@pytest.mark.usefixtures("image")
def test_what_fails_answers_nothing(capsys: Capture) -> None:
    """Standard output is empty, so that no half of an answer is taken for one."""
    for command in ("plan", "build", "verify"):
        assert main([command, "nothing.zarr", "--json"]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("pyramid: ")
