"""Every way in which a pyramid's metadata goes wrong is found; a right one is left in peace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyramid_core import verify_pyramid
from pyramid_core.audit import audit
from pyramid_core.labels import audit_labels
from pyramid_core.stores import open_storage
from tests.hostile import broken, changes
from tests.images import MADE, Pyramids, read_attributes
from tests.mutations import MUTATIONS, Mutation

CASES = [
    pytest.param(mutation, version, id=f"{mutation.name} ({version})")
    for mutation in MUTATIONS
    for version in mutation.versions
]


@pytest.mark.parametrize(("mutation", "version"), CASES)
def test_a_broken_image_is_found(
    pyramids: Pyramids, tmp_path: Path, mutation: Mutation, version: str
) -> None:
    """Each defect is a finding that says what is wrong, and never a traceback."""
    place = tmp_path / "image.zarr"
    shutil.copytree(pyramids.place(f"labelled-{version}"), place)
    mutation.break_it(place)
    found = verify_pyramid(str(place), mode="none")
    said = [str(f) for f in found.findings if f.severity == mutation.severity]
    assert any(mutation.says in line for line in said), found
    assert found.ok == (mutation.severity == "warning"), found


@pytest.mark.parametrize("name", MADE)
def test_a_right_image_is_left_in_peace(pyramids: Pyramids, name: str) -> None:
    """What we build shows no finding at all, not even a warning."""
    assert verify_pyramid(str(pyramids.place(name)), mode="none").findings == ()


def test_there_are_more_mutations_than_other_suites_have() -> None:
    """Every mutation has a name of its own, and there are at least the 45 of the comparison."""
    names = [mutation.name for mutation in MUTATIONS]
    assert len(names) == len(set(names)) >= 45


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["labelled-0.4", "labelled-0.5"]), changes)
def test_a_hostile_document_is_audited_without_a_traceback(
    pyramids: Pyramids, name: str, changes: Any
) -> None:
    """Anything may stand anywhere in a document: it ends in findings, or in none."""
    place = pyramids.place(name)
    attributes = broken(read_attributes(place), changes)
    findings, multiscales, levels = audit(open_storage(str(place)), attributes)
    assert all(finding.severity in ("error", "warning") for finding in findings)
    assert multiscales is not None or findings
    assert len(levels) in (0, *(len(m.datasets) for m in [multiscales] if m))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["0.4", "0.5"]), st.sampled_from(["labels", "labels/cells"]), changes)
def test_hostile_labels_are_audited_without_a_traceback(
    pyramids: Pyramids, tmp_path: Path, version: str, group: str, changes: Any
) -> None:
    """Anything may stand in the list of labels and in a label image."""
    image = pyramids.place(f"labelled-{version}")
    place = tmp_path / version
    if not place.exists():
        shutil.copytree(image, place)
    node = ".zattrs" if version == "0.4" else "zarr.json"
    before = (place / group / node).read_text()
    right = json.loads(before)
    try:
        (place / group / node).write_text(json.dumps(broken(right, changes)))
        storage = open_storage(str(place))
        _, multiscales, levels = audit(storage, read_attributes(place))
        assert multiscales is not None
        findings, _ = audit_labels(storage, multiscales, levels)
        assert all(finding.where.startswith("labels") for finding in findings)
    finally:
        (place / group / node).write_text(before)
