"""A store that misbehaves: builds end right, or with one clear error, and nothing is background.

A campaign that fails prints what replays its seed alone:
``FAULT_SEED="in place 17" python -m pytest tests/test_faults.py -k together``.
"""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import zarr

import pyramid_core.owner as owner
import pyramid_core.remote as remote
import pyramid_core.sure as sure
from pyramid_core import PyramidParams, build_pyramid, open_image, verify_pyramid
from pyramid_core.arrays import open_array, with_padding
from pyramid_core.build import build_level
from pyramid_core.contrast import contrast_windows
from pyramid_core.errors import AccessError, BuildError, PyramidError, StoreError
from pyramid_core.phantom import is_vacant
from pyramid_core.plan import plan_pyramid
from pyramid_core.preview import render_preview
from pyramid_core.stores import open_storage
from pyramid_core.writer import prepare
from tests.proxy import KINDS, Proxy, running_proxy
from tests.stories import noise, tree, write_image

pytestmark = pytest.mark.s3

SHAPE, CHUNK = (40, 56), (16, 16)
MOST_RUNS = 20
ASKED: dict[str, Any] = {
    "step": [2, 2], "chunks": [16, 16], "edges": "partial", "workers": 2, "verify": "full",
}  # fmt: skip


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[Proxy]:
    with running_proxy(s3_server) as running:
        yield running


@pytest.fixture
def store(bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket behind the proxy, asked by a client that soon gives up."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    monkeypatch.delenv("AWS_ALLOW_HTTP")  # an endpoint that is plain http says so itself
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setenv("AWS_TIMEOUT", "2s")
    for module in (remote, sure):
        monkeypatch.setattr(module, "PAUSES", (0.01, 0.02, 0.05, 0.1))
    monkeypatch.setattr(owner, "WATCH_SECONDS", 0.2)  # nobody else is there
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.4)
    proxy.come_back()
    proxy.behave()
    yield bucket
    proxy.come_back()
    proxy.behave()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with holes, a chunk of stored background, and chunks at its edges."""
    voxels = np.random.default_rng(3).integers(1, 4000, SHAPE).astype("u2")
    voxels[16:32, 32:48] = 0
    place = write_image(tmp_path_factory.mktemp("in") / "a.zarr", voxels, CHUNK)
    (place / "0/c/2/1").unlink()
    (place / "0/c/0/3").unlink()
    return place


def upload(place: Path, location: str) -> str:
    storage = open_storage(location)
    for path in place.rglob("*"):
        if path.is_file():
            storage.write(path.relative_to(place).as_posix(), path.read_bytes())
    return location


def stored(location: str) -> dict[str, str]:
    """Return a digest of every object below a location."""
    if not location.startswith("s3://"):
        return tree(Path(location))
    storage = open_storage(location)
    keys = sorted(item.key for item in storage.listing())
    return {key: hashlib.sha256(storage.read(key) or b"").hexdigest() for key in keys}


def beside(bucket: str) -> set[str]:
    """Return the names at the top of a bucket: images, and what they leave beside them."""
    return {item.key.split("/")[0] for item in open_storage(bucket).listing()}


def until_done(run: Callable[[], object]) -> list[str]:
    """Run again until it ends well; return what was said of the runs that did not."""
    said: list[str] = []
    while True:
        try:
            run()
        except PyramidError as error:
            said.append(str(error))
            assert "\n" not in said[-1], said[-1]
            assert len(said) < MOST_RUNS, said
        else:
            return said


def places(way: str, store: str, image: Path, tmp_path: Path) -> tuple[str, str | None]:
    source = str(image) if way == "upload" else upload(image, f"{store}/a.zarr")
    target = {"in place": None, "download": str(tmp_path / "b.zarr")}.get(way, f"{store}/b.zarr")
    return source, target


@pytest.fixture(scope="module")
def right(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, str]]:
    """What a build without faults stores, in place and elsewhere."""
    folder = tmp_path_factory.mktemp("right")
    shutil.copytree(image, folder / "a.zarr")
    build_pyramid(PyramidParams(source=str(folder / "a.zarr"), **ASKED))
    shutil.copytree(image, folder / "in" / "a.zarr")
    elsewhere = folder / "b.zarr"
    build_pyramid(PyramidParams(source=str(folder / "in/a.zarr"), target=str(elsewhere), **ASKED))
    return {True: tree(folder / "a.zarr"), False: tree(elsewhere)}


def campaign(
    store: str, proxy: Proxy, image: Path, tmp_path: Path, right: dict[bool, dict[str, str]],
    *, way: str, kinds: tuple[str, ...], seed: int, share: float = 0.1,
) -> None:  # fmt: skip
    source, target = places(way, store, image, tmp_path)
    proxy.fail(*kinds, seed=seed, share=share)
    params = PyramidParams(source=source, target=target, **ASKED)
    said = until_done(lambda: build_pyramid(params))
    done = proxy.done
    proxy.behave()
    print(f"{way}, seed {seed}: {len(said)} runs failed; {dict(done)}; {said}")
    assert sum(done[kind] for kind in kinds) > 0, "nothing went wrong"
    assert stored(target or source) == right[target is None]
    assert verify_pyramid(target or source, "full").ok
    assert beside(store) <= {"a.zarr", "b.zarr"}


def test_a_chunk_in_a_bucket_takes_one_request(store: str, proxy: Proxy, tmp_path: Path) -> None:
    """Each chunk of a level that is reduced is asked for once, each of a level that is made is put once, and no sizes are asked for."""
    source = upload(write_image(tmp_path / "a.zarr", noise((48, 64)), CHUNK), f"{store}/a.zarr")
    plan = plan_pyramid(
        open_image(source).info, PyramidParams(source=source, max_levels=3, **ASKED)
    )
    prepare(plan)
    proxy.behave()
    with ThreadPoolExecutor(2) as threads:
        for level in plan.written:
            build_level(plan, level, threads, owner.Owner())
    asked = Counter((told["method"], told["key"]) for told in proxy.heard if "/c/" in told["key"])
    chunks = {0: (3, 4), 1: (2, 2), 2: (1, 1)}
    keys = {level: [f"a.zarr/{level}/c/{y}/{x}" for y in range(ny) for x in range(nx)]
            for level, (ny, nx) in chunks.items()}  # fmt: skip
    read = Counter(("GET", key) for key in keys[0] + keys[1])
    assert asked == read + Counter(("PUT", key) for key in keys[1] + keys[2])


def test_few_questions_are_asked_of_a_bucket_beside_those_for_chunks(
    store: str, proxy: Proxy, tmp_path: Path
) -> None:
    """Each takes a round trip: what is there, who builds, two levels made, proven and published."""
    source = upload(write_image(tmp_path / "a.zarr", noise((48, 64)), CHUNK), f"{store}/a.zarr")
    before = copy.deepcopy(zarr.config.config)
    proxy.behave()
    build_pyramid(PyramidParams(source=source, max_levels=3, **ASKED))
    # The owner's beat comes with the clock.
    heard = [told for told in proxy.heard if told["key"] != "a.zarr.owner"]
    about = Counter(told["method"] for told in heard if "/c/" not in told["key"])
    # The record, two levels, the names of the base's dimensions, the document.
    assert about["PUT"] == 1 + 2 + 1 + 1
    assert about["GET"] <= 51
    assert next(n for n, told in enumerate(heard) if "/c/" in told["key"]) <= 25
    assert zarr.config.config == before, "zarr's configuration belongs to the user"


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_alone_leaves_the_image_right(
    store: str, proxy: Proxy, image: Path, tmp_path: Path, right: Any, kind: str
) -> None:
    """In place in a bucket, a tenth of the requests fails; the image is that of a build without faults."""
    share = 0.03 if kind == "stall" else 0.1  # each takes as long as the client waits
    campaign(
        store, proxy, image, tmp_path, right, way="in place", kinds=(kind,), seed=1, share=share
    )


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("way", ["in place", "elsewhere", "upload", "download"])
def test_all_faults_together_leave_the_image_right(
    store: str, proxy: Proxy, image: Path, tmp_path: Path, right: Any, way: str, long_form: bool
) -> None:
    """From and to buckets, with every kind of fault, the image is that of a build without faults."""
    # Those that stall take their time, so in the short form they do so alone, above.
    kinds = KINDS if long_form else tuple(kind for kind in KINDS if kind != "stall")
    replayed = os.environ.get("FAULT_SEED", "")
    seeds = [f"{way} {n}" for n in range(2, 52 if long_form else 3)]
    if replayed:
        seeds = [replayed] if replayed.startswith(f"{way} ") else []
    if not seeds:
        pytest.skip(f"FAULT_SEED={replayed!r} is of another way")
    for seed in seeds:
        print(f'replay by FAULT_SEED="{seed}"{" --long" if long_form else ""}')
        for name in beside(store):
            open_storage(store).delete(name)
        folder = tmp_path / seed
        folder.mkdir()
        number = int(seed.rpartition(" ")[2])
        campaign(store, proxy, image, folder, right, way=way, kinds=kinds, seed=number)


# --- a failed read is never background ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "denied", "broken", "truncated"])
def test_a_chunk_that_can_never_be_read_ends_the_build(
    store: str, proxy: Proxy, image: Path, kind: str
) -> None:
    """A listed chunk that is refused for ever is an error that names it; nothing is published."""
    source = upload(image, f"{store}/a.zarr")
    proxy.rule(kind, "0/c/1/1$", times=-1)
    with pytest.raises(BuildError, match=r"^level 1, voxels \[[^\n]*$"):
        build_pyramid(PyramidParams(source=source, **ASKED))
    proxy.behave()
    assert "zarr-pyramid-flow" in open_storage(source).read_json("zarr.json")["attributes"]  # type: ignore[index]
    assert beside(store) == {"a.zarr"}


@pytest.mark.parametrize("times", [1, 2])
def test_a_chunk_that_was_not_found_is_read_until_it_is(
    store: str, proxy: Proxy, image: Path, right: Any, times: int
) -> None:
    """The store says not found of a chunk, of its base or of a level, a few times: it counts as stored."""
    source = upload(image, f"{store}/a.zarr")
    proxy.rule("missing", "0/c/1/1$", times=times)
    proxy.rule("missing", "1/c/1/1$", times=times)
    build_pyramid(PyramidParams(source=source, **ASKED))
    assert proxy.done["missing"] == 2 * times
    proxy.behave()
    assert stored(source) == right[True]


@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_chunk_inside_a_shard_that_was_not_found_is_read_again(
    store: str, proxy: Proxy, tmp_path: Path, first: int
) -> None:
    """A read inside a shard is answered with 404, after its index was read: that is not background."""
    voxels = np.random.default_rng(1).integers(1, 99, (64, 64)).astype("u2")
    local = write_image(tmp_path / "a.zarr", voxels, (16, 16), shards=(64, 64))
    source = upload(local, f"{store}/a.zarr")
    proxy.rule("missing", "0/c/0/0$", first=first)
    build_pyramid(PyramidParams(source=source, shards=[32, 32], **ASKED))
    assert proxy.done["missing"] == 1
    proxy.behave()
    build_pyramid(PyramidParams(source=str(local), shards=[32, 32], **ASKED))
    assert stored(source) == tree(local)


@pytest.mark.parametrize("kind", ["missing", "truncated"])
@pytest.mark.parametrize("key", ["zarr.json", "1/zarr.json"])
def test_metadata_that_was_not_found_is_read_again(
    store: str, proxy: Proxy, image: Path, right: Any, kind: str, key: str
) -> None:
    """A finished image whose metadata fails to be read once is neither vacant nor built anew."""
    source = upload(image, f"{store}/a.zarr")
    build_pyramid(PyramidParams(source=source, **ASKED))

    def built() -> int:
        return build_pyramid(PyramidParams(source=source, **ASKED)).blocks_built

    for ask in (lambda: is_vacant(source), built):
        proxy.behave()
        proxy.rule(kind, f"^a.zarr/{key}$")
        assert not ask()
    assert proxy.done[kind] == 1
    assert verify_pyramid(source, "full").ok
    proxy.behave()
    assert stored(source) == right[True]


@pytest.mark.parametrize("first", [0, 2, 4, 6])
def test_attributes_are_not_lost_by_a_read_that_fails(
    store: str, proxy: Proxy, image: Path, right: Any, first: int
) -> None:
    """Whichever read of the group finds nothing, what it holds beside our document stays."""
    source = upload(image, f"{store}/a.zarr")
    group = open_storage(source).read_json("zarr.json") or {}
    group["attributes"]["mine"] = "kept"
    open_storage(source).write_json("zarr.json", group)
    proxy.rule("missing", "^a.zarr/zarr.json$", first=first)
    build_pyramid(PyramidParams(source=source, **ASKED))
    assert proxy.done["missing"] == 1
    after = open_storage(source).read_json("zarr.json") or {}
    assert after["attributes"]["mine"] == "kept"
    assert set(stored(source)) == set(right[True])


@pytest.mark.parametrize("kind", ["missing", "truncated"])
def test_what_is_drawn_or_measured_is_what_is_stored(
    store: str, proxy: Proxy, image: Path, kind: str
) -> None:
    """Contrast and preview read chunks again that fail; neither takes them for background."""
    source = upload(image, f"{store}/a.zarr")
    result = build_pyramid(PyramidParams(source=source, **ASKED))
    storage = open_storage(source)
    windows, picture = contrast_windows(result.plan, storage), render_preview(source, width=400)
    for ask, expected in (
        (lambda: contrast_windows(result.plan, storage), windows),
        (lambda: render_preview(source, width=400), picture),
    ):
        proxy.behave()
        proxy.rule(kind, "/c/", times=2)
        assert ask() == expected
        assert proxy.done[kind] == 2


@pytest.mark.parametrize("kind", ["missing", "truncated"])
def test_a_store_that_fails_is_no_defect_of_the_image(
    store: str, proxy: Proxy, image: Path, kind: str
) -> None:
    """Verify ends with an error where it cannot read, and never says that the image is wrong."""
    source = upload(image, f"{store}/a.zarr")
    build_pyramid(PyramidParams(source=source, **ASKED))
    for key in ("0/c/0/0$", "^a.zarr/1/zarr.json$"):
        proxy.behave()
        proxy.rule(kind, key, times=-1)
        with pytest.raises((StoreError, BuildError), match=r"^[^\n]*$"):
            verify_pyramid(source, "full")


def test_a_level_that_was_not_found_once_is_no_defect(
    store: str, proxy: Proxy, image: Path
) -> None:
    """A chunk of the coarsest level, which only the comparison reads, is read again."""
    source = upload(image, f"{store}/a.zarr")
    build_pyramid(PyramidParams(source=source, **ASKED))
    proxy.behave()
    proxy.rule("missing", "^a.zarr/2/c/0/0$")
    assert verify_pyramid(source, "full").ok
    assert proxy.done["missing"] == 1


def test_a_listing_that_is_cut_off_goes_on(store: str, proxy: Proxy) -> None:
    """A listing of two pages, the first or second of which breaks off, tells every key once."""
    storage = open_storage(f"{store}/many")
    keys = [f"0/c/{n:04}" for n in range(1010)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: storage.write(key, b"x"), keys))
    for kind in ("truncated", "chunked"):
        for first in (0, 1):
            proxy.behave()
            proxy.rule(kind, r"\?.*list-type", first=first)
            assert [item.key for item in storage.listing("0")] == keys
            assert proxy.done[kind] == 1


def test_a_bucket_is_read_and_written_by_zarrs(store: str, image: Path) -> None:
    """What makes reading sure does not keep the fast pipeline from it."""
    storage = open_storage(upload(image, f"{store}/a.zarr"))
    for array in (
        open_array(storage, "0"),
        with_padding(open_array(storage, "0", writable=True)),
    ):
        assert type(array._async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"


def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAhush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hushtoken")


def pyramid(*words: str) -> tuple[int, str]:
    """Run the command line as a user does; return status and all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pyramid_core.cli", *words],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_no_credential_is_told_or_stored(
    store: str, proxy: Proxy, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is printed, raised, planned or stored: the keys that the variables hold are not in it."""
    source = upload(image, f"{store}/a.zarr")
    marked(monkeypatch)
    options = ("--step", "2,2", "--edges", "partial")
    told = [pyramid("plan", source, *options), pyramid("build", source, *options)]
    assert [status for status, _ in told] == [0, 0]
    plan = plan_pyramid(open_image(source).info, PyramidParams(source=source, **ASKED))
    objects = [open_storage(store).read(item.key) or b"" for item in open_storage(store).listing()]
    proxy.behave()
    for kind, status in (("denied", 2), ("slow_down", 1), ("reset", 1)):
        proxy.behave()
        proxy.rule(kind, "", times=-1)
        found, text = pyramid("build", source, *options)
        assert (found, text.count("\n"), "Traceback" in text) == (status, 1, False), text
        told.append((found, text))
    said = [text.encode() for _, text in told] + objects
    said += [pickle.dumps(plan), repr(plan).encode()]
    assert store.encode() in said[1]
    assert not [s for s in said for secret in (b"hunter2", b"hush") if secret in s]


def test_what_lacks_is_named(store: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, a bucket that is not there, and a refusal each say what to set; status 2."""
    status, text = pyramid("plan", "s3://no-such-bucket-at-all/a.zarr")
    assert (status, "there is no such bucket" in text) == (2, True), text
    proxy.rule("denied", "", times=-1)
    status, text = pyramid("plan", f"{store}/a.zarr")
    assert (status, "AccessDenied" in text, "AWS_ACCESS_KEY_ID" in text) == (2, True, True), text
    proxy.behave()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    status, text = pyramid("plan", f"{store}/a.zarr")
    assert (status, "no credentials were found" in text) == (2, True), text
    assert proxy.done["all"] == 0


def test_the_standard_variables_lead_to_the_store(
    store: str, proxy: Proxy, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each spelling of endpoint and region is taken; without a signature nothing is signed."""
    storage = open_storage(upload(image, f"{store}/a.zarr"))
    assert storage.read("zarr.json")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    for endpoint in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        for region in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            with monkeypatch.context() as patch:
                patch.delenv("AWS_REGION")
                patch.setenv(endpoint, proxy.address)
                patch.setenv(region, "eu-central-1")
                proxy.behave()
                assert open_storage(f"{store}/a.zarr").read("zarr.json")
                assert "/eu-central-1/s3/" in proxy.heard[0]["authorization"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    proxy.behave()
    with pytest.raises(AccessError, match="refuses us"):
        open_storage(f"{store}/a.zarr").read("zarr.json")  # the server wants one
    assert [h["authorization"] for h in proxy.heard] == [""]


def make_public(store: str, s3_server: str) -> None:
    """Let everyone list a bucket and read its objects; the server refuses it to who does not sign."""
    bucket = f"{s3_server}/{store.removeprefix('s3://')}"
    keys = [item.key for item in open_storage(store).listing()]
    for place in (bucket, *(f"{bucket}/{key}" for key in keys)):
        request = Request(
            f"{place}?acl",
            method="PUT",
            headers={
                "x-amz-acl": "public-read",
                "Authorization": "AWS4-HMAC-SHA256 Credential=a/b/us-east-1/s3/c",
            },
        )
        with urlopen(request):
            pass


def test_a_public_bucket_is_read_without_credentials(
    store: str, proxy: Proxy, image: Path, right: Any, s3_server: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """AWS_SKIP_SIGNATURE=true and nothing else: no request is signed, and the image is that of a build with credentials."""
    source, target = upload(image, f"{store}/a.zarr"), str(tmp_path / "b.zarr")
    make_public(store, s3_server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    proxy.behave()
    build_pyramid(PyramidParams(source=source, target=target, **ASKED))
    assert stored(target) == right[False]
    assert {(h["method"], h["authorization"]) for h in proxy.heard} <= {("GET", ""), ("HEAD", "")}
    assert proxy.done["all"] > 10


def test_an_owner_whose_first_answer_is_lost_owns_all_the_same(store: str, proxy: Proxy) -> None:
    """The object is made but the answer is reset: whoever made it does not wait for itself."""
    failed = 0
    for seed in range(5):
        proxy.fail("reset", "slow_down", seed=seed, share=0.4)
        for _ in range(MOST_RUNS):
            try:
                with owner.own(f"{store}/{seed}.zarr") as mine:
                    mine.check()
                    break
            except StoreError:
                continue
        else:
            pytest.fail("it never owned")
        failed += proxy.done["reset"] + proxy.done["slow_down"]
        proxy.behave()
    assert failed > 0


# --- the service goes ------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [15, 60])
def test_a_service_that_is_gone_ends_the_build_and_it_resumes(
    store: str, proxy: Proxy, image: Path, right: Any, after: int
) -> None:
    """One line says so, in bounded time; when it is back the same command ends right."""
    source = upload(image, f"{store}/a.zarr")
    proxy.leave(after=after)
    with pytest.raises(PyramidError, match=r"^[^\n]*cannot be asked now[^\n]*$"):
        build_pyramid(PyramidParams(source=source, **ASKED))
    proxy.come_back()
    build_pyramid(PyramidParams(source=source, **ASKED))
    assert stored(source) == right[True]
    assert beside(store) == {"a.zarr"}
