"""Whatever an image says of itself: a message, bounded memory, an end, and nothing outside of it is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings

from pyramid_core import PyramidParams, build_pyramid, open_image, plan_pyramid, verify_pyramid
from pyramid_core.arrays import open_array
from pyramid_core.errors import PyramidError, SourceError, TargetError, printable
from pyramid_core.inbox import find_images
from pyramid_core.jsons import json_object
from pyramid_core.origin import look_at
from pyramid_core.preview import render_preview
from pyramid_core.stores import open_storage
from pyramid_core.swollen import refuse_swollen
from tests.hostile import broken, changes
from tests.hostile_images import CANARY, LIES, image, surroundings
from tests.stories import noise, tree, write_image

ROOT = Path(__file__).parent.parent

HELD = 600_000_000
"""Bytes that meeting a lie may take beside what the process holds: 100 MB of JSON are cut at 34."""

IN_CI = re.compile(
    r"exabyte|one chunk|huge numbers|billion|pickle|scale|10\^5|path '\.\.|path '0/\.\.|escapes|that lead"
    r"|that are linked|is a link|deep|100 MB|5000|consolidated [5{]|clearing|levels '|plan |chunk: |zip"
)
"""The lies that are met by default: those that were believed once, and those that would do harm."""

SLOW = re.compile(r"2 GB|1 GB|gigabyte|100 MB|10\^5|hundred thousand")


def met(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """Meet lies in a process of its own; return what became of each."""
    argv = [sys.executable, "-W", "ignore", "-m", "tests.hostile_run", str(folder)]
    done = subprocess.run(
        [*argv, json.dumps(names)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    at = f"{found[-1]['lie']}, {found[-1]['entry']}" if found else "the beginning"
    assert done.returncode == 0, f"died after {at}: {done.stdout[-500:]}{done.stderr[-500:]}"
    return found


def outside(folder: Path) -> dict[str, str]:
    """Return a digest of all that lies outside of the images."""
    return {
        name: digest
        for name, digest in tree(folder).items()
        if re.match(r"\d+/inbox/(outside|source|base|unpickled)", name)
    }


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_no_lie_is_believed(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every entry ends, with a message of ours, in bounded memory, and touches, reads and unpickles nothing outside."""
    whole = bool(request.config.getoption("--long"))
    names = [n for n in LIES if whole or (IN_CI.search(n) and not SLOW.search(n))]
    found = met(tmp_path, names)
    assert {f["lie"] for f in found} == set(names)
    wrong = [f for f in found if f["became"] not in ("done", "refused")]
    assert not wrong, "\n".join(f"{f['lie']}, {f['entry']}: {f['said']}" for f in wrong)
    large = [(f["lie"], f["entry"], f["held"]) for f in found if f["held"] > HELD]
    assert not large
    printed = "".join(f["printed"] for f in found)
    assert "Traceback" not in printed
    assert all(c.isprintable() or c == "\n" for c in printed)
    assert not any(CANARY in f["said"] + f["printed"] for f in found)
    assert list(tmp_path.glob("*/inbox/unpickled")) == []
    before = tmp_path / "before"
    surroundings(before / "inbox")
    image(before / "inbox/source.zarr")
    expected = {n: d for n, d in tree(before).items() if n.startswith("inbox/")}
    for number, name in enumerate(names):
        now = {
            n.split("/", 1)[1]: d
            for n, d in outside(tmp_path).items()
            if n.startswith(f"{number}/") and "/base" not in n
        }
        assert now == expected, name


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes)
def test_anything_may_stand_anywhere_in_metadata(tmp_path: Path, changes: Any) -> None:
    """A right document with any other value somewhere: it is opened, planned, verified, drawn, or refused in our words."""
    place = tmp_path / "image.zarr"
    if not place.exists():
        image(place)
    for key in ("zarr.json", "0/zarr.json"):
        before = (place / key).read_bytes()
        try:
            (place / key).write_text(json.dumps(broken(json.loads(before), changes)))
            params = PyramidParams(
                source=str(place), target=str(tmp_path / "t.zarr"), edges="partial"
            )
            for entry in (
                lambda: str(plan_pyramid(open_image(str(place)).info, params)),  # noqa: B023 - run at once
                lambda: str(verify_pyramid(str(place), "none")),
                lambda: render_preview(str(place), width=400),
                lambda: find_images(str(tmp_path)),
            ):
                with suppress(PyramidError):  # in our words; anything else is a fault
                    entry()
        finally:
            (place / key).write_bytes(before)
    assert not (tmp_path / "t.zarr").exists()


# --- links and records: what is deleted and written ---------------------------------------------


def asked(place: Path, **more: Any) -> PyramidParams:
    return PyramidParams(**{"source": str(place), "step": [2, 2], "chunks": [16, 16],
                            "edges": "partial", "workers": 2, **more})  # fmt: skip


@pytest.mark.parametrize("existing", ["resume", "replace"])
@pytest.mark.parametrize("link", ["1", "1/c", "1/c/0"])
def test_nothing_is_written_or_deleted_through_a_link(
    tmp_path: Path, existing: str, link: str
) -> None:
    """A level, or a folder in it, that leads to another image is refused; that image stays as it was."""
    place, other = image(tmp_path / "a.zarr"), image(tmp_path / "b.zarr")
    for built in (place, other):
        build_pyramid(asked(built))
    look = look_at(open_image(str(place)).info)
    shutil.rmtree(place / link)
    (place / link).symlink_to(other / link)
    document = json.loads((place / "zarr.json").read_text())
    entry = document["attributes"]["ome"]["multiscales"][0]
    entry["datasets"] = entry["datasets"][:1]
    document["attributes"]["zarr-pyramid-flow"] = {
        "state": "building", "in_place": True, "plan": entry["metadata"]["kwargs"], "source": look,
    }  # fmt: skip
    (place / "zarr.json").write_text(json.dumps(document))
    for path in (other / "1/c").rglob("*"):
        if path.is_file():
            path.unlink()  # so there is something to write
            break
    before = tree(other)
    with pytest.raises(TargetError, match="link"):
        build_pyramid(asked(place, existing=existing))
    assert (place / link).is_symlink()
    assert tree(other) == before


def test_labels_behind_a_link_are_not_built(tmp_path: Path) -> None:
    """In place, label images that lie elsewhere get no levels: they are not ours to change."""
    place, other = tmp_path / "a.zarr", image(tmp_path / "b.zarr")
    LIES["labels that are linked"](place)
    surroundings(tmp_path)
    before = tree(other.parent / "outside.zarr")
    with pytest.raises(PyramidError, match=r"labels/cells is a link"):
        build_pyramid(asked(place))
    assert tree(tmp_path / "outside.zarr") == before


def test_a_base_behind_a_link_is_not_completed(tmp_path: Path) -> None:
    """A base that lies elsewhere gets no dimension_names; with a target it is a source like any other."""
    place = tmp_path / "a.zarr"
    LIES["the base is a link"](place)
    before = tree(tmp_path / "base")
    with pytest.raises(TargetError, match="link in place of its base"):
        build_pyramid(asked(place))
    build_pyramid(asked(place, target=str(tmp_path / "built.zarr")))
    assert tree(tmp_path / "base") == before
    assert verify_pyramid(str(tmp_path / "built.zarr"), "full").ok


def test_a_group_is_never_deleted_for_a_level(tmp_path: Path) -> None:
    """Replace deletes arrays that a record names, never a group, whatever it is called."""
    place = image(tmp_path / "a.zarr")
    kept = image(place / "more")
    document = json.loads((place / "zarr.json").read_text())
    record = {"state": "clearing", "in_place": True, "plan": {"paths": ["0", "more"]}, "source": ""}
    document["attributes"]["zarr-pyramid-flow"] = {**record, "delete": ["more", "0"]}
    (place / "zarr.json").write_text(json.dumps(document))
    before = tree(kept), tree(place / "0")
    build_pyramid(asked(place, existing="replace"))
    assert (tree(kept), tree(place / "0")) == before
    assert verify_pyramid(str(place), "full").ok


# --- small parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested more than 100 levels"),
        (b" " * (2**25 + 1), "more than 33,554,432 bytes"),
        (b"[]", "not a JSON object"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    ],
)
def test_json_is_read_within_bounds(content: bytes, says: str) -> None:
    """What is too deep, too large, too long or no object is refused, and says so."""
    with pytest.raises(ValueError, match=says):
        json_object(content)


def test_a_list_of_labels_is_read_within_bounds(tmp_path: Path) -> None:
    """A hundred thousand names would be looked for one by one, for minutes; none of them is."""
    place = image(tmp_path / "a.zarr")
    build_pyramid(PyramidParams(source=str(place), step=[2, 2], edges="partial"))
    labels = zarr.open_group(place).create_group("labels")
    labels.attrs["ome"] = {"version": "0.5", "labels": [str(n) for n in range(100_000)]}
    found = verify_pyramid(str(place), "none")
    said = "error: labels: lists 100,000 names; 10,000 are read at most"
    assert [str(finding) for finding in found.findings if finding.where == "labels"] == [said]


def test_what_is_printed_cannot_move_the_cursor() -> None:
    """Control characters, marks of direction and lone surrogates are spelled out; lines stay lines."""
    assert printable("a\x1b[2J\r\x9b\u202e\udc80\nb µm") == (
        "a\\x1b[2J\\r\\x9b\\u202e\\udc80\nb µm"
    )


def test_a_report_shows_a_name_and_does_nothing_else(tmp_path: Path) -> None:
    """A name with HTML, Markdown, lines and escapes in it is text of one line in the report of a run."""
    from flows.reports import report

    place = tmp_path / "a.zarr"
    LIES["document: a name that escapes"](place)
    lines = report(build_pyramid(asked(place))).splitlines()
    assert lines[0].startswith("# \\x1b[2J".replace("[", "&#91;"))
    assert not any(sign in lines[0] for sign in ("<", "|", "[", "\x1b"))
    assert not any(line.startswith("# ") for line in lines[1:])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("shards", [None, (16, 16)], ids=["chunks", "shards"])
@pytest.mark.parametrize(
    ("is_there", "said"),
    [
        (lambda place: place.symlink_to("/dev/zero"), r"c/0/0 is no file"),
        (os.mkfifo, r"c/0/0 is no file"),
        (lambda place: place.symlink_to(place), r"Too many levels of symbolic links"),
    ],
    ids=["device", "pipe", "loop"],
)
def test_a_picture_waits_for_no_chunk_that_is_no_file(
    tmp_path: Path, is_there: Callable[[Path], None], said: str, shards: tuple[int, ...] | None
) -> None:
    """A device that gives bytes for ever, a pipe that gives none, a link to itself: refused in a line, which no listing does for it."""
    image = write_image(tmp_path / "a.zarr", noise((32, 32)), (8, 8), shards=shards)
    chunk = image / "0/c/0/0"
    chunk.unlink()
    is_there(chunk)
    with pytest.raises(SourceError, match=rf"cannot be read: [^\n]*{said}"):
        render_preview(str(image))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    """Metadata that is a pipe is refused at once."""
    place = image(tmp_path / "a.zarr")
    (place / "0/zarr.json").unlink()
    os.mkfifo(place / "0/zarr.json")
    with pytest.raises(PyramidError, match="is a pipe"):
        open_image(str(place))


@pytest.mark.parametrize(("flags", "size"), [(0xC0, struct.pack("<Q", 4096)), (0x00, b"")])
def test_a_zstd_frame_of_small_blocks_is_taken_at_its_word_where_it_says_its_size(
    tmp_path: Path, flags: int, size: bytes
) -> None:
    """Writers that flush often make many blocks; decoders hold a frame to the size that it says."""
    place = write_image(tmp_path / "a.zarr", np.ones((64, 64), "u1"), (64, 64))
    block = struct.pack("<I", 1 << 3 | 2 << 1)[:3] + b"\x00"
    frame = b"\x28\xb5\x2f\xfd" + bytes([flags, 0x58]) + size + block * 1000
    (place / "0/c/0/0").write_bytes(frame)
    array = open_array(open_storage(str(place)), "0")
    with nullcontext() if size else pytest.raises(ValueError, match="would expand to"):
        refuse_swollen(array, (slice(0, 64), slice(0, 64)))


def test_a_damaged_chunk_is_told_of_in_one_line(tmp_path: Path) -> None:
    """Also where zarr's reads of others are left behind, of which Python would tell at its end."""
    voxels = noise((32, 32, 32))
    image = write_image(tmp_path / "a.zarr", voxels, (8, 8, 8), shards=(16, 16, 16))
    (image / "0/c/0/0/0").write_bytes(b"abc")
    argv = [sys.executable, "-m", "pyramid_core.cli", "preview", str(image)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
