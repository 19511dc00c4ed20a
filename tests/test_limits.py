"""The limits of Prefect that a run holds: in which order, and how it waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from flows import limits


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is held, in order, of a server that is not there."""
    names: list[str] = []

    def hold(slots: ExitStack, name: str, seconds: float | None) -> bool:  # noqa: ARG001 - its form
        names.append(name)
        return False

    client = SimpleNamespace(upsert_global_concurrency_limit_by_name=lambda *_: None)
    monkeypatch.setattr(limits, "_hold", hold)
    monkeypatch.setattr(limits, "get_client", lambda **_: nullcontext(client))
    monkeypatch.setattr(limits, "key_of", lambda target: f"image {target}")
    monkeypatch.setattr(limits, "is_own", lambda: False)
    return names


@pytest.mark.parametrize(
    ("run_count", "order"), [(1, ["image a", limits.STORE_LIMIT]), (2, [limits.STORE_LIMIT])]
)
def test_a_run_takes_a_slot_of_the_store_last_and_always(
    monkeypatch: pytest.MonkeyPatch, held: list[str], run_count: int, order: list[str]
) -> None:
    """Who waits for an image keeps nobody from the store; who was picked up waits not for itself, but for the store."""
    run = SimpleNamespace(flow_run=SimpleNamespace(run_count=run_count))
    monkeypatch.setattr(limits, "runtime", run)
    plan: Any = SimpleNamespace(images=[SimpleNamespace(target="a")])
    with limits.bounded_runs(), limits.limits(plan):
        assert held == order


def test_an_image_of_a_sweep_that_was_picked_up_waits_not_for_its_former_self(
    monkeypatch: pytest.MonkeyPatch, held: list[str]
) -> None:
    """The image's own run is begun for the first time; the next run in this process is as any other."""
    plan: Any = SimpleNamespace(images=[SimpleNamespace(target="a")])

    def run(count: int) -> Any:
        monkeypatch.setattr(
            limits, "runtime", SimpleNamespace(flow_run=SimpleNamespace(run_count=count))
        )
        return limits.bounded_runs()

    with run(2), run(1), limits.limits(plan):
        assert held == [limits.STORE_LIMIT]
    held.clear()
    with run(1), limits.limits(plan):
        assert held == ["image a", limits.STORE_LIMIT]


def test_a_run_that_waits_for_a_slot_looks_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sleeps in our own code, where a cancel reaches it; inside of Prefect's wait it did not, for half a minute."""
    slept: list[float] = []
    asked: list[dict[str, Any]] = []

    @contextmanager
    def concurrency(name: str, **told: Any) -> Iterator[None]:  # noqa: ARG001 - Prefect's form
        asked.append(told)
        yield

    def read(_: str) -> Any:
        return SimpleNamespace(active_slots=0 if len(slept) == 3 else 1, limit=1)

    monkeypatch.setattr(limits, "_read", read)
    monkeypatch.setattr(limits, "concurrency", concurrency)
    monkeypatch.setattr(limits, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: 0.0))
    with ExitStack() as slots:
        assert limits._hold(slots, "pyramid-store", None)
    assert slept == [limits.ASK_SECONDS] * 3
    assert [told["max_retries"] for told in asked] == [0], "Prefect asks once, and never waits"
