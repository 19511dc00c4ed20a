"""Build, kill, resume, replace, damage, change the source, verify: in any order that hypothesis draws."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zarr
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pyramid_core import PyramidParams, open_image, plan_pyramid, verify_pyramid
from pyramid_core.build import Steps, build_level, run_plan
from pyramid_core.errors import TargetError
from pyramid_core.model import PyramidPlan
from pyramid_core.verify import gate
from pyramid_core.writer import commit
from tests.stories import attributes, chunk_files, noise, paths, tree, write_image


class KilledError(BaseException):
    """Ends a build wherever it is; nothing that a process would do at its end is relied upon."""


class Built(NamedTuple):
    """What a build was asked for, and of which state of the source."""

    method: str
    version: int


def steps_that_die(after: int, moment: str) -> Steps:
    """Return the steps of a build that is killed after some blocks, or at a moment."""
    left = [after]

    def progress(*_: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KilledError

    def dying(step: Any, name: str) -> Any:
        def call(*given: Any) -> Any:
            if moment == f"before {name}":
                raise KilledError
            found = step(*given)
            if moment == f"after {name}":
                raise KilledError
            return found

        return call

    return Steps(
        partial(build_level, progress=progress), dying(gate, "verify"), dying(commit, "publish")
    )


class Pyramid(RuleBasedStateMachine):
    """One target, and what must be there by all that was done to it."""

    in_place: bool

    @initialize(in_place=st.booleans())
    def start(self, in_place: bool) -> None:
        """Write an image whose levels have some blocks each."""
        self.root = Path(tempfile.mkdtemp())
        self.in_place = in_place
        self.source = write_image(
            self.root / "in.zarr", noise((32, 32)), (4, 4), dimension_names=["y", "x"]
        )
        self.target = self.source if in_place else self.root / "out.zarr"
        self.version = 0
        self.unfinished: Built | None = None
        self.published: Built | None = None
        self.base = tree(self.source / "0")
        self.references: dict[Built, dict[str, str]] = {}

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    def plan(self, built: Built, existing: Any) -> PyramidPlan:
        """Plan a build of many small blocks, all of which are verified."""
        params = PyramidParams(
            source=str(self.source), target=None if self.in_place else str(self.target),
            method=built.method, existing=existing, verify="full", memory_limit="2kB", workers=1,
        )  # fmt: skip
        return plan_pyramid(open_image(params.source).info, params)

    def reference(self, built: Built) -> dict[str, str]:
        """Return the tree of a build that nothing disturbed, of the source as it is now."""
        if built not in self.references:
            calm = self.root / "calm" / f"{built.method}-{built.version}"
            zarr.open_group(calm / "in.zarr", mode="w")
            shutil.copytree(self.source / "0", calm / "in.zarr" / "0")
            target = calm / ("in.zarr" if self.in_place else "out.zarr")
            params = PyramidParams(
                source=str(calm / "in.zarr"), target=None if self.in_place else str(target),
                method=built.method, verify="none", workers=2,
            )  # fmt: skip
            plan = plan_pyramid(open_image(params.source).info, params)
            run_plan(plan, Steps(build_level, gate, commit))
            self.references[built] = {k: v for k, v in tree(target).items() if self.is_ours(k)}
        return self.references[built]

    def is_ours(self, key: str) -> bool:
        """Return whether an object of the target is one that we write."""
        return not (self.in_place and key.startswith("0/"))

    def is_allowed(self, asked: Built, existing: str) -> bool:
        """Say what the contract says of building this over what is there."""
        there = self.unfinished or self.published
        if there is None or existing == "replace":
            return True
        return existing == "resume" and there == asked

    @rule(
        method=st.sampled_from(["mean", "mean", "max"]),
        existing=st.sampled_from(["resume", "resume", "replace", "fail"]),
    )
    def build(self, method: str, existing: str) -> None:
        """Build to the end."""
        self.run(method, existing, 0, "")

    @rule(
        method=st.sampled_from(["mean", "mean", "max"]),
        existing=st.sampled_from(["resume", "resume", "replace"]),
        after=st.integers(1, 30),
        moment=st.sampled_from(["", "", "before verify", "before publish", "after publish"]),
    )
    def build_and_be_killed(self, method: str, existing: str, after: int, moment: str) -> None:
        """Die after some blocks, or at a moment."""
        self.run(method, existing, 0 if moment else after, moment)

    def run(self, method: str, existing: str, after: int, moment: str) -> None:
        """Build to the end, or until the kill; refused exactly where the contract says so."""
        asked = Built(method, self.version)
        expected = self.reference(asked)
        before = tree(self.root)
        try:
            run_plan(self.plan(asked, existing), steps_that_die(after, moment))
        except KilledError:
            event(f"killed {moment or 'in a level'}")
            if moment != "after publish" or attributes(self.target).get("zarr-pyramid-flow"):
                assert self.is_allowed(asked, existing)
                self.unfinished, self.published = asked, None
                return
        except TargetError:
            event("refused")
            assert not self.is_allowed(asked, existing)
            assert tree(self.root) == before
            return
        assert self.is_allowed(asked, existing)
        self.unfinished, self.published = None, asked
        assert {k: v for k, v in tree(self.target).items() if self.is_ours(k)} == expected

    @precondition(lambda self: self.unfinished or self.published)
    @rule()
    def run_the_same_again(self) -> None:
        """What a person does first after any trouble."""
        there = self.unfinished or self.published
        assert there is not None
        self.run(there.method, "resume", 0, "")

    @precondition(lambda self: self.unfinished is not None)
    @rule(where=st.integers(0, 10_000), how=st.sampled_from(["gone", "empty", "temporary"]))
    def crash_of_the_machine(self, where: int, how: str) -> None:
        """What was written last is lost, has no bytes, or lies there half written beside its name."""
        written = [p for p in chunk_files(self.target) if not self.is_base(p)]
        if not written:
            return
        chunk = written[where % len(written)]
        if how == "gone":
            chunk.unlink()
        elif how == "empty":
            chunk.write_bytes(b"")
        else:
            chunk.with_name(chunk.name + "#1").write_bytes(chunk.read_bytes()[:5])

    def is_base(self, path: Path) -> bool:
        """Return whether a file belongs to what was given."""
        return self.in_place and path.is_relative_to(self.source / "0")

    @precondition(lambda self: self.unfinished or self.published)
    @rule(voxel=st.tuples(st.integers(0, 31), st.integers(0, 31)))
    def change_of_the_source(self, voxel: tuple[int, int]) -> None:
        """The owner of the source changes a voxel."""
        array: Any = zarr.open_group(self.source)["0"]
        array[voxel] = int(array[voxel]) + 1000
        self.version += 1
        self.base = tree(self.source / "0")

    @rule(mode=st.sampled_from(["sample", "full"]))
    def verify(self, mode: Any) -> None:
        """Full verification is right about what is there; neither changes anything."""
        if self.unfinished is None and self.published is None and not self.in_place:
            return
        before = tree(self.root)
        found = verify_pyramid(str(self.target), mode)
        assert tree(self.root) == before
        if self.unfinished is not None:
            assert not found.ok
        elif self.published is not None and mode == "full":
            stale = self.in_place and self.published.version != self.version
            assert found.ok or stale

    @invariant()
    def source_is_untouched(self) -> None:
        """No chunk and no metadata of the source is ever changed by us."""
        if hasattr(self, "source"):
            assert tree(self.source / "0") == self.base

    @invariant()
    def readers_see_what_is_published_or_nothing_of_it(self) -> None:
        """A document names the levels of the reference, or at most the base."""
        if not hasattr(self, "root"):
            return
        there = (self.target / "zarr.json").is_file()
        named = paths(self.target) if there and "ome" in attributes(self.target) else []
        if self.published is None:
            assert named in ([], ["0"])
        else:
            assert len(named) == 4
            found = {k: v for k, v in tree(self.target).items() if self.is_ours(k)}
            assert found == self.references[self.published]

    @invariant()
    def nothing_is_locked(self) -> None:
        """Whatever ended a build, the target is let go."""
        if hasattr(self, "root"):
            assert not list(self.root.glob(".*.lock"))


@pytest.mark.timeout(7200)
def test_in_whatever_order_the_image_is_right_or_plainly_unfinished(
    monkeypatch: pytest.MonkeyPatch, long_form: bool
) -> None:
    """Published implies verified and equal to the reference; the source stays as it was."""
    monkeypatch.setattr("pyramid_core.layout._WORTHWHILE", 1)  # many blocks in a small image
    run_state_machine_as_test(
        Pyramid,
        settings=settings(
            max_examples=500 if long_form else 15,
            stateful_step_count=10,
            suppress_health_check=[HealthCheck.too_slow],
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink takes many minutes
        ),
    )
