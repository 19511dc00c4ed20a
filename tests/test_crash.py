"""The crash campaign: killed anywhere, a build ends with the bytes of one that never was.

With ``--long`` some 500 builds are killed. A story that fails names its seed, which replays it
alone: ``CRASH_SEED="sharded 17" python -m pytest tests/test_crash.py``.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash import Driver, Run
from tests.images import write_base
from tests.places import Files, Marks, Objects, Place, named_levels
from tests.service import until
from tests.stories import noise, read, tree, write_image

SHAPE = (28, 40, 40)
SMALL = (16, 24, 32)
"""For an object store, which takes its time."""

ASKED: dict[str, Any] = {
    "edges": "partial", "memory_limit": "60kB", "workers": 2, "verify": "sample",
}  # fmt: skip
"""Many small blocks, so that a kill leaves some of them."""

KINDS: dict[str, dict[str, Any]] = {
    "in place": {},
    "in place with labels": {},
    "elsewhere": {},
    "elsewhere 0.4": {"ngff_version": "0.4", "compression": "lz4"},
    "sharded": {"shards": [16, 16, 16]},
    "s3": {},
}
"""What is asked of each kind."""

OWNER = {"beat": 0.1, "watch": 0.1}
"""An owner object is given up soon, since nobody else is there."""

CHOSEN = {
    "while levels are created": r"creating \| before \| put (.*/)?1/(zarr.json|.zattrs)",
    "after a level was created": r"creating \| after \| put (.*/)?1/(zarr.json|.zarray)",
    "after the first chunk": r"level . \| after \| block .*",
    "between levels": r"level 1 \| after \| level 1",
    "during verify": r"verify \| after \| check .*",
    "just before the document": r"document \| before \| put (zarr.json|.zattrs)",
    "just after the document": r"document \| after \| put (zarr.json|.zattrs)",
    "before the target is let go": r".* \| before \| (unlink .*.lock|delete)",
}
"""Steps at which a kill might do harm, in the order in which a build comes to them."""


class Scene:
    """One kind of build: its source, and what a build of it ends with that is left alone."""

    def __init__(self, kind: str, driver: Driver, place: Place, folder: Path) -> None:
        self.kind, self.driver, self.place = kind, driver, place
        self.in_place = kind.startswith("in place")
        self.name = "in.zarr" if self.in_place else "out.zarr"
        self.pristine = folder / "pristine" / "in.zarr"
        if kind == "in place with labels":
            labels = {"cells": noise(SMALL, "u1", seed=1)}
            write_base(self.pristine, noise(SMALL), version="0.4", labels=labels)
        else:
            write_image(self.pristine, noise(SMALL if kind == "s3" else SHAPE), (8, 8, 8))
        self.source = place.sub("source")
        self.source.fill(self.pristine)
        self.calm = self.stage("calm")
        start = time.monotonic()
        self.run = driver.run(**self.order(self.calm))
        self.seconds = time.monotonic() - start
        self.bytes = self.calm.contents()
        self.units = dict(self._units())

    def stage(self, name: str) -> Place:
        """Return a place of its own, with a source of its own where that is changed."""
        place = self.place.sub(name)
        if self.in_place:
            place.fill(self.pristine)
        return place

    def order(self, place: Place, **asked: Any) -> dict[str, Any]:
        """Return what the driver is told of a build."""
        where = {"source": f"{place.root if self.in_place else self.source.root}/in.zarr"}
        if not self.in_place:
            where["target"] = f"{place.root}/{self.name}"
        return {**OWNER, "asked": {**ASKED, **KINDS[self.kind], **asked, **where}}

    def _units(self) -> Iterator[tuple[tuple[str, ...], frozenset[str]]]:
        """Yield the keys that each block writes, by a count of our own."""
        for level in self.run.result["levels"]:
            path = f"{self.name}{level['target'].partition(self.name)[2]}/{level['path']}"
            prefix = f"{path}/c" if f"{path}/zarr.json" in self.bytes else path
            sizes = list(zip(level["shape"], level["unit"], level["block"], strict=True))
            blocks: dict[tuple[str, ...], set[str]] = {}
            for cell in itertools.product(*(range(-(-n // unit)) for n, unit, _ in sizes)):
                block = (i * unit // b for i, (_, unit, b) in zip(cell, sizes, strict=True))
                key = "/".join([prefix, *map(str, cell)])
                blocks.setdefault((path, *map(str, block)), set()).add(key)
            yield from ((block, frozenset(keys)) for block, keys in blocks.items())

    def finished(self, marks: Marks) -> set[str]:
        """Return the keys of the blocks of which nothing is missing."""
        whole = [keys for keys in self.units.values() if keys <= marks.keys()]
        return {key for keys in whole for key in keys}

    def groups(self) -> list[str]:
        """Return the image and its label images."""
        labels = [f"{self.name}/labels/cells"] if self.kind.endswith("labels") else []
        return [self.name, *labels]

    def is_chunk(self, key: str) -> bool:
        return key.rpartition("/")[2].isdigit()

    def given(self, everything: dict[str, Any]) -> dict[str, Any]:
        """Return what was given: the chunks of the bases in place."""
        bases = tuple(f"{group}/0/" for group in self.groups()) if self.in_place else ()
        return {k: v for k, v in everything.items() if k.startswith(bases) and self.is_chunk(k)}


def blocks_of(scene: Scene, keys: set[str]) -> int:
    return sum(bool(found & keys) for found in scene.units.values())


def check_unfinished(scene: Scene, place: Place) -> None:
    """A document names only levels that are whole; in place there may be one of level 0 alone."""
    contents = place.contents()
    for group in scene.groups():
        for path in named_levels(place, group):
            below = f"{group}/{path}/"
            expected = {k: v for k, v in scene.bytes.items() if k.startswith(below)}
            found = {k: v for k, v in contents.items() if k in expected}
            for name in () if path != "0" or not scene.in_place else ("zarr.json",):
                # Given without dimension_names, which the commit completes.
                expected.pop(below + name, None)
                found.pop(below + name, None)
            assert found == expected, f"{below} is named but not whole"


class Story:
    """One target: killed some times, then left alone."""

    def __init__(self, scene: Scene, seed: str) -> None:
        self.scene, self.seed = scene, seed
        self.dice = random.Random(seed)
        self.place = scene.stage(f"story {seed}".replace(" ", "-"))
        self.source = scene.source.marks()
        self.bases = scene.given(self.place.marks())
        self.falls: Counter[str] = Counter()
        self.marks: Marks = self.place.marks()

    def killed_at(self, name: str, pattern: str, nth: int = 1, **asked: Any) -> None:
        """Kill at a step, which must be reached."""
        order = self.scene.order(self.place, **asked)
        run = self.scene.driver.start(**order, die=pattern, nth=nth, linger=0.05)
        assert run.wait() == -9, f"{name} was never reached: {run.said}\n{run.steps}"
        self._look(run, name)

    def killed_somewhere(self, **asked: Any) -> None:
        """Kill at a random step, at a random time, or when a random number of objects is there."""
        scene, order = self.scene, self.scene.order(self.place, **asked)
        how = self.dice.choice(("step", "time", "objects"))
        share = self.dice.random()
        if how == "step":
            nth = 1 + int(share * len(scene.run.steps))
            run = scene.driver.start(**order, die=".*", nth=nth)
            run.wait()
        else:
            start = time.monotonic()
            run = scene.driver.start(**order)
            count = len(scene.units) * share
            while run.status() is None:
                if how == "time" and time.monotonic() - start > share * scene.seconds:
                    break
                if how == "objects" and blocks_of(scene, self.place.keys()) > count:
                    break
            run.kill()
        assert run.wait() in (0, -9), run.said
        self._look(run, "" if run.wait() == -9 else "it had ended")

    def _look(self, run: Run, name: str) -> None:
        """Account for what a run did until it was killed."""
        where = name or (run.steps[-1].split(" | ")[0] if run.steps else "before its first step")
        self.falls[where] += 1
        self._account()
        check_unfinished(self.scene, self.place)

    def _account(self) -> int:
        """Hold what is there against what was there before; return the blocks found finished."""
        before, self.marks = self.marks, self.place.marks()
        finished = self.scene.finished(before)
        again = {key for key in finished if self.marks.get(key) != before[key]}
        assert again == set(), "what was finished was written again"
        assert self.scene.given(self.marks) == self.bases, "what was given was written"
        begun = blocks_of(self.scene, set(self.marks) - self.scene.finished(self.marks))
        assert begun <= ASKED["workers"], "more blocks were begun than there are workers"
        return blocks_of(self.scene, finished)

    def ends(self, **asked: Any) -> None:
        """Run once more, to the end."""
        scene = self.scene
        result = scene.driver.run(**scene.order(self.place, **asked)).result
        found = self._account()
        assert (result["found"], result["built"]) == (found, len(scene.units) - found)
        assert self.place.contents() == scene.bytes
        assert scene.source.marks() == self.source, "the source was touched"
        self.place.clear()


def told(scene: Scene, tell: Callable[[Story], None], seed: str) -> Counter[str]:
    """Tell a story, and name its seed where it fails."""
    story = Story(scene, seed)
    try:
        tell(story)
        story.ends()
    except BaseException:
        print(f'\nreplay by CRASH_SEED="{seed}"; killed so far: {dict(story.falls)}')
        raise
    return story.falls


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Place]:
    """Where the builds of a kind are; the bucket keeps all versions."""

    def place(kind: str) -> Place:
        if kind != "s3":
            return Files(tmp_path / "stage")
        url: str = request.getfixturevalue("bucket")
        objects = Objects(os.environ["AWS_ENDPOINT_URL"], url.removeprefix("s3://"))
        objects.keep_versions()
        return objects

    return place


@pytest.mark.s3
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_anywhere_it_ends_with_the_same_bytes(
    kind: str,
    driver: Driver,
    stage: Callable[[str], Place],
    tmp_path: Path,
    long_form: bool,
    record_property: Callable[[str, object], None],
) -> None:
    """After kill -9 at any moment the same request does what is missing, writes nothing of what was finished, and leaves nothing else."""
    scene = Scene(kind, driver, stage(kind), tmp_path)
    assert scene.run.result["verified"] is True
    assert (scene.run.result["found"], scene.run.result["built"]) == (0, len(scene.units))
    assert set(scene.bytes) >= {key for keys in scene.units.values() for key in keys}
    assert {key.partition("/")[0] for key in scene.bytes} == {scene.name}
    falls: Counter[str] = Counter()

    def everywhere(story: Story) -> None:
        for name, pattern in CHOSEN.items():
            story.killed_at(name, pattern)

    def somewhere(story: Story) -> None:
        for _ in range(story.dice.choice((1, 1, 2, 3))):
            story.killed_somewhere()

    replayed = os.environ.get("CRASH_SEED", "")
    if not replayed:
        falls += told(scene, everywhere, f"{kind} everywhere")
        assert set(falls) == set(CHOSEN)
    seeds = [replayed] if replayed else [f"{kind} {n}" for n in range(50 if long_form else 1)]
    for seed in seeds:
        if seed.startswith(f"{kind} "):
            falls += told(scene, somewhere, seed)
    report = ", ".join(f"{where}: {count}" for where, count in sorted(falls.items()))
    seeds_told = f"seeds {seeds[0]!r} to {seeds[-1]!r}"
    record_property("campaign", f"{kind}: {falls.total()} kills; {report}; {seeds_told}")


# --- replaced ---------------------------------------------------------------------------------

REPLACED = {
    "before the old image is withdrawn": r"creating \| before \| put (zarr.json|.zattrs)",
    "when it is withdrawn": r"creating \| after \| put (zarr.json|.zattrs)",
    "before a level is deleted": r"clearing \| before \| clear .*",
    "in the middle of a level": r"clearing \| after \| unlink .*",
    "after a level was deleted": r"clearing \| after \| clear .*",
    "when all are deleted": r"creating \| before \| put (zarr.json|.zattrs)",
    "after a level was created": CHOSEN["after a level was created"],
    "after the first chunk": CHOSEN["after the first chunk"],
    "between levels": CHOSEN["between levels"],
    "during verify": CHOSEN["during verify"],
    "just before the document": CHOSEN["just before the document"],
    "just after the document": CHOSEN["just after the document"],
}
"""Steps of a replacement at which a kill might leave a mixture."""


def seen(image: Path) -> dict[str, str]:
    """Return what a reader of others sees: the voxels of each level that the document names."""
    levels = named_levels(Files(image.parent), image.name)
    return {path: hashlib.sha256(read(image / path).tobytes()).hexdigest() for path in levels}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["in place", "elsewhere", "elsewhere 0.4"])
def test_a_replacement_is_never_a_mixture(
    kind: str, driver: Driver, stage: Callable[[str], Place], tmp_path: Path, long_form: bool
) -> None:
    """Wherever the kill falls, a reader sees the old image, or none (in place its level 0 alone), or the new one; and the next run ends with it."""
    scene = Scene(kind, driver, stage(kind), tmp_path)
    old = scene.stage("old")
    # Of another number of levels, so that one of them must go and none comes in its place.
    driver.run(**scene.order(old, method="max", max_levels=3))
    assert isinstance(old, Files)
    assert isinstance(scene.calm, Files)
    before, after = seen(old.folder / scene.name), seen(scene.calm.folder / scene.name)
    assert len(before) == 3
    assert len(after) == 4
    assert before["0"] == after["0"]
    assert before["1"] != after["1"]
    base = {"0": after["0"]} if scene.in_place else {}
    views: Counter[str] = Counter()

    def look(place: Path, run: Run, name: str) -> None:
        """Say which image a reader sees."""
        found = seen(place / scene.name)
        kinds = {"old": before, "new": after, "base": base}
        views[next((word for word, view in kinds.items() if found == view), "MIXTURE")] += 1
        assert views["MIXTURE"] == 0, f"{name}: a reader sees {found} after {run.steps}"

    def killed(place: Path, name: str, pattern: str, nth: int) -> None:
        order = scene.order(Files(place), existing="replace")
        run = driver.start(**order, die=pattern, nth=nth, linger=0.05)
        assert run.wait() == -9, f"{name} was never reached: {run.said} {run.steps}"
        look(place, run, name)

    def ended(place: Path) -> None:
        driver.run(**scene.order(Files(place), existing="replace"))
        assert Files(place).contents() == scene.bytes
        shutil.rmtree(place)

    in_a_row = shutil.copytree(old.folder, tmp_path / "stage" / "in a row")
    for name, pattern in REPLACED.items():
        # The first thing put withdraws the old image, the second says that it is gone.
        killed(in_a_row, name, pattern, 2 if name == "when all are deleted" else 1)
    ended(in_a_row)
    assert {word for word, count in views.items() if count} == {"old", "base", "new"}
    dice = random.Random(kind)
    for number in range(40 if long_form else 1):
        place = shutil.copytree(old.folder, tmp_path / "stage" / f"step {number}")
        for _ in range(dice.choice((1, 2))):
            nth = dice.randrange(4, len(scene.run.steps) - 2)
            killed(place, f"step {nth}", ".*", nth)
        ended(place)


# --- taken over -------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["before its name is written", "while it builds"])
def test_of_many_that_come_after_a_kill_one_builds(
    held: str, driver: Driver, tmp_path: Path
) -> None:
    """All start at once on the target of one that was killed: one builds, the others exit 2, and none of them names the dead."""
    source = write_image(tmp_path / "in.zarr", noise(SHAPE), (8, 8, 8))
    argv = ["build", str(source), "--edges", "partial", "--memory-limit", "60kB"]
    driver.run(argv=[*argv, "--target", str(tmp_path / "calm" / "out.zarr")])
    argv += ["--target", str(tmp_path / "torn" / "out.zarr")]
    dead = driver.start(argv=argv, die=CHOSEN["after the first chunk"])
    assert dead.wait() == -9
    lock = tmp_path / "torn" / ".out.zarr.lock"
    assert f"process {dead.pid} on " in lock.read_text()
    point = {"before its name is written": r".* before \| name", "while it builds": r"level 1 .*"}
    runs = [driver.start(argv=argv, hold=point[held]) for _ in range(5)]
    losers = until_one_is_left(runs)
    (winner,) = [run for run in runs if run not in losers]
    until(winner.is_held, "the winner has come so far")
    for loser in losers:
        assert loser.wait() == 2
        who = "another process" if held.startswith("before") else f"process {winner.pid} on "
        assert f"{tmp_path}/torn/out.zarr is being built by {who}" in loser.said
        assert len(loser.said.splitlines()) == 1
    winner.go()
    assert winner.wait() == 0, winner.said
    assert tree(tmp_path / "torn") == tree(tmp_path / "calm")


def until_one_is_left(runs: list[Run]) -> list[Run]:
    """Wait until all but one have ended; return those."""

    def ended() -> list[Run]:
        return [run for run in runs if run.status() is not None]

    until(lambda: len(ended()) >= len(runs) - 1, "all but one have ended")
    return ended()


@pytest.mark.s3
def test_of_many_that_come_after_a_kill_one_takes_the_owner_object_over(
    driver: Driver, stage: Callable[[str], Place], tmp_path: Path
) -> None:
    """On an object store all watch the dead owner; one takes over, the others exit 2 and name it."""
    scene = Scene("s3", driver, stage("s3"), tmp_path)
    place = scene.stage("torn")
    dead = driver.start(**scene.order(place), die=CHOSEN["between levels"])
    assert dead.wait() == -9
    assert f"process {dead.pid} on ".encode() in (place.read("out.zarr.owner") or b"")
    source, target = f"{scene.source.root}/in.zarr", f"{place.root}/out.zarr"
    argv = ["build", source, "--target", target, "--edges", "partial", "--memory-limit", "60kB"]
    order = {"beat": 0.2, "watch": 3.0, "argv": argv, "hold": "level 2 .*"}
    runs = [driver.start(**order) for _ in range(4)]
    losers = until_one_is_left(runs)
    (winner,) = [run for run in runs if run not in losers]
    assert {loser.wait() for loser in losers} == {2}, [loser.said for loser in losers]
    for loser in losers:
        assert f"{target} is being built by process {winner.pid} on " in loser.said
    winner.go()
    assert winner.wait() == 0, winner.said
    assert place.contents() == scene.bytes
