"""One remote file brought here: resumed where it was cut, and refused unless it is what it should be."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO

from lmdali.pipeline.errors import RemoteError
from lmdali.pipeline.files import storage_errors, sync_file
from lmdali.pipeline.remote_retry import Attempts, Clock, RetryConfig, TransientError
from lmdali.pipeline.remote_store import CHUNK_BYTES, Store

_MAX_BAD_BODIES = 3
"""Whole and wrong ones; one may come of a proxy, or of what an earlier process had kept."""

_NAP_SECONDS = 0.1
"""Between two looks whether the file is still wanted."""


class FetchStopped(Exception):
    """Nobody wants the file any more."""


class _BadBody(Exception):
    """All bytes came, and they are not those of the file."""


def fetch_small(store: Store, name: str, *, max_bytes: int, config: RetryConfig, clock: Clock | None = None) -> bytes:
    """The whole of a small file of which nothing is known.

    Raises:
        RemoteError: it cannot be had, or is larger than `max_bytes`.
    """
    attempts = Attempts(f"{store.shown}/{name}", config, clock)
    while True:
        try:
            attempts.begin(0)
            body = store.open(name, 0)
            data = bytearray()
            with closing(body):
                for chunk in body.chunks:
                    data += chunk
                    if len(data) > max_bytes:
                        raise RemoteError(
                            f"{store.shown}/{name}: larger than {max_bytes} bytes: this is another file: check the "
                            "address"
                        )
                    attempts.received(len(chunk))
            if body.num_bytes is not None and len(data) != body.num_bytes:
                raise TransientError(f"{len(data)} of {body.num_bytes} bytes came")
            return bytes(data)
        except TransientError as error:
            attempts.failed(error)


class FileFetch:
    """The fetching of one file whose size and hash are known.

    Args:
        store: where it is.
        name: which it is.
        num_bytes: its size.
        sha256: its hash.
        config: patience.
        clock: time.
        stopped: asked again and again, whether the file is still wanted.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        num_bytes: int,
        sha256: str,
        config: RetryConfig,
        clock: Clock | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._name, self._num_bytes, self._sha256 = store, name, num_bytes, sha256
        self._shown = f"{store.shown}/{name}"
        self._attempts = Attempts(self._shown, config, clock or Clock(sleep=self._sleep))
        self._stopped = stopped
        self._hash = hashlib.sha256()
        self._have = 0
        self.fetched_bytes = 0

    def into(self, path: Path) -> None:
        """Bring the file to `path`, going on behind what is there.

        Raises:
            RemoteError: it cannot be had, or is another file. What came of a wrong one is removed, the beginning of a
                right one stays.
            StorageError: the disk is full or failed.
            FetchStopped: nobody wants it any more.
        """
        bad_bodies = 0
        with storage_errors(path), path.open("a+b") as file:
            self._take_up(file)
            while True:
                try:
                    self._fetch_rest(file)
                    file.flush()
                    sync_file(path)
                    return
                except TransientError as error:
                    if self._stopped():  # it was interrupted, perhaps: nobody need hear of it
                        raise FetchStopped from None
                    self._attempts.failed(error)
                except _BadBody as error:
                    self._restart(file)
                    self._attempts.forget()
                    bad_bodies += 1
                    if bad_bodies == _MAX_BAD_BODIES:
                        path.unlink(missing_ok=True)
                        raise RemoteError(
                            f"{self._shown}: {error}, {bad_bodies} times: it was damaged on the way, or the remote "
                            "dataset changed: upload it again, or start again with what is there now"
                        ) from None
                    self._attempts.failed(TransientError(str(error)))

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_SECONDS))

    def _take_up(self, file: IO[bytes]) -> None:
        """Hash what an earlier process left here."""
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            self._hash.update(chunk)
            self._have += len(chunk)
        if self._have > self._num_bytes:
            self._restart(file)

    def _restart(self, file: IO[bytes]) -> None:
        file.truncate(0)
        self._hash, self._have = hashlib.sha256(), 0

    def _fetch_rest(self, file: IO[bytes]) -> None:
        if self._stopped():
            raise FetchStopped
        if self._have < self._num_bytes:
            self._attempts.begin(self._have)
            body = self._store.open(self._name, self._have)
            with closing(body):
                if body.num_bytes not in (None, self._num_bytes):
                    raise _BadBody(f"{body.num_bytes} bytes, manifest.json says {self._num_bytes}")
                if body.start != self._have:
                    self._restart(file)
                    self._attempts.begin(0)
                for chunk in body.chunks:
                    self._keep(file, chunk)
        if self._have < self._num_bytes:
            raise TransientError(f"the connection ended after {self._have} of {self._num_bytes} bytes")
        if self._hash.hexdigest() != self._sha256:
            raise _BadBody(f"sha256 is {self._hash.hexdigest()}, manifest.json says {self._sha256}")

    def _keep(self, file: IO[bytes], chunk: bytes) -> None:
        if self._stopped():
            raise FetchStopped
        if self._have + len(chunk) > self._num_bytes:
            raise _BadBody(f"more than {self._num_bytes} bytes, the size in manifest.json")
        file.write(chunk)
        file.flush()  # so that a process that is killed leaves what came
        self._hash.update(chunk)
        self._have += len(chunk)
        self.fetched_bytes += len(chunk)
        self._attempts.received(len(chunk))
