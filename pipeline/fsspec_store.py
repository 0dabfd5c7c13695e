"""Files of what fsspec knows: object stores and others, each by the package of its scheme."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from lmdali.pipeline.errors import InputError, MissingExtraError, RemoteError
from lmdali.pipeline.remote_address import redacted, scheme_of
from lmdali.pipeline.remote_retry import Attempts, RetryConfig, TransientError
from lmdali.pipeline.remote_store import Body, RemoteStat, not_allowed, not_found

_FIRST_RANGE, _SMALLEST_RANGE, _LARGEST_RANGE = 1 << 20, 1 << 17, 16 << 20
"""Bytes asked of an object store in one request: what such a line brings in `_RANGE_SECONDS`, within these limits."""

_RANGE_SECONDS = 4.0
"""What breaks loses all of its request, and of some packages none can be given up half-way."""

_PACKAGES = {"s3": ("s3fs", "remote"), "s3a": ("s3fs", "remote"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
"""What fsspec itself needs for a scheme, where the name does not say it, and the extra that brings it."""


class FsspecStore:
    """What fsspec opens. Credentials are found as its packages find them: environment, files, roles.

    Args:
        address: of the folder.
        config: patience.
        options: for the package that opens it.
    """

    def __init__(self, address: str, config: RetryConfig, **options: Any) -> None:
        scheme = scheme_of(address)
        package, extra = _PACKAGES.get(scheme, ("fsspec", "remote"))
        if importlib.util.find_spec("fsspec") is None:
            raise MissingExtraError("fsspec", extra, f"an address with {scheme}://")
        import fsspec

        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra, f"an address with {scheme}://")
        self.shown = redacted(address)
        try:
            self._opened, self._root = fsspec.core.url_to_fs(address, **options)
        except ImportError as error:
            raise InputError(f"{self.shown}: {redacted(str(error))}") from None
        except ValueError as error:
            raise InputError(
                f"{self.shown}: {redacted(str(error))}: write it as https://, s3://, gs:// or file://"
            ) from None
        except OSError as error:
            raise RemoteError(f"{self.shown}: {redacted(str(error))}: check the address") from None
        self._reopen = partial(fsspec.core.url_to_fs, address, **options)
        self._process = os.getpid()
        self._config = config
        self._is_async = bool(getattr(self._opened, "async_impl", False))
        self._asked: set[Future[Any]] = set()

    @property
    def _filesystem(self) -> Any:
        """What fsspec made; another one in a forked child, where the parent's refuses everything."""
        if self._process != os.getpid():
            self._opened, self._process, self._asked = self._reopen()[0], os.getpid(), set()
        return self._opened

    def open(self, name: str, start: int) -> Body:
        """The object's bytes from `start` on, asked for in ranges."""
        size = self._translated(name, lambda: int(self._answer("info", 0, f"{self._root}/{name}")["size"]))
        return Body(start, size, self._chunks(name, start, size))

    def interrupt(self) -> None:
        """Cancel requests for bytes and sizes, where the package makes them in coroutines."""
        for future in tuple(self._asked):
            future.cancel()

    def stat(self, name: str) -> RemoteStat | None:
        """The size of an object: no hash that all stores would keep is known."""
        try:
            found = self._translated(name, lambda: self._answer("info", 0, f"{self._root}/{name}"))
        except RemoteError as error:
            if error.is_missing:
                return None
            raise
        return RemoteStat(int(found["size"]))

    def put(self, name: str, data: bytes) -> None:
        """Write an object: it is whole or absent."""
        path = f"{self._root}/{name}"
        self._make_folder(path)
        self._translated(name, lambda: self._filesystem.pipe_file(path, data))

    def put_file(self, name: str, path: Path, sha256: str, attempts: Attempts) -> None:
        """Write an object; what came of it is compared by size only."""
        there, size = f"{self._root}/{name}", path.stat().st_size
        attempts.run(lambda: self._make_folder(there))
        attempts.run(lambda: self._translated(name, lambda: self._filesystem.put_file(str(path), there)))
        found = attempts.run(lambda: self.stat(name))
        if found is None or found.num_bytes != size:
            there_now = found and found.num_bytes
            raise RemoteError(f"{self.shown}/{name}: {size} bytes were sent, {there_now} are there: run it again")
        attempts.received(size)

    def remove(self, name: str) -> None:
        """Remove an object."""
        try:
            self._translated(name, lambda: self._filesystem.rm_file(f"{self._root}/{name}"))
        except RemoteError as error:
            if not error.is_missing:
                raise

    def _make_folder(self, path: str) -> None:
        """Some stores have real folders; to others this says nothing."""
        folder = path.rpartition("/")[0]
        self._translated(folder, lambda: self._filesystem.makedirs(folder, exist_ok=True))

    def _chunks(self, name: str, start: int, size: int) -> Iterator[bytes]:
        path, length = f"{self._root}/{name}", _FIRST_RANGE
        while start < size:
            end = min(start + length, size)
            began = perf_counter()
            chunk = self._translated(
                name,
                lambda a=start, b=end: self._answer("cat_file", b - a, path, start=a, end=b),
            )
            rate = (end - start) / max(perf_counter() - began, 1e-9)
            yield chunk
            length = round(min(max(rate * _RANGE_SECONDS, _SMALLEST_RANGE), _LARGEST_RANGE))
            start = end

    def _answer(self, method: str, num_bytes: int, *arguments: Any, **options: Any) -> Any:
        """What a method of fsspec's returns, within what so many bytes may take at the lowest rate.

        A package without coroutines ends a read that stalls by itself, and cannot be interrupted.
        """
        filesystem = self._filesystem
        if not self._is_async:
            return getattr(filesystem, method)(*arguments, **options)
        seconds = self._config.read_timeout_seconds + num_bytes / self._config.min_bytes_per_second
        coroutine = getattr(filesystem, f"_{method}")(*arguments, **options)
        asked = asyncio.run_coroutine_threadsafe(coroutine, filesystem.loop)
        self._asked.add(asked)
        try:
            return asked.result(seconds)
        finally:
            asked.cancel()
            self._asked.discard(asked)

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
        except FileExistsError:
            raise
        except TimeoutError:
            raise TransientError("no answer in time") from None
        except CancelledError:
            raise TransientError("interrupted") from None
        except Exception as error:  # each package has errors of its own: connections, time limits, statuses
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
                raise not_allowed(shown, type(error).__name__) from None
            raise TransientError(f"{type(error).__name__}: {redacted(str(error))}") from None
