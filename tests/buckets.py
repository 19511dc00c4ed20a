"""What is asked of every object store alike, whoever serves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyramid_core.owner as owner
import pyramid_core.remote as remote
from pyramid_core import PyramidParams, build_pyramid
from pyramid_core.errors import PyramidError, StoppedError, TargetBusyError
from pyramid_core.stores import open_storage
from tests.proxy import running_proxy
from tests.stories import write_image
from tests.test_faults import until_done

ASKED: dict[str, Any] = {
    "step": [2, 2], "chunks": [16, 16], "edges": "partial", "workers": 2, "verify": "full",
}  # fmt: skip


def image_with_a_gap(place: Path) -> Path:
    """Write an image with a chunk that is not stored."""
    voxels = np.random.default_rng(3).integers(1, 4000, (40, 56)).astype("u2")
    found = write_image(place, voxels, (16, 16))
    (found / "0/c/2/1").unlink()
    return found


def downloaded(location: str, place: Path) -> Path:
    """Copy all objects of a location into a folder."""
    storage = open_storage(location)
    for item in storage.listing():
        (place / item.key).parent.mkdir(parents=True, exist_ok=True)
        (place / item.key).write_bytes(storage.read(item.key) or b"")
    return place


def build_cut_off(
    params: PyramidParams, address: str, lead_to: Callable[[str], object],
    monkeypatch: pytest.MonkeyPatch, *, after: int, seed: int,
) -> None:  # fmt: skip
    """Build while the service goes after some writes, then misbehaves; one line says that it is gone."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(remote, "PAUSES", (0.01,))
    monkeypatch.setattr(owner, "WATCH_SECONDS", 2.0)
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.4)
    with running_proxy(address) as proxy:
        lead_to(proxy.address)
        proxy.leave(after=after, method="PUT")
        with pytest.raises(PyramidError, match=r"^[^\n]*cannot be asked now[^\n]*$"):
            build_pyramid(params)
        proxy.come_back()
        proxy.fail("reset", "slow_down", "truncated", seed=seed)
        said = until_done(lambda: build_pyramid(params))
        assert any(proxy.done[kind] for kind in ("reset", "slow_down", "truncated")), said
    lead_to(address)


def an_owner_is_respected_while_it_moves(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second build is refused while it beats; one that no longer moves is taken over, and knows."""
    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(owner, "WATCH_SECONDS", 20.0)
    with owner.own(target) as mine:
        with pytest.raises(TargetBusyError, match="is being built by process"), owner.own(target):
            pass
        mine.check()
        stopped: Any = mine
        beating = stopped._owners[0]
        beating._stop.set()
        beating._thread.join()
        monkeypatch.setattr(owner, "WATCH_SECONDS", 0.5)
        with owner.own(target) as other:
            other.check()
            with pytest.raises(StoppedError, match="was taken over by process"):
                mine.check()
