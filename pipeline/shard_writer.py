"""One LMDB shard: written aside, hashed, synced, renamed. After the rename its bytes never change.

The file depends on its records alone, so a resumed conversion equals an uninterrupted one byte for byte: one
transaction per shard (another batching of commits moves pages), keys in order, and a map size that follows from the
number of planned sources. The map is an upper bound in address space, not on disk; no user ever sees it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb

from lmdali.pipeline.errors import IntegrityError, StorageError
from lmdali.pipeline.files import (
    disk_full,
    free_bytes,
    storage_errors,
    sync_directory,
)
from lmdali.pipeline.manifest import ShardInfo
from lmdali.pipeline.records import pack_record, packed_crc, record_key
from lmdali.pipeline.shard_figures import save_figures
from lmdali.pipeline.shard_header import DATA_FILE, read_header
from lmdali.pipeline.shard_index import save_offsets, value_offsets

TEMPORARY_SUFFIX = ".tmp"
_FULL_BELOW_BYTES = 1 << 20


class ShardWriter:
    """Collects the records of one shard and publishes them in one step.

    Use as a context manager: leaving it without `publish` removes everything written.

    Args:
        directory: the dataset's `shards/`.
        name: five digits.
        first_position: plan position of the first source.
        num_sources: sources planned for this shard.
        image_size: side of the stored images; bounds the size of a record.
    """

    def __init__(self, directory: Path, name: str, *, first_position: int, num_sources: int, image_size: int) -> None:
        self._final = directory / name
        self._aside = directory / f".{name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        self._name, self._first_position, self._num_sources = name, first_position, num_sources
        self._stored: list[int] = []
        self._payload_bytes = 0
        self._is_committed = False
        # A JPEG of noise at quality 100 can be larger than its pixels, hence the factor.
        record_limit_bytes = 2 * image_size * image_size * 3 + 65_536
        with storage_errors(self._aside):
            self._aside.mkdir(parents=True)
        try:
            self._environment: lmdb.Environment | None = lmdb.open(
                str(self._aside),
                map_size=1 << max(26, (num_sources * record_limit_bytes).bit_length()),
                # Never writemap: there a full disk is a SIGBUS. No sync per commit: one fsync at the end is as safe.
                sync=False,
                lock=False,
                **_FORMAT_0_9,
            )
            self._transaction = self._environment.begin(write=True)
        except lmdb.Error as error:
            shutil.rmtree(self._aside, ignore_errors=True)
            raise self._translate(error) from error

    def put(self, position: int, path: str, data: bytes, *, label: int, height: int, width: int) -> int:
        """Append one image file, positions must ascend; returns the checksum that its record has."""
        value = pack_record(data, label=label, height=height, width=width)
        try:
            self._transaction.put(record_key(position, path), value, append=True)
        except lmdb.Error as error:
            raise self._translate(error) from error
        self._stored.append(position)
        self._payload_bytes += len(data)
        return packed_crc(value)

    def commit(self) -> None:
        """End the list of records. By the thread that wrote them: LMDB binds a transaction to it, the rest is free."""
        if not self._is_committed:
            try:
                self._transaction.commit()
            except lmdb.Error as error:
                raise self._translate(error) from error
            self._is_committed = True

    def publish(self, document: dict[str, Any]) -> ShardInfo:
        """Commit, sync, hash and rename; `document` is kept in `shard.json` beside the shard's own figures."""
        self.commit()
        assert self._environment is not None
        try:
            self._environment.sync(True)
        except lmdb.Error as error:
            raise self._translate(error) from error
        self._environment.close()
        self._environment = None
        data_file = self._aside / DATA_FILE
        header = read_header(data_file)
        if header.format_version != 1 or header.num_entries != len(self._stored):
            raise IntegrityError(
                f"{data_file}: holds {header.num_entries} records in LMDB format {header.format_version}, expected "
                f"{len(self._stored)} in format 1: unset LMDB_DEFAULT_LIB_VERSION and use the lmdb wheel from PyPI"
            )
        stored = set(self._stored)
        planned = range(self._first_position, self._first_position + self._num_sources)
        with storage_errors(data_file):
            with data_file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                save_offsets(self._aside, value_offsets(memoryview(mapped), header, data_file))
                sha256 = hashlib.sha256(mapped).hexdigest()
            info = ShardInfo(
                name=self._name,
                num_records=len(self._stored),
                first_position=self._first_position,
                num_sources=self._num_sources,
                rejected=tuple(position for position in planned if position not in stored),
                file_bytes=data_file.stat().st_size,
                payload_bytes=self._payload_bytes,
                sha256=sha256,
            )
            save_figures(self._aside, info, document)
            os.rename(self._aside, self._final)  # noqa: PTH104  # Path.rename would replace an empty directory silently
            sync_directory(self._final.parent)
        return info

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._environment is not None:
            if not self._is_committed:
                self._transaction.abort()
            self._environment.close()
            self._environment = None
        shutil.rmtree(self._aside, ignore_errors=True)

    def _translate(self, error: lmdb.Error) -> StorageError:
        # A disk that fills up in the middle of a write gives LMDB a short write, which it calls an I/O error.
        full = isinstance(error, lmdb.DiskError) or free_bytes(self._final.parent) < _FULL_BELOW_BYTES
        return disk_full(self._final) if full else StorageError(f"{self._final}: LMDB: {error}")


# py-lmdb 3 carries two engines; DALI, Caffe and every older reader need the 0.9 file format.
_FORMAT_0_9: dict[str, Any] = {"lib_version": 0} if int(lmdb.__version__.split(".")[0]) >= 3 else {}
