"""Caches that cannot work are refused before anything is fetched, with what to do."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from remote_server import serving

from lmdali.pipeline import cache_check, filesystem, shard_cache
from lmdali.pipeline.cache_check import require_cache_directory, require_shard_room
from lmdali.pipeline.dataset_place import open_reader
from lmdali.pipeline.errors import ConfigError, StorageError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_cache import ShardCache

SHARDS: Any = [SimpleNamespace(file_bytes=size) for size in (300, 500, 400)]


def test_a_cache_on_a_network_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(filesystem, "MOUNTS", mounts)
    mounts.write_text(f"1 1 0:1 / {tmp_path.resolve()} rw - nfs4 server:/home rw\n")
    with pytest.raises(
        ConfigError, match=r"the cache is on nfs4, and its locks need a disk of this machine.*--cache-dir"
    ):
        require_cache_directory(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    mounts.write_text(f"1 1 0:1 / {tmp_path.resolve()} rw - 9p share rw\n")
    require_cache_directory(tmp_path / "cache")


def test_a_cache_that_can_be_written_is_made_and_left_empty(tmp_path: Path) -> None:
    require_cache_directory(tmp_path / "a" / "cache")
    assert not list((tmp_path / "a" / "cache").iterdir())


@pytest.mark.parametrize("problem", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_cache_that_cannot_be_written_is_refused(
    problem: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise problem

    monkeypatch.setattr(cache_check.Path, "touch", refuse)
    with pytest.raises(StorageError, match=rf"cannot be written \({problem.strerror}\): give another directory"):
        require_cache_directory(tmp_path / "cache")


def test_a_limit_below_the_largest_shard_is_refused_with_both_numbers(tmp_path: Path) -> None:
    require_shard_room(ShardCache(tmp_path, 500), SHARDS)
    require_shard_room(ShardCache(tmp_path, 1), [])
    with pytest.raises(ConfigError, match=r"room for 499 bytes.*has 500: .*--cache-bytes"):
        require_shard_room(ShardCache(tmp_path, 499), SHARDS)


@pytest.mark.parametrize("limit", [None, 10**9])
def test_a_full_disk_is_refused_with_both_numbers(
    limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = os.statvfs(tmp_path)
    kept = 0 if limit else share.f_blocks * share.f_frsize // 20
    monkeypatch.setattr(shard_cache, "free_bytes", lambda _: kept + 499)
    with pytest.raises(StorageError, match=r"the disk has room for 499 bytes.*has 500: make room"):
        require_shard_room(ShardCache(tmp_path, limit), SHARDS)


def test_both_are_asked_before_a_dataset_is_read(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    largest = max(info.file_bytes for info in load_manifest(small_jpeg_dataset).shards)
    (tmp_path / "file").write_bytes(b"")
    with serving(small_jpeg_dataset) as server:
        with pytest.raises(ConfigError, match=f"the largest shard of this dataset has {largest}"):
            open_reader(server.address, cache_dir=tmp_path / "cache", room_bytes=largest - 1)
        with pytest.raises(StorageError, match="the cache cannot be written"):
            open_reader(server.address, cache_dir=tmp_path / "file" / "cache")
        assert not server.shards_asked()
