"""Random access to the records of a dataset, from any number of threads, loaders and forked processes.

All shards are mapped into one array of bytes, each when it is first needed and checked before; where a value lies was
written down when the shard was made. So finding a record is one lookup in a table, many at a time, and LMDB is only
needed to write. A forked child goes on with its parent's mappings, which need no open file.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import LmdaliError, RecordError, ShardError, StorageError
from lmdali.pipeline.manifest import SHARDS_DIRECTORY, Manifest, RecordIndex, ShardInfo
from lmdali.pipeline.mapped_files import MappedFiles
from lmdali.pipeline.path_kind import is_file
from lmdali.pipeline.records import Record, crc_problem, key_prefix, parse_record
from lmdali.pipeline.shard_header import DATA_FILE, LmdbHeader, check_size
from lmdali.pipeline.shard_index import load_offsets, value_offsets, walk_values
from lmdali.pipeline.shard_walk import iterate_keys
from lmdali.pipeline.system_error import system_says

_T = TypeVar("_T")


class Located(NamedTuple):
    """Where some values lie; the memory stays mapped for as long as `bytes` is held.

    Attributes:
        bytes: the whole dataset as one read-only uint8 array.
        starts: (n,) int64, first byte of each value.
        stops: (n,) int64, the byte after it.
    """

    bytes: NDArray[np.uint8]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]


class FilePlaces(NamedTuple):
    """Where some values lie in their shards' files.

    Attributes:
        shards: (n,) int64 numbers of the shards.
        offsets: (n,) int64, first byte of each value in its file.
        sizes: (n,) int64 bytes.
    """

    shards: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


class MappedShards:
    """The shards that are mapped, and the places of their values."""

    def __init__(self, manifest: Manifest) -> None:
        self.files = MappedFiles([shard.file_bytes for shard in manifest.shards])
        self.is_mapped = np.zeros(len(manifest.shards), np.bool_)
        self.starts = _table(manifest.num_records)
        self.sizes = _table(manifest.num_records)


def _table(num_records: int) -> NDArray[np.int64]:
    """(num_records,) int64 that takes memory only where it was written, which happens shard by shard.

    Not `np.empty`, which asks for huge pages: the shards of one batch then touch nearly all 2 MB pages of a table of
    14 million records. In the first batch the system then spent 0.04 to 0.36 s, instead of 0.01 to 0.03 s.
    """
    memory = mmap.mmap(-1, max(8 * num_records, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # where the system gives huge pages to everybody
        with suppress(OSError):  # a kernel that was built without them
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.int64, num_records)


class ShardReader:
    """Records of a dataset by number. Thread-safe, and picklable: files are mapped where they are used."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory.resolve()
        self.manifest = manifest
        self.index = RecordIndex(manifest)
        self._lock = threading.Lock()
        self._mapping: MappedShards | None = None
        _readers.add(self)

    def check_files(self) -> None:
        """Check that every shard is there with the right size.

        Raises:
            ShardError: naming all missing shards, or the first of another size.
        """
        sizes = {info.name: _size(self.data_file(info.name)) for info in self.manifest.shards}
        missing = [name for name, size in sizes.items() if size is None]
        if missing:
            named = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise ShardError(
                f"{self.directory / SHARDS_DIRECTORY}: {len(missing)} of {len(self.manifest.shards)} shards are "
                f"missing ({named}): copy them from where the dataset came from, or convert again"
            )
        for info in self.manifest.shards:
            if sizes[info.name] != info.file_bytes:
                raise ShardError(
                    f"{self.data_file(info.name)}: {sizes[info.name]} bytes, manifest.json says {info.file_bytes}: "
                    f"the shard is damaged or replaced; {self._on_damage(info)}"
                )

    def data_file(self, name: str) -> Path:
        """Path of a shard's LMDB file."""
        return self.directory / SHARDS_DIRECTORY / name / DATA_FILE

    def locate(self, indices: NDArray[np.int64]) -> Located:
        """Where the values of (n,) records lie; shards that were not needed before are checked and mapped.

        Raises:
            IndexError: there is no such record.
            ShardError: a shard is missing or damaged.
            StorageError: a shard cannot be read.
        """
        mapping = self._mapping or self._make_mapping()
        shards = self.index.shards_of(indices)
        if not mapping.is_mapped[shards].all():
            for number in np.unique(shards[~mapping.is_mapped[shards]]):
                self._map_shard(mapping, int(number))
        starts = mapping.starts[indices]
        return Located(mapping.files.bytes, starts, starts + mapping.sizes[indices])

    def file_places(self, indices: NDArray[np.int64]) -> FilePlaces:
        """Where the values of (n,) records lie in their files, for whoever reads these without a mapping.

        Raises:
            IndexError, ShardError, StorageError: as `locate`.
        """
        mapping = self._mapping or self._make_mapping()
        located, shards = self.locate(indices), self.index.shards_of(indices)
        return FilePlaces(shards, located.starts - mapping.files.starts[shards], located.stops - located.starts)

    def will_need(self, located: Located) -> None:
        """Ask the kernel to begin reading some values from storage; returns before they are there.

        Neighbours are asked for together, so values should be given in the order in which they lie.
        """
        mapping = self._mapping
        if mapping is None or not len(located.starts) or not np.may_share_memory(mapping.files.bytes, located.bytes):
            return
        gaps = located.starts[1:] - located.stops[:-1]
        is_apart = (gaps < 0) | (gaps > mmap.PAGESIZE)
        starts = located.starts[np.concatenate([[True], is_apart])]
        stops = located.stops[np.concatenate([is_apart, [True]])]
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            mapping.files.will_need(start, stop)

    def read(self, index: int, use: Callable[[Record], _T], *, verify: bool = True) -> _T:
        """Call `use` with one record. Its data is a view of the shard, which stays mapped while the view is held.

        Args:
            index: record number.
            use: receives the parsed record.
            verify: compare the stored CRC first.

        Raises:
            IndexError: there is no such record.
            RecordError: the record is damaged; shard, record and key are named.
        """
        located = self.locate(np.array([index], np.int64))
        try:
            record = parse_record(located.bytes[located.starts[0] : located.stops[0]].data)
            if verify and not record.is_intact:
                raise RecordError(crc_problem(len(record.data)))
            return use(record)
        except RecordError as error:
            raise RecordError(self.describe(index, str(error))) from error

    def describe(self, index: int, problem: str) -> str:
        """An error message that says where a record lies, what is wrong with it, and what to do next."""
        number, row = self.index.locate(index)
        shard = self.manifest.shards[number]
        path = self.data_file(shard.name)
        try:
            key = next(islice(iterate_keys(path), row, None))
        except (LmdaliError, StopIteration):
            key = key_prefix(shard.position(row)) + b"..."
        where = f"record {index}, key {key.decode('utf-8', 'backslashreplace')}"
        return f"{path}: {where}: {problem}; run `lmdali verify {self.directory}`"

    def give_up_waiting(self) -> None:
        """Whoever waits for a shard to come need not; here nobody does."""

    def close(self) -> None:
        """Let go of the shards; memory that somebody still looks at stays mapped. A later read maps them again."""
        with self._lock:
            self._mapping = None

    def _make_mapping(self) -> MappedShards:
        with self._lock:
            if self._mapping is None:
                try:
                    self._mapping = MappedShards(self.manifest)
                except OSError as error:
                    raise StorageError(
                        f"{self.directory}: {self.manifest.file_bytes} bytes cannot be mapped ({error.strerror}): "
                        "raise the limit on address space (ulimit -v)"
                    ) from error
            return self._mapping

    def _on_damage(self, info: ShardInfo) -> str:
        """A shard is damaged: what is to be done, as the end of a message."""
        return f"run `lmdali verify {self.directory}`"

    def _map_shard(self, mapping: MappedShards, number: int) -> None:
        info = self.manifest.shards[number]
        try:
            self._map_sound(mapping, number, info)
        except ShardError as error:
            raise ShardError(f"{error}; {self._on_damage(info)}") from error

    def _map_sound(self, mapping: MappedShards, number: int, info: ShardInfo) -> None:
        path = self.data_file(info.name)
        with self._lock:
            if mapping.is_mapped[number]:
                return
            header = check_size(path, expected_bytes=info.file_bytes, expected_entries=info.num_records)
            try:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    mapping.files.map(number, descriptor)
                finally:
                    os.close(descriptor)
            except FileNotFoundError as error:  # removed since it was checked
                raise ShardError(f"{path}: {error.strerror}") from error
            except OSError as error:
                raise StorageError(f"{path}: {system_says(error)}") from error
            place = int(mapping.files.starts[number])
            file = mapping.files.bytes[place : place + info.file_bytes].data
            offsets = self._offsets(number, file, header)
            records = slice(self.index.first_records[number], self.index.first_records[number + 1])
            mapping.starts[records], mapping.sizes[records] = place + offsets[:, 0], offsets[:, 1]
            mapping.is_mapped[number] = True

    def _offsets(self, number: int, file: memoryview, header: LmdbHeader) -> NDArray[np.int64]:
        """Offset and size of each value of a shard; its first key tells shards apart that were swapped."""
        info = self.manifest.shards[number]
        path = self.data_file(info.name)
        first = next(walk_values(file, header, path), None)
        if first is None:
            return np.empty((0, 2), np.int64)
        key, offset, size = first
        prefix = key_prefix(info.position(0))
        if not bytes(key).startswith(prefix):
            raise ShardError(
                f"{path}: its first key is {bytes(key).decode('utf-8', 'backslashreplace')}, expected "
                f"{prefix.decode()}...: the shards were renamed or mixed up"
            )
        kept = load_offsets(path.parent, num_records=info.num_records, file_bytes=info.file_bytes)
        if kept is not None and tuple(kept[0]) == (offset, size):
            return kept
        return value_offsets(file, header, path)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["directory"], state["manifest"])  # type: ignore[misc]


_readers: weakref.WeakSet[ShardReader] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A thread of the parent may have held a lock; nobody in the child will ever release it."""
    for reader in list(_readers):
        reader._renew_lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if is_file(path) else None
    except OSError:
        return None
