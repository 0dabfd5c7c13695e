"""`records.parquet` and `rejects.parquet`: one row per source file, stored or not.

Parquet because pandas, DuckDB and Polars read it; its rows are for people and for repair, the loader never needs them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

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
        pixel_difference: mean absolute difference of gray thumbnails, in gray levels; 0 where the bytes are the same.
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

_TYPES = {"int": pa.int64(), "str": pa.string(), "float": pa.float64()}


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


def has_column(path: Path, column: str) -> bool:
    """Whether a table has a column: those of older datasets lack what came later.

    Raises:
        IntegrityError: the file is missing or not Parquet.
    """
    try:
        return column in pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"{path}: cannot be read as Parquet: {error}") from error


def read_integers(path: Path, column: str) -> NDArray[np.int64]:
    """One column of integers, (rows,) int64; no row becomes a Python object.

    Raises:
        IntegrityError: the file is missing, not Parquet, or lacks the column.
    """
    if not has_column(path, column):
        raise IntegrityError(f"{path}: has no column {column!r}: written by another version, or damaged")
    values: NDArray[np.int64] = _read(path, [column])[column].to_numpy().astype(np.int64, copy=False)
    return values


def read_codes(path: Path, column: str, known: dict[str, int]) -> NDArray[np.int64]:
    """One column of text as numbers, (rows,) int64: equal texts have equal numbers, in all tables read with `known`.

    Args:
        path: a table.
        column: of text.
        known: text -> number; what is new is added.

    Raises:
        IntegrityError: the file is missing or not Parquet.
    """
    encoded = _read(path, [column])[column].combine_chunks().dictionary_encode()
    numbers = [known.setdefault(text, len(known)) for text in encoded.dictionary.to_pylist()]
    codes: NDArray[np.int64] = np.array(numbers, np.int64)[encoded.indices.to_numpy()]
    return codes


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
