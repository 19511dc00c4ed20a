"""What is asked wrongly: one message, exit status 2, and nothing touched."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pyramid_core.cli import main


def make_array(path: Path, *, shape: tuple[int, ...] = (8, 8, 8), dtype: str = "u1") -> None:
    """Write a lone Zarr array, in no group."""
    zarr.create_array(path, shape=shape, dtype=dtype, chunks=tuple(min(n, 4) or 1 for n in shape))


def make_image(path: Path, *, zarr_format: int = 3, shape: tuple[int, ...] = (8, 8, 8)) -> None:
    """Write a group with its base at 0."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type] # 2 or 3
    base = group.create_array("0", shape=shape, dtype="u1", chunks=(4,) * len(shape))
    base[...] = np.arange(np.prod(shape), dtype="u1").reshape(shape)


def make_document(path: Path, **changes: Any) -> None:
    """Write an image whose multiscales document has some entries changed."""
    make_image(path)
    axes: Any = [{"name": name, "type": "space"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    entry: dict[str, Any] = {
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": scale}],
    }
    zarr.open_group(path).attrs["ome"] = {"version": "0.5", "multiscales": [{**entry, **changes}]}


def build_other(path: Path) -> None:
    """Write a finished pyramid, made by other parameters."""
    make_image(path.parent / "other.zarr")
    assert main(["build", str(path.parent / "other.zarr"), "--target", str(path),
                 "--step", "2,2,2", "--method", "max"]) == 0  # fmt: skip


def image(place: Path) -> None:
    """Write ``a.zarr``, an image of 8 x 8 x 8."""
    make_image(place / "a.zarr")


def then(*steps: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return what takes several steps, one after another."""

    def there(place: Path) -> None:
        for step in steps:
            step(place)

    return there


@dataclass(frozen=True)
class Wrong:
    """A wrong request: what is there, what is asked, and words that the message must hold."""

    id: str
    asked: tuple[str, ...]
    says: tuple[str, ...]
    there: Callable[[Path], object] = field(default=image)


def array_of(dtype: str = "u1", shape: tuple[int, ...] = (8, 8, 8)) -> Callable[[Path], object]:
    """Return what writes ``a.zarr/0`` of a type and shape."""

    def there(place: Path) -> None:
        zarr.open_group(place / "a.zarr", mode="w")
        make_array(place / "a.zarr" / "0", shape=shape, dtype=dtype)

    return there


def raw_array(**metadata: object) -> Callable[[Path], object]:
    """Return what writes ``a.zarr/0`` with metadata that zarr itself would not write."""

    def there(place: Path) -> None:
        make_image(place / "a.zarr")
        file = place / "a.zarr" / "0" / "zarr.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **metadata}))

    return there


def retyped(dtype: object) -> Callable[[Path], object]:
    """Return what writes a Zarr v2 ``a.zarr/0`` that claims another type."""

    def there(place: Path) -> None:
        make_image(place / "a.zarr", zarr_format=2)
        file = place / "a.zarr" / "0" / ".zarray"
        file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": dtype}))

    return there


def taken(place: Path) -> None:
    """Write an image with a stranger where level 1 would go."""
    make_image(place / "a.zarr")
    make_array(place / "a.zarr" / "1")


SRC = ("--source", "a.zarr", "--chunks", "2,2,2")
WRONG = [
    Wrong("no source at all", (), ("SOURCE",)),
    Wrong("missing location", ("--source", "nowhere.zarr"), ("nowhere.zarr", "nothing")),
    Wrong("empty folder", ("--source", "e"), ("e holds no Zarr",), lambda p: (p / "e").mkdir()),
    Wrong("not Zarr", ("--source", "d"), ("d holds no Zarr", "a.tif"),
          then(lambda p: (p / "d").mkdir(), lambda p: (p / "d" / "a.tif").write_bytes(b"II*"))),
    Wrong("a file", ("--source", "f.tif"), ("is a file",), lambda p: (p / "f.tif").write_text("x")),
    Wrong("unknown scheme", ("--source", "ftp://host/x.zarr"), ("ftp://host/x.zarr",)),
    Wrong("empty source", ("--source", " "), ("--source", "location")),
    Wrong("group without base", ("--source", "g.zarr"), ("without an array 0",),
          lambda p: zarr.open_group(p / "g.zarr", mode="w")),
    Wrong("a plate", ("--source", "g.zarr"), ("plate",),
          lambda p: zarr.open_group(p / "g.zarr", mode="w", attributes={"ome": {"plate": {}}})),
    Wrong("metadata is no JSON", ("--source", "g.zarr"), ("not JSON",),
          then(lambda p: (p / "g.zarr").mkdir(), lambda p: (p / "g.zarr" / "zarr.json").write_text("{"))),
    Wrong("one axis", SRC[:2], ("2 to 5 axes",), array_of(shape=(8,))),
    Wrong("six axes", SRC[:2], ("2 to 5 axes",), array_of(shape=(2,) * 6)),
    Wrong("no axis", SRC[:2], ("2 to 5 axes",), array_of(shape=())),
    Wrong("zero-length axis", SRC[:2], ("length zero",), array_of(shape=(8, 0, 8))),
    Wrong("complex", SRC[:2], ("complex64",), array_of(dtype="c8")),
    Wrong("string", SRC[:2], ("a.zarr",), retyped("<U4")),
    Wrong("structured", SRC[:2], ("a.zarr",), retyped([["x", "<i2"], ["y", "<i2"]])),
    Wrong("object", SRC[:2], ("a.zarr",), retyped("|O")),
    Wrong("datetime", SRC[:2], ("a.zarr",), retyped("<M8[s]")),
    Wrong("negative fill for unsigned", SRC[:2], ("a.zarr",), raw_array(fill_value=-1)),
    Wrong("unknown codec", SRC[:2], ("a.zarr",), raw_array(codecs=[{"name": "nonesuch"}])),
    Wrong("step 0", (*SRC, "--step", "0,2,2"), ("--step", "0")),
    Wrong("negative step", (*SRC, "--step=-2,2,2"), ("--step", "-2")),
    Wrong("step no number", (*SRC, "--step", "two"), ("--step", "two")),
    Wrong("step 1 everywhere", (*SRC, "--step", "1,1,1"), ("step is 1",)),
    Wrong("step of wrong length", (*SRC, "--step", "2,2"), ("step has 2 entries", "3 axes")),
    Wrong("not divisible", (*SRC, "--step", "3,2,2"), ("level 1", "z", "8", "3", "--edges partial")),
    Wrong("chunks of wrong length", ("--source", "a.zarr", "--chunks", "2"), ("chunks has 1",)),
    Wrong("chunk 0", ("--source", "a.zarr", "--chunks", "0,2,2"), ("--chunks",)),
    Wrong("shard no multiple of chunk", (*SRC, "--shards", "3,4,4"), ("3x4x4", "2x2x2")),
    Wrong("shards in 0.4", (*SRC, "--shards", "4,4,4", "--target", "t", "--ngff-version", "0.4"),
          ("shards need Zarr v3",)),
    Wrong("chunk larger than memory", (*SRC, "--memory-limit", "10"), ("memory_limit is 10 B",)),
    Wrong("memory no size", (*SRC, "--memory-limit", "much"), ("--memory-limit", "much")),
    Wrong("memory zero", (*SRC, "--memory-limit", "0"), ("--memory-limit",)),
    Wrong("unknown method", (*SRC, "--method", "average"), ("--method", "mean", "average")),
    Wrong("unknown edges", (*SRC, "--edges", "cut"), ("--edges", "cut")),
    Wrong("unknown compression", (*SRC, "--compression", "rar"), ("--compression", "rar")),
    Wrong("unknown version", (*SRC, "--ngff-version", "0.6"), ("--ngff-version", "0.6")),
    Wrong("0.4 in place of v3", (*SRC, "--ngff-version", "0.4"), ("Zarr v3", "--target")),
    Wrong("max levels -1", (*SRC, "--max-levels=-1"), ("--max-levels",)),
    Wrong("workers -1", (*SRC, "--workers=-1"), ("--workers",)),
    Wrong("duplicate axis", (*SRC, "--axes", "zyy"), ("--axes", "zyy")),
    Wrong("axes out of order", (*SRC, "--axes", "xyz"), ("--axes", "xyz")),
    Wrong("unknown axis", (*SRC, "--axes", "qyx"), ("--axes", "qyx")),
    Wrong("too few axes named", (*SRC, "--axes", "yx"), ("'yx'", "8x8x8")),
    Wrong("axes against the metadata", (*SRC, "--axes", "tyx"), ("contradict", "zyx"),
          lambda p: make_document(p / "a.zarr")),
    Wrong("unknown unit", (*SRC, "--unit", "furlong"), ("--unit", "furlong")),
    Wrong("NaN voxel size", (*SRC, "--voxel-size", "nan,1,1"), ("--voxel-size",)),
    Wrong("zero voxel size", (*SRC, "--voxel-size", "0,1,1"), ("--voxel-size",)),
    Wrong("voxel size of wrong length", (*SRC, "--voxel-size", "1,1"), ("voxel_size has 2",)),
    Wrong("target is source", (*SRC, "--target", "a.zarr"), ("target is the source",)),
    Wrong("target is source, spelt otherwise", (*SRC, "--target", "./x/../a.zarr"), ("is the source",)),
    Wrong("target inside source", (*SRC, "--target", "a.zarr/p"), ("inside",)),
    Wrong("source inside target", ("--source", "b/a.zarr", "--target", "b"), ("inside",),
          lambda p: make_image(p / "b" / "a.zarr")),
    Wrong("target is another image", (*SRC, "--target", "t.zarr", "--step", "2,2,2"),
          ("finished image of another plan", "method", "--existing replace"),
          then(image, lambda p: build_other(p / "t.zarr"))),
    Wrong("target exists and shall not", (*SRC, "--target", "t.zarr", "--existing", "fail"),
          ("finished image",), then(image, lambda p: build_other(p / "t.zarr"))),
    Wrong("target is an array", (*SRC, "--target", "t.zarr"), ("is an array",),
          then(image, lambda p: make_array(p / "t.zarr"))),
    Wrong("target holds other things", (*SRC, "--target", "t"), ("holds something", "notes.txt"),
          then(image, lambda p: (p / "t").mkdir(), lambda p: (p / "t" / "notes.txt").touch())),
    Wrong("target is a file", (*SRC, "--target", "t"), ("is a file",),
          then(image, lambda p: (p / "t").write_text("x"))),
    Wrong("array in no group, in place", ("--source", "l.zarr"), ("no Zarr group", "--target"),
          lambda p: make_array(p / "l.zarr")),
    Wrong("name of a level is taken", SRC, ("something at 1",), taken),
    Wrong("path out of the image", SRC, ("leads out of the image",),
          lambda p: make_document(p / "a.zarr", datasets=[{"path": "../b", "coordinateTransformations":
                                  [{"type": "scale", "scale": [1, 1, 1]}]}])),
    Wrong("document without axes", SRC, ("not valid OME-Zarr",),
          lambda p: make_document(p / "a.zarr", axes=None)),
    Wrong("no Dask scheduler", (*SRC, "--dask-address", "tcp://127.0.0.1:9"), ("127.0.0.1:9",)),
    Wrong("unknown option", (*SRC, "--colour", "red"), ("--colour",)),
    Wrong("unknown test image", ("--source", "n.zarr", "--test-image", "cat"), ("--test-image",)),
]  # fmt: skip


def tree(place: Path) -> dict[str, str]:
    """Return a digest of every file below a place."""
    return {
        str(file.relative_to(place)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(place.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.id)
def test_a_wrong_request_gives_status_2_a_short_message_and_touches_nothing(
    wrong: Wrong,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit status 2, at most a few lines on standard error, every file as it was."""
    monkeypatch.chdir(tmp_path)
    wrong.there(tmp_path)
    before = tree(tmp_path)
    capsys.readouterr()
    try:
        status = main(["build", *wrong.asked])
    except SystemExit as stop:  # argparse ends this way
        status = int(str(stop.code))
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert len(err.splitlines()) <= 4
    assert len(err) < 900
    assert "Traceback" not in err
    for words in wrong.says:
        assert words in err
    assert tree(tmp_path) == before


def test_there_are_at_least_forty_wrong_requests() -> None:
    """The table holds what the contract asks for, each under a name of its own."""
    assert len({wrong.id for wrong in WRONG}) == len(WRONG) >= 40


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_target_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    """As an unprivileged user, a read-only place gives status 2 and one message."""
    make_image(tmp_path / "a.zarr")
    (tmp_path / "locked").mkdir(mode=0o555)
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    asked = ["build", str(tmp_path / "a.zarr"), "--chunks", "2,2,2", "--target"]
    # Built once as root, so that all is imported that an unprivileged user may not read.
    code = (
        "import os, sys; from pyramid_core.cli import main;"
        f"main([*{asked!r}, {str(tmp_path / 'first.zarr')!r}]); os.setuid(65534);"
        f"print('now', file=sys.stderr);"
        f"sys.exit(main([*{asked!r}, {str(tmp_path / 'locked' / 't.zarr')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = done.stderr.partition("now\n")[2]
    assert (done.returncode, len(message.splitlines())) == (2, 1), done.stderr
    assert "Permission denied" in message
