"""Who may write to an output directory: one run that does everything, or any number of parts side by side.

Locks are flocks on files in `.staging/`: the kernel drops them when their holder dies, however it dies. A whole run
holds `lock` exclusively. A part holds it shared, and `part-00002-of-00008.lock` exclusively.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import IO

from lmdali.pipeline.dataset_plan import Part
from lmdali.pipeline.errors import LockedError, StorageError
from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.path_kind import exists

STAGING_DIRECTORY = ".staging"
LOCK_FILE = "lock"
_PART_TRIES, _PAUSE_SECONDS = 5, 0.05
"""Whoever asks which parts are running holds their locks for a moment, which must not stop one that begins."""
_OPEN_TRIES = 20

_PART_LOCK = re.compile(r"part-([0-9]{5})-of-([0-9]{5})\.lock")


@contextmanager
def hold_whole(directory: Path, *, writable: bool = True) -> Iterator[None]:
    """Nobody else writes to `directory` meanwhile.

    Args:
        directory: the output.
        writable: False for one that is only read, and may be on a read-only disk.

    Raises:
        LockedError: another run holds it.
        StorageError: it cannot be written, or not be locked.
    """
    try:
        lock = _take(directory, LOCK_FILE, fcntl.LOCK_EX, create=writable)
    except FileNotFoundError:
        lock = io.StringIO()  # a copy without its locks, which nobody can have begun to write to
    if lock is None:
        raise LockedError(f"{directory}: another run is writing here ({_holders(directory)}): wait for it or stop it")
    with lock:
        if writable:
            _sign(lock, directory)
        yield


@contextmanager
def hold_part(directory: Path, part: Part) -> Iterator[None]:
    """No whole run and no other run of this part writes to `directory` meanwhile.

    Raises:
        LockedError: one does, or parts of another division do.
        StorageError: it cannot be written, or not be locked.
    """
    shared = _take(directory, LOCK_FILE, fcntl.LOCK_SH)
    if shared is None:
        raise LockedError(f"{directory}: another run is writing here ({_holders(directory)}): wait for it or stop it")
    with shared:
        own = _take(directory, part_lock_name(part), fcntl.LOCK_EX, tries=_PART_TRIES)
        if own is None:
            raise LockedError(
                f"{directory}: another run is making part {part} here "
                f"({_signature(directory, part_lock_name(part))}): wait for it or stop it"
            )
        with own:
            _sign(own, directory)
            # Shards of 1/3 and 1/4 overlap. Two that start at once may both give way: none does the other's work.
            others = _running(directory, [other for other in parts_seen(directory) if other.count != part.count])
            if others:
                raise LockedError(
                    f"{directory}: part {others[0]} is being made here, and its shards overlap with those of part "
                    f"{part}: cut the work into {others[0].count} parts everywhere, or wait for it"
                )
            yield


@contextmanager
def hold_plan(directory: Path) -> Iterator[None]:
    """Waits for its turn to look at the plan and to write it: parts that begin at once must not both write one."""
    lock = _take(directory, "plan.lock", fcntl.LOCK_EX, wait=True)
    assert lock is not None
    with lock:
        yield


def parts_seen(directory: Path) -> list[Part]:
    """Parts that were ever begun in `directory`, finished or not."""
    try:
        names = sorted(path.name for path in (directory / STAGING_DIRECTORY).iterdir())
    except FileNotFoundError:
        return []
    matches = filter(None, map(_PART_LOCK.fullmatch, names))
    return [Part(int(match[1]), int(match[2])) for match in matches]


def part_lock_name(part: Part) -> str:
    """Name of the lock file of a part."""
    return f"part-{part.number:05d}-of-{part.count:05d}.lock"


def _take(
    directory: Path, name: str, how: int, *, wait: bool = False, tries: int = 1, create: bool = True
) -> IO[str] | None:
    """An open, locked file; None where another holds it.

    Raises:
        FileNotFoundError: there is none, and none is to be made.
        StorageError: the disk refuses, or knows no locks.
    """
    path = directory / STAGING_DIRECTORY / name
    while True:
        lock = _opened(path, create=create)
        try:
            fcntl.flock(lock, how if wait else how | fcntl.LOCK_NB)
            # Whoever finishes a dataset removes `.staging/`, perhaps between our opening and our locking.
            if exists(path) and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        except BlockingIOError:
            lock.close()
            tries -= 1
            if not tries:
                return None
            sleep(_PAUSE_SECONDS)
            continue
        except FileNotFoundError:
            pass
        except OSError as error:
            lock.close()
            raise StorageError(
                f"{directory}: this filesystem cannot lock files ({error.strerror}): write to a local disk"
            ) from error
        lock.close()


def _opened(path: Path, *, create: bool) -> IO[str]:
    """A lock file, made where that is wanted.

    Raises:
        FileNotFoundError: there is none, and none is to be made.
        StorageError: the disk refuses.
    """
    with storage_errors(path):
        if create:
            return _made(path)
        with suppress(FileNotFoundError):
            return path.open("a+" if os.access(path, os.W_OK) else "r")
    raise FileNotFoundError(path)


def _made(path: Path) -> IO[str]:
    """Tried again and again: whoever finishes a dataset may remove `.staging/` before the file is in there."""
    tries = _OPEN_TRIES
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a+")
        except (FileNotFoundError, FileExistsError):
            tries -= 1
            if not tries:  # not removed meanwhile, but a link to nowhere
                raise


def _sign(lock: IO[str], directory: Path) -> None:
    # Not through the file object, whose close would try again to write what a full disk refused.
    with storage_errors(directory):
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"pid {os.getpid()} on {socket.gethostname()}".encode())


def _signature(directory: Path, name: str) -> str:
    try:
        return (directory / STAGING_DIRECTORY / name).read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def _holders(directory: Path) -> str:
    """Who holds `lock`: its only holder, or the parts that share it."""
    running = _running(directory, parts_seen(directory))
    if not running:
        return _signature(directory, LOCK_FILE)
    named = [f"part {part}: {_signature(directory, part_lock_name(part))}" for part in running[:4]]
    return ", ".join(named) + (f" and {len(running) - 4} more parts" if len(running) > 4 else "")


def _running(directory: Path, parts: list[Part]) -> list[Part]:
    running = []
    for part in parts:
        with suppress(FileNotFoundError):  # removed since it was listed, by a run that is done
            lock = _take(directory, part_lock_name(part), fcntl.LOCK_SH, create=False)
            if lock is None:
                running.append(part)
            else:
                lock.close()
    return running
