"""`lmdali cache`: what is kept, how much of it, and getting rid of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lmdali.pipeline.cache_entries import remove_datasets
from lmdali.pipeline.dataset_place import place_directory, place_manifest
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_cache import Claim, ShardCache
from lmdali.tools.cache import command


@pytest.fixture
def cache_dir(tmp_path: Path, small_jpeg_dataset: Path) -> Path:
    """Two whole shards that nobody uses."""
    cache = ShardCache(tmp_path / "cache", 10**9)
    shards = load_manifest(small_jpeg_dataset).shards
    for info in shards[:2]:
        assert cache.claim(info) is Claim.MINE
        shutil.copyfile(small_jpeg_dataset / "shards" / info.name / "data.mdb", cache.partial_file(info))
        cache.publish(info)
        cache.release(info)
    cache.close()
    return tmp_path / "cache"


def answer(*arguments: str) -> dict[str, Any]:
    found = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    document: dict[str, Any] = json.loads(found.stdout)
    return document


def test_shards_are_listed_counted_and_removed(cache_dir: Path, small_jpeg_dataset: Path) -> None:
    shards = load_manifest(small_jpeg_dataset).shards[:2]
    listed = answer("ls", "--cache-dir", str(cache_dir))["shards"]
    assert [shard["sha256"] for shard in listed] == [info.sha256 for info in shards]
    used = answer("du", "--cache-dir", str(cache_dir))
    assert used["num_shards"] == 2
    assert used["num_bytes"] == sum(shard["num_bytes"] for shard in listed) > 0
    assert answer("clear", "--cache-dir", str(cache_dir))["removed_bytes"] == used["num_bytes"]
    assert answer("ls", "--cache-dir", str(cache_dir))["shards"] == []


def test_a_shard_in_use_is_kept(cache_dir: Path, small_jpeg_dataset: Path) -> None:
    info = load_manifest(small_jpeg_dataset).shards[0]
    reader = ShardCache(cache_dir, 10**9)
    assert reader.claim(info) is Claim.READY
    assert answer("clear", "--cache-dir", str(cache_dir))["shards_in_use"] == 1
    reader.close()
    assert answer("clear", "--cache-dir", str(cache_dir))["shards_in_use"] == 0


def test_small_files_of_datasets_are_listed_and_go_when_nobody_opened_them_for_a_day(
    cache_dir: Path, small_jpeg_dataset: Path
) -> None:
    address = f"file://{small_jpeg_dataset}"
    directory = place_directory(address, tables=True, cache_dir=cache_dir)
    size = sum(path.stat().st_size for path in directory.iterdir())
    (listed,) = answer("ls", "--cache-dir", str(cache_dir))["datasets"]
    assert listed == {"digest": directory.name, "address": address, "num_bytes": size}
    used = answer("du", "--cache-dir", str(cache_dir))
    assert (used["num_datasets"], used["dataset_bytes"]) == (1, size)
    assert answer("clear", "--cache-dir", str(cache_dir))["datasets_kept"] == 1
    os.utime(directory, (0, 0))
    place_directory(address, cache_dir=cache_dir)  # opened again
    assert answer("clear", "--cache-dir", str(cache_dir))["datasets_kept"] == 1
    os.utime(directory, (0, 0))
    cleared = answer("clear", "--cache-dir", str(cache_dir))
    assert (cleared["datasets_kept"], cleared["removed_bytes"]) == (0, size)
    assert not directory.exists()
    assert place_manifest(address, cache_dir=cache_dir).num_records == 37


def test_what_cannot_be_removed_is_not_counted(
    cache_dir: Path, small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = place_directory(f"file://{small_jpeg_dataset}", cache_dir=cache_dir)
    os.utime(directory, (0, 0))
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)  # as for another user's files
    assert remove_datasets(cache_dir) == (0, 0)


def test_people_get_tables(cache_dir: Path) -> None:
    for verb, word in (("ls", "MB"), ("du", "limit"), ("clear", "removed")):
        found = CliRunner().invoke(command, [verb, "--cache-dir", str(cache_dir)], catch_exceptions=False)
        assert found.exit_code == 0
        assert word in found.stdout


def test_an_empty_cache_is_no_error(tmp_path: Path) -> None:
    assert answer("ls", "--cache-dir", str(tmp_path / "nothing"))["shards"] == []
