"""One builder per target.

On files a lock (``flock``) on a file beside the target, which the death of its holder frees at
once. On object stores an owner object beside the target, created only if absent, with a beat every
few seconds; a newcomer watches whether it moves. No clocks are compared.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import obstore
import obstore.exceptions
from obstore.exceptions import AlreadyExistsError, PreconditionError

from pyramid_core.errors import LocationError, StoppedError, TargetBusyError
from pyramid_core.stores import is_url, local_path, open_storage, shown, split

BEAT_SECONDS = 5.0
"""An owner object moves this often."""

WATCH_SECONDS = 25.0
"""A newcomer takes an owner object over that has not moved for this long."""


class Owner:
    """Proof that this process builds a target; ``check`` asks whether it still does."""

    def check(self) -> None:
        """Raise if another build has taken the target over.

        Raises:
            StoppedError: If so; what was written stays, and is whole.
        """

    def check_beat(self) -> None:
        """Raise if the last beat found that another build has taken the target over; asks nobody.

        Raises:
            StoppedError: If so.
        """


class _Owners(Owner):
    """The owners of an image and of its label images."""

    def __init__(self, owners: list[Owner]):
        self._owners = owners

    def check(self) -> None:
        for owner in self._owners:
            owner.check()

    def check_beat(self) -> None:
        for owner in self._owners:
            owner.check_beat()


@contextmanager
def own(*targets: str) -> Iterator[Owner]:
    """Own targets while the block runs: an image, and its label images, which it builds as well.

    Raises:
        TargetBusyError: If another build owns one; names that one.
    """
    with ExitStack() as stack:
        yield _Owners([stack.enter_context(_own(target)) for target in targets])


@contextmanager
def _own(target: str) -> Iterator[Owner]:
    if is_url(target):
        with _own_object(target) as owner:
            yield owner
    else:
        with _own_file(local_path(target)):
            yield Owner()


def _who() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def _own_file(target: Path) -> Iterator[None]:
    target = Path(os.path.realpath(target))
    lock = target.parent / f".{target.name}.lock"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock, target)
    except OSError as error:
        msg = f"cannot write beside {target}: {error.strerror or error}"
        raise LocationError(msg) from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _who().encode(), 0)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path, target: Path) -> int:
    """Return the descriptor of the lock file, locked; it may have been unlinked meanwhile."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            msg = f"{target} is being built by {holder}; wait for it, or stop it"
            raise TargetBusyError(msg) from error
        if _same_file(descriptor, lock):
            return descriptor
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Return who holds a lock; for a moment after a kill its file still names the dead."""
    for _ in range(50):
        who = os.pread(descriptor, 200, 0).decode(errors="replace")
        if who and not _is_gone(who):
            return who
        time.sleep(0.02)
    return "another process"


def _is_gone(who: str) -> bool:
    """Return whether this names a process of this machine that is no more."""
    number, _, host = who.removeprefix("process ").partition(" on ")
    if host != socket.gethostname() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


class _ObjectOwner(Owner):
    """The owner object of a target on an object store, kept alive by a thread."""

    def __init__(self, target: str):
        parent, name = split(target)
        if not parent:
            msg = f"{shown(target)} has no room beside it; give a place inside the bucket"
            raise LocationError(msg)
        self._target = target
        self._store = open_storage(parent)._store
        self._key = f"{name}.owner"
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._lost = False
        self._e_tag = self._take()
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        found, _ = self._look()
        if found.get("token") != self._token:
            msg = f"{shown(self._target)} was taken over by {found.get('who', 'another build')}"
            raise StoppedError(msg)

    def check_beat(self) -> None:
        if self._lost:
            msg = f"{shown(self._target)} was taken over by another build"
            raise StoppedError(msg)

    def release(self) -> None:
        """Stop the beat and remove the object, if it is still ours."""
        self._stop.set()
        self._thread.join()
        try:
            self.check()
        except StoppedError:
            return
        obstore.delete(self._store, self._key)

    def _content(self) -> bytes:
        return json.dumps({"token": self._token, "who": _who(), "beat": uuid.uuid4().hex}).encode()

    def _take(self) -> str:
        """Create the object, or take over one that does not move; return its etag."""
        deadline, seen = 0.0, ""
        while True:
            try:
                made = obstore.put(self._store, self._key, self._content(), mode="create")
                return str(made["e_tag"])
            except AlreadyExistsError:
                pass
            found, e_tag = self._look()
            if not e_tag:
                continue  # it was released meanwhile
            if seen and e_tag != seen:
                who = found.get("who", "another build")
                msg = f"{shown(self._target)} is being built by {who}; wait for it, or stop it"
                raise TargetBusyError(msg)
            if not seen:
                deadline, seen = time.monotonic() + WATCH_SECONDS, e_tag
            elif time.monotonic() > deadline:
                try:
                    return self._put_over(e_tag)
                except PreconditionError:
                    seen = ""  # someone else was faster; watch that one
            time.sleep(min(1.0, BEAT_SECONDS / 2))

    def _look(self) -> tuple[dict[str, str], str]:
        """Return what the object says and its etag; nothing where it is not there."""
        try:
            found = obstore.get(self._store, self._key)
            e_tag, content = str(found.meta["e_tag"]), bytes(found.bytes())
        except FileNotFoundError:
            return {}, ""
        try:
            return dict(json.loads(content)), e_tag
        except (ValueError, TypeError):
            return {}, e_tag

    def _put_over(self, e_tag: str) -> str:
        made = obstore.put(self._store, self._key, self._content(), mode={"e_tag": e_tag})
        return str(made["e_tag"])

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                if not self._move():
                    self._lost = True
                    return
            except (OSError, obstore.exceptions.BaseError):
                continue  # a beat may be missed; a newcomer waits for several

    def _move(self) -> bool:
        """Beat once; return whether the object is still ours."""
        try:
            self._e_tag = self._put_over(self._e_tag)
        except PreconditionError:
            # Taken over, or our last beat arrived and the answer to it was lost.
            found, e_tag = self._look()
            if found.get("token") != self._token:
                return False
            self._e_tag = e_tag
        return True


@contextmanager
def _own_object(target: str) -> Iterator[Owner]:
    try:
        owner = _ObjectOwner(target)
    except (OSError, NotImplementedError, obstore.exceptions.BaseError) as error:
        reason = str(error).split("\n")[0]
        msg = f"cannot write beside {shown(target)}: {reason}"
        raise LocationError(msg) from error
    try:
        yield owner
    finally:
        owner.release()
