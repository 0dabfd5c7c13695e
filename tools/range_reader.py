"""Reading images that lie inside larger files, as ranges of their bytes.

An image that cannot be read is a reject. A file that is gone, or is no longer the one that was scanned, ends the run:
it would turn every image in it into a reject.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmdali.pipeline.errors import InputError, StorageError
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.tools.file_reader import MAX_SOURCE_BYTES
from lmdali.tools.source_entries import SourceEntry


def open_regular(path: str) -> int:
    """A descriptor of a regular file, to read from; it never waits.

    Raises:
        InputError: the file is missing, closed to this user, or no regular file.
        StorageError: the disk failed.
    """
    try:
        # Without O_NONBLOCK the open of a FIFO waits for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        kind = StorageError if error.errno in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE) else InputError
        raise kind(f"{path!r}: cannot be opened ({error.strerror}): put it back, or make it readable") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path!r}: no regular file")
    return descriptor


Stamp = tuple[int, int]
"""Size and modification time in ns of a file."""


def stamp_of(path: str) -> Stamp:
    """Of a file as it is now.

    Raises:
        InputError: the file is missing, closed to this user, or no regular file.
        StorageError: the disk failed.
    """
    descriptor = open_regular(path)
    try:
        return _stamp(descriptor)
    finally:
        os.close(descriptor)


def refuse_change(path: str, found: Stamp, scanned: Stamp) -> None:
    """Refuse a file that is not the one that was scanned.

    Raises:
        InputError: with both sizes.
    """
    if found != scanned:
        raise InputError(
            f"{path!r}: changed after it was scanned (then {scanned[0]} bytes, now {found[0]}, modification time "
            f"{'equal' if found[1] == scanned[1] else 'differs'}): leave it alone and run again with --resume"
        )


@dataclass(frozen=True)
class RangeReader:
    """Reads entries that are byte ranges of a few files. Small and picklable.

    A file is opened for each read: this costs a few microseconds beside the milliseconds of decoding an image, leaves
    nothing open however many files there are, and sees at once that a file was replaced.

    Attributes:
        root: folder that `files` start from.
        files: the files, by number as entries give it.
        stamps: of each when it was scanned.
        max_bytes: larger ranges are rejected unread.
    """

    root: str
    files: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    max_bytes: int = MAX_SOURCE_BYTES

    @classmethod
    def over(cls, files: Sequence[Path]) -> RangeReader:
        """A reader of these files as they are now; make it before they are scanned.

        Raises:
            InputError: one is missing or cannot be opened.
        """
        paths = [os.path.abspath(path) for path in files]  # noqa: PTH100  # a link in a path is left as it is
        root = os.path.commonpath(list(map(os.path.dirname, paths))) if paths else ""
        return cls(root, tuple(os.path.relpath(path, root) for path in paths), tuple(map(stamp_of, paths)))

    def read(self, entry: SourceEntry) -> bytes:
        """The bytes of one image.

        Raises:
            SourceRejected: too_many_bytes or read_failed.
            InputError: the file is gone, or was changed after it was scanned.
            StorageError: the disk failed when the file was opened.
        """
        if entry.num_bytes > self.max_bytes:
            raise SourceRejected(
                Rejection.TOO_MANY_BYTES, f"{entry.num_bytes} bytes are more than the limit of {self.max_bytes}"
            )
        path = os.path.join(self.root, self.files[entry.file])  # noqa: PTH118
        descriptor = open_regular(path)
        try:
            refuse_change(path, _stamp(descriptor), self.stamps[entry.file])
            data = read_range(descriptor, entry.offset, entry.num_bytes)
            if len(data) < entry.num_bytes:
                refuse_change(path, _stamp(descriptor), self.stamps[entry.file])
                raise SourceRejected(
                    Rejection.READ_FAILED, f"{len(data)} of {entry.num_bytes} bytes from byte {entry.offset} of {path}"
                )
            return data
        except OSError as error:
            raise SourceRejected(Rejection.READ_FAILED, f"cannot be read ({error.strerror})") from None
        finally:
            os.close(descriptor)


def read_range(descriptor: int, offset: int, num_bytes: int) -> bytes:
    """Bytes from `offset` on; fewer than `num_bytes` only at the end of the file.

    Raises:
        OSError: from the system.
    """
    data = os.pread(descriptor, num_bytes, offset)
    while 0 < len(data) < num_bytes:  # a signal or a network file system may cut one read short
        more = os.pread(descriptor, num_bytes - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _stamp(descriptor: int) -> Stamp:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
