"""All records of one LMDB file in key order: for whoever checks or counts everything, ours or a plain Caffe LMDB."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import ShardError
from lmdali.pipeline.manifest import ShardInfo
from lmdali.pipeline.path_kind import exists
from lmdali.pipeline.records import Record, parse_record
from lmdali.pipeline.shard_header import DATA_FILE, LmdbHeader, check_size
from lmdali.pipeline.shard_index import OFFSETS_FILE, load_offsets, value_offsets, walk_values


def iterate_keys(path: Path) -> Iterator[bytes]:
    """Every key of one LMDB file, in order.

    Raises:
        ShardError: the file is missing, truncated or damaged.
    """
    header, mapped = _map_whole(path)
    for key, _, _ in walk_values(mapped, header, path):
        yield bytes(key)


def iterate_lmdb(directory: Path) -> Iterator[tuple[bytes, Record]]:
    """Every key and record of one LMDB directory, in key order: ours or any plain Caffe LMDB.

    Raises:
        ShardError: the file is missing, truncated or damaged.
        RecordError: a value is not a Datum.
    """
    for key, value in iterate_values(directory):
        yield key, parse_record(value)


def iterate_values(directory: Path) -> Iterator[tuple[bytes, memoryview]]:
    """Every key and unparsed value of one LMDB directory, in key order.

    Raises:
        ShardError: the file is missing, truncated or damaged.
    """
    path = directory / DATA_FILE
    header, mapped = _map_whole(path)
    for key, offset, size in walk_values(mapped, header, path):
        yield bytes(key), mapped[offset : offset + size]


def kept_offsets_fit(directory: Path, info: ShardInfo) -> bool:
    """Whether a shard's `offsets.npy`, if it has one, says what its LMDB tree says.

    A loader believes it, so a wrong one would deliver sound records under each other's numbers.

    Raises:
        ShardError: the LMDB file is missing, truncated or damaged.
    """
    if not exists(directory / OFFSETS_FILE):
        return True
    kept = load_offsets(directory, num_records=info.num_records, file_bytes=info.file_bytes)
    return kept is not None and np.array_equal(kept, lmdb_offsets(directory))


def lmdb_offsets(directory: Path) -> NDArray[np.int64]:
    """(n, 2) int64 offset and size in `data.mdb` of every value of one LMDB directory, in key order.

    Raises:
        ShardError: the LMDB file is missing, truncated or damaged.
    """
    path = directory / DATA_FILE
    header, mapped = _map_whole(path)
    return value_offsets(mapped, header, path)


def _map_whole(path: Path) -> tuple[LmdbHeader, memoryview]:
    header = check_size(path, expected_bytes=None, expected_entries=None)
    try:
        with path.open("rb") as file:
            return header, memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}") from error
