"""Some records of a dataset, listed by whoever loads them: a fold, a tenth of each class, an order of their own.

What is drawn for a record is a function of its number in the dataset, so it gets the crops that it gets with all others
around it. The list decides which records there are and, without a shuffle, their order.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.sampler import EpochOrder, epoch_positions

Records: TypeAlias = str | os.PathLike[str] | Sequence[int]
"""A file with one record number a line, an `.npy` file of integers, or the numbers themselves."""


@dataclass(frozen=True, eq=False)
class RecordList:
    """Records of a dataset, each at most once.

    Attributes:
        numbers: (n,) int64, read-only; n is at least 1.
    """

    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(cls, records: Records, num_records: int) -> RecordList:
        """Read and check a list.

        Args:
            records: where it is, or what is in it.
            num_records: of the dataset.

        Raises:
            InputError: it is empty, holds something else than record numbers, or one of them twice.
            StorageError: the file cannot be read.
        """
        where = os.fspath(records) if isinstance(records, str | os.PathLike) else "records"
        found: NDArray[Any] = _read(Path(records)) if isinstance(records, str | os.PathLike) else np.asarray(records)
        if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer) or not len(found):
            raise InputError(f"{where}: expected a list of record numbers, found {found.dtype} of shape {found.shape}")
        outside = np.flatnonzero((found < 0) | (found >= num_records))  # as they are: uint64 has more than int64
        if len(outside):
            raise InputError(
                f"{where}: entry {outside[0] + 1} is {found[outside[0]]}, and the dataset has records "
                f"0..{num_records - 1}"
            )
        numbers = found.astype(np.int64)
        counts = np.bincount(numbers)
        if counts.max() > 1:
            raise InputError(f"{where}: record {counts.argmax()} is listed {counts.max()} times: list each once")
        numbers.flags.writeable = False
        return cls(numbers)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that differ between lists, by members or by order."""
        return hashlib.sha256(self.numbers.astype("<i8").tobytes()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class ListedOrder:
    """An epoch of some records: a `SampleOrder` whose samples are theirs.

    Attributes:
        order: of places in the list.
        records: the list.
    """

    order: EpochOrder
    records: RecordList

    @property
    def num_samples(self) -> int:
        """Records in the list; each of them comes once in an epoch."""
        return len(self.records)

    @property
    def epoch(self) -> int:
        """The epoch this is the order of."""
        return self.order.epoch

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sample numbers at positions start..stop-1 of the epoch, as `SampleOrder` says."""
        return self.at(epoch_positions(start, stop, self.num_samples))

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample numbers at any positions of the epoch, as `SampleOrder` says."""
        return self.records.numbers[self.order.at(positions)]


def as_numbers(records: Sequence[int]) -> tuple[int, ...]:
    """Record numbers, whatever holds them, as a config has them: to be compared, hashed and kept as they are.

    Raises:
        ConfigError: something else.
    """
    try:
        numbers = np.asarray(records)
    except (ValueError, TypeError) as error:  # rows of different lengths; a tensor on a GPU
        raise ConfigError(f"records must be a file or record numbers, found {reprlib.repr(records)}: {error}") from None
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise ConfigError(f"records must be a file or record numbers, found {reprlib.repr(records)}")
    return tuple(numbers.tolist())


def _read(path: Path) -> NDArray[Any]:
    with storage_errors(path):
        try:
            if path.suffix == ".npy":
                return np.asarray(np.load(path, allow_pickle=False))
            lines = path.read_text(encoding="utf-8-sig").split()  # with or without the mark of Windows' editors
            return np.array(lines, np.int64)
        except (ValueError, OverflowError, EOFError, MemoryError) as error:
            raise InputError(f"{path}: expected one record number a line, or integers as .npy: {error}") from None
