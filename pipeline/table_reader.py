"""Reading the tables of `lmdali.pipeline.tables`: rows, columns, counts, and no more of a file than is asked for."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmdali.pipeline.errors import IntegrityError

_CURE = "run `lmdali verify`, then `lmdali repair`"


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
    with _parquet_errors(path), open_file(path) as source:
        file = pq.ParquetFile(source)
        metadata = file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        first_rows = [0, *accumulate(sizes)]
        if indices and not 0 <= min(indices) <= max(indices) < first_rows[-1]:
            raise IntegrityError(f"{path}: has {first_rows[-1]} rows, row {max(indices)} was asked for: {_CURE}")
        group_of = [bisect_right(first_rows, index) - 1 for index in indices]
        groups = sorted(set(group_of))
        table = file.read_row_groups(groups, columns=columns)
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
        with _parquet_errors(path):
            self._source = open_file(path)
            self._file = pq.ParquetFile(self._source)
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
            raise IntegrityError(f"{self._path}: has {self.num_rows} rows, rows up to {stop} were asked for: {_CURE}")
        first = bisect_right(self._first_rows, start) - 1
        groups = range(first, bisect_right(self._first_rows, stop - 1)) if start < stop else range(0)
        with _parquet_errors(self._path):
            table = self._file.read_row_groups(list(groups), columns=columns)
        table = table.slice(start - self._first_rows[first], stop - start)
        return {name: table[name].to_pylist() for name in columns}

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()


def has_column(path: Path, column: str) -> bool:
    """Whether a table has a column: those of older datasets lack what came later.

    Raises:
        IntegrityError: the file is missing or not Parquet.
    """
    with _parquet_errors(path), open_file(path) as source:
        return column in pq.read_schema(source).names


def read_integers(path: Path, column: str) -> NDArray[np.int64]:
    """One column of integers, (rows,) int64; no row becomes a Python object.

    Raises:
        IntegrityError: the file is missing, not Parquet, or lacks the column.
    """
    if not has_column(path, column):
        raise IntegrityError(f"{path}: has no column {column!r}: written by another version, or damaged: {_CURE}")
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
    with _parquet_errors(path), open_file(path) as source:
        return pq.read_table(source, columns=columns)


def open_file(path: Path | str) -> Any:
    """A `pyarrow.OSFile`, opened by its name's bytes: pyarrow takes no text that is not UTF-8."""
    return pa.OSFile(os.fsencode(path))


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(f"{path}: cannot be read as Parquet: {error}: {_CURE}") from error
