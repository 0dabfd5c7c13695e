"""Reading one source file whole, whatever it turns out to be: it never waits, and every failure has a name."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.tools.source_entries import SourceEntry

MAX_SOURCE_BYTES = 2_000_000_000
"""More than an uncompressed 16-bit image of the pixel limit has; a disk image named .jpg must not fill the memory."""


_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileReader:
    """Reads the entries of a source made of plain files. Small and picklable: send it, not the source, to workers.

    Attributes:
        root: folder that relative paths start from.
        max_bytes: larger files are rejected unread.
    """

    root: str
    max_bytes: int = MAX_SOURCE_BYTES

    def read(self, entry: SourceEntry) -> bytes:
        """The bytes of one file.

        Raises:
            SourceRejected: vanished, dangling_link, not_a_file, permission_denied, too_many_bytes or read_failed.
        """
        path = os.path.join(self.root, entry.path)  # noqa: PTH118  # pathlib would change names such as "a//b" and "./a"
        try:
            # Without O_NONBLOCK the open of a FIFO waits for a writer for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (OSError, ValueError) as error:
            raise _rejection(error, path) from None
        try:
            return self._read_open(descriptor)
        except OSError as error:
            raise _rejection(error, path) from None
        finally:
            os.close(descriptor)

    def _read_open(self, descriptor: int) -> bytes:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise SourceRejected(Rejection.NOT_A_FILE, f"it is {kind}")
        if status.st_size > self.max_bytes:
            raise SourceRejected(
                Rejection.TOO_MANY_BYTES, f"{status.st_size} bytes are more than the limit of {self.max_bytes}"
            )
        data = os.read(descriptor, status.st_size + 1)
        if len(data) == status.st_size:  # a byte more was asked for: this is the end
            return data
        # The file grows meanwhile, or one call may not read so much.
        return b"".join([data, *iter(lambda: os.read(descriptor, _CHUNK_BYTES), b"")])


def _rejection(error: OSError | ValueError, path: str) -> SourceRejected:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT:
        if os.path.islink(path):  # noqa: PTH114
            return SourceRejected(Rejection.DANGLING_LINK, "a symbolic link whose target does not exist")
        return SourceRejected(Rejection.VANISHED, "no such file any more")
    if number in (errno.EACCES, errno.EPERM):
        return SourceRejected(Rejection.PERMISSION_DENIED, "not readable by this user")
    if number in (errno.ENXIO, errno.ENODEV, errno.ENOTDIR, errno.EISDIR):
        return SourceRejected(Rejection.NOT_A_FILE, f"not a regular file ({os.strerror(number)})")
    reason = os.strerror(number) if number is not None else str(error)
    return SourceRejected(Rejection.READ_FAILED, f"cannot be read ({reason})")
