"""Scanning a source of Parquet files: labels and names of all rows, no image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lmdali.pipeline.errors import InputError
from lmdali.tools.class_names import TextLabels
from lmdali.tools.guarded_calls import guarded_map
from lmdali.tools.parquet_columns import TableScan, scan_table
from lmdali.tools.parquet_files import find_parquet_files
from lmdali.tools.parquet_labels import TableLabels
from lmdali.tools.parquet_reader import ParquetReader
from lmdali.tools.range_reader import stamp_of
from lmdali.tools.source_entries import EntryTable, Ignored, Scan


def scan_parquet(
    path: Path,
    classes: Sequence[str] | None = None,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[Scan, ParquetReader]:
    """Every row of a Parquet file or of one split of a folder of them; blocks are row groups.

    Args:
        path: the file, or the folder.
        classes: class names in label order, of a training set; tables that name their classes are mapped by name,
            others by number.
        split: which files of a folder that has several splits.
        image_column: default: looked for, see `IMAGE_COLUMNS`.
        label_column: default: looked for, see `LABEL_COLUMNS`.

    Raises:
        InputError: a file that cannot be read or crashes the reader, other columns, no rows, a label that is none.
        ConfigError: a split of a single file.
    """
    files = [os.path.abspath(file) for file in find_parquet_files(path, split)]  # noqa: PTH100
    stamps = tuple(map(stamp_of, files))
    calls = [(repr(file), (file, image_column, label_column)) for file in files]
    entries, blocks = EntryTable(), list[int]()
    labels: TableLabels | None = None
    names = TextLabels(repr(str(path)))
    first: TableScan | None = None
    for number, table in enumerate(guarded_map(scan_table, calls, parser="the Parquet reader")):
        if first is None or labels is None:
            first = table
            first_path = next((name for name in table.paths if name), None)
            labels = TableLabels(repr(str(path)), classes, table.class_names, first_path)
        _refuse_mixture(files[0], first, files[number], table)
        _add_rows(number, files[number], table, labels, names, entries)
        blocks += table.groups
    if first is None or labels is None or not entries:
        raise InputError(f"{str(path)!r}: {len(files)} Parquet files without a single row: give others")
    class_names = labels.class_names()
    if first.label_names is not None:
        class_names, label_of = names.settle(classes)
        entries.relabel(label_of)
    scan = Scan(class_names, entries, Ignored(), tuple(blocks))
    return scan, ParquetReader(tuple(files), stamps, first.image_column)


def _add_rows(
    number: int, file: str, table: TableScan, labels: TableLabels, names: TextLabels, entries: EntryTable
) -> None:
    name = os.path.basename(file)  # noqa: PTH119  # names may be any bytes
    seen: set[str] = set()
    named = None if table.label_names is None else [names.number(text) for text in table.label_names]
    for row, label in enumerate(table.labels):
        path = table.paths[row] if table.paths else None
        our_label = labels.number(label, path, f"{file!r}, row {row}") if named is None else named[label]
        # A path that comes twice says no more than none: entries must be told apart.
        is_own = path is not None and path not in seen
        if path is not None:
            seen.add(path)
        entries.append(f"{name}/{path}" if is_own else f"{name}#{row}", our_label, (number, row, 0))


def _refuse_mixture(first_file: str, first: TableScan, file: str, table: TableScan) -> None:
    """Files of one source have one schema: otherwise one label could be two classes."""
    if table.image_column != first.image_column:
        raise InputError(
            f"{file!r}: its images are in column {table.image_column!r}, those of {first_file!r} in "
            f"{first.image_column!r}: choose one with --image-column"
        )
    if (table.label_names is None) != (first.label_names is None):
        raise InputError(
            f"{file!r}: its labels are not of the kind of those of {first_file!r}, names or numbers: give files of one "
            "dataset"
        )
    if table.class_names != first.class_names:
        raise InputError(f"{file!r}: its class names are not those of {first_file!r}: give files of one dataset")
