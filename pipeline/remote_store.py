"""Where remote files come from: one small interface, over HTTP, local folders and what fsspec knows (S3, GCS, ...)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lmdali.pipeline.errors import InputError, MissingExtraError, RemoteError
from lmdali.pipeline.files import storage_errors, write_atomic
from lmdali.pipeline.remote_address import file_address_path, redacted, scheme_of
from lmdali.pipeline.remote_retry import RetryConfig, TransientError

CHUNK_BYTES = 1 << 20
_RANGE_BYTES = 16 << 20
"""Asked of an object store in one request."""

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""What fsspec itself needs for a scheme, where the name does not say it."""


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

    def put(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            RemoteError: not allowed, or the store is only for reading.
            TransientError: what may be over when it is tried again.
        """
        ...


def open_store(address: str, config: RetryConfig | None = None) -> Store:
    """The store of an address: http(s) and file need no package, others what fsspec asks for.

    Raises:
        MissingExtraError: fsspec, or its package for this scheme, is not installed.
        InputError: nobody knows the scheme.
    """
    scheme, patience = scheme_of(address), config or RetryConfig()
    if scheme in ("http", "https"):
        from lmdali.pipeline.http_store import HttpStore

        return HttpStore(address, patience)
    if scheme == "file":
        return FileStore(file_address_path(address))
    return FsspecStore(address, patience)


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
        self._folder = folder
        self.shown = f"file://{folder}"

    def open(self, name: str, start: int) -> Body:
        """The file's bytes from `start` on."""
        path = self._folder / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise not_found(f"{self.shown}/{name}") from None
        except PermissionError as error:
            raise not_allowed(f"{self.shown}/{name}", str(error.strerror)) from None
        return Body(start, size, self._chunks(path, start))

    def put(self, name: str, data: bytes) -> None:
        """Write a file aside and rename it."""
        path = self._folder / name
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    @staticmethod
    def _chunks(path: Path, start: int) -> Iterator[bytes]:
        try:
            with path.open("rb") as file:
                file.seek(start)
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise TransientError(str(error.strerror)) from None


class FsspecStore:
    """What fsspec opens. Credentials are found as its packages find them: environment, files, roles.

    Args:
        address: of the folder.
        config: patience.
    """

    def __init__(self, address: str, config: RetryConfig) -> None:
        scheme = scheme_of(address)
        if importlib.util.find_spec("fsspec") is None:
            raise MissingExtraError("fsspec", "remote", f"reading {scheme}://")
        import fsspec

        if scheme in _PACKAGES and importlib.util.find_spec(_PACKAGES[scheme]) is None:
            raise MissingExtraError(_PACKAGES[scheme], "remote", f"reading {scheme}://")
        self.shown = redacted(address)
        try:
            self._filesystem, self._root = fsspec.core.url_to_fs(address)
        except ImportError as error:
            raise InputError(f"{self.shown}: {redacted(str(error))}") from None
        except ValueError as error:
            raise InputError(f"{self.shown}: {redacted(str(error))}: no such kind of address") from None
        # fsspec's synchronous calls take it where they wait for coroutines of another thread.
        is_async = bool(getattr(self._filesystem, "async_impl", False))
        self._limits: dict[str, Any] = {"timeout": config.read_timeout_seconds} if is_async else {}

    def open(self, name: str, start: int) -> Body:
        """The object's bytes from `start` on, asked for in ranges."""
        path = f"{self._root}/{name}"
        size = self._translated(name, lambda: int(self._filesystem.info(path, **self._limits)["size"]))
        return Body(start, size, self._chunks(name, start, size))

    def put(self, name: str, data: bytes) -> None:
        """Write an object: it is whole or absent."""
        self._translated(name, lambda: self._filesystem.pipe_file(f"{self._root}/{name}", data))

    def _chunks(self, name: str, start: int, size: int) -> Iterator[bytes]:
        path = f"{self._root}/{name}"
        for begin in range(start, size, _RANGE_BYTES):
            end = min(begin + _RANGE_BYTES, size)
            yield self._translated(
                name, lambda a=begin, b=end: self._filesystem.cat_file(path, start=a, end=b, **self._limits)
            )

    def _translated(self, name: str, call: Any) -> Any:
        shown = f"{self.shown}/{name}"
        try:
            # A listing that is kept would hide what changed since.
            self._filesystem.invalidate_cache()
            return call()
        except FileNotFoundError:
            raise not_found(shown) from None
        except PermissionError as error:
            raise not_allowed(shown, redacted(str(error))) from None
        except Exception as error:  # each package has errors of its own: connections, time limits, statuses
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
                raise not_allowed(shown, type(error).__name__) from None
            raise TransientError(f"{type(error).__name__}: {redacted(str(error))}") from None
