"""Random access to the records of a dataset, from any number of threads, loaders and forked processes.

LMDB refuses to open one file twice in a process, so environments live in one registry per process, shared by everyone
who reads the same shard, and at most `MAX_OPEN_SHARDS` of them stay open. A forked child inherits the registry but must
not use it: it is emptied in the child right after the fork. Nothing is mapped before its size has been checked.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from lmdali.pipeline.errors import RecordError, ShardError
from lmdali.pipeline.manifest import SHARDS_DIRECTORY, Manifest, RecordIndex
from lmdali.pipeline.records import Record, key_prefix, parse_record
from lmdali.pipeline.shard_header import DATA_FILE, check_size

MAX_OPEN_SHARDS = 64
"""Environments kept open per process: one file descriptor each, so 1,000 shards work under a limit of 256."""

_T = TypeVar("_T")


class _OpenShard:
    """An environment with one read transaction and cursor per thread, and a count of who is using it."""

    def __init__(self, directory: Path) -> None:
        try:
            # Readers never pass a map size: the default maps what the file has, a large one exhausts address space.
            self.environment = lmdb.open(
                str(directory), readonly=True, lock=False, readahead=False, create=False, max_spare_txns=0
            )
        except lmdb.Error as error:
            raise ShardError(f"{directory / DATA_FILE}: LMDB cannot open it: {error}") from error
        self.users = 0
        self._cursors = threading.local()

    def cursor(self) -> lmdb.Cursor:
        cursor: lmdb.Cursor | None = getattr(self._cursors, "cursor", None)
        if cursor is None:
            cursor = self._cursors.cursor = self.environment.begin(buffers=True).cursor()
        return cursor


class _Registry:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, _OpenShard] = OrderedDict()

    def acquire(self, directory: Path, check: Callable[[], object]) -> _OpenShard:
        with self._lock:
            shard = self._open.get(directory)
            if shard is None:
                check()
                self._close_idle(MAX_OPEN_SHARDS - 1)
                shard = self._open[directory] = _OpenShard(directory)
            self._open.move_to_end(directory)
            shard.users += 1
            return shard

    def release(self, shard: _OpenShard) -> None:
        with self._lock:
            shard.users -= 1

    def close_below(self, root: Path) -> None:
        """Close what nobody is using below `root`; another loader opens it again when it needs it."""
        with self._lock:
            for directory in [d for d, shard in self._open.items() if not shard.users and d.is_relative_to(root)]:
                self._open.pop(directory).environment.close()

    def _close_idle(self, keep: int) -> None:
        for directory in list(self._open):
            if len(self._open) <= keep:
                return
            if not self._open[directory].users:
                self._open.pop(directory).environment.close()

    def forget_after_fork(self) -> None:
        self._lock = threading.Lock()
        for shard in self._open.values():
            shard.environment.close()  # py-lmdb asks for this before the child may open the file itself
        self._open.clear()


_registry = _Registry()
os.register_at_fork(after_in_child=_registry.forget_after_fork)


class ShardReader:
    """Records of a dataset by number. Thread-safe, and picklable: handles are opened where they are used."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory.resolve()
        self.manifest = manifest
        self._index = RecordIndex(manifest)
        # Made once: building a path costs as much as looking a record up.
        self._directories = [self.data_file(info.name).parent for info in manifest.shards]

    def check_files(self) -> None:
        """Check that every shard is there with the right size.

        Raises:
            ShardError: naming all missing shards, or the first of another size.
        """
        missing = [info.name for info in self.manifest.shards if not self.data_file(info.name).is_file()]
        if missing:
            named = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise ShardError(
                f"{self.directory / SHARDS_DIRECTORY}: {len(missing)} of {len(self.manifest.shards)} shards are "
                f"missing ({named}): copy them from where the dataset came from, or convert again"
            )
        for info in self.manifest.shards:
            size = self.data_file(info.name).stat().st_size
            if size != info.file_bytes:
                raise ShardError(
                    f"{self.data_file(info.name)}: {size} bytes, manifest.json says {info.file_bytes}: "
                    "the shard is damaged or replaced"
                )

    def data_file(self, name: str) -> Path:
        """Path of a shard's LMDB file."""
        return self.directory / SHARDS_DIRECTORY / name / DATA_FILE

    def _acquire(self, number: int) -> _OpenShard:
        directory = self._directories[number]

        def check() -> None:
            info = self.manifest.shards[number]
            check_size(directory / DATA_FILE, expected_bytes=info.file_bytes, expected_entries=info.num_records)

        return _registry.acquire(directory, check)

    def read(self, index: int, use: Callable[[Record], _T], *, verify: bool = True) -> _T:
        """Call `use` with one record while its memory is mapped; the record's data must not be kept.

        Args:
            index: record number.
            use: receives the parsed record; its `data` points into the shard.
            verify: compare the stored CRC first.

        Raises:
            RecordError: the record is not there, or its CRC differs; shard, record and key are named.
        """
        number, row = self._index.locate(index)
        prefix = key_prefix(self.manifest.shards[number].position(row))
        key = b""
        shard = self._acquire(number)  # and released by hand: a context manager costs a quarter of a read
        try:
            cursor = shard.cursor()
            if cursor.set_range(prefix):
                found_key, value = cursor.item()
                key = bytes(found_key)
            if not key.startswith(prefix):
                raise RecordError(f"the record with key {prefix.decode()}... is not in it")
            record = parse_record(value)
            if verify and not record.is_intact:
                raise RecordError(f"CRC-32C of its {len(record.data)} bytes and label differs from the stored one")
            return use(record)
        except (RecordError, lmdb.Error) as error:
            raise RecordError(self._describe(number, index, key, error)) from error
        finally:
            _registry.release(shard)

    def _describe(self, number: int, index: int, key: bytes, error: Exception) -> str:
        path = self._directories[number] / DATA_FILE
        where = f"record {index}, key {key.decode('utf-8', 'backslashreplace')}"
        kind = "LMDB: " if isinstance(error, lmdb.Error) else ""
        return f"{path}: {where}: {kind}{error}; run `lmdali verify {self.directory}`"

    def close(self) -> None:
        """Close this dataset's shards that nobody is reading."""
        _registry.close_below(self.directory)

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["directory"], state["manifest"])  # type: ignore[misc]


def iterate_lmdb(directory: Path) -> Iterator[tuple[bytes, Record]]:
    """Every key and record of one LMDB directory, in key order: ours or any plain Caffe LMDB.

    The record's data is valid until the next step.

    Raises:
        ShardError: the file is missing or truncated.
        RecordError: a value is not a Datum.
    """
    path = directory.resolve() / DATA_FILE
    shard = _registry.acquire(path.parent, lambda: check_size(path, expected_bytes=None, expected_entries=None))
    try:
        # A transaction of its own: the thread's shared cursor may be moved by a read between two steps.
        with shard.environment.begin(buffers=True) as transaction:
            for key, value in transaction.cursor().iternext():
                yield bytes(key), parse_record(value)
    except lmdb.Error as error:
        raise ShardError(f"{path}: LMDB: {error}") from error
    finally:
        _registry.release(shard)
