"""Where each value lies inside an LMDB file: the tree walked once, so that a reader needs no search per record.

A value of our size fills pages of its own, one after the other, so it is one run of bytes of the file. The runs of a
shard are kept beside it in `offsets.npy` when it is written: a loader then finds any record without touching a page of
the tree, knows ahead of time which bytes it will need, and damage in the tree cannot lead it anywhere.

Layout of format 1 (LMDB 0.9, mdb.c): a page begins with its number u64, 2 bytes, flags u16 at 10, and the end of its
table of u16 node offsets u16 at 12; the table begins at 16. A node is size u32 (in branch pages, with the flags above
it, a page number of 48 bits), flags u16 at 4, key size u16 at 6, key, and in leaf pages the value, or with `BIG_DATA`
the number of the first of its own pages, whose header takes 16 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import ShardError
from lmdali.pipeline.files import npy_bytes, write_atomic
from lmdali.pipeline.shard_header import NO_PAGE, LmdbHeader

OFFSETS_FILE = "offsets.npy"
"""(num_records, 2) int64 beside `data.mdb`: first byte of each value in the file, and its size in bytes."""

_PAGE_HEADER_BYTES = 16
_BRANCH, _LEAF = 0x01, 0x02
_BIG_DATA = 0x01


def walk_values(file: memoryview, header: LmdbHeader, path: Path) -> Iterator[tuple[memoryview, int, int]]:
    """Every (key, offset, size) of the main database in key order; offset and size of the value are bytes of the file.

    Args:
        file: the whole file, mapped or read.
        header: what its meta pages say.
        path: named in errors.

    Raises:
        ShardError: the tree is not one that LMDB writes for plain keys and values: the file is damaged.
    """
    tree = _Tree(file, header.page_bytes, path)
    # A tree visits no page twice, so a damaged one that runs in circles is found by counting.
    left = len(file) // header.page_bytes
    stack = [] if header.root_page == NO_PAGE else [header.root_page]
    found = 0
    while stack:
        number = stack.pop()
        left -= 1
        if left < 0:
            raise tree.damaged(number, "the tree runs in circles")
        start, flags, nodes = tree.page(number)
        if flags == _BRANCH:
            stack += [tree.child(start + node) for node in reversed(nodes)]
        elif flags == _LEAF:
            for node in nodes:
                yield tree.entry(number, start + node)
            found += len(nodes)
        else:
            raise tree.damaged(number, f"its flags are {flags:#x}, neither a branch nor a leaf")
    if found != header.num_entries:
        raise ShardError(f"{path}: its tree holds {found} records, its header says {header.num_entries}")


def value_offsets(file: memoryview, header: LmdbHeader, path: Path) -> NDArray[np.int64]:
    """(n, 2) int64 offset and size of every value, in key order.

    Raises:
        ShardError: the file is damaged.
    """
    pairs = [(offset, size) for _, offset, size in walk_values(file, header, path)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def save_offsets(directory: Path, offsets: NDArray[np.int64]) -> None:
    """Write `offsets.npy` into a shard's directory."""
    write_atomic(directory / OFFSETS_FILE, npy_bytes(offsets))


def load_offsets(directory: Path, *, num_records: int, file_bytes: int) -> NDArray[np.int64] | None:
    """The kept offsets of a shard, or None where there are none that fit it: then the tree is walked instead.

    Args:
        directory: of the shard.
        num_records: records it holds.
        file_bytes: size of its `data.mdb`; no value may end behind it.
    """
    try:
        offsets = np.load(directory / OFFSETS_FILE, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if offsets.shape != (num_records, 2) or offsets.dtype != np.int64:
        return None
    starts, sizes = offsets[:, 0], offsets[:, 1]
    fits = bool((starts >= 0).all() and (sizes >= 0).all() and (starts <= file_bytes - sizes).all())
    return offsets if fits else None


class _Tree:
    """Pages of one file, every number checked before it is followed."""

    def __init__(self, file: memoryview, page_bytes: int, path: Path) -> None:
        self._file, self._page_bytes, self._path = file, page_bytes, path

    def page(self, number: int) -> tuple[int, int, list[int]]:
        """First byte, flags and node offsets of a page."""
        start = number * self._page_bytes
        if start + self._page_bytes > len(self._file):
            raise self.damaged(number, "it is behind the end of the file")
        (flags,) = struct.unpack_from("<H", self._file, start + 10)
        (table_end,) = struct.unpack_from("<H", self._file, start + 12)
        count = (table_end - _PAGE_HEADER_BYTES) // 2
        if not 0 <= count <= (self._page_bytes - _PAGE_HEADER_BYTES) // 10:
            raise self.damaged(number, f"a table of {count} nodes")
        nodes = list(struct.unpack_from(f"<{count}H", self._file, start + _PAGE_HEADER_BYTES))
        if any(node + 8 > self._page_bytes for node in nodes):
            raise self.damaged(number, "a node behind its end")
        return start, flags, nodes

    def child(self, node: int) -> int:
        """Page number in a branch node."""
        low, high, top = struct.unpack_from("<HHH", self._file, node)
        return int(low | high << 16 | top << 32)

    def entry(self, number: int, node: int) -> tuple[memoryview, int, int]:
        """Key, and offset and size of the value, of a leaf node."""
        size, flags, key_size = struct.unpack_from("<IHH", self._file, node)
        key_end = node + 8 + key_size
        page_end = (number + 1) * self._page_bytes
        if flags == 0:
            offset, limit = key_end, page_end
        elif flags == _BIG_DATA and key_end + 8 <= page_end:
            (first,) = struct.unpack_from("<Q", self._file, key_end)
            offset, limit = first * self._page_bytes + _PAGE_HEADER_BYTES, len(self._file)
        else:
            raise self.damaged(number, f"a node with flags {flags:#x}")
        if key_end > page_end or offset + size > limit:
            raise self.damaged(number, "a key or value that does not fit")
        return self._file[node + 8 : key_end], offset, size

    def damaged(self, number: int, what: str) -> ShardError:
        return ShardError(f"{self._path}: page {number} of its LMDB tree: {what}: the shard is damaged")
