"""`records.parquet` and `rejects.parquet`: one row per source file, stored or not.

Parquet because pandas, DuckDB and Polars read it; its rows are for people and for repair, the loader never needs them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmdali.pipeline.errors import IntegrityError
from lmdali.pipeline.files import storage_errors, sync_directory, sync_file


@dataclass(frozen=True, slots=True)
class RecordRow:
    """A stored source.

    Attributes:
        position: number in the plan, and in the key.
        shard: shard name.
        row: row within the shard.
        key: LMDB key.
        label: class number.
        source: path below the source's root; bytes that are not UTF-8 are written as backslash escapes.
        source_bytes: size of the source file.
        source_sha256: hash of the source file.
        source_width: pixels, as stored in the file.
        source_height: pixels, as stored in the file.
        oddities: comma-separated names, such as "gray" or "cmyk".
        stored_bytes: size of the stored image file.
        crc32c: the record's checksum, over the stored image file and the label.
    """

    position: int
    shard: str
    row: int
    key: str
    label: int
    source: str
    source_bytes: int
    source_sha256: str
    source_width: int
    source_height: int
    oddities: str
    stored_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class RejectRow:
    """A source that was not stored.

    Attributes:
        position: number in the plan.
        label: class number.
        source: as in `RecordRow`.
        reason: one of a small set of names.
        detail: what exactly was found.
        source_bytes: size, -1 where the file could not be read.
        source_sha256: hash, empty where the file could not be read.
    """

    position: int
    label: int
    source: str
    reason: str
    detail: str
    source_bytes: int
    source_sha256: str


Row = RecordRow | RejectRow

_TYPES = {"int": pa.int64(), "str": pa.string()}


def use_plain_allocator() -> None:
    """Let Arrow take memory from malloc: its own allocator reserves 1 GB at once, and memory may be limited."""
    pa.set_memory_pool(pa.system_memory_pool())


def write_rows(path: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    """Write rows to a new file and make it durable."""
    table = pa.table(
        {f.name: pa.array([getattr(row, f.name) for row in rows], _TYPES[str(f.type)]) for f in fields(kind)}
    )
    with storage_errors(path):
        pq.write_table(table, path, compression="zstd")
        sync_file(path)


def concatenate(parts: list[Path], target: Path, kind: type[Row], *, index: bool) -> None:
    """Join the tables of all shards, in order, into one.

    Args:
        parts: files made by `write_rows`.
        target: file to write; appears whole or not at all.
        kind: row type, for the schema of no rows.
        index: put a running number in front, the record number.
    """
    schema = pa.schema([(f.name, _TYPES[str(f.type)]) for f in fields(kind)])
    if index:
        schema = schema.insert(0, pa.field("index", pa.int64()))
    aside = target.with_name(f".{target.name}.tmp")
    count = 0
    with storage_errors(target):
        with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
            for part in parts:
                table = pq.read_table(part)
                if index:
                    numbers = pa.array(range(count, count + len(table)), pa.int64())
                    table = table.add_column(0, "index", numbers)
                count += len(table)
                writer.write_table(table)
        sync_file(aside)
        aside.replace(target)
        sync_directory(target.parent)


def read_rows(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Rows as dictionaries.

    Raises:
        IntegrityError: the file is missing or not Parquet.
    """
    rows: list[dict[str, Any]] = _read(path, columns).to_pylist()
    return rows


def take_rows(path: Path, columns: list[str], indices: list[int]) -> list[dict[str, Any]]:
    """Some rows as dictionaries, in the order asked for; only the row groups that hold them are read.

    Args:
        path: a table made by `concatenate`, which has one row group per shard.
        columns: to read.
        indices: row numbers from 0.

    Raises:
        IntegrityError: the file is missing, not Parquet, or too short.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            first_rows = [0, *accumulate(sizes)]
            if indices and not 0 <= min(indices) <= max(indices) < first_rows[-1]:
                raise IntegrityError(f"{path}: has {first_rows[-1]} rows, row {max(indices)} was asked for: damaged?")
            group_of = [bisect_right(first_rows, index) - 1 for index in indices]
            groups = sorted(set(group_of))
            table = file.read_row_groups(groups, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"{path}: cannot be read as Parquet: {error}") from error
    before = dict(zip(groups, [0, *accumulate(sizes[group] for group in groups)], strict=False))
    rows = [before[group] + index - first_rows[group] for group, index in zip(group_of, indices, strict=True)]
    taken: list[dict[str, Any]] = table.take(pa.array(rows, pa.int64())).to_pylist()
    return taken


class ColumnReader:
    """Runs of rows of a table; its description, which grows with the number of shards, is read once.

    Args:
        path: a table made by `concatenate`, which has one row group per shard.

    Attributes:
        num_rows: of the table.

    Raises:
        IntegrityError: the file is missing or not Parquet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._named_errors():
            self._file = pq.ParquetFile(path)
            metadata = self._file.metadata
            sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            self._first_rows = [0, *accumulate(sizes)]
        self.num_rows = self._first_rows[-1]

    def read(self, columns: list[str], start: int, stop: int) -> dict[str, list[Any]]:
        """Rows start..stop-1, one list per column; only the row groups that hold them are read.

        Raises:
            IntegrityError: the file is damaged or too short.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise IntegrityError(f"{self._path}: has {self.num_rows} rows, rows up to {stop} were asked for: damaged?")
        first = bisect_right(self._first_rows, start) - 1
        groups = range(first, bisect_right(self._first_rows, stop - 1)) if start < stop else range(0)
        with self._named_errors():
            table = self._file.read_row_groups(list(groups), columns=columns)
        table = table.slice(start - self._first_rows[first], stop - start)
        return {name: table[name].to_pylist() for name in columns}

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise IntegrityError(f"{self._path}: cannot be read as Parquet: {error}") from error


def count_values(path: Path, column: str) -> Counter[Any]:
    """How often each value of a column occurs, in order of first appearance; no row becomes a Python object.

    Raises:
        IntegrityError: the file is missing or not Parquet.
    """
    counts = _read(path, [column])[column].value_counts()
    return Counter({entry["values"].as_py(): entry["counts"].as_py() for entry in counts})


def _read(path: Path, columns: list[str] | None) -> Any:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"{path}: cannot be read as Parquet: {error}") from error


def printable(path: str) -> str:
    """A path as UTF-8 text: undecodable bytes as backslash escapes, control characters as well."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
