"""One local file brought to a store: not sent where it already is, tried again where it did not arrive."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

from lmdali.pipeline.errors import IntegrityError, RemoteError
from lmdali.pipeline.files import file_sha256, storage_errors
from lmdali.pipeline.remote_retry import Attempts, Clock, RetryConfig
from lmdali.pipeline.remote_store import RemoteStat, WritableStore


class FileUpload:
    """The way of files into one store.

    Args:
        store: where they go.
        config: patience.
        verify: read back whatever is there, instead of believing the hash that the store keeps.
        clock: time.
    """

    def __init__(
        self,
        store: WritableStore,
        config: RetryConfig,
        *,
        verify: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._store, self._config, self._verify, self._clock = store, config, verify, clock

    def bring(self, name: str, path: Path, sha256: str | None = None) -> bool:
        """Have the file at `path` in the store under `name`; says whether it had to be sent.

        Args:
            name: what it is called there.
            path: the local file.
            sha256: what its hash must be; None takes it as it is.

        Raises:
            IntegrityError: its hash is another.
            RemoteError: the store refuses, or is out of reach for too long.
            StorageError: it cannot be read.
        """
        with storage_errors(path):
            size = path.stat().st_size
            if sha256 is not None and self.has(name, size, sha256):
                return False
            found = file_sha256(path)
        if sha256 is None and self.has(name, size, found):
            return False
        if sha256 not in (None, found):
            raise IntegrityError(
                f"{path}: sha256 differs from the manifest's: run `lmdali verify`, then `lmdali repair`"
            )
        with storage_errors(path):
            self._store.put_file(name, path, found, self._attempts(name))
        if self._verify and self._sha256_there(name) != found:
            raise RemoteError(f"{self._store.shown}/{name}: other bytes are there than were sent: run it again")
        return True

    def has(self, name: str, num_bytes: int, sha256: str) -> bool:
        """Whether the store has this very file: by the hash that it keeps, or else by reading all of it."""
        found = self._attempts(name).run(lambda: self._store.stat(name))
        if not _fits(found, num_bytes, sha256):
            return False
        assert found is not None
        return (found.sha256 == sha256 and not self._verify) or self._sha256_there(name) == sha256

    def seems_to_have(self, name: str, num_bytes: int, sha256: str) -> bool:
        """Whether nothing that the store says without reading speaks against it; for a file that was sent before."""
        return _fits(self._attempts(name).run(lambda: self._store.stat(name)), num_bytes, sha256)

    def put(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self._attempts(name).run(lambda: self._store.put(name, data))

    def remove(self, name: str) -> None:
        """Remove a file that may not be there."""
        self._attempts(name).run(lambda: self._store.remove(name))

    def _sha256_there(self, name: str) -> str:
        attempts = self._attempts(name)

        def read() -> str:
            digest = hashlib.sha256()
            attempts.begin(0)
            body = self._store.open(name, 0)
            with closing(body):
                for chunk in body.chunks:
                    digest.update(chunk)
                    attempts.received(len(chunk))
            return digest.hexdigest()

        return attempts.run(read)

    def _attempts(self, name: str) -> Attempts:
        return Attempts(f"{self._store.shown}/{name}", self._config, self._clock)


def _fits(found: RemoteStat | None, num_bytes: int, sha256: str) -> bool:
    return found is not None and found.num_bytes == num_bytes and found.sha256 in (None, sha256)
