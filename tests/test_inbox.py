"""What a sweep finds below a root, and what it says of each image."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import obstore
import pytest
import zarr
from obstore.exceptions import GenericError

import pyramid_core.changes as changes
from pyramid_core import PyramidParams, build_pyramid, open_image, plan_pyramid
from pyramid_core.errors import LocationError, is_transient
from pyramid_core.inbox import Found, find_images
from pyramid_core.stores import open_storage
from pyramid_core.writer import prepare
from tests.stories import chunk_files, noise, tree, write_image

STEP: dict[str, Any] = {"step": [2, 2], "max_levels": 2, "edges": "partial", "workers": 1}
VOXELS = noise((32, 32))
CHUNKS = (16, 16)

CROWD = "several arrays in one group cannot be built in place; give an outbox"
BARE = "an array that lies in no group cannot be built in place; give an outbox"

Format = Literal[2, 3]
both_formats = pytest.mark.parametrize("zarr_format", [2, 3])
both_places = pytest.mark.parametrize("in_place", [True, False])


def build(source: Path | str, target: Path | str | None = None, **asked: Any) -> None:
    where = None if target is None else str(target)
    build_pyramid(PyramidParams(source=str(source), target=where, **{**STEP, **asked}))


def image(place: Path, zarr_format: Format = 3) -> Path:
    return write_image(place, VOXELS, CHUNKS, zarr_format=zarr_format)


def array(place: Path, zarr_format: Format = 3) -> Path:
    zarr.create_array(place, data=VOXELS, chunks=CHUNKS, zarr_format=zarr_format)
    return place


def describe(place: Path, *paths: str) -> Path:
    """Give a group the document of another program."""
    datasets = [
        {
            "path": path,
            "coordinateTransformations": [{"type": "scale", "scale": [2.0**k, 2.0**k]}],
        }
        for k, path in enumerate(paths)
    ]
    entry = {"axes": [{"name": n, "type": "space"} for n in "yx"], "datasets": datasets}
    group: Any = zarr.open_group(place, mode="r+")
    if group.metadata.zarr_format == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [entry]}
    else:
        group.attrs["multiscales"] = [{"version": "0.4", **entry}]
    return place


def container(place: Path, zarr_format: Format, document: dict[str, Any]) -> Path:
    """Write a group of several images, as a plate, a well or bioformats2raw says it is one."""
    group = zarr.open_group(place, mode="a", zarr_format=zarr_format)
    group.attrs.update({"ome": {"version": "0.5", **document}} if zarr_format == 3 else document)
    return place


def write_zoo(root: Path, zarr_format: Format) -> Path:
    """Write one of every kind of image that an inbox may hold."""
    for name in ("bare.zarr", "bare too.zarr"):
        array(root / name, zarr_format)
    image(root / "day 1" / "base.zarr", zarr_format)
    described = image(root / "day 1" / "deep" / "described.zarr", zarr_format)
    (described / "0").rename(described / "s0")
    describe(described, "s0")
    array(described / "labels" / "nuclei" / "0", zarr_format)
    plain = zarr.open_group(root / "one.zarr", mode="w", zarr_format=zarr_format)
    plain.create_array("raw", data=VOXELS, chunks=CHUNKS)
    crowd = zarr.open_group(root / "crowd.zarr", mode="w", zarr_format=zarr_format)
    for name in ("a", "b"):
        crowd.create_array(name, data=VOXELS, chunks=CHUNKS)
    image(root / "crowd.zarr" / "inner", zarr_format)
    plate = container(root / "plate.zarr", zarr_format, {"plate": {"wells": [{"path": "A/1"}]}})
    zarr.open_group(plate / "A", mode="w", zarr_format=zarr_format)
    well = container(plate / "A" / "1", zarr_format, {"well": {"images": [{"path": "0"}]}})
    raw = container(root / "raw.zarr", zarr_format, {"bioformats2raw.layout": 3})
    container(raw / "OME", zarr_format, {"series": ["0", "1"]})
    (raw / "OME" / "METADATA.ome.xml").write_text("<OME/>")
    for series in (well / "0", raw / "0", raw / "1"):
        describe(image(series, zarr_format), "0")
    (root / "notes.txt").write_text("nothing of Zarr")
    return root


ZOO = [
    "bare too.zarr",
    "bare.zarr",
    "crowd.zarr/a",
    "crowd.zarr/b",
    "crowd.zarr/inner",
    "day 1/base.zarr",
    "day 1/deep/described.zarr",
    "one.zarr/raw",
    "plate.zarr/A/1/0",
    "raw.zarr/0",
    "raw.zarr/1",
]

REFUSED = {
    "bare too.zarr": BARE,
    "bare.zarr": BARE,
    "crowd.zarr/a": CROWD,
    "crowd.zarr/b": CROWD,
}
"""What has no room for levels in place."""


def brief(root: Path | str, outbox: Path | str | None = None, **asked: Any) -> dict[str, str]:
    """Return the state of each image, by its path below the inbox, in the order found."""
    found = find_images(str(root), None if outbox is None else str(outbox), **asked)
    return {image.source.removeprefix(f"{root}/"): image.state for image in found}


def note(root: Path, outbox: Path | None = None) -> str:
    """Return what is said of the only image."""
    (found,) = find_images(str(root), None if outbox is None else str(outbox))
    return found.note


def older(place: Path, seconds: float = 100) -> None:
    """Set the clock of everything at a place back."""
    for path in (place, *place.rglob("*")):
        moment = path.stat().st_mtime - seconds
        os.utime(path, (moment, moment))


def touch(path: Path) -> None:
    """Write a file anew, as late as the clock of files can tell."""
    path.write_bytes(path.read_bytes())
    moment = time.time() + 1
    os.utime(path, (moment, moment))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[Format, Path]:
    """An image of each format that was built in place; nobody may change one."""
    root = tmp_path_factory.mktemp("finished")
    formats: tuple[Format, ...] = (2, 3)
    places = {n: image(root / f"v{n}.zarr", n) for n in formats}
    for place in places.values():
        build(place)
    return places


@pytest.fixture
def pyramid(finished: dict[Format, Path], tmp_path: Path, zarr_format: Format) -> Path:
    """A copy of an image that was built in place, alone in its inbox."""
    return Path(shutil.copytree(finished[zarr_format], tmp_path / "inbox" / "a.zarr"))


@pytest.fixture
def pair(tmp_path: Path, zarr_format: Format) -> tuple[Path, Path]:
    """A source, and its pyramid in an outbox."""
    source = image(tmp_path / "inbox" / "a.zarr", zarr_format)
    build(source, tmp_path / "outbox" / "a.zarr")
    return source, tmp_path / "outbox" / "a.zarr"


@both_formats
def test_every_kind_of_image_is_found(tmp_path: Path, zarr_format: Format) -> None:
    """Whatever folder or group holds it; each target has the path that its image has."""
    root = write_zoo(tmp_path / "inbox", zarr_format)
    found = find_images(str(root), str(tmp_path / "outbox"))
    assert found == [
        Found(f"{root}/{path}", f"{tmp_path}/outbox/{path}", "new", "no pyramid yet")
        for path in ZOO
    ]
    for one in found:
        assert open_image(one.source).info.shape == (32, 32)


@both_formats
def test_in_place_arrays_that_have_no_room_are_refused(tmp_path: Path, zarr_format: Format) -> None:
    """A bare array has no group for its levels, and two in one group would share their names."""
    root = write_zoo(tmp_path / "inbox", zarr_format)
    assert find_images(str(root)) == [
        Found(f"{root}/{path}", None, "refused", REFUSED[path])
        if path in REFUSED
        else Found(f"{root}/{path}", None, "new", "no pyramid yet")
        for path in ZOO
    ]


@both_formats
@both_places
def test_what_was_built_is_finished(tmp_path: Path, zarr_format: Format, in_place: bool) -> None:
    """Each image that is new can be built as it was told, and the next sweep has nothing to do."""
    root = write_zoo(tmp_path / "inbox", zarr_format)
    shutil.rmtree(root / "day 1" / "deep" / "described.zarr" / "labels")  # is no list of labels
    outbox = None if in_place else tmp_path / "outbox"
    for one in find_images(str(root), None if in_place else str(outbox)):
        if one.state == "new":
            build(one.source, one.target, verify="none")
    before = tree(tmp_path)
    states = dict.fromkeys(ZOO, "finished")
    if in_place:
        states |= dict.fromkeys(REFUSED, "refused")
        del states["one.zarr/raw"]  # its group now is the image
        states["one.zarr"] = "finished"
    assert brief(root, outbox) == states
    assert brief(root, outbox, compare_objects=True) == states
    assert tree(tmp_path) == before


@both_formats
@pytest.mark.parametrize("name", ["base", "attributes"])
def test_a_base_whose_metadata_was_written_later_has_changed(
    pyramid: Path, zarr_format: Format, name: str
) -> None:
    """In place, what is newer than the document is not what the levels were built from."""
    key = {"base": {2: ".zarray", 3: "zarr.json"}, "attributes": {2: ".zattrs", 3: "zarr.json"}}
    file = pyramid / "0" / key[name][zarr_format]
    if not file.exists():
        file.write_text("{}")
    touch(file)
    (found,) = find_images(str(pyramid.parent))
    expected = f"a.zarr/0/{file.name} is newer than its pyramid"
    assert found == Found(str(pyramid), None, "changed", expected)


@pytest.mark.parametrize("zarr_format", [3])
def test_what_we_write_in_place_is_no_change(pyramid: Path) -> None:
    """Levels newer than the document, and a base completed in the same tick, are our own."""
    for file in [pyramid / "1" / "zarr.json", *chunk_files(pyramid / "1")]:
        touch(file)
    status = (pyramid / "zarr.json").stat()
    os.utime(pyramid / "0" / "zarr.json", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert brief(pyramid.parent, compare_objects=True) == {"a.zarr": "finished"}
    os.utime(pyramid / "0" / "zarr.json", ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    assert brief(pyramid.parent) == {"a.zarr": "changed"}


@both_formats
@pytest.mark.parametrize("at", ["", "0"])
def test_a_source_elsewhere_that_was_described_anew_has_changed(
    pair: tuple[Path, Path], zarr_format: Format, at: str
) -> None:
    """Its group says axes and voxel size, so it counts as the base does; built again, it is done."""
    source, target = pair
    file = source / at / ("zarr.json" if zarr_format == 3 else ".zattrs")
    if not file.exists():
        file.write_text("{}")
    touch(file)
    assert brief(source.parent, target.parent) == {"a.zarr": "changed"}
    assert note(source.parent, target.parent).endswith(f"{file.name} is newer than its pyramid")
    older(source)
    build(source, target, existing="replace")
    assert brief(source.parent, target.parent) == {"a.zarr": "finished"}


@both_formats
@both_places
def test_a_chunk_that_was_written_later_is_seen_when_all_are_compared(
    tmp_path: Path, zarr_format: Format, in_place: bool
) -> None:
    """By default metadata alone is compared, since a base may have millions of objects."""
    source = image(tmp_path / "inbox" / "a.zarr", zarr_format)
    outbox = None if in_place else tmp_path / "outbox"
    build(source, outbox and outbox / "a.zarr")
    touch(chunk_files(source / "0")[-1])
    assert brief(source.parent, outbox) == {"a.zarr": "finished"}
    assert brief(source.parent, outbox, compare_objects=True) == {"a.zarr": "changed"}


@both_formats
def test_the_pyramid_of_another_program_is_passed_over(tmp_path: Path, zarr_format: Format) -> None:
    """In place that is a document of several levels; in the outbox, any document but ours."""
    several = image(tmp_path / "inbox" / "several.zarr", zarr_format)
    array(several / "1", zarr_format)
    describe(several, "0", "1")
    describe(image(tmp_path / "inbox" / "single.zarr", zarr_format), "0")
    describe(image(tmp_path / "outbox" / "single.zarr", zarr_format), "0")
    assert brief(tmp_path / "inbox") == {"several.zarr": "foreign", "single.zarr": "new"}
    assert [(one.state, one.note) for one in find_images(str(tmp_path / "inbox"))] == [
        ("foreign", "2 levels by another program"),
        ("new", "no pyramid yet"),
    ]
    outbox = tmp_path / "outbox"
    assert brief(tmp_path / "inbox", outbox) == {"several.zarr": "new", "single.zarr": "foreign"}


def begin(source: Path, target: Path | None = None) -> None:
    """Leave what a build that was killed leaves: a record, and levels that lack chunks."""
    asked = PyramidParams(source=str(source), target=target and str(target), **STEP)
    prepare(plan_pyramid(open_image(str(source)).info, asked))


@both_formats
def test_what_was_begun_is_unfinished(tmp_path: Path, zarr_format: Format) -> None:
    """In place and in the outbox; a base that no document names is still told by its own path."""
    root = tmp_path / "inbox"
    for name in ("a.zarr", "b.zarr"):
        image(root / name, zarr_format)
    begin(root / "a.zarr")
    begin(root / "b.zarr", tmp_path / "outbox" / "b.zarr")
    zarr.open_group(root / "c.zarr", mode="w", zarr_format=zarr_format)
    begin(array(root / "c.zarr" / "raw", zarr_format))
    assert brief(root) == {"a.zarr": "unfinished", "b.zarr": "new", "c.zarr/raw": "unfinished"}
    assert {one.note for one in find_images(str(root)) if one.state == "unfinished"} == {
        "its build was begun"
    }
    states = {"a.zarr": "new", "b.zarr": "unfinished", "c.zarr/raw": "new"}
    assert brief(root, tmp_path / "outbox") == states
    build(root / "c.zarr" / "raw")
    assert brief(root) == {"a.zarr": "unfinished", "b.zarr": "new", "c.zarr": "finished"}


def test_what_is_being_built_from_elsewhere_is_no_source(tmp_path: Path) -> None:
    """A target, or a test image, that is not finished holds arrays that lack chunks."""
    root = tmp_path / "inbox"
    begin(image(tmp_path / "in.zarr"), root / "a.zarr")
    phantom = image(root / "phantom.zarr")
    zarr.open_group(phantom).attrs["zarr-pyramid-flow"] = {
        "state": "building", "plan": {"paths": ["0"]}, "phantom": {},
    }  # fmt: skip
    assert brief(root) == {}
    assert brief(root, tmp_path / "outbox") == {}


def test_an_outbox_may_lie_in_its_inbox(tmp_path: Path) -> None:
    """What lies in it is ours, by whatever name it is reached."""
    image(tmp_path / "a.zarr")
    image(tmp_path / "outbox" / "other.zarr")
    (tmp_path / "link").symlink_to(tmp_path / "outbox")
    for outbox in (tmp_path / "outbox", tmp_path / "link"):
        assert brief(tmp_path, outbox) == {"a.zarr": "new"}
    (found,) = find_images(str(tmp_path), str(tmp_path / "outbox"))
    assert found.target == str(tmp_path / "outbox" / "a.zarr")


def test_an_inbox_may_be_one_image(tmp_path: Path) -> None:
    """Its pyramid gets its name in the outbox; a lone array needs one."""
    source, lone = image(tmp_path / "a.zarr"), array(tmp_path / "b.zarr")
    none = "no pyramid yet"
    assert find_images(str(source)) == [Found(str(source), None, "new", none)]
    assert find_images(str(lone)) == [Found(str(lone), None, "refused", BARE)]
    for place in (source, lone):
        target = f"{tmp_path}/outbox/{place.name}"
        found = find_images(str(place), f"{tmp_path}/outbox")
        assert found == [Found(str(place), target, "new", none)]


@pytest.mark.timeout(30)
def test_links_are_followed_and_never_in_circles(tmp_path: Path) -> None:
    """An image that two names lead to is told once, by the name that is found first."""
    elsewhere = image(tmp_path / "elsewhere" / "a.zarr")
    root = tmp_path / "inbox"
    image(root / "deep" / "b.zarr")
    (root / "link").symlink_to(elsewhere.parent)
    (root / "deep" / "again.zarr").symlink_to(elsewhere)
    (root / "deep" / "circle").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "nowhere").symlink_to(root / "gone")
    assert brief(root) == {"deep/again.zarr": "new", "deep/b.zarr": "new"}


def test_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    """Locks, trash and snapshots begin with a dot."""
    image(tmp_path / ".snapshots" / "a.zarr")
    image(tmp_path / ".b.zarr")
    (tmp_path / ".c.zarr.lock").touch()
    assert brief(tmp_path) == {}


BROKEN: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "a.zarr/zarr.json is not JSON"),
    "neither": ({"node_type": "file"}, "a.zarr: zarr.json is neither array nor group"),
    "version": (
        {"node_type": "group", "attributes": {"ome": {"version": "0.9", "multiscales": [{}]}}},
        "the multiscales document says version '0.9'",
    ),
    "document": (
        {"node_type": "group", "attributes": {"ome": {"version": "0.5", "multiscales": [{}]}}},
        "the multiscales document is not valid OME-Zarr 0.5",
    ),
    "record": (
        {
            "node_type": "group",
            "attributes": {"zarr-pyramid-flow": {"in_place": True, "plan": {"paths": []}}},
        },
        "it has an attribute 'zarr-pyramid-flow' that is no record of ours",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_told_and_the_walk_goes_on(tmp_path: Path, name: str) -> None:
    """Its row says what is wrong with it; also where it is in the outbox that something is."""
    content, reason = BROKEN[name]
    image(tmp_path / "inbox" / "a.zarr")
    image(tmp_path / "inbox" / "b.zarr")
    text = content if isinstance(content, str) else json.dumps({"zarr_format": 3, **content})
    (tmp_path / "inbox" / "a.zarr" / "zarr.json").write_text(text)
    found = find_images(str(tmp_path / "inbox"))
    assert [one.state for one in found] == ["refused", "new"]
    assert found[0].source == str(tmp_path / "inbox" / "a.zarr")
    assert found[0].note.startswith(reason)


def test_a_target_that_is_broken_is_told(tmp_path: Path) -> None:
    """What lies in the outbox cannot be known, so nothing is built over it."""
    image(tmp_path / "inbox" / "a.zarr")
    image(tmp_path / "outbox" / "a.zarr")
    (tmp_path / "outbox" / "a.zarr" / "zarr.json").write_text("{")
    assert brief(tmp_path / "inbox", tmp_path / "outbox") == {"a.zarr": "refused"}
    assert "outbox: a.zarr/zarr.json is not JSON" in note(tmp_path / "inbox", tmp_path / "outbox")


@pytest.mark.parametrize("zarr_format", [3])
def test_a_pyramid_that_lost_its_base_is_told(pyramid: Path) -> None:
    """It is not finished, for its document names an array that is not there."""
    shutil.rmtree(pyramid / "0")
    assert brief(pyramid.parent) == {"a.zarr": "refused"}
    assert note(pyramid.parent) == "there is no array at a.zarr/0, which its document names"


def test_a_folder_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk goes on beside it; an inbox that cannot be read itself is an error."""
    image(tmp_path / "a.zarr")
    image(tmp_path / "secret" / "b.zarr")
    real = os.scandir

    def denied(path: Any) -> Any:
        if Path(path).name in names:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    names = {"secret"}
    assert brief(tmp_path) == {"a.zarr": "new", "secret": "refused"}
    assert "Permission denied" in find_images(str(tmp_path))[1].note
    names = {tmp_path.name}
    with pytest.raises(LocationError, match=r"cannot be looked through: PermissionError"):
        find_images(str(tmp_path))


def test_an_inbox_that_cannot_be_listed_is_refused(tmp_path: Path, served: str) -> None:
    """Before anything is looked at, with what to do."""
    (tmp_path / "file").touch()
    for inbox, reason in (
        (f"{tmp_path}/no", "is not there; give a folder"),
        (f"{tmp_path}/file", "is a file"),
        (served, "cannot be listed: it is on a plain http server"),
    ):
        with pytest.raises(LocationError, match=reason):
            find_images(inbox)
    with pytest.raises(LocationError, match="is inbox and outbox; to build in place"):
        find_images(str(tmp_path), f"{tmp_path}/")
    assert brief(tmp_path) == {}


READS = {2: ["zarr.json", ".zarray", ".zgroup", ".zattrs"], 3: ["zarr.json"]}
"""What is read of a group; what it cannot have is asked for first."""

HEADS = {2: {"0/.zarray", "0/.zattrs"}, 3: {"0/zarr.json"}}
"""Whose times are asked for."""


@both_formats
@both_places
@pytest.mark.parametrize("edge", [16, 4])
def test_a_finished_image_is_passed_by_a_few_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zarr_format: Format, in_place: bool, edge: int
) -> None:
    """The same few whatever the number of its chunks, and no folder of it is listed."""
    source = tmp_path / "inbox" / "a.zarr"
    describe(write_image(source, VOXELS, (edge, edge), zarr_format=zarr_format), "0")
    outbox = None if in_place else tmp_path / "outbox"
    build(source, outbox and outbox / "a.zarr", verify="none")
    reads: list[str] = []
    heads: set[str] = set()
    listed: list[str] = []

    class Counting(changes.DatedStorage):
        """A storage that tells what it is asked for."""

        def read(self, key: str) -> bytes | None:
            reads.append(key)
            return super().read(key)

        def written(self, key: str) -> Any:
            heads.update({key} - set(self.times))
            return super().written(key)

    def scandir(path: Any, real: Any = os.scandir) -> Any:
        listed.append(str(path))
        return real(path)

    monkeypatch.setattr("pyramid_core.inbox.DatedStorage", Counting)
    monkeypatch.setattr(os, "scandir", scandir)
    assert brief(source.parent, outbox) == {"a.zarr": "finished"}
    assert listed == [str(source.parent)]
    target = [] if in_place else ["zarr.json"]
    assert reads[:3] == ["zarr.json", ".zarray", ".zgroup"]  # of the inbox, which is no group
    assert reads[3:] == [f"a.zarr/{name}" for name in READS[zarr_format] + target]
    assert heads == {f"a.zarr/{name}" for name in HEADS[zarr_format]}


def upload(folder: Path, url: str) -> None:
    storage = open_storage(url)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        storage.write(path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.mark.s3
@both_places
def test_a_bucket_is_swept_as_a_folder_is(tmp_path: Path, bucket: str, in_place: bool) -> None:
    """What is new is built, then passed over until its metadata, or a chunk, is written again."""
    upload(write_zoo(tmp_path, 3), f"{bucket}/in")
    outbox = None if in_place else f"{bucket}/in/out"
    states = dict.fromkeys(ZOO, "new")
    if in_place:
        states |= dict.fromkeys(REFUSED, "refused")
    assert brief(f"{bucket}/in", outbox) == states
    inbox = f"{bucket}/in/day 1"
    for one in find_images(inbox, outbox):
        if one.source.endswith("base.zarr"):
            build(one.source, one.target)
    built = {"base.zarr": "finished", "deep/described.zarr": "new"}
    assert brief(inbox, outbox, compare_objects=True) == built
    time.sleep(1.1)  # the store tells whole seconds
    base = open_storage(f"{inbox}/base.zarr")
    base.write("0/c/0/0", base.read("0/c/0/0") or b"")
    assert brief(inbox, outbox) == built
    assert brief(inbox, outbox, compare_objects=True) == {**built, "base.zarr": "changed"}
    base.write("0/zarr.json", base.read("0/zarr.json") or b"")
    assert brief(inbox, outbox) == {**built, "base.zarr": "changed"}


@pytest.mark.s3
@pytest.mark.parametrize("zarr_format", [3])
def test_a_finished_image_in_a_bucket_takes_two_requests(
    pyramid: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its group is read, its base asked for its time; nothing but the inbox is listed."""
    upload(pyramid, f"{bucket}/in/a.zarr")
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        real = getattr(obstore, name)

        def call(*args: Any, **named: Any) -> Any:
            calls[name] += 1
            return real(*args, **named)

        monkeypatch.setattr(obstore, name, call)

    for name in ("get", "head", "list", "list_with_delimiter"):
        count(name)
    assert brief(f"{bucket}/in") == {"a.zarr": "finished"}
    # Of the inbox 3 objects are asked for, and that each is not there is looked up.
    assert calls == {"get": 3 + 1, "list": 3, "head": 1, "list_with_delimiter": 1}


@pytest.mark.s3
def test_a_request_that_fails_is_told_of_its_place(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk goes on beside it; the inbox itself may be tried again."""
    for name in ("a.zarr", "deep/b.zarr"):
        upload(image(tmp_path / name), f"{bucket}/{name}")
    real = obstore.list_with_delimiter

    def fail(store: Any, prefix: str | None = None) -> Any:
        if prefix == failing:
            raise GenericError("503 Slow Down: <many lines>")
        return real(store, prefix)

    monkeypatch.setattr(obstore, "list_with_delimiter", fail)
    failing: str | None = "deep"
    assert find_images(bucket) == [
        Found(f"{bucket}/a.zarr", None, "new", "no pyramid yet"),
        Found(f"{bucket}/deep", None, "refused", "the store cannot be asked now: 503 Slow Down"),
    ]
    failing = None
    with pytest.raises(
        LocationError, match="cannot be looked through: the store cannot be asked now: 503"
    ) as caught:
        find_images(bucket)
    assert is_transient(caught.value)


@pytest.mark.s3
@pytest.mark.parametrize("name", ["a?b.zarr", "a#b.zarr", "a%20b.zarr"])
def test_a_name_that_no_url_can_hold_is_refused(tmp_path: Path, bucket: str, name: str) -> None:
    """Opened by its location, another place would be read and written."""
    image(tmp_path / "inbox" / name)
    for path, content in (
        (p, p.read_bytes()) for p in (tmp_path / "inbox").rglob("*") if p.is_file()
    ):
        key = path.relative_to(tmp_path).as_posix()
        open_storage(bucket).write(key, content)
    reason = "its name holds ?, # or %, which a URL cannot"
    for outbox in (None, str(tmp_path / "outbox")):
        assert find_images(f"{bucket}/inbox", outbox) == [
            Found(f"{bucket}/inbox/{name}", None, "refused", reason)
        ]
    assert brief(tmp_path / "inbox", f"{bucket}/outbox") == {name: "refused"}
    assert brief(tmp_path / "inbox") == {name: "new"}
