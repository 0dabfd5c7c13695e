"""The cache of shards: who may fetch, who may remove, and that several processes agree on it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest
from remote_server import Fault, serving

from lmdali.pipeline import shard_cache
from lmdali.pipeline.errors import ConfigError, ShardError, StorageError
from lmdali.pipeline.manifest import Manifest, ShardInfo, load_manifest
from lmdali.pipeline.shard_cache import Claim, ShardCache, cache_bytes, cache_directory

KILLS = int(os.environ.get("LMDALI_CACHE_KILLS", "8"))


@pytest.fixture
def manifest(small_jpeg_dataset: Path) -> Manifest:
    return load_manifest(small_jpeg_dataset)


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10**9)


def fetch(cache: ShardCache, info: ShardInfo, dataset: Path) -> None:
    """What whoever has a claim on it does."""
    shutil.copyfile(dataset / "shards" / info.name / "data.mdb", cache.partial_file(info))
    cache.publish(info)


def filled(cache: ShardCache, manifest: Manifest, dataset: Path) -> None:
    for info in manifest.shards:
        assert cache.claim(info) is Claim.MINE
        fetch(cache, info, dataset)
        cache.release(info)


def test_a_shard_is_fetched_by_one_and_read_by_many(
    cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path
) -> None:
    info = manifest.shards[0]
    other = ShardCache(cache.directory, 10**9)
    assert cache.claim(info) is Claim.MINE
    assert other.claim(info) is Claim.BUSY
    fetch(cache, info, small_jpeg_dataset)
    assert other.claim(info) is Claim.READY
    cache.release(info)
    assert cache.claim(info) is Claim.READY
    assert sorted(path.name for path in cache.shard_directory(info).iterdir()) == ["data.mdb", "offsets.npy"]
    assert not list((cache.directory / "partial").iterdir())


def test_what_was_abandoned_is_gone_on_with_by_the_next(cache: ShardCache, manifest: Manifest) -> None:
    info = manifest.shards[0]
    assert cache.claim(info) is Claim.MINE
    cache.partial_file(info).write_bytes(b"beginning")
    cache.abandon(info)
    other = ShardCache(cache.directory, 10**9)
    assert other.claim(info) is Claim.MINE
    assert other.partial_file(info).read_bytes() == b"beginning"
    assert other.used_bytes() == info.file_bytes, "its room is counted before it has come"
    other.partial_file(info).unlink()
    other.abandon(info)
    assert not other.used_bytes(), "an empty beginning is none"


def test_the_least_recently_used_goes_first_whatever_the_clock_of_the_machine_says(
    cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path
) -> None:
    first, second, third, *_ = manifest.shards
    limit = sum(info.file_bytes for info in (first, second, third)) - 1
    small = ShardCache(cache.directory, limit)
    for info in (first, second):
        assert small.claim(info) is Claim.MINE
        fetch(small, info, small_jpeg_dataset)
        small.release(info)
    assert small.claim(first) is Claim.READY
    small.release(first)
    assert small.claim(third) is Claim.MINE
    assert [entry.sha256 for entry in small.entries() if entry.is_whole] == [first.sha256]
    assert small.used_bytes() <= limit


def test_a_shard_whose_process_dies_as_it_is_published_counts_as_used_then(
    cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not at the time of day, which is later than any count of uses: it would outlive all others."""
    first, second, *_ = manifest.shards

    def killed(directory: Path) -> None:
        if directory == cache.shard_directory(first).parent:  # its name is there, and is not yet synced
            raise SystemExit

    monkeypatch.setattr(shard_cache, "sync_directory", killed)
    assert cache.claim(first) is Claim.MINE
    with pytest.raises(SystemExit):
        fetch(cache, first, small_jpeg_dataset)
    cache.close()
    monkeypatch.undo()
    other = ShardCache(cache.directory, 10**9)
    assert other.claim(second) is Claim.MINE
    fetch(other, second, small_jpeg_dataset)
    assert [entry.sha256 for entry in other.entries()] == [first.sha256, second.sha256]
    other.close()


def test_a_shard_in_use_is_not_removed_by_anybody(
    cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path
) -> None:
    first, second, *_ = manifest.shards
    limit = max(first.file_bytes, second.file_bytes)
    small, other = ShardCache(cache.directory, limit), ShardCache(cache.directory, limit)
    assert small.claim(first) is Claim.MINE
    fetch(small, first, small_jpeg_dataset)
    assert other.claim(second) is Claim.FULL and small.claim(second) is Claim.FULL
    assert other.clear() == (0, 1)
    small.release(first)
    assert other.claim(second) is Claim.MINE
    assert small.claim(first) is Claim.FULL


def test_a_shard_that_is_being_fetched_is_not_removed_by_its_own_process(cache: ShardCache, manifest: Manifest) -> None:
    first, second, *_ = manifest.shards
    small = ShardCache(cache.directory, first.file_bytes)
    assert small.claim(first) is Claim.MINE
    assert small.claim(second) is Claim.FULL
    assert small.clear() == (0, 1)


@pytest.mark.parametrize("damage", ["shorter", "no file", "no header"])
def test_a_damaged_shard_counts_as_none(
    damage: str, cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path
) -> None:
    filled(cache, manifest, small_jpeg_dataset)
    info = manifest.shards[1]
    path = cache.shard_directory(info) / "data.mdb"
    if damage == "shorter":
        os.truncate(path, info.file_bytes - 4096)
    elif damage == "no file":
        path.unlink()
    else:
        path.write_bytes(bytes(info.file_bytes))
    assert cache.claim(info) is Claim.MINE
    fetch(cache, info, small_jpeg_dataset)
    assert path.read_bytes() == (small_jpeg_dataset / "shards" / info.name / "data.mdb").read_bytes()


def test_a_shard_that_is_damaged_while_somebody_reads_it_is_an_error(
    cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path
) -> None:
    filled(cache, manifest, small_jpeg_dataset)
    info, other = manifest.shards[0], ShardCache(cache.directory, 10**9)
    assert cache.claim(info) is Claim.READY
    os.truncate(cache.shard_directory(info) / "data.mdb", info.file_bytes // 2)
    with pytest.raises(ShardError, match="damaged while another process reads it"):
        other.claim(info)
    cache.release(info)
    assert other.claim(info) is Claim.MINE


@pytest.mark.parametrize("is_evicted", [True, False], ids=["evicted meanwhile", "left by a killed process"])
def test_what_is_left_of_a_shard_is_no_damage(
    cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch, is_evicted: bool
) -> None:
    filled(cache, manifest, small_jpeg_dataset)
    info, locks = manifest.shards[0], cache._locks
    data_file = cache.shard_directory(info) / "data.mdb"
    refused = []

    def busy_a_moment_ago(byte: int) -> bool:
        # Somebody has it while we ask, and has evicted it, or was killed at that, before we look further.
        if not refused:
            refused.append(byte)
            data_file.unlink(missing_ok=True)
            return False
        return exclusive(byte)

    exclusive = locks.exclusive
    monkeypatch.setattr(locks, "exclusive", busy_a_moment_ago)
    monkeypatch.setattr(cache, "_is_sound", lambda info: data_file.is_file() and bool(refused))
    if not is_evicted:
        data_file.unlink()
    assert cache.claim(info) is Claim.HELD
    assert cache.claim(info) is Claim.MINE


def test_a_shard_that_cannot_be_removed_is_not_kept_from_others(
    cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(cache, manifest, small_jpeg_dataset)

    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(shard_cache, "_remove", refused)
        with pytest.raises(StorageError, match="Permission denied"):
            cache.clear()
    other = ShardCache(cache.directory, 10**9)
    assert [other.claim(info) for info in manifest.shards] == [Claim.READY] * len(manifest.shards)
    other.close()


def test_a_shard_of_another_user_can_be_read(
    cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory that a group may write: the times of a file are its owner's to set."""
    filled(cache, manifest, small_jpeg_dataset)

    def refused(path: Path, *_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(shard_cache.os, "utime", refused)
    assert cache.claim(manifest.shards[0]) is Claim.READY
    cache.release(manifest.shards[0])


def test_clear_leaves_nothing(cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path) -> None:
    filled(cache, manifest, small_jpeg_dataset)
    assert cache.clear() == (manifest.file_bytes, 0)
    assert not cache.entries() and cache.used_bytes() == 0


def test_without_a_limit_a_part_of_the_disk_stays_free(tmp_path: Path, manifest: Manifest) -> None:
    cache = ShardCache(tmp_path / "cache")
    status = os.statvfs(tmp_path)
    assert 0 <= cache.limit_bytes <= status.f_bavail * status.f_frsize
    assert cache.claim(manifest.shards[0]) is Claim.MINE


def test_a_forked_child_holds_nothing_of_its_parent(
    cache: ShardCache, manifest: Manifest, small_jpeg_dataset: Path
) -> None:
    filled(cache, manifest, small_jpeg_dataset)
    assert cache.claim(manifest.shards[0]) is Claim.READY
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os._exit(0)
    cache.release(manifest.shards[0])
    other = ShardCache(cache.directory, 10**9)
    assert other.clear() == (manifest.file_bytes, 0)
    os.write(writing, b"x")
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file/cache"):
        ShardCache(tmp_path / "file" / "cache", 10**9).claim(manifest.shards[0])


def test_where_the_cache_is() -> None:
    assert cache_directory("here", {"LMDALI_CACHE_DIR": "/there"}) == Path("here").absolute()
    assert cache_directory(None, {"LMDALI_CACHE_DIR": "/there", "HOME": "/me"}) == Path("/there")
    assert cache_directory(None, {"XDG_CACHE_HOME": "/x", "HOME": "/me"}) == Path("/x/lmdali")
    assert cache_directory(None, {"HOME": "/me"}) == Path("/me/.cache/lmdali")
    with pytest.raises(ConfigError, match="LMDALI_CACHE_DIR"):
        cache_directory(None, {})


def test_how_large_the_cache_is() -> None:
    assert cache_bytes(5, {"LMDALI_CACHE_BYTES": "7"}) == 5
    assert cache_bytes(None, {"LMDALI_CACHE_BYTES": "7"}) == 7
    assert cache_bytes(None, {}) is None
    for text in ("many", "0", "-1"):
        with pytest.raises(ConfigError, match="LMDALI_CACHE_BYTES"):
            cache_bytes(None, {"LMDALI_CACHE_BYTES": text})


class Readers:
    """Processes of cache_reader.py."""

    def __init__(self, address: str, cache: Path, limit: int) -> None:
        cache.mkdir(exist_ok=True)
        self._cache = cache
        script = str(Path(__file__).with_name("cache_reader.py"))
        self._process = subprocess.Popen(
            [sys.executable, script, address, str(cache), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, seed: int, rounds: int) -> int:
        """Process id of a new one."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{seed} {rounds}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def used(self, pid: int) -> list[int]:
        """Bytes in the cache after each round so far."""
        path = self._cache / f"progress.{pid}"
        return [int(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []

    def wait_for_rounds(self, pid: int, rounds: int) -> None:
        """Until it has read so many shards."""
        while len(self.used(pid)) < rounds:
            sleep(0.002)

    def finish(self) -> dict[int, int]:
        """Exit status of each, by process id, when all have ended."""
        text, _ = self._process.communicate(timeout=250)
        assert self._process.returncode == 0
        return {int(pid): os.waitstatus_to_exitcode(int(status)) for pid, status in map(str.split, text.splitlines())}


def test_processes_on_a_small_cache_agree_while_they_are_killed(tmp_path: Path, small_jpeg_dataset: Path) -> None:
    """Whoever reads a shard finds it whole; there is never more than the limit; nobody waits for the dead."""
    manifest = load_manifest(small_jpeg_dataset)
    limit = sum(sorted(info.file_bytes for info in manifest.shards)[-2:])
    cache = tmp_path / "cache"
    with serving(small_jpeg_dataset) as server:
        for info in manifest.shards:
            server.always(f"shards/{info.name}/data.mdb", Fault(pause_seconds=0.004))
        readers = Readers(server.address, cache, limit)
        lasting = [readers.start(seed, 25) for seed in range(4)]
        victims = [readers.start(100 + seed, 10**9) for seed in range(4)]
        for round_number in range(KILLS):
            victim = victims[round_number % 4]
            readers.wait_for_rounds(victim, 1 + round_number % 8)
            os.kill(victim, signal.SIGKILL)
            victims[round_number % 4] = readers.start(200 + round_number, 10**9)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        ended = readers.finish()
    assert [ended[pid] for pid in lasting] == [0] * 4
    assert sorted(set(ended.values())) == [-signal.SIGKILL, 0] and len(ended) == 8 + KILLS
    used = [size for pid in ended for size in readers.used(pid)]
    assert len(used) >= 100 and max(used) <= limit
    left = ShardCache(cache, limit)
    assert left.clear()[1] == 0 and not left.entries(), "nobody holds anything"


def test_each_shard_is_fetched_once_however_many_processes_ask(tmp_path: Path, small_jpeg_dataset: Path) -> None:
    names = [f"shards/{info.name}/data.mdb" for info in load_manifest(small_jpeg_dataset).shards]
    with serving(small_jpeg_dataset) as server:
        for name in names:
            server.always(name, Fault(pause_seconds=0.004))
        readers = Readers(server.address, tmp_path / "cache", 10**9)
        for seed in range(6):
            readers.start(seed, 30)
        assert set(readers.finish().values()) == {0}
        assert sorted(asked for asked, _ in server.requests if asked in names) == names


def test_the_next_in_line_goes_on_where_a_killed_process_was(tmp_path: Path, small_jpeg_dataset: Path) -> None:
    names = [f"shards/{info.name}/data.mdb" for info in load_manifest(small_jpeg_dataset).shards]
    with serving(small_jpeg_dataset) as server:
        for name in names:
            server.once(name, Fault(pause_seconds=60))
        readers = Readers(server.address, tmp_path / "cache", 10**9)
        first = readers.start(1, 1)
        while not any(path.stat().st_size for path in (tmp_path / "cache").glob("partial/*/data.mdb")):
            sleep(0.002)
        second = readers.start(1, 1)
        os.kill(first, signal.SIGKILL)
        assert readers.finish() == {first: -signal.SIGKILL, second: 0}
        starts = [start for asked, start in server.requests if asked in names]
    assert len(starts) == 2 and starts[0] == 0 and starts[1] > 0
