"""The entries of a source: millions of (path, label) pairs in three flat arrays, and what was left out of them."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

_MAX_EXAMPLES = 5


class SourceEntry(NamedTuple):
    """One image of a source.

    Attributes:
        path: where it is within the source, with forward slashes; bytes that are no UTF-8 are surrogate escapes.
        label: class number, the position of its name in the source's class names.
    """

    path: str
    label: int


class EntryTable(Sequence[SourceEntry]):
    """Entries in 12 bytes each plus their path; a list of tuples would take about 200."""

    def __init__(self) -> None:
        self._paths = bytearray()
        self._ends = array("q")
        self._labels = array("i")

    def append(self, path: str, label: int) -> None:
        """Add one entry at the end."""
        self._paths += os.fsencode(path)
        self._ends.append(len(self._paths))
        self._labels.append(label)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> SourceEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[SourceEntry]: ...
    def __getitem__(self, index: int | slice) -> SourceEntry | list[SourceEntry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"entry {index} of {len(self)}")
        start = self._ends[index - 1] if index else 0
        return SourceEntry(os.fsdecode(bytes(self._paths[start : self._ends[index]])), self._labels[index])

    def __iter__(self) -> Iterator[SourceEntry]:
        for index in range(len(self)):
            yield self[index]

    def labels(self) -> npt.NDArray[np.int32]:
        """`(N,)` int32: a copy of all labels in order."""
        return np.array(self._labels, dtype=np.int32)


@dataclass
class Ignored:
    """What a scan passed over, by reason.

    Attributes:
        counts: reason -> how many. Reasons: hidden, other_extension, outside_class_folders, symlinked_folder,
            link_outside_source.
        examples: reason -> the first few paths.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Count one."""
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(path)

    def summary(self) -> str:
        """`12 other_extension, 1 hidden`, or `nothing`."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items())) or "nothing"


@dataclass(frozen=True)
class Scan:
    """What scanning a source found.

    Attributes:
        class_names: position is label.
        entries: in the source's canonical order.
        ignored: what was passed over.
    """

    class_names: tuple[str, ...]
    entries: EntryTable
    ignored: Ignored
