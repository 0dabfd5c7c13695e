"""The labels and names of one Parquet file; its images are not touched.

The scan is called in a child process: what lies in a file decides what the C++ library does with it.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.records import MAX_POSITION
from lmdali.pipeline.table_reader import open_file
from lmdali.tools.class_names import TextLabels

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target")
"""Tried in this order where nobody names a column."""

PARQUET_FAILURES = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RecursionError,
)
"""What pyarrow raises for files that are damaged one way or another."""

BUFFER_BYTES = 1 << 20
"""Read of a column at a time; without it pyarrow reads a column of a row group whole."""

_AGAIN = "the file is damaged: fetch it again"
_BATCH_ROWS = 8192


@dataclass(frozen=True)
class TableScan:
    """What one file holds.

    Attributes:
        image_column: the column of image bytes, as pyarrow names it: `image.bytes`.
        groups: rows of each row group.
        labels: one per row; where they are names, places in `label_names`.
        label_names: the names that rows have for labels, as they come; None where labels are numbers.
        paths: one per row, None where it has none; an empty list where the file keeps no paths.
        class_names: in label order, from the schema; None where it names none.
    """

    image_column: str
    groups: tuple[int, ...]
    labels: array[int]
    label_names: tuple[str, ...] | None
    paths: list[str | None]
    class_names: tuple[str, ...] | None


def open_parquet(path: str) -> Any:
    """A `pyarrow.parquet.ParquetFile` that reads piece by piece, in the calling thread."""
    return pq.ParquetFile(open_file(path), buffer_size=BUFFER_BYTES, pre_buffer=False)


def scan_table(path: str, image: str | None = None, label: str | None = None) -> TableScan:
    """Read labels, paths and class names of a file, one row group after the other.

    Args:
        path: of the file.
        image: column of images; default: the first of `IMAGE_COLUMNS` that is there.
        label: column of labels; default: the first of `LABEL_COLUMNS` that is there.

    Raises:
        InputError: naming the file, and the row group or row.
    """
    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
            image = _chosen(path, schema, image, IMAGE_COLUMNS, "image")
            label = _chosen(path, schema, label, LABEL_COLUMNS, "label")
            image_column, path_column = _image_leaves(path, schema, image)
            kind = _plain(schema.field(label).type)
            if not pa.types.is_integer(kind) and not _is_text(kind):
                raise InputError(
                    f"{path!r}: the label column {label!r} is {schema.field(label).type}, expected integers or names: "
                    "choose another with --label-column"
                )
            names = TextLabels(repr(path)) if _is_text(kind) else None
            total = file.metadata.num_rows
            if not 0 <= total <= MAX_POSITION + 1:
                raise InputError(f"{path!r}: says it has {total} rows, more than a dataset can have: {_AGAIN}")
            groups = tuple(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
            class_names = _class_names(path, schema, label) if names is None else None
            scan = TableScan(image_column, groups, array("q"), None, [], class_names)
            for group, rows in enumerate(groups):
                _scan_group(path, file, group, rows, label, path_column, scan, names)
    except PARQUET_FAILURES as error:
        raise InputError(f"{path!r}: cannot be read as Parquet ({failure_text(error)}): {_AGAIN}") from None
    return scan if names is None else replace(scan, label_names=names.names())


def _scan_group(
    path: str,
    file: Any,
    group: int,
    rows: int,
    label: str,
    path_column: str | None,
    scan: TableScan,
    names: TextLabels | None,
) -> None:
    first = len(scan.labels)
    try:
        for batch in _batches(file, group, [label] if path_column is None else [label, path_column]):
            _add_labels(path, batch.column(label), scan.labels, names)
            if path_column is not None:
                found = leaf(batch.column(path_column.split(".")[0])).cast(pa.large_binary()).to_pylist()
                scan.paths.extend(None if not name else os.fsdecode(name) for name in found)
    except PARQUET_FAILURES as error:
        found = f"its labels cannot be read ({failure_text(error)})"
        raise InputError(f"{path!r}, row group {group}: {found}: {_AGAIN}") from None
    if len(scan.labels) - first != rows:
        found = f"has {len(scan.labels) - first} rows, its footer says {rows}"
        raise InputError(f"{path!r}, row group {group}: {found}: {_AGAIN}")


def _batches(file: Any, group: int, columns: list[str]) -> Iterator[Any]:
    yield from file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False)


def _add_labels(path: str, column: Any, labels: array[int], names: TextLabels | None) -> None:
    column = _decoded(column)
    if column.null_count:
        row = len(labels) + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{path!r}, row {row}: the label is null: leave the row out")
    if names is not None:
        texts = column.to_pylist()
        if (row := next((row for row, text in enumerate(texts) if not text.strip()), -1)) >= 0:
            raise InputError(f"{path!r}, row {len(labels) + row}: the label is an empty text: leave the row out")
        labels.extend(map(names.number, texts))
        return
    values = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if len(values) and values.min() < 0:
        row = int(np.flatnonzero(values < 0)[0])
        why = "no labels: the test split cannot be converted" if values[row] == -1 else "labels count classes from 0"
        raise InputError(f"{path!r}, row {len(labels) + row}: label {values[row]}: {why}")
    labels.frombytes(values.astype(np.int64).tobytes())


def leaf(column: Any) -> Any:
    """The array of values of a column of which one field was read, with nulls where its struct is null."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    return _decoded(column.flatten()[0] if pa.types.is_struct(column.type) else column)


def _decoded(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _plain(kind: Any) -> Any:
    """A type without what wraps it: an extension, a dictionary."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _chosen(path: str, schema: Any, asked: str | None, candidates: tuple[str, ...], what: str) -> str:
    names = schema.names
    for name in candidates if asked is None else (asked,):
        if names.count(name) == 1:
            return name
    shown = ", ".join(map(repr, names[:10])) or "none"
    looked = f"no column {asked!r}" if asked is not None else f"no {what} column ({', '.join(candidates)})"
    raise InputError(f"{path!r}: {looked}; it has {shown}: choose one with --{what}-column")


def _image_leaves(path: str, schema: Any, image: str) -> tuple[str, str | None]:
    """The columns of bytes and, where there is one, of paths."""
    kind = _plain(schema.field(image).type)
    if _is_binary(kind):
        return image, None
    if pa.types.is_struct(kind):
        fields = {field.name: _plain(field.type) for field in kind}
        if _is_binary(fields.get("bytes")):
            with_path = "path" in fields and (_is_text(fields["path"]) or _is_binary(fields["path"]))
            return f"{image}.bytes", f"{image}.path" if with_path else None
    raise InputError(
        f"{path!r}: the image column {image!r} is {kind}, expected binary or struct<bytes: binary, path: string>: "
        "choose another with --image-column"
    )


def _is_binary(kind: Any) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return kind is not None and any(test(kind) for test in tests)


def _is_text(kind: Any) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _class_names(path: str, schema: Any, label: str) -> tuple[str, ...] | None:
    """Names that the Hugging Face library keeps in the schema: `info.features.LABEL.names`."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = json.loads(text)["info"]["features"][label].get("names")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # metadata of a kind we do not know, or of other columns, names no classes
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{path!r}: its schema names classes of {label!r} in a way that is no list of names: {_AGAIN}")
    return tuple(names)


def failure_text(error: BaseException) -> str:
    """What a library says about a file, in one line of bearable length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
