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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from pyramid_core.errors import (
    AccessError,
    LocationError,
    PyramidError,
    StoppedError,
    StoreError,
    TargetBusyError,
    is_transient,
    reason_and_remedy,
)
from pyramid_core.remote import PAUSES, asked, connect, lacks_bucket, told
from pyramid_core.stores import Storage, is_url, local_path, open_storage, shown, split
from pyramid_core.urls import hidden

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult, UpdateVersion

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
        msg = f"cannot write beside {target}: {reason_and_remedy(error) or error}"
        raise LocationError(msg) from error
    try:
        # A courtesy: it is locked without, and what follows tells of a full disk.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _who().encode(), 0)
        yield
    finally:
        # A file system that is read-only now keeps the file; unlocked, it holds up nobody.
        with suppress(OSError):
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
        self._place = open_storage(parent)
        self._store = self._place._store
        self._key = f"{name}.owner"
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._lost = False
        self._version = self._take()
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

    def release(self, *, hasty: bool = False) -> None:
        """Stop the beat and remove the object, if it is still ours and the store can be asked.

        Left behind it does no harm: it does not move, so the next build takes it over.
        """
        self._stop.set()
        # A beat that is under way may arrive as long after as it is asked again.
        self._thread.join(sum(PAUSES) + 1 if hasty else None)
        if hasty:
            self._store = connect(self._place.location, hasty=True)
            self._place = Storage(self._place.location, self._store)
        try:
            self.check()
            asked(shown(self._target), lambda: obstore.delete(self._store, self._key))
        except (StoppedError, StoreError, AccessError, FileNotFoundError):
            return

    def _content(self) -> bytes:
        return json.dumps({"token": self._token, "who": _who(), "beat": uuid.uuid4().hex}).encode()

    def _take(self) -> UpdateVersion:
        """Create the object, or take over one that does not move; return its version."""
        deadline = 0.0
        seen: UpdateVersion = {}
        while True:
            try:
                return self._create()
            except AlreadyExistsError:
                pass
            found, version = self._look()
            if not version:
                continue  # it was released meanwhile
            if found.get("token") == self._token:
                return version  # ours: the answer to it was lost
            if seen and version != seen:
                who = found.get("who", "another build")
                msg = f"{shown(self._target)} is being built by {who}; wait for it, or stop it"
                raise TargetBusyError(msg)
            if not seen:
                deadline, seen = time.monotonic() + WATCH_SECONDS, version
            elif time.monotonic() > deadline:
                try:
                    return self._put_over(version)
                except PreconditionError:
                    found, version = self._look()
                    if found.get("token") == self._token:
                        return version  # ours: the answer to it was lost
                    seen = {}  # someone else was faster; watch that one
            time.sleep(min(1.0, BEAT_SECONDS / 2))

    def _create(self) -> UpdateVersion:
        content, place = self._content(), shown(self._target)
        made = asked(place, lambda: obstore.put(self._store, self._key, content, mode="create"))
        return _version(made)

    def _look(self) -> tuple[dict[str, str], UpdateVersion]:
        """Return what the object says and its version; nothing where it is not there."""
        found = self._place.get(self._key)
        if found is None:
            return {}, {}
        content, version = found[0], _version(found[1])
        try:
            return dict(json.loads(content)), version
        except (ValueError, TypeError):
            return {}, version

    def _put_over(self, version: UpdateVersion) -> UpdateVersion:
        content, place = self._content(), shown(self._target)
        made = asked(place, lambda: obstore.put(self._store, self._key, content, mode=version))
        return _version(made)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                if not self._move():
                    self._lost = True
                    return
            except (OSError, PyramidError):
                continue  # a beat may be missed; a newcomer waits for several

    def _move(self) -> bool:
        """Beat once; return whether the object is still ours."""
        try:
            self._version = self._put_over(self._version)
        except PreconditionError:
            # Taken over, or our last beat arrived and the answer to it was lost.
            found, version = self._look()
            if found.get("token") != self._token:
                return False
            self._version = version
        return True


def _version(told: PutResult | ObjectMeta) -> UpdateVersion:
    """Return the version of an object: S3 and Azure compare the etag, Google a number."""
    if told["version"] is None:
        return {"e_tag": told["e_tag"]}
    return {"e_tag": told["e_tag"], "version": told["version"]}


@contextmanager
def _own_object(target: str) -> Iterator[Owner]:
    try:
        owner = _ObjectOwner(target)
    except (FileNotFoundError, NotImplementedError) as error:
        if lacks_bucket(error):
            raise told(error, shown(target)) from None
        reason = hidden(str(error).split("\n")[0].partition(": <")[0])
        msg = f"cannot write beside {shown(target)}: {reason}"
        raise LocationError(msg) from None
    try:
        yield owner
    except BaseException as error:
        # A store that is gone is not waited for once more; what is left of us does not move.
        owner.release(hasty=is_transient(error))
        raise
    owner.release()
