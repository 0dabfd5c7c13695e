"""A local folder as a store, which `file://` names."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmdali.pipeline.errors import RemoteError
from lmdali.pipeline.files import storage_errors, sync_directory, write_atomic
from lmdali.pipeline.path_kind import is_dir
from lmdali.pipeline.remote_retry import Attempts, TransientError
from lmdali.pipeline.remote_store import CHUNK_BYTES, Body, RemoteStat, not_allowed, not_found


class FileStore:
    """The files below a local folder.

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

    def interrupt(self) -> None:
        """Nothing: nobody can be called back from a disk."""

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
            if path.parent != self.folder and is_dir(path.parent) and not any(path.parent.iterdir()):
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
