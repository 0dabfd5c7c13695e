"""The dataset as anybody would put it into LMDB: one file, key = record number, value = label and image file."""

from __future__ import annotations

import struct
from pathlib import Path

import lmdb

from peers.task import Task

_LABEL = struct.Struct("<i")
_MAP_BYTES = 1 << 40


def convert(task: Task) -> None:
    """Write the copy."""
    environment = lmdb.open(task.folder, map_size=_MAP_BYTES, sync=False)
    with environment.begin(write=True) as transaction:
        for number, (data, label) in enumerate(task.records()):
            transaction.put(b"%08d" % number, _LABEL.pack(label) + data)
    environment.close()


class LmdbCopy:
    """Read access for one process; transactions belong to the thread that asks."""

    def __init__(self, task: Task) -> None:
        self._environment = lmdb.open(str(Path(task.folder)), readonly=True, lock=False, readahead=False)

    def transaction(self) -> lmdb.Transaction:
        """A read transaction whose values are views of the mapped file."""
        return self._environment.begin(buffers=True)


def read(transaction: lmdb.Transaction, number: int) -> tuple[memoryview, int]:
    """Image file and label of a record."""
    value = memoryview(transaction.get(b"%08d" % number))  # type: ignore[arg-type]  # every number is there
    return value[_LABEL.size :], _LABEL.unpack_from(value)[0]
