"""Where the files of a tar archive lie in it: headers are read, and nothing is ever extracted to disk.

`tarfile` parses the headers. It trusts them, though: a size may send it backwards or ask for all the memory, and a
damaged header in the middle looks to it like the end. So it reads through a window that allows little at a time, each
step has to go forward, and the end has to be an end.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, NamedTuple, TypeVar, cast

from lmdali.pipeline.errors import InputError, LmdaliError, StorageError
from lmdali.pipeline.system_error import system_says
from lmdali.tools.class_folders import is_hidden
from lmdali.tools.range_reader import open_regular, read_range
from lmdali.tools.source_entries import Ignored

MAX_MEMBERS = 20_000_000
"""In one archive; a thousand bytes of headers each, so more than any archive of images has."""

_BLOCK = 512
_MAX_NAME = 4096
_MAX_HEADER = 1 << 20
"""Bytes of one extended header: a name, times, attributes. More is an attack or damage."""
_MAX_DIGITS = 100
"""In a row in a long extended header; `tarfile` before 3.11.10 takes quadratic time over them (CVE-2024-6232)."""
_MAX_GLOBAL_FIELDS = 1000
_END_CHUNK = 1 << 20
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
)
_AGAIN = "download the archive again and compare its md5sum"

_T = TypeVar("_T")


class TarMember(NamedTuple):
    """A regular file in an archive.

    Attributes:
        name: as the archive has it, without "./" and doubled slashes; only a label: nothing is written under it.
        offset: first byte in the outermost file.
        num_bytes: size.
    """

    name: str
    offset: int
    num_bytes: int


class TarWindow:
    """A part of some bytes, as the file object that `tarfile` reads from.

    Args:
        read_at: `(offset, num_bytes)` -> bytes.
        start: first byte of the part.
        size: bytes in it.
        where: what it is, for messages.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], start: int, size: int, where: str) -> None:
        self._read_at = read_at
        self.start, self.size, self.where = start, size, where
        self._position = 0

    def content(self, member: TarMember) -> bytes:
        """The bytes of a (small) member."""
        return self._bytes(member.offset, member.num_bytes)

    def at(self, position: int, num_bytes: int) -> bytes:
        """Bytes at a position of this window, none beyond its end."""
        return self._bytes(self.start + position, max(0, min(num_bytes, self.size - position)))

    def tell(self) -> int:
        """Position of the next read."""
        return self._position

    def seek(self, position: int) -> None:
        """Set the position of the next read."""
        if position < 0:
            raise ValueError(f"a step back to byte {position}")
        self._position = position

    def read(self, num_bytes: int) -> bytes:
        """Bytes of headers.

        Raises:
            ValueError: more than any header needs.
        """
        if not 0 <= num_bytes <= _MAX_HEADER:
            raise ValueError(f"an extended header of {num_bytes} bytes")
        data = self.at(self._position, num_bytes)
        if num_bytes > 2 * _BLOCK and max(map(len, re.split(rb"\D+", data))) > _MAX_DIGITS:
            raise ValueError(f"an extended header with more than {_MAX_DIGITS} digits in a row")
        self._position += len(data)
        return data

    def _bytes(self, offset: int, num_bytes: int) -> bytes:
        try:
            return self._read_at(offset, num_bytes)
        except OSError as error:
            raise StorageError(f"{self.where}: cannot be read at byte {offset}: {system_says(error)}") from None


@contextmanager
def open_tar(path: str, offset: int = 0, num_bytes: int | None = None, name: str | None = None) -> Iterator[TarWindow]:
    """A window on a tar file, or on an archive inside it that was found before.

    Args:
        path: the file.
        offset: of the inner archive.
        num_bytes: of the inner archive; default: the whole file.
        name: of the inner archive, for messages.

    Raises:
        InputError: missing, not a regular file, or compressed.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size if num_bytes is None else num_bytes
        where = repr(path) if name is None else f"{path!r}, in {name!r}"
        window = TarWindow(partial(read_range, descriptor), offset, size, where)
        refuse_compressed(window.at(0, 8), where)
        yield window
    finally:
        os.close(descriptor)


def refuse_compressed(head: bytes, where: str) -> None:
    """Refuse what begins like a compressed file.

    Raises:
        InputError: naming the program that unpacks it.
    """
    for magic, kind, program in _COMPRESSED:
        if head.startswith(magic):
            raise InputError(
                f"{where}: is compressed ({kind}); images are read from an archive in any order, which only a plain "
                f"tar allows: run {program} on it first (images themselves hardly get smaller)"
            )


def walk_tar(window: TarWindow, ignored: Ignored) -> Iterator[TarMember]:
    """All regular files of an archive, in its order; hidden ones, links, devices and sparse files are only counted.

    Memory does not grow with the number of members. A name may come several times: see `latest_members`.

    Raises:
        InputError: damaged, truncated, without an end, or with something after its end.
    """
    tar: Any = _parsed(
        window,
        0,
        lambda: tarfile.open(fileobj=cast("IO[bytes]", window), mode="r:", encoding="utf-8"),  # noqa: SIM115
    )
    count, begin = 0, 0
    while (member := _parsed(window, begin, tar.next)) is not None:
        tar.members.clear()  # it would keep them all
        count += 1
        _check(window, member, begin, tar.offset, len(tar.pax_headers))
        if count > MAX_MEMBERS:
            raise InputError(f"{window.where}: more than {MAX_MEMBERS} members: split it")
        begin = tar.offset
        reason = _reason_to_skip(member)
        if reason is None:
            yield TarMember(_tidied(member.name), window.start + member.offset_data, member.size)
        elif not member.isdir():
            ignored.add(reason, member.name)
    _refuse_bad_end(window, tar.offset)


def latest_members(members: Iterable[TarMember], ignored: Ignored) -> list[TarMember]:
    """Members without those that a later one of the same name replaces, as unpacking the archive would have it."""
    latest: dict[str, TarMember] = {}
    for member in members:
        if member.name in latest:
            ignored.add("replaced_member", member.name)
        latest[member.name] = member
    return list(latest.values())


def _parsed(window: TarWindow, begin: int, step: Callable[[], _T]) -> _T:
    try:
        return step()
    except LmdaliError:
        raise
    except Exception as error:  # tarfile lets ValueError, IndexError, RecursionError and others out on damaged headers
        raise InputError(
            f"{window.where}: no sound tar header at byte {begin} ({error}): is it a tar file? If so, {_AGAIN}"
        ) from None


def _check(window: TarWindow, member: tarfile.TarInfo, begin: int, after: int, num_global_fields: int) -> None:
    if after <= begin or member.size < 0:
        raise InputError(f"{window.where}: the header at byte {begin} leads backwards: {_AGAIN}")
    size = member.size if member.isreg() and not member.issparse() else 0
    if max(after, member.offset_data + size) > window.size:
        raise InputError(
            f"{window.where}: truncated at byte {window.size}: {member.name[:100]!r} of {member.size} bytes begins at "
            f"byte {member.offset_data}: {_AGAIN}"
        )
    if len(member.name) > _MAX_NAME:
        found = f"a name of {len(member.name)} characters at byte {begin}, above {_MAX_NAME}"
        raise InputError(f"{window.where}: {found}: {_AGAIN}")
    if num_global_fields > _MAX_GLOBAL_FIELDS:
        found = f"more than {_MAX_GLOBAL_FIELDS} global header fields at byte {begin}"
        raise InputError(f"{window.where}: {found}: {_AGAIN}")


def _reason_to_skip(member: tarfile.TarInfo) -> str | None:
    if member.issparse() or any(field.startswith("GNU.sparse.") for field in member.pax_headers):
        return "sparse_member"
    if not member.isreg():
        return "not_a_file"
    if any(is_hidden(part) for part in member.name.split("/") if part not in (".", "..")):
        return "hidden"
    return None


def _tidied(name: str) -> str:
    return posixpath.normpath(name) if "/" in name else name


def _refuse_bad_end(window: TarWindow, end: int) -> None:
    """An archive ends with blocks of zeros: anything else means that part of it would be lost without a word."""
    block = window.at(end, _BLOCK)
    if len(block) < _BLOCK:
        raise InputError(f"{window.where}: truncated at byte {window.size}, there is no end-of-archive mark: {_AGAIN}")
    if block.strip(b"\x00"):
        raise InputError(f"{window.where}: no sound tar header at byte {end}: is it a tar file? If so, {_AGAIN}")
    for position in range(end, window.size, _END_CHUNK):
        chunk = window.at(position, _END_CHUNK)
        rest = chunk.lstrip(b"\x00")
        if rest:
            raise InputError(
                f"{window.where}: the archive ends at byte {end}, but there is more at byte "
                f"{position + len(chunk) - len(rest)}: archives joined together lose all but the first; separate them"
            )
