"""Disks that are full, places that refuse, limits, links: told in a line, nothing lost, gone on with."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyramid_core.cli import main
from pyramid_core.errors import BuildError, is_transient, reason_and_remedy, system_number
from tests.conditions import (
    ASKED,
    ROOT,
    mounted,
    run,
    run_without_powers,
)
from tests.stories import attributes, noise, tree, write_image

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image, and its pyramid as it is built in good conditions."""
    folder = tmp_path_factory.mktemp("calm")
    write_image(folder / "in.zarr", noise((24, 24)), (8, 8))
    shutil.copytree(folder / "in.zarr", folder / "own.zarr")
    elsewhere = [folder / "in.zarr", "--target", folder / "out.zarr"]
    for words in (elsewhere, [folder / "own.zarr"]):
        assert main(["build", *map(str, words), *ASKED]) == 0
    return folder


@pytest.fixture
def source(calm: Path, tmp_path: Path) -> Path:
    """The image, to be used and damaged."""
    return Path(shutil.copytree(calm / "in.zarr", tmp_path / "in.zarr"))


def is_unfinished(target: Path) -> bool:
    """Nothing was written, or the record says that it is being built, and no document is there."""
    if not (target / "zarr.json").exists():
        return not [path for path in target.rglob("*") if path.is_file()]
    found = attributes(target)
    return found["zarr-pyramid-flow"]["state"] in ("building", "clearing") and "ome" not in found


# --- a full disk --------------------------------------------------------------------------------


def stage(told: str) -> str:
    """Say at which stage of a build a disk was full, by the message."""
    for words, name in (
        ("cannot write beside", "lock"),
        ("cannot be built", "folder"),
        ("level 0, voxels", "first level"),
        ("voxels [", "other levels"),
        ("could not be finished", "metadata"),
    ):
        if words in told:
            return name
    return told


@pytest.mark.parametrize(
    ("unit", "most", "stages"),
    [
        ("nr_inodes={}", 100, {"lock", "folder", "metadata", "first level", "other levels"}),
        ("size={}p", 80, {"metadata", "first level", "other levels"}),
    ],
    ids=["files", "bytes"],
)
def test_a_disk_that_is_full_at_any_moment_is_told_of_and_the_build_goes_on_once_there_is_room(
    tmp_path: Path,
    calm: Path,
    source: Path,
    capsys: Capture,
    unit: str,
    most: int,
    stages: set[str],
) -> None:
    """Of every size at which the disk is too small, each time another write fails: a line, unfinished, and then the same bytes."""
    before, found = tree(source), set()
    target = tmp_path / "disk" / "out.zarr"
    sizes = (
        [*range(1, 14), *range(14, most, 5)]
        if "inodes" in unit
        else [*range(1, 9), *range(9, 54, 5), *range(54, most)]
    )
    for size in sizes:
        word = unit.replace("{}p", f"{4 * size}k").format(size)
        with mounted(tmp_path / "disk", f"size=1m,{word}") as disk:
            told = run(capsys, "build", source, "--target", target, *ASKED)
            if told.status == 0:
                break
            nothing = not any(path.is_file() for path in (tmp_path / "disk").rglob("*"))
            told.says(2 if stage(told.message) in ("lock", "folder") else 1,
                      str(target) if "voxels" not in told.text.splitlines()[-1] else "level ",
                      "No space left on device; make room there")  # fmt: skip
            assert told.status == 1 or nothing
            assert is_unfinished(target)
            found.add(stage(told.message))
            disk.set("size=1m,nr_inodes=1000")
            assert run(capsys, "build", source, "--target", target, *ASKED).status == 0
            assert tree(target) == tree(calm / "out.zarr")
            assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["out.zarr"]
    else:
        pytest.fail(f"{most} {unit} were not enough")
    assert found == stages
    assert tree(source) == before


@pytest.mark.parametrize("left", range(4))
def test_a_disk_that_is_full_when_an_image_is_replaced_never_shows_a_mixture(
    tmp_path: Path, calm: Path, source: Path, capsys: Capture, left: int
) -> None:
    """With room for so many pages: the old image is whole, or the target says that it is unfinished; then the new one is right."""
    asked = ("build", source, "--target", tmp_path / "disk" / "out.zarr", *ASKED)
    with mounted(tmp_path / "disk", "size=1m") as disk:
        target = tmp_path / "disk" / "out.zarr"
        assert run(capsys, *asked, "--method", "max").status == 0
        old = tree(target)
        _fill(tmp_path / "disk" / "ballast", left)
        told = run(capsys, *asked, "--existing", "replace")
        if told.status != 0:
            told.says(told.status, "No space left on device; make room there")
            assert tree(target) == old or is_unfinished(target)
            assert tree(target) == old or told.status == 1
        disk.set("size=2m")
        assert run(capsys, *asked, "--existing", "replace").status == 0
        assert tree(target) == tree(calm / "out.zarr")
        assert left < 3 or told.status == 0


def _fill(place: Path, pages: int) -> None:
    """Fill a disk up to so many pages of 4 kB."""
    with place.open("wb", buffering=0) as file:
        room = os.statvfs(place.parent).f_bavail
        for _ in range(room - pages):
            file.write(bytes(4096))
    assert os.statvfs(place.parent).f_bavail == pages


def test_a_disk_that_is_full_in_place_leaves_the_base_and_its_document(
    tmp_path: Path, calm: Path, capsys: Capture
) -> None:
    """The base is the same before, underway and after; the levels beside it end with the bytes of a calm build."""
    with mounted(tmp_path / "disk", "size=1m") as disk:
        place = tmp_path / "disk" / "own.zarr"
        shutil.copytree(calm / "in.zarr", place)
        base = tree(place / "0")
        for left in (0, 1, 2, 3, 4, 6):
            _fill(tmp_path / "disk" / "ballast", left)
            told = run(capsys, "build", place, *ASKED)
            told.says(told.status or 1, "No space left on device; make room there")
            after = tree(place / "0")
            # At the commit, the base gets the names of its axes.
            assert {**after, "zarr.json": ""} == {**base, "zarr.json": ""}
            (tmp_path / "disk" / "ballast").unlink()
        disk.set("size=2m")
        assert run(capsys, "build", place, *ASKED).status == 0
        assert tree(place) == tree(calm / "own.zarr")


def test_a_limit_on_the_size_of_files_is_told_of(tmp_path: Path, source: Path) -> None:
    """Under ulimit -f a shard cannot be written: status 1 and the limit; without it the same bytes as ever."""
    shutil.rmtree(source)
    write_image(source, noise((64, 64)), (16, 16))
    asked = ["build", str(source), "--step", "2,2", "--shards", "64,64", "--compression", "none",
             "--chunks", "16,16", "--target"]  # fmt: skip
    limited = (
        "import resource, sys; from pyramid_core.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))\n"
        "first = main(sys.argv[1:])\n"
        "print('then', file=sys.stderr)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "sys.exit(10 * first + main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", limited, *asked, str(tmp_path / "out.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 10, done.stderr
    first, _, _ = done.stderr.partition("then\n")
    assert "Traceback" not in done.stderr
    assert first.splitlines()[-1].startswith("pyramid: level 0, voxels [0:64, 0:64]: ")
    assert first.endswith("File too large; raise the limit on the size of files (ulimit -f), "
                          "then run the same again to go on\n")  # fmt: skip
    calm = [sys.executable, "-m", "pyramid_core.cli", *asked, str(tmp_path / "calm.zarr")]
    subprocess.run(calm, check=True, capture_output=True, cwd=ROOT)
    assert tree(tmp_path / "out.zarr") == tree(tmp_path / "calm.zarr")


def test_a_preview_and_a_phantom_on_a_full_disk_are_told_of(
    tmp_path: Path, calm: Path, capsys: Capture
) -> None:
    """The earlier picture stays; the test image is unfinished, and made when the same is asked again with room."""
    with mounted(tmp_path / "disk", "size=1m") as disk:
        picture, image = tmp_path / "disk" / "a.png", tmp_path / "disk" / "p.zarr"
        assert run(capsys, "preview", calm / "out.zarr", "-o", picture).status == 0
        before = picture.read_bytes()
        _fill(tmp_path / "disk" / "ballast", 1)
        told = run(capsys, "preview", calm / "out.zarr", "-o", picture)
        told.says(1, str(picture), "No space left on device; make room there")
        assert picture.read_bytes() == before
        asked = ("phantom", image, "--test-shape", "64,64", "--test-image", "random")
        run(capsys, *asked).says(1, str(image), "No space left on device; make room there",
                                 "run the same again")  # fmt: skip
        assert sorted(p.name for p in (tmp_path / "disk").iterdir())[:2] == ["a.png", "ballast"]
        disk.set("size=4m")
        assert run(capsys, *asked).status == 0
        assert run(capsys, "build", image).status == 0


# --- read-only ----------------------------------------------------------------------------------


def test_a_place_that_is_read_only_is_refused_and_left_alone(
    tmp_path: Path, calm: Path, capsys: Capture
) -> None:
    """From the beginning: elsewhere and in place, for a test image and a picture: status 2, and nothing of it changes."""
    with mounted(tmp_path / "disk", "size=4m") as disk:
        shutil.copytree(calm / "in.zarr", tmp_path / "disk" / "in.zarr")
        before = tree(tmp_path / "disk")
        disk.set("ro")
        there = tmp_path / "disk"
        for words in (
            ("build", calm / "in.zarr", "--target", there / "out.zarr", *ASKED),
            ("build", calm / "in.zarr", "--target", there / "new" / "out.zarr", *ASKED),
            ("build", there / "in.zarr", *ASKED),
            ("phantom", there / "p.zarr", "--test-shape", "64,64"),
        ):
            run(capsys, *words).says(2, str(there), "Read-only file system; mount it to be written")
        told = run(capsys, "preview", calm / "out.zarr", "-o", there / "a.png")
        told.says(1, "a.png", "Read-only file system; mount it to be written")
        assert tree(there) == before
        # What is only read works.
        assert run(capsys, "plan", there / "in.zarr").status == 0
        target = tmp_path / "out.zarr"
        assert run(capsys, "build", there / "in.zarr", "--target", target, *ASKED).status == 0
        assert tree(target) == tree(calm / "out.zarr")


MIDWAY = """
import subprocess, sys
from pyramid_core import PyramidParams, build_pyramid, cli
from pyramid_core import build as story

once = []

def progress(run, block):
    if run.level.index == int(sys.argv[1]):
        exec(sys.argv[2])

def build(params, progress=None, real=build_pyramid):
    return real(params, progress=globals()["progress"])

story.build_pyramid = build
sys.exit(cli.main(sys.argv[3:]))
"""
"""Runs ``pyramid``, and some code after each block of a level."""


@pytest.mark.parametrize("level", [0, 3])
def test_a_place_that_becomes_read_only_midway_is_told_of_and_gone_on_with(
    tmp_path: Path, calm: Path, source: Path, capsys: Capture, level: int
) -> None:
    """After a level, the last one too: status 1, unfinished, no read of it is wrong; writable again, the same bytes."""
    with mounted(tmp_path / "disk", "size=4m"):
        target = tmp_path / "disk" / "out.zarr"
        asked = ["build", str(source), "--target", str(target), *ASKED]
        # Over it, so that the lock, which is open, does not keep it writable.
        place = str(tmp_path / "disk")
        cover = [["mount", "--bind", place, place], ["mount", "-o", "remount,ro,bind", place]]
        code = f"once or [subprocess.run(words, check=True) for words in {cover}]; once.append(1)"
        command = [sys.executable, "-c", MIDWAY, str(level), code, *asked]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert (
            "Read-only file system; mount it to be written, or choose another place, then" in last
        )
        assert is_unfinished(target)
        run(capsys, *asked).says(2, "Read-only file system")
        subprocess.run(["umount", place], check=True)
        assert run(capsys, *asked).status == 0
        assert tree(target) == tree(calm / "out.zarr")
        # The lock that could not be removed then held up nobody, and is gone.
        assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["out.zarr"]


# --- no permission ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "at", "status", "words"),
    [
        (0o000, "in.zarr/0/c/1/1", 1, "level 0, voxels ["),
        (0o000, "in.zarr/0/zarr.json", 2, "cannot be read"),
        (0o000, "in.zarr/zarr.json", 2, "cannot be read"),
        (0o311, "in.zarr/0/c/1", 2, "in.zarr"),
        (0o555, "out", 2, "cannot write beside"),
        (0o000, "out", 2, "cannot write beside"),
        (0o555, "out/out.zarr", 2, "cannot be built"),
    ],
    ids=lambda value: oct(value)[2:] if isinstance(value, int) else None,
)
def test_what_may_not_be_read_or_written_is_an_error_and_never_background(
    tmp_path: Path,
    calm: Path,
    source: Path,
    capsys: Capture,
    mode: int,
    at: str,
    status: int,
    words: str,
) -> None:
    """Without the permission a line names the place; with it the same request ends with the same bytes."""
    target = tmp_path / "out" / "out.zarr"
    target.mkdir(parents=True)
    asked = ("build", source, "--target", target, *ASKED)
    before = tree(source)
    allowed = (tmp_path / at).stat().st_mode
    (tmp_path / at).chmod(mode)
    try:
        told = run_without_powers(*asked)
    finally:
        (tmp_path / at).chmod(allowed)
    told.says(status, words, "Permission denied; look at the permissions there")
    assert is_unfinished(target)
    assert status == 1 or not list(target.iterdir())
    assert run(capsys, *asked).status == 0
    assert tree(target) == tree(calm / "out.zarr")
    assert tree(source) == before


def test_a_level_that_may_not_be_written_any_more_is_told_of(
    tmp_path: Path, calm: Path, source: Path, capsys: Capture
) -> None:
    """Taken away underway: status 1, level and permission; given back, the same bytes."""
    target = tmp_path / "out.zarr"
    asked = ("build", source, "--target", target, *ASKED)
    assert run(capsys, *asked).status == 0
    (target / "2" / "c" / "0" / "0").unlink()
    (target / "2" / "c" / "0").chmod(0o555)
    told = run_without_powers(*asked)
    (target / "2" / "c" / "0").chmod(0o755)
    told.says(1, "level 2, voxels [", "Permission denied; look at the permissions there")
    assert is_unfinished(target)
    assert run(capsys, *asked).status == 0
    assert tree(target) == tree(calm / "out.zarr")


def test_a_chunk_that_may_not_be_read_is_not_called_wrong(tmp_path: Path, calm: Path) -> None:
    """What the system refuses this process says nothing of the image: status 1, chunk and permission, and nothing is removed."""
    target = Path(shutil.copytree(calm / "out.zarr", tmp_path / "out.zarr"))
    before = tree(target)
    (target / "2" / "c" / "0" / "0").chmod(0)
    told = run_without_powers("verify", target, "--verify", "full")
    (target / "2" / "c" / "0" / "0").chmod(0o644)
    told.says(1, "2/c/0/0: Permission denied; look at the permissions there")
    assert tree(target) == before


# --- too many open files ------------------------------------------------------------------------

LIMITED = """
import json, os, resource, sys
from pyramid_core.cli import main
{imports}
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
statuses = dict()
for more in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + more, hard))
    print("begin", more, file=sys.stderr, flush=True)
    statuses[more] = main(sys.argv[2:])
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
print("begin none", file=sys.stderr, flush=True)
statuses["none"] = main(sys.argv[2:])
print(json.dumps(statuses))
"""
"""Runs ``pyramid`` again and again with a few more open files than the process has already."""


def test_a_limit_on_open_files_is_told_of_and_a_build_needs_few(
    tmp_path: Path, calm: Path, source: Path
) -> None:
    """With 0 to 30 files to open: each failure is a line with the limit, and 30 are enough for two workers; the bytes are the same."""
    target = tmp_path / "out.zarr"
    asked = ["build", str(source), "--target", str(target), *ASKED]
    asked[asked.index("--workers") + 1] = "2"
    imports = "import pyramid_core.build, pyramid_core.verify"
    command = [sys.executable, "-c", LIMITED.replace("{imports}", imports)]
    done = subprocess.run(
        [*command, json.dumps([0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 30]), *asked],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # asyncio's own loop cannot be made with so few, and says so once more when it is thrown away.
    noise_of_asyncio = done.stderr.count("Exception ignored in: <function BaseEventLoop.__del__")
    assert done.stderr.count("Traceback") == noise_of_asyncio, done.stderr
    statuses = json.loads(done.stdout.splitlines()[-1])
    for part in done.stderr.split("begin ")[1:]:
        more, _, said = part.partition("\n")
        assert (statuses[more] == 0) == ("pyramid:" not in said), part
        if statuses[more]:
            assert "Too many open files; raise the limit on open files (ulimit -n)" in said
    assert statuses["0"] in (1, 2)
    assert statuses["30"] == 0
    assert statuses["none"] == 0
    assert tree(target) == tree(calm / "out.zarr")


# --- long paths ---------------------------------------------------------------------------------


def test_a_path_that_is_too_long_is_refused(
    tmp_path: Path, calm: Path, source: Path, capsys: Capture
) -> None:
    """4,096 characters, or a name of 256, as source or target of any command: status 2, and nothing is written."""
    long = tmp_path / "/".join(["n" * 100] * 42)
    name = tmp_path / ("n" * 256)
    before = sorted(tmp_path.iterdir())
    for place in (long, name):
        for words in (
            ("build", place, *ASKED),
            ("plan", place),
            ("verify", place),
            ("preview", place, "-o", tmp_path / "a.png"),
            ("preview", calm / "out.zarr", "-o", place),
            ("phantom", place, "--test-shape", "64,64"),
            ("build", source, "--target", place, *ASKED),
            ("plan", source, "--target", place),
        ):
            told = run(capsys, *words)
            told.says(2, "File name too long; choose a place with a shorter path")
    assert sorted(tmp_path.iterdir()) == before


def test_a_path_that_gets_too_long_at_the_deepest_chunk_is_told_of(
    tmp_path: Path, capsys: Capture
) -> None:
    """Where the target fits but its chunks do not: status 1, unfinished, with what to do."""
    room = 4095 - len(str(tmp_path)) - len("/out.zarr/0/zarr.json#1") - 3
    parts = ["n" * 200] * (room // 201)
    place = tmp_path / "/".join(parts)
    last = 4095 - len(str(place)) - 1 - len("/out.zarr/0/zarr.json#1")
    place = place / ("n" * max(1, min(last, 255)))
    place.mkdir(parents=True)
    target = place / "out.zarr"
    long = write_image(tmp_path / "deep.zarr", noise((4, 4, 4, 4, 4)), (1, 1, 2, 2, 2))
    told = run(capsys, "build", long, "--target", target, "--step", "1,1,2,2,2")
    assert told.status in (1, 2)
    told.says(told.status, "File name too long; choose a place with a shorter path")
    assert is_unfinished(target)


# --- links, and other things in the place of files ----------------------------------------------

ODD = ("pipe", "socket", "loop", "dangling", "folder", "full folder", "device")
"""What may lie where a chunk should be, and is no file."""


@pytest.mark.parametrize(
    ("odd", "where", "zarr_format"),
    [
        *((odd, "source", 3) for odd in ODD),
        *((odd, "source", 2) for odd in ("dangling", "full folder")),
        *((odd, "target", 3) for odd in ("pipe", "full folder")),
    ],
)
def test_what_is_no_file_in_the_place_of_a_chunk_is_an_error_and_never_background(
    tmp_path: Path, capsys: Capture, odd: str, where: str, zarr_format: int
) -> None:
    """A line names the chunk and what lies there, even where nothing else lies in its tile; nobody waits for a pipe; mended, the same bytes."""
    keys = "c/2/2" if zarr_format == 3 else "2.2" if where == "source" else "2/2"
    source = write_image(tmp_path / "in.zarr", noise((24, 24)), (8, 8), zarr_format=zarr_format)
    version = "0.5" if zarr_format == 3 else "0.4"
    asked = ("build", source, "--target", tmp_path / "out.zarr", "--step", "2,2", "--chunks", "8,8",
             "--max-levels", "2", "--edges", "partial", "--ngff-version", version)  # fmt: skip
    assert run(capsys, *asked).status == 0
    calm = tree(tmp_path / "out.zarr")
    place = tmp_path / ("in.zarr" if where == "source" else "out.zarr") / "0" / keys
    kept = tmp_path / "kept"
    if where == "source":
        shutil.rmtree(tmp_path / "out.zarr")
    place.rename(kept)
    put(odd, place)
    told = run(capsys, *asked)
    words = {"pipe": "a pipe", "socket": "a socket", "device": "a device", "folder": "a folder",
             "full folder": "a folder"}.get(odd, "a link that leads nowhere")  # fmt: skip
    told.says(told.status or 1, f"{place} is {words} where chunks are stored; remove it")
    if where == "source":
        assert told.status == 2
        assert not (tmp_path / "out.zarr").exists()
    remove(place)
    shutil.copy2(kept, place)
    assert run(capsys, *asked).status == 0
    assert tree(tmp_path / "out.zarr") == calm


def put(odd: str, place: Path) -> None:
    """Put something at a place that is no file."""
    if odd == "pipe":
        os.mkfifo(place)
    elif odd == "socket":
        here = Path.cwd()
        os.chdir(place.parent)  # its name may have 107 bytes
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(place.name)
        os.chdir(here)
    elif odd == "loop":
        place.symlink_to(place.name)
    elif odd == "dangling":
        place.symlink_to("nothing")
    elif odd == "device":
        place.symlink_to("/dev/zero")
    else:
        place.mkdir()
        if odd == "full folder":
            (place / "file").write_text("here")


def remove(place: Path) -> None:
    """Remove whatever is at a place."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


@pytest.mark.parametrize(
    ("odd", "at"),
    [
        *(("pipe", at) for at in ("0/c", "0", "0/zarr.json", "zarr.json", "")),
        *(("loop", at) for at in ("0/c", "0", "0/zarr.json", "zarr.json", "")),
        *(("file", at) for at in ("0/c", "0/c/1", "1", "")),
        *(("folder", at) for at in ("0/zarr.json", "zarr.json")),
        *(("device", at) for at in ("1/zarr.json", "zarr.json")),
        ("socket", "0/zarr.json"), ("dangling", "0/c"), ("dangling", "0/c/1"), ("dangling", "1"),
        ("pipe", "0/c/0"),
    ],
)  # fmt: skip
def test_what_is_no_folder_or_no_metadata_is_refused_by_every_command(
    tmp_path: Path, calm: Path, capsys: Capture, odd: str, at: str
) -> None:
    """In the place of the image, its base, its folder of chunks or its metadata: no command waits, writes or guesses."""
    image = Path(shutil.copytree(calm / "out.zarr", tmp_path / "a.zarr"))
    place = image / at
    remove(place)
    if odd == "file":
        place.write_text("{} no")
    else:
        put(odd, place)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for words in (
        ("plan", image),
        ("build", image, *ASKED),
        ("build", image, "--target", tmp_path / "b.zarr", *ASKED),
        ("build", calm / "in.zarr", "--target", image, *ASKED),
        ("verify", image),
        ("preview", image, "-o", tmp_path / "a.png"),
        ("phantom", image, "--test-shape", "64,64"),
    ):
        told = run(capsys, *words)
        assert "Traceback" not in told.text
        if words[0] == "plan" and told.status == 0:
            assert at.startswith("0/c") or at in ("1", "1/zarr.json")
        elif words[1:4:2] == (image, tmp_path / "b.zarr") and at.startswith("1"):
            assert told.status == 0  # built from level 0 alone
        elif words[0] == "preview" and told.status == 0:
            assert at.startswith("0/c")  # drawn from a coarser level
            (tmp_path / "a.png").unlink()
        elif words[0] == "verify":
            assert told.status in (1, 2)
        else:
            told.says(told.status or 2)
            assert told.status in (1, 2)
        shutil.rmtree(tmp_path / "b.zarr", ignore_errors=True)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "target", ["/dev/null", "/dev/zero", "/proc/x", "/proc/self/x.zarr", "/sys/x"]
)
def test_a_target_that_is_no_place_for_an_image_is_refused(
    calm: Path, capsys: Capture, target: str
) -> None:
    """A device, and file systems that hold no files of ours: status 2, with the place."""
    told = run(capsys, "build", calm / "in.zarr", "--target", target, *ASKED)
    told.says(2, target if "self" not in target else ".x.zarr.lock: No such file or directory")


def test_a_target_may_have_a_slash_at_its_end_or_be_reached_by_a_link_to_another_disk(
    tmp_path: Path, calm: Path, capsys: Capture
) -> None:
    """The same bytes, at the place that the link leads to."""
    assert (
        run(capsys, "build", calm / "in.zarr", "--target", f"{tmp_path}/a.zarr/", *ASKED).status
        == 0
    )
    assert tree(tmp_path / "a.zarr") == tree(calm / "out.zarr")
    with mounted(tmp_path / "disk", "size=1m"):
        (tmp_path / "disk" / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
        for target in (tmp_path / "link" / "b.zarr", tmp_path / "link"):
            told = run(capsys, "build", calm / "in.zarr", "--target", target, *ASKED)
            if target.name == "link":
                told.says(2, "holds something that is no Zarr group")
                shutil.rmtree(tmp_path / "disk" / "real" / "b.zarr")
                told = run(capsys, "build", calm / "in.zarr", "--target", target, *ASKED)
                assert tree(tmp_path / "disk" / "real") == tree(calm / "out.zarr")
            else:
                assert tree(tmp_path / "disk" / "real" / "b.zarr") == tree(calm / "out.zarr")
            assert told.status == 0, told.text


def test_a_target_inside_the_source_or_around_it_is_refused(
    tmp_path: Path, calm: Path, source: Path, capsys: Capture
) -> None:
    """Inside the base, as the base, and where the source would lie in one of the levels: status 2, and nothing changes."""
    nested = tmp_path / "out.zarr" / "0"
    nested.parent.mkdir()
    shutil.copytree(calm / "in.zarr", nested / "in.zarr")
    before = tree(tmp_path)
    for image, target in (
        (source, source / "0" / "out.zarr"),
        (source, source / "0"),
        (source / "0", source / "0" / "c"),
        (nested / "in.zarr", tmp_path / "out.zarr"),
    ):
        told = run(capsys, "build", image, "--target", target, *ASKED)
        told.says(2, str(target))
    assert tree(tmp_path) == before


# --- what passes, and what does not -------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "passes"),
    [
        (errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EROFS, False), (errno.EACCES, False),
        (errno.EPERM, False), (errno.EMFILE, False), (errno.EFBIG, False), (errno.ELOOP, False),
        (errno.ENAMETOOLONG, False), (errno.ENOTDIR, False), (errno.EISDIR, False),
        (errno.ENOENT, False), (errno.EINVAL, False),
        (errno.EIO, True), (errno.EAGAIN, True), (errno.EINTR, True), (errno.ESTALE, True),
        (errno.ETIMEDOUT, True), (errno.EBUSY, True), (errno.ENFILE, True), (errno.ENOLCK, True),
        (errno.ECONNRESET, True), (errno.ECONNREFUSED, True),
    ],
    ids=lambda value: errno.errorcode[value] if type(value) is int else None,
)  # fmt: skip
def test_what_stays_until_somebody_does_something_is_not_tried_again(
    number: int, passes: bool
) -> None:
    """Each number of the system, also as the cause of an error of ours, and as zarrs passes it on from the client."""
    assert is_transient(OSError(number, os.strerror(number))) is passes
    block = BuildError("level 0")
    block.__cause__ = OSError(number, os.strerror(number))
    assert is_transient(block) is passes
    if number not in (errno.ENOENT, errno.EINVAL, errno.ECONNRESET, errno.ECONNREFUSED):
        words = f"Generic LocalFileSystem error: Unable to open file /a#1: x (os error {number})"
        assert is_transient(RuntimeError(words)) is passes


def test_a_full_disk_that_the_client_tells_of_is_not_tried_again(tmp_path: Path) -> None:
    """The object-store client's own error for files, which is none of the system's in Python."""
    import obstore
    from obstore.store import LocalStore

    with (
        mounted(tmp_path / "disk", "size=4k"),
        pytest.raises(obstore.exceptions.GenericError) as caught,
    ):
        obstore.put(LocalStore(tmp_path / "disk"), "a", bytes(10000))
    assert system_number(caught.value) == errno.ENOSPC
    assert not is_transient(caught.value)
    assert reason_and_remedy(caught.value).startswith("Unable to copy data to file: No space left")
