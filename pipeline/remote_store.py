"""What a place of remote files can do: one small interface, whatever is behind the address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from lmdali.pipeline.errors import RemoteError
from lmdali.pipeline.remote_retry import Attempts

CHUNK_BYTES = 1 << 20


class Body(NamedTuple):
    """The bytes of a remote file from somewhere on.

    Attributes:
        start: first byte that comes; 0 where the server knows no ranges.
        num_bytes: of the whole file, or None where the server does not say.
        chunks: the bytes; iterating raises `RemoteError` or `TransientError`.
        close: ends the connection; to be called in any case.
    """

    start: int
    num_bytes: int | None
    chunks: Iterator[bytes]
    close: Callable[[], object] = lambda: None


class RemoteStat(NamedTuple):
    """What a store knows of a file without sending it.

    Attributes:
        num_bytes: its size.
        sha256: its hash, where whoever wrote it left that with the store; else None.
    """

    num_bytes: int
    sha256: str | None = None


class Store(Protocol):
    """The files below one address.

    Attributes:
        shown: the address without credentials.
    """

    shown: str

    def open(self, name: str, start: int) -> Body:
        """A file's bytes from `start` on.

        Raises:
            RemoteError: not there, not allowed.
            TransientError: what may be over when it is tried again.
        """
        ...

    def interrupt(self) -> None:
        """Whoever waits for bytes of a file now, in any thread, gets `TransientError` soon, as far as that can be."""
        ...


class WritableStore(Store, Protocol):
    """A store that can also be written to. Every file in it is whole or absent, at least once its writer has ended."""

    def stat(self, name: str) -> RemoteStat | None:
        """What is known of a file; None where there is none.

        Raises:
            RemoteError: not allowed.
            TransientError: what may be over when it is tried again.
        """
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write a small file.

        Raises:
            RemoteError: not allowed.
            TransientError: what may be over when it is tried again.
        """
        ...

    def put_file(self, name: str, path: Path, sha256: str, attempts: Attempts) -> None:
        """Write a file of any size.

        Args:
            name: what it is called there.
            path: the local file.
            sha256: its hash, left with the store where that can keep it.
            attempts: told of every part that arrived, and asked whether to go on after every one that did not.

        Raises:
            RemoteError: not allowed, or given up.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file that may not be there.

        Raises:
            RemoteError: not allowed.
            TransientError: what may be over when it is tried again.
        """
        ...


def not_found(shown: str) -> RemoteError:
    """The error for a file that is not there."""
    error = RemoteError(f"{shown}: not found: check the address, and that the upload has finished")
    error.is_missing = True
    return error


def not_allowed(shown: str, why: str) -> RemoteError:
    """The error for a file that this user may not see."""
    return RemoteError(f"{shown}: access denied ({why}): check the credentials of this machine")
