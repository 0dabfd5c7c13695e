"""What of a dataset is in memory, and how to get it out: the difference between a cold run and a warm one, proved.

No root is needed: the kernel drops clean pages of a file that nobody has mapped for whoever may read it, `mincore` says
which pages of a mapping are in memory, and `/proc/self/io` counts the bytes that this process caused to be read.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_reader import ShardReader

_IO = Path("/proc/self/io")


def device_bytes() -> int | None:
    """Bytes that storage devices delivered for this process so far; None where the system does not say."""
    try:
        lines = _IO.read_text().splitlines()
    except OSError:
        return None
    found = [line.partition(":")[2] for line in lines if line.startswith("read_bytes:")]
    return int(found[0]) if found else None


def data_files(dataset: Path) -> list[Path]:
    """The files of all shards."""
    reader = ShardReader(dataset, load_manifest(dataset))
    return [reader.data_file(shard.name) for shard in reader.manifest.shards]


def evict(paths: Sequence[Path]) -> None:
    """Ask the kernel to drop all pages of some files. Those that any program has mapped stay.

    Raises:
        StorageError: a file cannot be opened.
    """
    gc.collect()  # a mapping of ours that is still held keeps its pages
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        with storage_errors(path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)  # only clean pages can be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def resident_share(paths: Sequence[Path]) -> float | None:
    """Share of the files' pages that are in memory, 0..1; None where the system does not tell this user."""
    pages = resident = 0
    for path in paths:
        # Of files that it may not write, a user learns nothing: the kernel would say that all pages are there.
        counted = _resident_pages(path) if os.access(path, os.W_OK) else None
        if counted is None:
            return None
        resident, pages = resident + counted[0], pages + counted[1]
    return resident / pages if pages else None


def _resident_pages(path: Path) -> tuple[int, int] | None:
    """Pages in memory, and all pages."""
    mincore = getattr(ctypes.CDLL(None, use_errno=True), "mincore", None)
    size = path.stat().st_size
    if mincore is None or size == 0:
        return None if mincore is None else (0, 0)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        place = np.frombuffer(mapped, np.uint8)
        flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        failed = mincore(ctypes.c_void_p(place.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(flags.ctypes.data))
        del place  # else the mapping could not be closed
    return None if failed else (int(np.count_nonzero(flags & 1)), len(flags))
