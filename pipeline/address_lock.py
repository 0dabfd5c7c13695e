"""Who may write below an address: one run, as far as its store can tell.

On S3 a lock is an object that only one can create. Its holder writes it again and again; one that was not written for
some minutes, or whose process is known to be gone, is taken over, under the condition that nobody else did. A `file://`
folder has the lock of every output. Other stores know no conditions: there nothing is locked.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeGuard

from lmdali.pipeline.errors import LockedError, MachineError, RemoteError
from lmdali.pipeline.file_store import FileStore
from lmdali.pipeline.output_lock import STAGING_DIRECTORY, hold_whole
from lmdali.pipeline.remote_retry import Attempts, RetryConfig, TransientError
from lmdali.pipeline.remote_store import WritableStore
from lmdali.pipeline.s3_store import Claimed, S3Store
from lmdali.pipeline.thread_start import start_thread

WHOLE_LOCK = f"{STAGING_DIRECTORY}/lock"
REFRESH_SECONDS = 30.0
"""Between two writes of a lock by its holder."""
STALE_SECONDS = 150.0
"""Without a write, after which its holder counts as gone."""

StillHeld = Callable[[], None]
"""Raises `LockedError` where another run has taken the lock over."""


@contextmanager
def hold_address(
    store: WritableStore,
    name: str = WHOLE_LOCK,
    *,
    config: RetryConfig | None = None,
    refresh_seconds: float = REFRESH_SECONDS,
    stale_seconds: float = STALE_SECONDS,
) -> Iterator[StillHeld]:
    """Nobody else holds this lock meanwhile; yields what is to be asked before anything important is written.

    Args:
        store: what is written to.
        name: the lock's object.
        config: patience.
        refresh_seconds, stale_seconds: as above.

    Raises:
        LockedError: another run holds it.
        RemoteError: it cannot be written.
        MachineError: the system has no thread to write it again and again.
    """
    if isinstance(store, S3Store):
        lock = _ObjectLock(store, name, config or RetryConfig(), refresh_seconds, stale_seconds)
        lock.take()
        try:
            yield lock.check
        finally:
            lock.release()
    elif isinstance(store, FileStore):
        with hold_whole(store.folder):
            try:
                yield lambda: None
            finally:
                (store.folder / WHOLE_LOCK).unlink(missing_ok=True)
                with suppress(OSError):  # more is in there: what others have left
                    (store.folder / STAGING_DIRECTORY).rmdir()
    else:
        yield lambda: None


class _ObjectLock:
    """One lock object, and the thread that keeps it fresh."""

    def __init__(
        self, store: S3Store, name: str, config: RetryConfig, refresh_seconds: float, stale_seconds: float
    ) -> None:
        self._store, self._name, self._config = store, name, config
        self._refresh_seconds, self._stale_seconds = refresh_seconds, stale_seconds
        self._content = {"host": socket.gethostname(), **_process(os.getpid()), "token": secrets.token_hex(8)}
        self._writes = 0
        self._written = time.monotonic()
        self._writing = threading.Lock()
        self._tag = ""
        self._lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Create the lock, or take over one that was left."""
        attempts = Attempts(f"{self._store.shown}/{self._name}", self._config)
        tag = attempts.run(lambda: self._store.create(self._name, self._data()))
        if tag is None:
            found = attempts.run(lambda: self._store.claimed(self._name))
            if self._is_ours(found):
                tag = found.tag  # our own, of which we were not told
            elif found is None:
                tag = attempts.run(lambda: self._store.create(self._name, self._data()))
            elif self._is_left(found):
                tag = attempts.run(lambda: self._store.replace(self._name, self._data(), found.tag))
            if tag is None:
                raise LockedError(self._message(found))
        self._tag, self._written = tag, time.monotonic()
        try:
            self._thread = start_thread("lmdali-lock", self._keep_fresh)
        except MachineError:
            self.release()
            raise

    def check(self) -> None:
        """Raises LockedError where the lock is another's by now, or RemoteError where that cannot be told."""
        if not self._lost and time.monotonic() - self._written > self._stale_seconds:
            Attempts(f"{self._store.shown}/{self._name}", self._config).run(self._write_again)
        if self._lost:
            raise LockedError(
                f"{self._store.shown}: another run took over, for this one could not write its lock for "
                f"{self._stale_seconds:.0f} s: stop one of them"
            )

    def release(self) -> None:
        """Stop writing it, and remove it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if not self._lost:
            with suppress(RemoteError, TransientError):  # it will be stale soon
                found = self._store.claimed(self._name)  # another may have it, and we have not heard of it yet
                if self._is_ours(found):
                    self._store.remove(self._name)

    def _keep_fresh(self) -> None:
        while not self._stop.wait(self._refresh_seconds) and not self._lost:
            with suppress(TransientError, RemoteError):
                self._write_again()

    def _write_again(self) -> None:
        with self._writing:
            begin = time.monotonic()
            tag = self._store.replace(self._name, self._data(), self._tag)
            if tag is None:
                found = self._store.claimed(self._name)
                if self._is_ours(found):
                    tag = found.tag  # a write of which we were not told
            if tag is None:
                self._lost = True
            else:
                self._tag, self._written = tag, begin

    def _data(self) -> bytes:
        self._writes += 1  # another tag with every write
        return json.dumps({**self._content, "writes": self._writes}).encode()

    def _is_left(self, found: Claimed) -> bool:
        holder = _parsed(found)
        known = _process(os.getpid())
        if holder.get("machine") == known["machine"] != "":
            with suppress(TypeError, ValueError, KeyError):
                pid = int(holder["pid"])
                begun = _process(pid)["begun"]
                if begun or not _is_hidden(pid):
                    return bool(begun != holder["begun"])
        return found.age_seconds > self._stale_seconds

    def _is_ours(self, found: Claimed | None) -> TypeGuard[Claimed]:
        return found is not None and _parsed(found).get("token") == self._content["token"]

    def _message(self, found: Claimed | None) -> str:
        holder = {} if found is None else _parsed(found)
        who = f"pid {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "unknown"
        return (
            f"{self._store.shown}: another run is writing here ({who}): wait for it or stop it; one that died is "
            f"forgotten after {self._stale_seconds:.0f} s"
        )


def _parsed(found: Claimed) -> dict[str, Any]:
    try:
        document = json.loads(found.data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _is_hidden(pid: int) -> bool:
    """Whether it is another user's process, of which /proc says nothing here (mounted with hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from every other: machine and its start, process numbers' own space, number, beginning."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115  # no file is meant
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return {"pid": pid, "machine": "", "begun": ""}
    # A zombie has ended.
    return {"pid": pid, "machine": machine, "begun": "" if stat[0] == "Z" else stat[19]}
