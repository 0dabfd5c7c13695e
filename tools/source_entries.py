"""The entries of a source: millions of (path, label) pairs in three flat arrays, and what was left out of them."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from lmdali.pipeline.tables import printable

_MAX_EXAMPLES = 5
_MAX_EXTENSIONS, _SHOWN_EXTENSIONS = 50, 4


class SourceEntry(NamedTuple):
    """One image of a source.

    Attributes:
        path: where it is within the source, with forward slashes; bytes that are no UTF-8 are surrogate escapes.
        label: class number, the position of its name in the source's class names.
        file: for images inside larger files: number of that file, in the reader's list; -1 for a file of its own.
        offset: first byte in that file; in a Parquet file the row.
        num_bytes: size in that file, bytes; 0 where only reading tells.
    """

    path: str
    label: int
    file: int = -1
    offset: int = 0
    num_bytes: int = 0


def own_name(entry: SourceEntry) -> str | None:
    """The name of an entry's image file; None for a record or row whose path does not end as a file's name does."""
    is_named = entry.file < 0 or re.search(r"\.[A-Za-z]{2,5}$", entry.path)
    return entry.path if is_named else None


class EntryTable(Sequence[SourceEntry]):
    """Entries in 12 bytes each plus their path, 32 for images inside larger files; tuples would take about 200."""

    def __init__(self) -> None:
        self._paths = bytearray()
        self._ends = array("q")
        self._labels = array("i")
        self._places = array("q")
        """File, offset and size of each entry, one after the other; empty where every entry is a file of its own."""

    def append(self, path: str, label: int, place: tuple[int, int, int] | None = None) -> None:
        """Add one entry at the end; `place` is its (file, offset, num_bytes), for all of a table or none."""
        self._paths += os.fsencode(path)
        self._ends.append(len(self._paths))
        self._labels.append(label)
        if place is not None:
            self._places.extend(place)

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
        path = os.fsdecode(bytes(self._paths[start : self._ends[index]]))
        return SourceEntry(path, self._labels[index], *self._places[3 * index : 3 * index + 3])

    def take(self, indices: npt.NDArray[np.int64]) -> EntryTable:
        """A new table of some entries, in the order of `indices`."""
        taken = EntryTable()
        for index in indices.tolist():
            entry = self[index]
            taken.append(entry.path, entry.label, entry[2:] if self._places else None)
        return taken

    def __iter__(self) -> Iterator[SourceEntry]:
        for index in range(len(self)):
            yield self[index]

    def relabel(self, label_of: npt.NDArray[np.int32]) -> None:
        """Give each entry the label that `label_of` has in the place of its present one."""
        self._labels = array("i", label_of[self.labels()].tobytes())

    def labels(self) -> npt.NDArray[np.int32]:
        """`(N,)` int32: a copy of all labels in order."""
        return np.array(self._labels, dtype=np.int32)


@dataclass
class Ignored:
    """What a scan passed over, by reason.

    Attributes:
        counts: reason -> how many. Reasons: hidden, other_extension, outside_class_folders, symlinked_folder,
            link_outside_source; in archives: not_a_file (links, devices), sparse_member, replaced_member (by a later
            one of its name), patched_image (by a patch archive), other_member, no_image (a sample without one).
        examples: reason -> the first few paths.
        extensions: of files passed over for them -> how many; the first few that differ.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    extensions: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, path: str) -> None:
        """Count one."""
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(path)
        if reason == "other_extension":
            extension = os.path.splitext(path)[1].lower() or "none"  # noqa: PTH122  # names may be any bytes
            if extension in self.extensions or len(self.extensions) < _MAX_EXTENSIONS:
                self.extensions[extension] += 1

    def summary(self) -> str:
        """`1 hidden, 12 other_extension (10 .heic, 2 .txt)`, or `nothing`."""
        shown = sorted(self.extensions.items(), key=lambda pair: (-pair[1], pair[0]))[:_SHOWN_EXTENSIONS]
        kinds = ", ".join(f"{count} {printable(extension)}" for extension, count in shown)
        kinds += ", ..." if len(self.extensions) > len(shown) else ""
        words = {"other_extension": f" ({kinds})"}
        found = [f"{count} {reason}{words.get(reason, '')}" for reason, count in sorted(self.counts.items())]
        return ", ".join(found) or "nothing"


@dataclass(frozen=True)
class Scan:
    """What scanning a source found.

    Attributes:
        class_names: position is label.
        entries: in the source's canonical order.
        ignored: what was passed over.
        blocks: sizes of runs of entries that can only be read one after the other (the row groups of Parquet files), in
            the order of `entries`; None where any entry can be read at once.
        variant: what else decides the bytes of the images, such as a patch; enters the fingerprint.
        detail: for people: what else was read, such as where labels come from.
    """

    class_names: tuple[str, ...]
    entries: EntryTable
    ignored: Ignored
    blocks: tuple[int, ...] | None = None
    variant: str = ""
    detail: str = ""
