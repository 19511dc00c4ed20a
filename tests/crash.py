"""Builds that are killed: each in a process of its own, at a moment that is chosen.

A driver imports what a build needs, once, and forks a process for each build, so a kill costs
tenths of a second. It does no I/O of zarr's itself: only then is a fork safe. The forked process
notes what it does, step by step, in a file (its *trail*), and kills itself at the step that its
order names; kills at a moment of the clock, or of the chunks on disk, come from outside.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PATIENCE = 180.0

# --- the side of the test --------------------------------------------------------------------


@dataclass
class Run:
    """One process that was started."""

    driver: Driver
    pid: int
    folder: Path

    @property
    def steps(self) -> list[str]:
        """What it did, as far as it came: ``phase | before/after | what``."""
        trail = self.folder / "trail"
        return trail.read_text().splitlines() if trail.exists() else []

    @property
    def result(self) -> dict[str, Any]:
        """What the build returned."""
        found: dict[str, Any] = json.loads((self.folder / "result").read_text())
        return found

    @property
    def said(self) -> str:
        """What it printed."""
        return (self.folder / "said").read_text()

    def status(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""
        found: int | None = self.driver.ask(poll=self.pid)["status"]
        return found

    def is_held(self) -> bool:
        """Whether it stands at the step at which it was ordered to wait."""
        return (self.folder / "held").exists()

    def go(self) -> None:
        """Let it go on from there."""
        (self.folder / "go").touch()

    def kill(self) -> None:
        """Kill it, if it did not end by itself meanwhile."""
        if self.status() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end; killed after a long time."""
        deadline = time.monotonic() + PATIENCE
        while (status := self.status()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"it hangs: {self.steps[-3:]} {self.said}")
            time.sleep(0.003)
        return status


class Driver:
    """Starts builds; at its end all that still run are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.process: subprocess.Popen[str] | None = None

    def ask(self, **order: Any) -> dict[str, Any]:
        """Give an order and return the answer; the driver starts with the first."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash"],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def start(self, **order: Any) -> Run:
        """Start a build.

        Args:
            **order: ``asked``: parameters of a build, or ``argv``: a command line, or ``phantom``:
                what ``write_phantom`` is given. ``die`` and ``hold``: a pattern of the step at
                which it kills itself or waits, ``nth``: at which time, and ``linger``: seconds that
                other threads have before it dies, to end what they have begun. ``env``: variables.
                ``beat`` and ``watch``: seconds of an owner object.
        """
        self.count += 1
        folder = self.folder / f"run-{self.count}"
        folder.mkdir(parents=True)
        env = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        order = {"env": env, **order, "folder": str(folder)}
        return Run(self, int(self.ask(**order)["pid"]), folder)

    def run(self, **order: Any) -> Run:
        """Start a build that is left alone, and return it when it has ended well."""
        run = self.start(**order)
        status = run.wait()
        assert status == 0, f"status {status} after {run.steps[-3:]}: {run.said}"
        return run

    def close(self) -> None:
        if self.process is not None:
            with self.process:
                assert self.process.stdin is not None
                self.process.stdin.close()


# --- the side of the builds ------------------------------------------------------------------


def serve() -> None:
    """Take orders, a line each, until there are no more."""
    _warm_up()
    children: dict[int, int | None] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "poll" in order:
            pid = order["poll"]
            if children[pid] is None:
                found, status = os.waitpid(pid, os.WNOHANG)
                children[pid] = os.waitstatus_to_exitcode(status) if found else None
            answer = {"status": children[pid]}
        else:
            pid = os.fork()
            if pid == 0:
                _child(order)
            children[pid] = None
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    for pid in [pid for pid, status in children.items() if status is None]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _warm_up() -> None:
    """Import and compile what every build needs; no thread may be running afterwards."""
    import numpy as np
    import obstore.store
    import ome_zarr_models
    import yaozarrs
    import zarr.codecs
    import zarr.storage
    import zarrs.pipeline  # noqa: F401

    import pyramid_core.cli
    import pyramid_core.preview  # noqa: F401
    from pyramid_core.kernels import reduce_block

    for method in ("mean", "max", "mode"):
        reduce_block(np.ones((4, 4, 4), "u2"), (2, 2, 2), method)
    assert threading.active_count() == 1, threading.enumerate()
    # What numpy and its friends hold is not looked through after each fork.
    import gc

    gc.freeze()
    for module in (zarr.storage, obstore.store, ome_zarr_models, yaozarrs):
        assert module.__name__ in sys.modules


def _child(order: dict[str, Any]) -> None:
    """Do what is ordered, and never return."""
    folder = Path(order["folder"])
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(order["env"])
        Saboteur(order, folder).install()
        status = _obey(order, folder)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _obey(order: dict[str, Any], folder: Path) -> int:
    import pyramid_core
    from pyramid_core import build, cli, owner

    owner.BEAT_SECONDS = order.get("beat", owner.BEAT_SECONDS)
    owner.WATCH_SECONDS = order.get("watch", owner.WATCH_SECONDS)
    if "argv" in order:
        return cli.main(order["argv"])
    if "phantom" in order:
        pyramid_core.write_phantom(**order["phantom"])
        return 0
    found = build.build_pyramid(pyramid_core.PyramidParams(**order["asked"]))
    levels = [
        {
            "target": image.target,
            "path": level.path,
            "shape": level.shape,
            "unit": level.write_unit,
            "block": level.block,
        }
        for image in found.plan.images
        for level in image.written
    ]
    verified = None if found.verification is None else found.verification.ok
    result = {
        "found": found.blocks_found, "built": found.blocks_built, "verified": verified,
        "levels": levels, "workers": found.plan.workers,
    }  # fmt: skip
    (folder / "result").write_text(json.dumps(result))
    return 0


class Saboteur:
    """Notes every step of a build, and ends it at the step that its order names."""

    def __init__(self, order: dict[str, Any], folder: Path) -> None:
        self.folder = folder
        self.trail = os.open(folder / "trail", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.lock = threading.Lock()
        self.phase = "opening"
        self.left = int(order.get("nth", 1))
        self.dies = "die" in order
        self.linger = float(order.get("linger", 0))
        self.pattern: str | None = order.get("die") or order.get("hold")

    def step(self, what: str) -> None:
        with self.lock:
            line = f"{self.phase} | {what}"
            os.write(self.trail, f"{line}\n".encode())
            if not self.pattern or not re.fullmatch(self.pattern, line):
                return
            self.left -= 1
            if self.left != 0:
                return
            time.sleep(self.linger)
            while self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(1)  # it may take a moment to arrive
        (self.folder / "held").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.001)

    @contextmanager
    def during(self, phase: str, then: str | None = None) -> Iterator[None]:
        before, self.phase = self.phase, phase
        yield
        self.phase = before if then is None else then

    def around(
        self,
        place: Any,
        name: str,
        tell: Callable[..., str | None],
        phase: Callable[..., str] | None = None,
        then: str | None = None,
    ) -> None:
        """Have a function told of before and after; *tell* says in which words."""
        real = getattr(place, name)

        def told(*given: Any, **more: Any) -> Any:
            with self.during(phase(*given), then) if phase else nullcontext():
                what = tell(*given, **more)
                if what:
                    self.step(f"before | {what}")
                result = real(*given, **more)
                if what:
                    self.step(f"after | {what}")
            return result

        setattr(place, name, told)

    def around_async(self, place: Any, name: str, tell: Callable[..., str]) -> None:
        real = getattr(place, name)

        async def told(*given: Any, **more: Any) -> Any:
            self.step(f"before | {tell(*given, **more)}")
            result = await real(*given, **more)
            self.step(f"after | {tell(*given, **more)}")
            return result

        setattr(place, name, told)

    def install(self) -> None:
        """Put ourselves around all by which the core writes, deletes and goes from step to step."""
        import obstore

        from pyramid_core import build, execute, phantom, stores

        def put(_: Any, key: str, *__: Any, **___: Any) -> str | None:
            return None if key.endswith(".owner") else f"put {key}"

        def level_of(_: Any, level: Any, *__: Any, **___: Any) -> str:
            return f"level {level.path}"

        self.around(obstore, "put", put)
        self.around_async(obstore, "put_async", lambda _, key, *__, **___: f"put {key}")
        self.around(obstore, "delete", lambda *_, **__: "delete")
        self.around(os, "ftruncate", lambda *_: "name")
        self.around(os, "unlink", lambda path, **_: f"unlink {Path(path).name}")
        self.around(os, "rmdir", lambda path, **_: f"rmdir {Path(path).name}")
        for name, word in (("write_block", "block"), ("check_block", "check")):
            for module in _modules_with(getattr(execute, name)):
                self.around(module, name, lambda _, index, *__, w=word: f"{w} {_numbers(index)}")
        whole = stores.Storage
        self.around(whole, "delete", lambda _, path: f"clear {path}", lambda *_: "clearing")
        self.around(build, "still_to_build", lambda *_: "look", lambda *_: "opening")
        self.around(build, "prepare", lambda *_: "prepare", lambda *_: "creating", "between")
        self.around(build, "build_level", level_of, level_of, "between")
        # The steps of a build are given to it as they are when it begins, so these names suffice.
        self.around(build, "gate", lambda *_: "gate", lambda *_: "verify", "between")
        self.around(build, "commit", lambda *_: "commit", lambda *_: "document", "end")
        self.around(phantom, "_claim", lambda *_: "claim", lambda *_: "creating", "between")
        self.around(phantom, "_publish", lambda *_: "publish", lambda *_: "document", "end")


def _modules_with(function: Any) -> list[Any]:
    """Return the modules of the core in which a function has its name."""
    ours = [m for name, m in sys.modules.items() if name.startswith("pyramid_core.")]
    return [m for m in ours if getattr(m, function.__name__, None) is function]


def _numbers(index: Any) -> str:
    return ",".join(str(int(i)) for i in index)


if __name__ == "__main__":
    serve()
