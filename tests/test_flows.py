"""The flow: the same store as the core, retried where that helps, refused before a server starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

import pyramid_core.execute as execute
from flows.pyramid import build_pyramid as flow
from flows.pyramid import main
from pyramid_core import PyramidParams, build_pyramid
from pyramid_core.errors import BuildError, PlanError
from tests.stories import noise, tree, write_image

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module", autouse=True)
def prefect_server() -> Iterator[None]:
    """One hidden server for this module; without heartbeats, whose thread takes a second to end."""
    quiet = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with prefect_test_harness(server_startup_timeout=120), temporary_settings(quiet):
        yield


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of 6 x 4 x 2 chunks."""
    return write_image(tmp_path / "a.zarr", noise((48, 32, 16)), (8, 8, 8))


def test_the_flow_gives_the_bytes_of_the_core(image: Path, tmp_path: Path) -> None:
    """Two tellers, one story: every object of the two stores is equal."""
    asked: dict[str, Any] = {"source": str(image), "step": [2, 2, 2], "edges": "partial"}
    result = flow(**asked, target=str(tmp_path / "flow" / "a.zarr"))
    build_pyramid(PyramidParams(**asked, target=str(tmp_path / "core" / "a.zarr")))
    assert result.blocks_built > 0
    assert tree(tmp_path / "flow") == tree(tmp_path / "core")


def test_a_second_run_of_the_flow_builds_nothing(image: Path) -> None:
    """The store says that the image is there; no cache is asked."""
    asked: dict[str, Any] = {"source": str(image), "step": [2, 2, 2]}
    first = flow(**asked)
    before = tree(image)
    again = flow(**asked)
    assert (first.blocks_found, again.blocks_built) == (0, 0)
    assert again.blocks_found == first.blocks_built
    assert tree(image) == before


def test_a_passing_fault_is_retried_and_only_what_is_missing_is_done_again(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third block of a level fails once: each block is written once all the same."""
    written: list[tuple[str, tuple[int, ...]]] = []
    real = execute.build_block

    def build_block(job: Any, index: Any, present: Any) -> Any:
        if len(written) == 2 and "FAILED" not in os.environ:
            monkeypatch.setenv("FAILED", "once")
            raise ConnectionResetError("the store hung up")
        written.append((job.level.path, index))
        return real(job, index, present)

    monkeypatch.setattr(execute, "build_block", build_block)
    monkeypatch.setattr("pyramid_core.layout._WORTHWHILE", 1)
    result = flow(source=str(image), step=[2, 2, 2], workers=1)
    assert os.environ["FAILED"] == "once"
    assert len(written) == len(set(written)) > 3
    assert result.verification is not None
    assert result.verification.ok


def test_a_fault_that_stays_is_not_retried(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that cannot be decoded is tried once, and the flow fails with the core's message."""
    tried = []

    def build_block(job: Any, index: Any, present: Any) -> Any:  # noqa: ARG001 - its form
        tried.append(index)
        raise ValueError("corrupt chunk")

    monkeypatch.setattr(execute, "build_block", build_block)
    with pytest.raises(BuildError, match=r"level 1, voxels \[0:24, 0:16, 0:8\]: .*corrupt chunk"):
        flow(source=str(image), step=[2, 2, 2], workers=1)
    assert len(tried) == 1


def test_what_is_asked_wrongly_fails_the_flow_at_once(image: Path) -> None:
    """The state of the run says what the core says."""
    state: Any = flow(source=str(image), step=[5, 2, 2], return_state=True)
    assert state.is_failed()
    with pytest.raises(PlanError, match="along z, level 0 has 48"):
        state.result()


def test_the_form_of_the_flow_is_the_fields_of_the_parameters() -> None:
    """Names, order, defaults, help and choices of the form are those of PyramidParams."""
    schema = flow.parameters.model_dump()
    fields = PyramidParams.model_fields
    assert list(schema["properties"]) == list(fields)
    assert schema["required"] == ["source"]
    for name, field in fields.items():
        shown = schema["properties"][name]
        assert shown["description"] == field.description
        if not field.is_required():
            assert shown["default"] == field.default
    assert schema["properties"]["method"]["enum"] == [
        "mean", "median", "mode", "min", "max", "stride",
    ]  # fmt: skip
    assert schema["properties"]["step"]["items"] == {"minimum": 1, "type": "integer"}


def test_a_wrong_request_never_starts_a_server(image: Path) -> None:
    """The command line plans with the core first: status 2, one message, and Prefect is not asked."""
    # Without any API, entering the flow would be an error of another kind.
    barred = {"PREFECT_SERVER_EPHEMERAL_ENABLED": "false", "PREFECT_API_URL": ""}
    script = Path(main.__code__.co_filename)
    done = subprocess.run(
        [sys.executable, script, "--source", image, "--step", "5,2,2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **barred, "PYTHONPATH": str(script.parent.parent)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pyramid.py: level 1 cannot be exact: along z, level 0 has 48")
    assert len(done.stderr.splitlines()) == 3
