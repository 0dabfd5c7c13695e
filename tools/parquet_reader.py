"""Reading images from Parquet files row by row, in the order they lie in."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from lmdali.pipeline.errors import InputError
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.tools.parquet_columns import PARQUET_FAILURES, failure_text, leaf, open_parquet
from lmdali.tools.range_reader import Stamp, refuse_change, stamp_of
from lmdali.tools.source_entries import SourceEntry

_BATCH_ROWS = 8
"""Images held at a time: a row group may be larger than the memory."""


@dataclass
class ParquetReader:
    """Reads rows of Parquet files; fast where rows are asked for in ascending order, as plans in blocks do.

    Small and picklable: an open file stays in the process that opened it.

    Attributes:
        files: by number, see `SourceEntry.file`.
        stamps: of each when it was scanned.
        image_column: of the image bytes, as pyarrow names it.
    """

    files: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    image_column: str
    _table: _OpenTable | None = field(default=None, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}

    def read(self, entry: SourceEntry) -> bytes:
        """The image bytes of one row.

        Raises:
            SourceRejected: empty, where the row has none.
            InputError: the file is gone or was changed after it was scanned, or this part of it does not decode. That
                stops the run: the rows after it are lost with it, and a million rejects would help nobody.
            StorageError: the disk failed when the file was opened.
            MemoryError: there is not enough for this row; what becomes of it is for the caller to say.
        """
        path = self.files[entry.file]
        if self._table is None or self._table.path != path:
            self.close()
            refuse_change(path, stamp_of(path), self.stamps[entry.file])
            self._table = _OpenTable(path, self.image_column)
        data = self._table.value(entry.offset)
        if data is None:
            raise SourceRejected(Rejection.EMPTY, "the row has no image bytes (null)")
        return data

    def close(self) -> None:
        """Close the open file, if there is one."""
        if self._table is not None:
            self._table.close()
            self._table = None


class _OpenTable:
    """One open file, and the few rows of it that were read last."""

    def __init__(self, path: str, column: str) -> None:
        self.path, self._column = path, column
        try:
            self._file = open_parquet(path)
            metadata = self._file.metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        except PARQUET_FAILURES as error:
            raise InputError(f"{path!r}: cannot be read any more ({failure_text(error)}): fetch it again") from None
        self._first_rows = [0, *accumulate(sizes)]
        self._group = -1
        self._batches: Any = iter(())
        self._rows = range(0)
        self._values: Any = None

    def value(self, row: int) -> bytes | None:
        if row not in self._rows:
            self._go_to(row)
        try:
            data: bytes | None = self._values[row - self._rows.start].as_py()
        except MemoryError:
            raise
        except PARQUET_FAILURES as error:
            raise self._damaged(error) from None
        return data

    def _go_to(self, row: int) -> None:
        """Read on to a row, from the beginning of its row group where it is not ahead in this one."""
        if not 0 <= row < self._first_rows[-1]:
            found = f"has {self._first_rows[-1]} rows and no row {row}: changed since the scan"
            raise InputError(f"{self.path!r}: {found}: convert again with --overwrite")
        group = bisect_right(self._first_rows, row) - 1
        try:
            if group != self._group or row < self._rows.start:
                self._group, start = group, self._first_rows[group]
                self._rows = range(start, start)
                self._batches = self._file.iter_batches(
                    batch_size=_BATCH_ROWS, row_groups=[group], columns=[self._column], use_threads=False
                )
            while row >= self._rows.stop:
                batch = next(self._batches, None)
                if batch is None:
                    raise EOFError(f"{self._rows.stop - self._first_rows[group]} rows decode")
                self._rows = range(self._rows.stop, self._rows.stop + len(batch))
                self._values = leaf(batch.column(0))
        except (EOFError, *PARQUET_FAILURES) as error:
            self._group, self._rows = -1, range(0)
            if isinstance(error, MemoryError):
                raise
            raise self._damaged(error, group) from None

    def _damaged(self, error: BaseException, group: int | None = None) -> InputError:
        group = self._group if group is None else group
        return InputError(
            f"{self.path!r}, row group {group}: its images do not decode ({failure_text(error)}): the file is damaged: "
            "fetch it again, then add --resume"
        )

    def close(self) -> None:
        self._batches = iter(())
        self._file.close(force=True)
