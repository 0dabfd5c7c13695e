"""What lies in a cache directory: whole shards and unfinished ones, and the small files of datasets."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lmdali.pipeline.path_kind import exists
from lmdali.pipeline.shard_header import DATA_FILE

WHOLE, UNFINISHED, DATASETS = "shards", "partial", "sets"
"""Directories in a cache."""

ADDRESS_FILE = "address.txt"
"""In a dataset's directory: where it came from."""

KEPT_SECONDS = 86_400
"""A dataset that was opened so lately may be in use: nobody holds a lock on its small files."""


class CacheEntry(NamedTuple):
    """One shard in the cache.

    Attributes:
        sha256: its hash, and its name.
        num_bytes: the room it takes; of an unfinished one, the room it will take.
        last_use: count of the clock; 0 for an unfinished one.
        is_whole: False for an unfinished one.
        path: its directory.
    """

    sha256: str
    num_bytes: int
    last_use: int
    is_whole: bool
    path: Path


class DatasetEntry(NamedTuple):
    """Manifest, statistics and tables of one dataset in the cache.

    Attributes:
        digest: its manifest's, and its name.
        address: where it came from, without what nobody may see.
        num_bytes: the room they take.
        opened: when it was opened last, seconds since 1970.
        path: its directory.
    """

    digest: str
    address: str
    num_bytes: int
    opened: float
    path: Path


def dataset_entries(directory: Path) -> list[DatasetEntry]:
    """All datasets that a cache knows, the one that was not opened for the longest time first."""
    found = []
    for path in _listed(directory / DATASETS):
        address = ""
        with suppress(OSError):
            address = (path / ADDRESS_FILE).read_text(encoding="utf-8", errors="replace").strip()
        with suppress(OSError):
            size = sum(file.stat().st_size for file in path.iterdir())
            found.append(DatasetEntry(path.name, address, size, path.stat().st_mtime, path))
    return sorted(found, key=lambda entry: entry.opened)


def remove_datasets(directory: Path) -> tuple[int, int]:
    """Remove what is kept of datasets that were not opened lately: bytes removed, and datasets kept.

    Whoever opens one of them again fetches its small files again.
    """
    removed = kept = 0
    for entry in dataset_entries(directory):
        if time.time() - entry.opened < KEPT_SECONDS:
            kept += 1
        else:
            shutil.rmtree(entry.path, ignore_errors=True)
            removed += 0 if exists(entry.path) else entry.num_bytes  # another user's stays
    return removed, kept


def cache_entries(directory: Path) -> Iterator[CacheEntry]:
    """All shards of a cache, in no order; what is removed meanwhile may be missing."""
    for path in _listed(directory / WHOLE):
        with suppress(OSError):
            status = (path / DATA_FILE).stat()
            yield CacheEntry(path.name, status.st_size, int(status.st_mtime), True, path)
    for path in _listed(directory / UNFINISHED):
        name, _, size = path.name.partition(".")
        if size.isdecimal():
            yield CacheEntry(name, int(size), 0, False, path)


def stored_bytes(entries: Iterable[CacheEntry]) -> int:
    """What shards have taken of the disk so far: an unfinished one less than its room."""
    stored = 0
    for entry in entries:
        if entry.is_whole:
            stored += entry.num_bytes
        else:
            with suppress(OSError):
                stored += (entry.path / DATA_FILE).stat().st_size
    return stored


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
