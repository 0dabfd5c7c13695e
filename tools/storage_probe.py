"""What storage alone gives: the bytes of records read from the shards' files, past LMDB and past any mapping."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.sampler import EpochOrder
from lmdali.pipeline.shard_reader import FilePlaces, ShardReader
from lmdali.tools.ceilings import MAX_READ_RECORDS, Scratch, ThreadedProbe

_MAX_OPEN = 16
"""Files that a thread has open at a time."""

_MAX_GAP_BYTES = 4096
"""Between two values that are read together in storage order: LMDB's page headers, keys, and the end of a page."""


class OpenFiles:
    """Descriptors of some files: each thread has its own few, so that none is closed while another reads from it.

    Args:
        paths: of the files.
        random: tell the kernel that it must not read ahead.
    """

    def __init__(self, paths: Sequence[Path], *, random: bool) -> None:
        self._paths, self._random = paths, random
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: set[int] = set()

    def descriptor(self, number: int) -> int:
        """Of a file, for this thread, until it has asked for `_MAX_OPEN` others.

        Raises:
            StorageError: it cannot be opened.
        """
        mine: dict[int, int] | None = getattr(self._local, "descriptors", None)
        if mine is None:
            mine = self._local.descriptors = {}
        if number not in mine:
            with storage_errors(self._paths[number]):
                opened = os.open(self._paths[number], os.O_RDONLY)
            if self._random and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_RANDOM)
            if len(mine) == _MAX_OPEN:
                self._close(mine.pop(next(iter(mine))))
            mine[number] = opened
            with self._lock:
                self._all.add(opened)
        return mine[number]

    def close(self) -> None:
        """Close all of them; no thread may be reading."""
        for descriptor in list(self._all):
            self._close(descriptor)
        self._local = threading.local()

    def _close(self, descriptor: int) -> None:
        with self._lock:
            self._all.discard(descriptor)
        os.close(descriptor)


def storage_probe(dataset: Path, *, num_threads: int, seed: int = 0, shuffle: bool = True) -> ThreadedProbe:
    """Every stored byte of the records read once by `pread` into a reused buffer.

    Shuffled, each record is one read, and the kernel is told not to read ahead; in storage order neighbours are one.
    """
    reader = ShardReader(dataset, load_manifest(dataset))
    count = reader.manifest.num_records
    order = EpochOrder(count, seed, 0, shuffle=shuffle).indices(0, min(count, MAX_READ_RECORDS))
    places = reader.file_places(order)
    reader.close()  # of a file that is mapped, pages that were touched cannot be dropped
    files = OpenFiles([reader.data_file(info.name) for info in reader.manifest.shards], random=shuffle)
    scratch = Scratch()

    def work(first: int, stop: int) -> None:
        at = np.arange(first, stop) % len(order)
        for shard, offset, size in read_spans(FilePlaces(*(column[at] for column in places)), together=not shuffle):
            read_fully(files.descriptor(shard), scratch.take(size), offset)

    return ThreadedProbe(work, num_threads, num_images=len(order), close=files.close)


def read_spans(places: FilePlaces, *, together: bool) -> list[tuple[int, int, int]]:
    """Shard, offset and size of each read that brings some values.

    Args:
        places: (n,) of the values.
        together: values that follow each other in a file, but for a page's head, are one read.
    """
    spans: list[tuple[int, int, int]] = []
    for shard, offset, size in zip(*(column.tolist() for column in places), strict=True):
        if together and spans and spans[-1][0] == shard:
            _, first, length = spans[-1]
            if 0 <= offset - (first + length) <= _MAX_GAP_BYTES:
                spans[-1] = shard, first, offset + size - first
                continue
        spans.append((shard, offset, size))
    return spans


def read_fully(descriptor: int, buffer: NDArray[np.uint8], offset: int) -> None:
    """Fill the buffer from a file; what lies behind its end stays as it was."""
    view = buffer.data
    while len(view):
        got = os.preadv(descriptor, [view], offset)
        if not got:
            return
        view, offset = view[got:], offset + got
