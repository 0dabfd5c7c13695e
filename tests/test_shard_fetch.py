"""Threads that fetch shards: what failed ahead of its use, and what fails where nobody looks."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lmdali.pipeline.errors import MachineError, RemoteError, ShardError, StorageError
from lmdali.pipeline.manifest import Manifest, ShardInfo, load_manifest
from lmdali.pipeline.shard_cache import Claim, ShardCache
from lmdali.pipeline.shard_fetch import ShardFetcher


@pytest.fixture
def manifest(small_jpeg_dataset: Path) -> Manifest:
    return load_manifest(small_jpeg_dataset)


def test_what_failed_ahead_of_its_use_is_asked_for_again_when_it_is_needed(
    small_jpeg_dataset: Path, tmp_path: Path, manifest: Manifest
) -> None:
    """A bucket that was away for a minute, while all that was needed then was here, ends no run an hour later."""
    tries: list[str] = []

    def fetch(info: ShardInfo, path: Path, stopped: Callable[[], bool]) -> int:
        tries.append(info.name)
        if len(tries) % 2:
            raise RemoteError("given up after 8 tries")
        shutil.copyfile(small_jpeg_dataset / "shards" / info.name / "data.mdb", path)
        return info.file_bytes

    fetcher = ShardFetcher(manifest.shards, ShardCache(tmp_path, 10**9), fetch, let_go=lambda _: None, num_threads=1)
    fetcher.keep([0])
    while 0 not in fetcher._state.demand.failed:
        threading.Event().wait(0.01)
    fetcher.use([0])()
    assert tries == ["00000"] * 2
    with pytest.raises(RemoteError, match="given up"):
        fetcher.use([1])
    fetcher.use([1])()
    fetcher.close()


def test_fewer_threads_than_were_asked_for_will_do_and_none_is_an_error(
    small_jpeg_dataset: Path, tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, allowed = threading.Thread.start, [1]

    def start_some(thread: threading.Thread) -> None:
        if not allowed:
            raise RuntimeError("can't start new thread")
        allowed.pop()
        start(thread)

    def fetch(info: ShardInfo, path: Path, stopped: Callable[[], bool]) -> int:
        shutil.copyfile(small_jpeg_dataset / "shards" / info.name / "data.mdb", path)
        return info.file_bytes

    monkeypatch.setattr(threading.Thread, "start", start_some)
    fetcher = ShardFetcher(manifest.shards, ShardCache(tmp_path, 10**9), fetch, let_go=lambda _: None)
    fetcher.keep([0])
    fetcher.use([0, 1])()
    fetcher.close()
    with pytest.raises(MachineError, match="the system refuses another thread"):
        fetcher.use([0])
    assert not fetcher._state.demand.waiting, "nobody would ever let go of it"
    allowed.append(1)
    fetcher.use([0])()
    fetcher.close()


def test_a_disk_that_fails_while_room_is_looked_for_leaves_nobody_waiting(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path, 1)

    def broken() -> int:
        raise StorageError("the disk is gone")

    monkeypatch.setattr(cache, "used_bytes", broken)
    fetcher = ShardFetcher(
        manifest.shards, cache, lambda *_: 0, let_go=lambda _: None, num_threads=1, room_wait_seconds=0.0
    )
    last_resort = threading.Timer(100, fetcher.give_up_waiting)
    last_resort.start()
    for _ in range(2):
        with pytest.raises(StorageError, match="the disk is gone"):
            fetcher.use([0])
    last_resort.cancel()
    fetcher.close()


def test_a_shard_that_was_removed_as_damaged_and_is_still_read_elsewhere_is_not_waited_for_for_ever(
    small_jpeg_dataset: Path, tmp_path: Path, manifest: Manifest
) -> None:
    info, other = manifest.shards[0], ShardCache(tmp_path, 10**9)

    def fetch(info: ShardInfo, path: Path, stopped: Callable[[], bool]) -> int:
        shutil.copyfile(small_jpeg_dataset / "shards" / info.name / "data.mdb", path)
        return info.file_bytes

    assert other.claim(info) is Claim.MINE
    fetch(info, other.partial_file(info), lambda: False)
    other.publish(info)
    cache = ShardCache(tmp_path, 10**9)
    cache.discard(info)
    fetcher = ShardFetcher(
        manifest.shards, cache, fetch, let_go=lambda _: None, num_threads=1, room_wait_seconds=0.0, poll_seconds=0.01
    )
    last_resort = threading.Timer(100, fetcher.give_up_waiting)
    last_resort.start()
    with pytest.raises(ShardError, match="another process still reads what was there: stop that one"):
        fetcher.use([0])
    other.release(info)
    fetcher.use([0])()
    last_resort.cancel()
    fetcher.close()
    other.close()
