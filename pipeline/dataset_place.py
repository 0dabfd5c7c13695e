"""Where a dataset is: a directory, or an address; what can be done with either in the same way.

A directory is a `Path`, an address a text: a path would make one slash of its two.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from lmdali.pipeline.cache_check import require_cache_directory, require_shard_room
from lmdali.pipeline.filesystem import advise_on_network_disk
from lmdali.pipeline.manifest import Manifest, load_manifest
from lmdali.pipeline.remote_address import is_remote, redacted
from lmdali.pipeline.remote_dataset import RemoteDataset
from lmdali.pipeline.shard_cache import ShardCache, cache_bytes, cache_directory
from lmdali.pipeline.shard_fetch import DEFAULT_FETCHES
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.streamed_reader import StreamedReader

Place: TypeAlias = "str | Path"


def parse_place(text: str | os.PathLike[str]) -> Place:
    """What somebody typed: an address as it is, anything else as a path."""
    return text if is_remote(text) else Path(text)


def place_text(place: Place) -> str:
    """A place as runs and files keep it: a resolved path, or an address without what nobody may see."""
    return redacted(place) if is_remote(place) else str(Path(place).resolve())


def place_shown(place: Place) -> str:
    """A place as messages and tables show it: as it was given, without what nobody may see."""
    return redacted(str(place))


def place_name(place: Place) -> str:
    """The last part of a place, for titles."""
    return place_text(place).split("?")[0].rstrip("/").rpartition("/")[2]


def place_directory(place: Place, *, tables: bool = False, cache_dir: Place | None = None) -> Path:
    """The directory with a dataset's manifest and statistics: its own, or the one in the cache they are brought to.

    Args:
        place: of the dataset.
        tables: bring its tables, too.
        cache_dir: of the cache; None means LMDALI_CACHE_DIR, or the user's.

    Raises:
        RemoteError: there is no dataset at the address, or none that can be reached.
        IntegrityError: its manifest is damaged.
        StorageError: the cache cannot be written.
    """
    if is_remote(place):
        remote = _remote(place, cache_dir)
        directory, manifest = remote.open()
        if tables:
            remote.fetch_tables(directory, manifest)
        return directory
    return Path(place)


def place_manifest(place: Place, *, cache_dir: Place | None = None) -> Manifest:
    """The manifest of a dataset; errors as those of `load_manifest` and `place_directory`."""
    return load_manifest(place_directory(place, cache_dir=cache_dir))


def open_reader(
    place: Place,
    *,
    cache_dir: Place | None = None,
    room_bytes: int | None = None,
    fetches: int = DEFAULT_FETCHES,
) -> ShardReader:
    """Random access to a dataset's records, whose shards are fetched when they are needed where it is at an address.

    Args:
        place: of the dataset.
        cache_dir: of the cache; None means LMDALI_CACHE_DIR, or the user's.
        room_bytes: of the cache; None means LMDALI_CACHE_BYTES, or most of the disk.
        fetches: shards fetched at once.

    Raises:
        InputError: not a finished dataset.
        IntegrityError: its manifest or a shard is damaged.
        RemoteError: it cannot be reached.
        StorageError: the cache cannot be written, or its disk is too full for a shard.
        ConfigError: the cache is too small for a shard, or on a disk that other machines have, too.

    Warns:
        NetworkDiskWarning: the directory is on a network filesystem.
    """
    if is_remote(place):
        remote = _remote(place, cache_dir)
        opened, manifest = remote.open()
        cache = ShardCache(remote.cache_dir, cache_bytes(room_bytes))
        require_shard_room(cache, manifest.shards)
        return StreamedReader(
            opened, manifest, cache, remote.fetch_shard, interrupt=remote.store.interrupt, num_threads=fetches
        )
    directory = Path(place)
    advise_on_network_disk(directory)
    local = ShardReader(directory, load_manifest(directory))
    local.check_files()
    return local


def _remote(address: str, cache_dir: Place | None) -> RemoteDataset:
    directory = cache_directory(cache_dir)
    require_cache_directory(directory)
    return RemoteDataset(address, directory)
