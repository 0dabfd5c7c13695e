"""`records.parquet` and `rejects.parquet`: one row per source file, stored or not.

Parquet because pandas, DuckDB and Polars read it; its rows are for people and for repair, the loader never needs them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

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
        phash: `picture_hash` of the stored pixels; datasets made before it was known lack the column.
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
    phash: int


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


@dataclass(frozen=True, slots=True)
class DuplicateRow:
    """Two records that show the same picture; in a report beside datasets, never in one.

    Attributes:
        group: number of the group of pictures that are all the same, from 0.
        kind: "same_file", "same_pixels", "near" or "mirrored".
        dataset: of the first record, as it was given.
        record: number of the first record.
        source: path of its source.
        class_name: its class.
        other_dataset: of the second record.
        other_record: its number.
        other_source: path of its source.
        other_class_name: its class.
        hash_distance: bits in which the perceptual hashes differ, for "mirrored" after mirroring one.
        pixel_difference: mean absolute difference of gray thumbnails of the same mean, in gray levels; 0 where the
            bytes are the same.
        correlation: of the thumbnails.
    """

    group: int
    kind: str
    dataset: str
    record: int
    source: str
    class_name: str
    other_dataset: str
    other_record: int
    other_source: str
    other_class_name: str
    hash_distance: int
    pixel_difference: float
    correlation: float


Row = RecordRow | RejectRow | DuplicateRow

_PARQUET_MAGIC = b"PAR1"
_TYPES = {"int": pa.int64(), "str": pa.string(), "float": pa.float64()}


def use_plain_allocator() -> None:
    """Let Arrow take memory from malloc: its own allocator reserves 1 GB at once, and memory may be limited."""
    pa.set_memory_pool(pa.system_memory_pool())


def write_rows(path: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    """Write rows to a new Parquet file and make it durable."""
    with storage_errors(path):
        pq.write_table(_table(kind, rows), path, compression="zstd")
        sync_file(path)


def staged_bytes(kind: type[Row], rows: Sequence[Row]) -> bytes:
    """Rows as they wait for their table: an Arrow stream, written and read in a thirtieth of the time of Parquet."""
    table, out = _table(kind, rows), io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return out.getvalue()


def read_staged(path: Path) -> pa.Table:
    """Rows that wait for their table: `staged_bytes`, or Parquet, which earlier versions staged.

    Raises:
        IntegrityError: the file is missing or damaged.
    """
    try:
        payload = path.read_bytes()
        if payload.startswith(_PARQUET_MAGIC):
            # `read_table` would first see whether this is one of many files: twice the time for a small one.
            return pq.ParquetFile(pa.BufferReader(payload)).read(use_threads=False)
        return pa.ipc.open_stream(payload).read_all()
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"{path}: cannot be read as a table: {error}: make that shard again") from error


def _table(kind: type[Row], rows: Sequence[Row]) -> pa.Table:
    return pa.table(
        {f.name: pa.array([getattr(row, f.name) for row in rows], _TYPES[str(f.type)]) for f in fields(kind)}
    )


def concatenate(parts: list[Path], target: Path, kind: type[Row], *, index: bool) -> None:
    """Join the tables of all shards, in order, into one.

    Args:
        parts: files of `staged_bytes`.
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
                table = read_staged(part)
                if index:
                    numbers = pa.array(range(count, count + len(table)), pa.int64())
                    table = table.add_column(0, "index", numbers)
                count += len(table)
                writer.write_table(table)
        sync_file(aside)
        aside.replace(target)
        sync_directory(target.parent)


def printable(path: str) -> str:
    """A path as UTF-8 text: undecodable bytes as backslash escapes, control characters as well."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
