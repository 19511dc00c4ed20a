"""A source that changed is not mixed with what was built of it before, and it is said what changed."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import zarr

from pyramid_core import (
    PyramidParams,
    build_pyramid,
    folder,
    open_image,
    plan_pyramid,
    verify_pyramid,
)
from pyramid_core.build import BuildResult, Steps, build_level, run_plan
from pyramid_core.errors import DefectError, TargetError
from pyramid_core.origin import changes_between, look_at
from pyramid_core.verify import gate
from pyramid_core.writer import commit
from tests.stories import attributes, chunk_files, identities, noise, paths, tree, write_image

SHAPE, CHUNKS = (32, 32), (8, 8)


class EndedError(Exception):
    """Stands for whatever ends a build from outside."""


def rewrite(array: Path) -> None:
    """Write one chunk again, of the same size."""
    middle = array / "c/1/2"
    content = bytearray(middle.read_bytes())
    content[-1] ^= 1
    middle.write_bytes(content)


def touch(array: Path) -> None:
    """Move the time of one chunk, as a write of the same bytes does."""
    os.utime(array / "c/1/2", (1, 1))


def lengthen(array: Path) -> None:
    middle = array / "c/1/2"
    middle.write_bytes(middle.read_bytes() + b"more")


def delete(array: Path) -> None:
    (array / "c/1/2").unlink()


def add(array: Path) -> None:
    (array / "c/9").mkdir()
    (array / "c/9/9").write_bytes(b"more")


def describe(array: Path) -> None:
    """Say of the same chunks that their bytes stand the other way round."""
    text = (array / "zarr.json").read_text()
    changed = text.replace('"little"', '"big"')
    assert changed != text
    (array / "zarr.json").write_text(changed)


def swap(array: Path) -> None:
    """Put two chunks each in the place of the other: same names, sizes and times in all."""
    one, other = array / "c/0/1", array / "c/1/1"
    os.utime(one, ns=(1, 1))
    one.rename(array / "aside")
    other.rename(one)
    (array / "aside").rename(other)


CHANGES: dict[Callable[[Path], None], str] = {
    rewrite: "an object was written again",
    touch: "an object was written again",
    swap: "an object was written again",
    lengthen: "of 2,052 bytes, not 2,048",
    delete: "it has 15 stored objects, not 16; of 1,920 bytes, not 2,048",
    add: "it has 17 stored objects, not 16; of 2,052 bytes, not 2,048",
    describe: "the metadata of its array differs",
}
"""What happens to a source of 4 x 4 chunks of 128 bytes, and what is said of it."""

changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


def source_at(place: Path, seed: int = 0) -> Path:
    return write_image(place, noise(SHAPE, seed=seed), CHUNKS, compressors=None)


def params(source: object, target: object = None, **asked: Any) -> PyramidParams:
    where = None if target is None else str(target)
    base = {"step": [2, 2], "workers": 1, "memory_limit": "10kB", "unit": "micrometer"}
    return PyramidParams(source=str(source), target=where, **{**base, **asked})


def begin(asked: PyramidParams) -> None:
    """Build until the first block is done: a record and a few chunks stay."""

    def stop(*_: Any) -> None:
        raise EndedError

    with pytest.raises(EndedError):
        build_pyramid(asked, progress=stop)


def build_with(asked: PyramidParams, before_the_gate: Callable[[], object]) -> BuildResult:
    """Build, and let something happen between the last block and the gate."""

    def verify(plan: Any, workers: Any) -> Any:
        before_the_gate()
        return gate(plan, workers)

    plan = plan_pyramid(open_image(asked.source).info, asked)
    return run_plan(plan, Steps(build_level, verify, commit))


@changes
@pytest.mark.parametrize("at_once", [1, 2, 4, 5])
def test_a_look_at_a_source_says_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], at_once: int
) -> None:
    """Number, bytes, time and metadata each have their words; an equal look has none.

    Whether a folder of four chunks is told of at once or in parts.
    """
    monkeypatch.setattr(folder, "_AT_ONCE", at_once)
    info = open_image(str(source_at(tmp_path / "in.zarr"))).info
    before = json.loads(json.dumps(look_at(info)))
    assert changes_between(before, look_at(info)) == ""
    change(tmp_path / "in.zarr" / "0")
    assert changes_between(before, look_at(info)) == CHANGES[change]


def test_what_leaves_the_voxels_as_they_are_is_no_change(tmp_path: Path) -> None:
    """Attributes, names of dimensions and another array may change while an image is built."""
    source = source_at(tmp_path / "in.zarr")
    before = look_at(open_image(str(source)).info)
    metadata = json.loads((source / "0/zarr.json").read_text())
    metadata |= {"dimension_names": ["y", "x"], "attributes": {"seen": True}}
    (source / "0/zarr.json").write_text(json.dumps(metadata))
    zarr.open_group(source).create_array("other", data=noise(SHAPE))
    assert changes_between(before, look_at(open_image(str(source)).info)) == ""


@pytest.mark.parametrize("at_once", [1, 3, 2**14])
def test_a_look_does_not_depend_on_the_order_in_which_files_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """No file system promises one; neither where a folder is cut into parts."""
    info = open_image(str(source_at(tmp_path / "in.zarr"))).info
    monkeypatch.setattr(folder, "_AT_ONCE", at_once)
    before, scandir = look_at(info), os.scandir

    def backwards(place: int) -> Any:
        with scandir(place) as entries:
            return nullcontext(reversed(list(entries)))

    monkeypatch.setattr(os, "scandir", backwards)
    assert look_at(info) == before


def test_what_is_no_chunk_disturbs_no_look(tmp_path: Path) -> None:
    """An empty folder is no change; a name that is no UTF-8, as old disks have, is a file."""
    source = source_at(tmp_path / "in.zarr")
    info = open_image(str(source)).info
    before = look_at(info)
    (source / "0/c/notes").mkdir()
    assert look_at(info) == before
    Path(os.fsdecode(os.fsencode(source) + b"/0/c/notes/\xff")).write_bytes(b"x")
    assert changes_between(before, look_at(info)) == CHANGES[add].replace("2,052", "2,049")


def test_a_record_of_an_earlier_version_is_not_taken_for_the_same() -> None:
    """What cannot be compared is a change, not a match."""
    assert changes_between("0123", {"objects": 1}) == "it was recorded in another way"
    assert changes_between(None, {"objects": 1}) == "it was recorded in another way"


@changes
@pytest.mark.parametrize("in_place", [False, True])
def test_going_on_from_a_changed_source_is_refused(
    tmp_path: Path, change: Callable[[Path], None], in_place: bool
) -> None:
    """The refusal says what changed and what to do, and nothing is written."""
    source = source_at(tmp_path / "in.zarr")
    asked = params(source, None if in_place else tmp_path / "out.zarr")
    begin(asked)
    change(source / "0")
    before = identities(tmp_path)
    with pytest.raises(TargetError) as error:
        build_pyramid(asked)
    assert f"the source, which has changed since ({CHANGES[change]})" in str(error.value)
    assert "--existing replace" in str(error.value)
    assert identities(tmp_path) == before


@pytest.mark.parametrize("change", [rewrite, delete, describe], ids=lambda c: c.__name__)
@pytest.mark.parametrize("in_place", [False, True])
def test_what_the_refusal_advises_works(
    tmp_path: Path, change: Callable[[Path], None], in_place: bool
) -> None:
    """With replace, the image is that of the source as it is now."""
    source = source_at(tmp_path / "in.zarr")
    target = None if in_place else tmp_path / "out.zarr"
    begin(params(source, target))
    change(source / "0")
    build_pyramid(params(source, target, existing="replace", verify="full"))
    fresh = source_at(tmp_path / "fresh/in.zarr")
    change(fresh / "0")
    fresh_target = None if in_place else tmp_path / "fresh/out.zarr"
    build_pyramid(params(fresh, fresh_target))
    assert tree(target or source) == tree(fresh_target or fresh)


@pytest.mark.parametrize(
    "change", [rewrite, touch, delete, add, describe], ids=lambda c: c.__name__
)
@pytest.mark.parametrize("in_place", [False, True])
def test_the_gate_refuses_a_source_that_changed_meanwhile(
    tmp_path: Path, change: Callable[[Path], None], in_place: bool
) -> None:
    """Whatever changed during the build keeps the image from being published, and is said."""
    source = source_at(tmp_path / "in.zarr")
    target = None if in_place else tmp_path / "out.zarr"
    asked = params(source, target)
    with pytest.raises(DefectError) as error:
        build_with(asked, lambda: change(source / "0"))
    said = f"the source has changed while the image was built ({CHANGES[change]})"
    assert said in str(error.value)
    assert "zarr-pyramid-flow" in attributes(target or source)


@pytest.mark.parametrize("change", [rewrite, describe], ids=lambda c: c.__name__)
@pytest.mark.parametrize("in_place", [False, True])
def test_a_rerun_on_a_finished_image_notices_by_computing_again(
    tmp_path: Path, change: Callable[[Path], None], in_place: bool
) -> None:
    """A document tells nothing of its source, so full computes all again; nothing is written."""
    source = source_at(tmp_path / "in.zarr")
    target = None if in_place else tmp_path / "out.zarr"
    build_pyramid(params(source, target))
    change(source / "0")
    before = identities(tmp_path)
    with pytest.raises(TargetError, match=r"does not follow from this source.*--existing replace"):
        build_pyramid(params(source, target, verify="full"))
    assert identities(tmp_path) == before


@pytest.mark.parametrize("verify", ["none", "sample", "full"])
@pytest.mark.parametrize("in_place", [False, True])
def test_what_a_source_has_lost_is_not_deleted_from_its_image(
    tmp_path: Path, in_place: bool, verify: str
) -> None:
    """A rerun finds voxels of which the source has nothing any more, and refuses to touch them."""
    source = source_at(tmp_path / "in.zarr")
    target = None if in_place else tmp_path / "out.zarr"
    build_pyramid(params(source, target))
    for cell in ("0/2", "0/3", "1/2", "1/3"):  # all that one chunk of level 1 is made of
        (source / "0/c" / cell).unlink()
    before = identities(tmp_path)
    with pytest.raises(TargetError, match=r"does not follow from this source.*--existing replace"):
        build_pyramid(params(source, target, verify=verify))
    assert identities(tmp_path) == before


def test_a_chunk_of_the_source_that_became_empty_does_not_unpublish_its_image(
    tmp_path: Path,
) -> None:
    """A source that was damaged since is said to be, by any gate; the finished image stays."""
    source, target = source_at(tmp_path / "in.zarr"), tmp_path / "out.zarr"
    build_pyramid(params(source, target))
    (source / "0/c/1/2").write_bytes(b"")
    before = identities(tmp_path)
    with pytest.raises(TargetError, match="cannot be read"):
        build_pyramid(params(source, target))
    assert identities(tmp_path) == before


def test_verify_knows_a_changed_source_in_place_and_no_source_elsewhere(tmp_path: Path) -> None:
    """In place the source is level 0; an image elsewhere stands for itself, and only a build again tells."""
    inside, source = source_at(tmp_path / "inside.zarr"), source_at(tmp_path / "in.zarr")
    build_pyramid(params(inside))
    build_pyramid(params(source, tmp_path / "out.zarr"))
    for place in (inside, source):
        rewrite(place / "0")
    found = verify_pyramid(str(inside), "full")
    assert [finding.where for finding in found.findings] == ["1"]
    assert verify_pyramid(str(tmp_path / "out.zarr"), "full").findings == ()


def test_other_bytes_of_the_same_size_and_time_are_noticed_by_their_voxels_alone(
    tmp_path: Path,
) -> None:
    """A listing of files cannot tell; verify full in place can."""
    source = source_at(tmp_path / "in.zarr")
    chunk = source / "0/c/1/2"
    before, times = look_at(open_image(str(source)).info), chunk.stat()
    build_pyramid(params(source))
    rewrite(source / "0")
    os.utime(chunk, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert changes_between(before, look_at(open_image(str(source)).info)) == ""
    assert not verify_pyramid(str(source), "full").ok


def test_a_zip_that_changed_is_noticed_by_the_checksums_of_its_members(tmp_path: Path) -> None:
    """Another archive with the same members is the same source; one with another chunk is not."""
    folders = [source_at(tmp_path / f"{seed}", seed) for seed in (1, 2)]

    def pack(folder: Path) -> None:
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    file.write(path, path.relative_to(folder).as_posix())

    pack(folders[0])
    asked = params(tmp_path / "in.zip", tmp_path / "out.zarr")
    begin(asked)
    for path in folders[0].rglob("*"):
        os.utime(path, (10**9, 10**9))
    pack(folders[1])
    with pytest.raises(TargetError, match=r"changed since \(an object was written again\)"):
        build_pyramid(asked)
    pack(folders[0])
    build_pyramid(asked)
    assert paths(tmp_path / "out.zarr") == ["0", "1", "2"]


@pytest.mark.s3
def test_an_object_store_is_known_by_its_etags(bucket: str, tmp_path: Path) -> None:
    """The same bytes put again are no change; other bytes, a deleted and an added object are."""
    import obstore

    source = source_at(tmp_path / "in.zarr")
    store = obstore.store.from_url(f"{bucket}/in.zarr", client_options={"allow_http": True})
    for path in [p for p in source.rglob("*") if p.is_file()]:
        obstore.put(store, path.relative_to(source).as_posix(), path.read_bytes())
    asked = params(f"{bucket}/in.zarr", f"{bucket}/out.zarr")
    begin(asked)
    content = bytes(obstore.get(store, "0/c/1/2").bytes())

    def refusal() -> str:
        with pytest.raises(TargetError) as error:
            build_pyramid(asked)
        return str(error.value)

    obstore.put(store, "0/c/1/2", content[::-1])
    assert "changed since (an object was written again)" in refusal()
    obstore.delete(store, "0/c/1/2")
    assert "changed since (it has 15 stored objects, not 16" in refusal()
    obstore.put(store, "0/c/1/2", content)
    obstore.put(store, "0/c/9/9", b"more")
    assert "changed since (it has 17 stored objects, not 16" in refusal()
    obstore.delete(store, "0/c/9/9")
    assert build_pyramid(asked).blocks_found >= 1


def test_a_source_on_a_plain_server_is_known_by_a_few_of_its_objects(
    tmp_path: Path, served: str
) -> None:
    """What it tells of the metadata, the first and the last chunk is held against the record; of others nobody knows."""
    source, target = source_at(tmp_path / "in.zarr"), tmp_path / "out.zarr"
    asked = params(f"{served}/in.zarr", target)
    begin(asked)
    for changed in ("0/c/0/0", "0/c/3/3"):
        times = (source / changed).stat()
        os.utime(source / changed, (1, 1))
        with pytest.raises(TargetError, match=r"since \(the server tells of another version\)"):
            build_pyramid(asked)
        os.utime(source / changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    text, times = (source / "0/zarr.json").read_text(), (source / "0/zarr.json").stat()
    (source / "0/zarr.json").write_text(text.replace('"little"', '"big"'))
    with pytest.raises(TargetError, match="the metadata of its array differs"):
        build_pyramid(asked)
    (source / "0/zarr.json").write_text(text)
    os.utime(source / "0/zarr.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    rewrite(source / "0")  # neither first nor last: going on is not refused, but the gate is there
    with pytest.raises(DefectError, match="0: voxels"):
        build_pyramid(asked)
    build_pyramid(asked)
    assert verify_pyramid(str(target), "full").ok


def test_a_chunk_that_is_listed_in_the_record_is_counted_without_metadata(tmp_path: Path) -> None:
    """What the record holds is what lies on the disk: chunks and their bytes."""
    source = source_at(tmp_path / "in.zarr")
    look = look_at(open_image(str(source)).info)
    files = chunk_files(source / "0")
    assert (look["objects"], look["bytes"]) == (len(files), sum(f.stat().st_size for f in files))


@pytest.mark.parametrize("is_told", [False, True], ids=["found", "told"])
def test_a_replacement_finds_the_contrast_again_but_keeps_what_a_person_said(
    tmp_path: Path, is_told: bool
) -> None:
    """In place after the base got brighter: the contrast of a first build of it; a window that was edited since is kept, by a killed replacement too."""
    image = write_image(tmp_path / "in.zarr", noise(SHAPE), CHUNKS)
    build_pyramid(PyramidParams(source=str(image)))
    asked = {"min": 0.0, "start": 7.0, "end": 77.0, "max": 65535.0}
    if is_told:
        whole = json.loads((image / "zarr.json").read_text())
        whole["attributes"]["ome"]["omero"]["channels"][0]["window"] = asked
        (image / "zarr.json").write_text(json.dumps(whole))
    base: Any = zarr.open_array(image, path="0")
    base[:] = noise(SHAPE) + 1000
    again = PyramidParams(source=str(image), existing="replace")

    def killed(*_: Any) -> None:
        raise EndedError

    with pytest.raises(EndedError):
        run_plan(plan_pyramid(open_image(str(image)).info, again), Steps(build_level, gate, killed))
    build_pyramid(PyramidParams(source=str(image)))
    (channel,) = attributes(image)["ome"]["omero"]["channels"]
    calm = write_image(tmp_path / "calm" / "in.zarr", noise(SHAPE) + 1000, CHUNKS)
    build_pyramid(PyramidParams(source=str(calm)))
    (expected,) = attributes(calm)["ome"]["omero"]["channels"]
    assert expected["window"]["start"] > 1000
    assert channel == ({**expected, "window": asked} if is_told else expected)
    assert is_told or tree(image) == tree(calm)
