"""Many locks on one open file: each is a lock on one byte of it, far behind its end.

The kernel keeps them for the open file (F_OFD_SETLK), so they end with whoever opened it, however that ends, and a
process that reads a thousand shards holds one descriptor. Two objects in one process exclude each other like two
processes do; within one object, whoever locks a byte again only changes how it is locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmdali.pipeline.errors import MachineError, StorageError
from lmdali.pipeline.files import storage_errors

_GATE = 1 << 62
"""The byte of the gate; those of shards lie below."""


def lock_byte(sha256: str) -> int:
    """The byte that stands for a file: 60 bits of its hash."""
    return int(sha256[:15], 16)


class RangeLocks:
    """Locks on the bytes of one file; thread-safe, and of no effect in a forked child, which locks anew.

    Args:
        path: the file, made where it is missing.

    Raises:
        MachineError: this system has no such locks.
    """

    def __init__(self, path: Path) -> None:
        if not hasattr(fcntl, "F_OFD_SETLK"):
            raise MachineError("a cache of remote shards needs locks of open files (F_OFD_SETLK), which Linux has")
        self._path = path
        self._descriptor: int | None = None
        self._mutex, self._opening = threading.Lock(), threading.Lock()
        _all.add(self)

    def shared(self, byte: int) -> bool:
        """Hold a byte with others, or say that it cannot be had now. A lock of one's own is made a shared one."""
        return self._set(fcntl.F_RDLCK, byte, fcntl.F_OFD_SETLK)

    def exclusive(self, byte: int) -> bool:
        """Hold a byte alone, or say that it cannot be had now. A lock of one's own is made an exclusive one."""
        return self._set(fcntl.F_WRLCK, byte, fcntl.F_OFD_SETLK)

    def release(self, byte: int) -> None:
        """Let go of a byte."""
        self._set(fcntl.F_UNLCK, byte, fcntl.F_OFD_SETLK)

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Alone for a moment: no other thread and no other process is in here."""
        with self._mutex:
            self._set(fcntl.F_WRLCK, _GATE, fcntl.F_OFD_SETLKW)
            try:
                yield
            finally:
                self._set(fcntl.F_UNLCK, _GATE, fcntl.F_OFD_SETLK)

    def close(self) -> None:
        """Let go of everything."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _set(self, kind: int, byte: int, command: int) -> bool:
        # struct flock: type, whence, start, length, pid; pid must be 0.
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
        descriptor = self._descriptor if self._descriptor is not None else self._open()
        try:
            fcntl.fcntl(descriptor, command, lock)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise StorageError(
                f"{self._path}: this filesystem cannot lock files ({error.strerror}): put the cache on a local disk "
                "(LMDALI_CACHE_DIR)"
            ) from error
        return True

    def _open(self) -> int:
        with self._opening, storage_errors(self._path):
            if self._descriptor is not None:
                return self._descriptor
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            return self._descriptor

    def _begin_anew(self) -> None:
        """In a forked child: the parent's locks are the parent's, and must end when it ends."""
        self.close()
        self._mutex, self._opening = threading.Lock(), threading.Lock()


_all: weakref.WeakSet[RangeLocks] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for locks in list(_all):
        locks._begin_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)
