"""The first page of an LMDB file, read without LMDB: mapping a truncated file would kill the process with SIGBUS.

Layout of format 1 (LMDB 0.9, 64-bit, little-endian): two meta pages at 0 and `page size`. In each: magic u32 at 16,
version u32 at 20, page size u32 at 40, number of entries of the main database u64 at 120, its root page u64 at
128, last used page u64 at 136, transaction number u64 at 144. The meta page with the higher transaction number is the
valid one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from lmdali.pipeline.errors import ShardError

_MAGIC = 0xBEEFC0DE
_META_BYTES = 152

DATA_FILE = "data.mdb"
"""Name of the file inside an LMDB directory."""

NO_PAGE = (1 << 64) - 1
"""LMDB's page number for "none"."""


@dataclass(frozen=True)
class LmdbHeader:
    """What the newer meta page says.

    Attributes:
        format_version: 1 for LMDB 0.9.
        page_bytes: page size.
        num_entries: keys in the main database.
        root_page: number of the page where its tree begins; `NO_PAGE` in an empty one.
        needed_bytes: size the file must have: (last used page + 1) * page size.
    """

    format_version: int
    page_bytes: int
    num_entries: int
    root_page: int
    needed_bytes: int


def read_header(path: Path) -> LmdbHeader:
    """Header of `data.mdb`.

    Raises:
        ShardError: missing, shorter than its own header, or not an LMDB file.
    """
    try:
        with path.open("rb") as file:
            first = file.read(_META_BYTES)
            if len(first) == _META_BYTES and _word(first, 24) == _MAGIC:  # LMDB 1.0 has longer page headers
                raise ShardError(f"{path}: LMDB file format {_word(first, 28)}, only format 1 (LMDB 0.9) can be read")
            page_bytes = struct.unpack_from("<I", first, 40)[0] if len(first) == _META_BYTES else 0
            if page_bytes < 512 or page_bytes > 65536 or page_bytes & (page_bytes - 1):
                raise ShardError(f"{path}: {path.stat().st_size} bytes and no LMDB header: the shard is damaged")
            file.seek(page_bytes)
            second = file.read(_META_BYTES)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}") from error
    metas = [meta for meta in (first, second) if len(meta) == _META_BYTES and _word(meta, 16) == _MAGIC]
    if len(metas) != 2:
        raise ShardError(f"{path}: only {len(metas)} of 2 LMDB meta pages are readable: the shard is damaged")
    newest = max(metas, key=lambda meta: _long(meta, 144))
    return LmdbHeader(
        format_version=_word(newest, 20),
        page_bytes=page_bytes,
        num_entries=_long(newest, 120),
        root_page=_long(newest, 128),
        needed_bytes=(_long(newest, 136) + 1) * page_bytes,
    )


def check_size(path: Path, *, expected_bytes: int | None, expected_entries: int | None) -> LmdbHeader:
    """Refuse a shard whose size or record count is not what its header and the manifest say.

    Args:
        path: the shard's `data.mdb`.
        expected_bytes: file size in the manifest, None for a foreign LMDB (then the header alone decides).
        expected_entries: record count in the manifest, None for a foreign LMDB.

    Raises:
        ShardError: naming both numbers.
    """
    header = read_header(path)
    try:
        size = path.stat().st_size
    except OSError as error:  # removed since, as a damaged one of a cache is
        raise ShardError(f"{path}: {error.strerror}") from error
    if header.format_version != 1:
        raise ShardError(f"{path}: LMDB file format {header.format_version}, only format 1 (LMDB 0.9) can be read")
    if expected_bytes is not None and size != expected_bytes:
        raise ShardError(f"{path}: {size} bytes, manifest.json says {expected_bytes}: the shard is damaged or replaced")
    if size < header.needed_bytes:
        raise ShardError(f"{path}: {size} bytes, its header needs {header.needed_bytes}: the file is truncated")
    if expected_entries is not None and header.num_entries != expected_entries:
        raise ShardError(f"{path}: {header.num_entries} records, manifest.json says {expected_entries}")
    return header


def _word(meta: bytes, offset: int) -> int:
    return int(struct.unpack_from("<I", meta, offset)[0])


def _long(meta: bytes, offset: int) -> int:
    return int(struct.unpack_from("<Q", meta, offset)[0])
