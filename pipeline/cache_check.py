"""Whether a directory can be the cache of a dataset, asked before anything is fetched: where it is, and its room."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lmdali.pipeline.errors import ConfigError, StorageError
from lmdali.pipeline.filesystem import is_shared_disk, network_disk
from lmdali.pipeline.manifest import ShardInfo
from lmdali.pipeline.shard_cache import ShardCache

_ANOTHER = "give another directory (cache_dir, --cache-dir, LMDALI_CACHE_DIR)"


def require_cache_directory(directory: Path) -> None:
    """Refuse a directory that cannot be a cache; makes it where it is missing.

    Raises:
        ConfigError: it is on a disk that other machines have, too.
        StorageError: it cannot be written.
    """
    if is_shared_disk(directory):
        raise ConfigError(
            f"{directory}: the cache is on {network_disk(directory)}, and its locks need a disk of this "
            f"machine: {_ANOTHER}"
        )
    probe = directory / f".{secrets.token_hex(8)}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
    except OSError as error:
        raise StorageError(f"{directory}: the cache cannot be written ({error.strerror}): {_ANOTHER}") from error
    finally:
        with suppress(OSError):
            probe.unlink()


def require_shard_room(cache: ShardCache, shards: Sequence[ShardInfo]) -> None:
    """Refuse a cache that cannot hold each shard of a dataset.

    Raises:
        ConfigError: its limit is too low.
        StorageError: its disk is too full.
    """
    largest = max((info.file_bytes for info in shards), default=0)
    given, room = cache.given_bytes, cache.limit_bytes
    if given is not None and largest > given:
        raise ConfigError(
            f"{cache.directory}: room for {given} bytes of shards, the largest shard of this dataset has {largest}: "
            "give the cache more (cache_bytes, --cache-bytes, LMDALI_CACHE_BYTES)"
        )
    if largest > room:
        raise StorageError(
            f"{cache.directory}: the disk has room for {room} bytes of shards, the largest shard of this dataset has "
            f"{largest}: make room, or {_ANOTHER}"
        )
