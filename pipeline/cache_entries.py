"""What lies in a cache directory: whole shards and unfinished ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lmdali.pipeline.shard_header import DATA_FILE

WHOLE, UNFINISHED = "shards", "partial"
"""Directories in a cache."""


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
