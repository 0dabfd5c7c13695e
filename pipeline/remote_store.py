"""Where remote files are: one small interface, over HTTP, local folders and what fsspec knows (S3, GCS, ...)."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from lmdali.pipeline.errors import ConfigError, RemoteError
from lmdali.pipeline.files import storage_errors, sync_directory, write_atomic
from lmdali.pipeline.remote_address import file_address_path, is_remote, redacted, scheme_of
from lmdali.pipeline.remote_retry import Attempts, RetryConfig, TransientError

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


def open_store(address: str, config: RetryConfig | None = None) -> Store:
    """The store of an address: http(s) and file need no package, others what fsspec asks for.

    Raises:
        MissingExtraError: fsspec, or its package for this scheme, is not installed.
        InputError: nobody knows the scheme.
    """
    if scheme_of(address) in ("http", "https"):
        from lmdali.pipeline.http_store import HttpStore

        return HttpStore(address, config or RetryConfig())
    return open_writable_store(address, config)


def open_writable_store(address: str, config: RetryConfig | None = None) -> WritableStore:
    """The store of an address, to write to.

    Raises:
        ConfigError: it is one of http(s).
        MissingExtraError, InputError: as of `open_store`.
    """
    scheme, patience = scheme_of(address), config or RetryConfig()
    if scheme in ("http", "https"):
        raise ConfigError(
            f"{redacted(address)}: plain HTTP cannot be written to: give the bucket behind it (s3://bucket/folder), or "
            "a path"
        )
    if scheme == "file":
        return FileStore(file_address_path(address))
    if scheme in ("s3", "s3a"):
        from lmdali.pipeline.s3_store import S3Store

        return S3Store(address, patience)
    from lmdali.pipeline.fsspec_store import FsspecStore

    return FsspecStore(address, patience)


def store_of(dataset: str, config: RetryConfig | None = None) -> Store:
    """The store of a dataset that is given by its address or by its path."""
    return open_store(dataset, config) if is_remote(dataset) else FileStore(Path(dataset).absolute())


def not_found(shown: str) -> RemoteError:
    """The error for a file that is not there."""
    error = RemoteError(f"{shown}: not found: check the address, and that the upload has finished")
    error.is_missing = True
    return error


def not_allowed(shown: str, why: str) -> RemoteError:
    """The error for a file that this user may not see."""
    return RemoteError(f"{shown}: access denied ({why}): check the credentials of this machine")


class FileStore:
    """A local folder, as `file://` names it.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown = f"file://{folder}"

    def open(self, name: str, start: int) -> Body:
        """The file's bytes from `start` on."""
        path = self.folder / name
        with _file_errors(f"{self.shown}/{name}"):
            size = path.stat().st_size
        return Body(start, size, self._chunks(name, start))

    def put(self, name: str, data: bytes) -> None:
        """Write a file aside and rename it."""
        path = self.folder / name
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def stat(self, name: str) -> RemoteStat | None:
        """The size of a file."""
        try:
            with _file_errors(f"{self.shown}/{name}"):
                return RemoteStat((self.folder / name).stat().st_size)
        except RemoteError as error:
            if error.is_missing:
                return None
            raise

    def put_file(self, name: str, path: Path, sha256: str, attempts: Attempts) -> None:
        """Copy a file aside, sync it and rename it. A disk that refuses is not asked again."""
        final = self.folder / name
        aside = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        with storage_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("rb") as source, aside.open("xb") as copy:
                    while chunk := source.read(CHUNK_BYTES):
                        copy.write(chunk)
                    copy.flush()
                    os.fsync(copy.fileno())
                aside.replace(final)
            finally:
                aside.unlink(missing_ok=True)
            sync_directory(final.parent)
        attempts.received(final.stat().st_size)

    def remove(self, name: str) -> None:
        """Remove a file, and its folder where that is empty then."""
        path = self.folder / name
        with storage_errors(path):
            path.unlink(missing_ok=True)
            if path.parent != self.folder and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()

    def _chunks(self, name: str, start: int) -> Iterator[bytes]:
        with _file_errors(f"{self.shown}/{name}"), (self.folder / name).open("rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


_FOR_GOOD = (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)


@contextmanager
def _file_errors(shown: str) -> Iterator[None]:
    """What the system says of a file, as errors of a store. A network disk that is away may come back."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise not_found(shown) from None
    except PermissionError as error:
        raise not_allowed(shown, str(error.strerror)) from None
    except OSError as error:
        if error.errno in _FOR_GOOD:
            raise RemoteError(f"{shown}: {error.strerror}: check the address") from None
        raise TransientError(str(error.strerror)) from None
