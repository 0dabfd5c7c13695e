"""Whole shards of remote datasets on a local disk, shared by all processes and runs of a machine.

    lock                      one byte of it is locked for each shard (`range_locks`)
    clock                     counts uses; a shard's modification time is the count of its last one, so that no clock of
                              the machine decides what is old
    shards/SHA256/            data.mdb and offsets.npy: complete, its hash compared, synced
    partial/SHA256.BYTES/     data.mdb as far as it has come; its room, BYTES, is counted from the start
    sets/DIGEST/              manifest.json, statistics.json, mean.npy, address.txt and tables of each dataset

A shard is named by its hash, so two versions of a dataset share what they have in common. Whoever maps one holds its
byte shared; whoever fetches or removes one holds it alone. So there is one download however many ranks ask, the next in
line goes on with it when a process dies, and nothing is removed from under a reader.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

from lmdali.pipeline.cache_entries import UNFINISHED, WHOLE, CacheEntry, cache_entries, stored_bytes
from lmdali.pipeline.errors import ConfigError, ShardError
from lmdali.pipeline.files import free_bytes, storage_errors, sync_directory
from lmdali.pipeline.manifest import ShardInfo
from lmdali.pipeline.path_kind import exists, is_dir, is_file
from lmdali.pipeline.range_locks import RangeLocks, lock_byte
from lmdali.pipeline.shard_check import restore_offsets
from lmdali.pipeline.shard_header import DATA_FILE, check_size

CACHE_DIR_VARIABLE, CACHE_BYTES_VARIABLE = "LMDALI_CACHE_DIR", "LMDALI_CACHE_BYTES"
_FREE_SHARE = 20
"""Without a limit, a twentieth of the disk stays free."""


class Claim(Enum):
    """What came of asking for a shard."""

    READY = auto()
    """It is there, and will be until it is released."""
    MINE = auto()
    """It is not there, its room is kept, and nobody else will fetch it: publish or abandon it."""
    BUSY = auto()
    """Somebody else is fetching or removing it."""
    HELD = auto()
    """It was damaged and is removed, and somebody still reads what was there: until then nobody can bring another."""
    FULL = auto()
    """There is no room, for all that is there is in use."""


class ShardCache:
    """A cache directory as one reader sees it. Thread-safe, but one thread at a time may ask for the same shard.

    Args:
        directory: of the cache, made where it is missing.
        limit_bytes: for all shards together, whoever put them there; None leaves a twentieth of the disk free.

    Attributes:
        directory: as given.
        given_bytes: the limit as given.
    """

    def __init__(self, directory: Path, limit_bytes: int | None = None) -> None:
        self.directory = directory
        self.given_bytes = limit_bytes
        self._locks = RangeLocks(directory / "lock")
        self._own: set[str] = set()
        self._own_lock = threading.Lock()

    @property
    def limit_bytes(self) -> int:
        """What all shards together may take now: the limit that was given, or less where the disk is fuller."""
        return self._limit_with(cache_entries(self.directory))

    def _limit_with(self, entries: Iterable[CacheEntry]) -> int:
        """`limit_bytes`, where somebody has listed the cache already."""
        directory = self.directory
        while not exists(directory):
            directory = directory.parent
        free, status = free_bytes(directory), os.statvfs(directory)
        if self.given_bytes is None:
            free -= status.f_blocks * status.f_frsize // _FREE_SHARE
        # What an unfinished shard has not taken yet is still free.
        room = stored_bytes(entries) + max(0, free)
        return room if self.given_bytes is None else min(self.given_bytes, room)

    def shard_directory(self, info: ShardInfo) -> Path:
        """Where a shard is, once it is published."""
        return self.directory / WHOLE / info.sha256

    def partial_file(self, info: ShardInfo) -> Path:
        """Where a shard that is `MINE` is to be written."""
        return self._partial(info) / DATA_FILE

    def claim(self, info: ShardInfo) -> Claim:
        """Ask for a shard; returns at once.

        Raises:
            ShardError: it is damaged in the cache, and somebody reads it.
            StorageError: the disk refuses.
        """
        byte = lock_byte(info.sha256)
        with self._own_lock:
            self._own.add(info.sha256)
        outcome = Claim.BUSY
        try:
            outcome = self._claim(info, byte)
        finally:
            if outcome not in (Claim.READY, Claim.MINE):
                self._let_go(info.sha256)
        return outcome

    def publish(self, info: ShardInfo) -> None:
        """A shard that is `MINE` has come, whole and right; from now on it is `READY`.

        Raises:
            ShardError: its tree is damaged, whatever its hash says.
            StorageError: the disk refuses.
        """
        partial, final = self._partial(info), self.shard_directory(info)
        restore_offsets(partial, info)
        self._touch(partial)  # first: a kill behind the renaming would leave it with a date that counts as the latest
        with storage_errors(final):
            sync_directory(partial)
        # Behind the gate: whoever counts would see it in neither place, or in both.
        with self._locks.gate(), storage_errors(final):
            _remove(final)
            final.parent.mkdir(exist_ok=True)
            partial.rename(final)
            sync_directory(final.parent)
        self._locks.shared(lock_byte(info.sha256))

    def abandon(self, info: ShardInfo) -> None:
        """A shard that is `MINE` will not come; what came of it stays, to be gone on with."""
        partial = self._partial(info)
        with storage_errors(partial):
            if not is_file(partial / DATA_FILE) or not (partial / DATA_FILE).stat().st_size:
                _remove(partial)
        self._let_go(info.sha256)

    def release(self, info: ShardInfo) -> None:
        """A shard that was `READY` is read no more."""
        self._let_go(info.sha256)

    def discard(self, info: ShardInfo) -> None:
        """Remove a shard that was found damaged. Whoever has it mapped keeps it; whoever asks next fetches it anew."""
        with self._locks.gate(), storage_errors(self.directory):
            _remove(self.shard_directory(info))

    def close(self) -> None:
        """Let go of everything; a later claim begins anew."""
        with self._own_lock:
            self._own.clear()
            self._locks.close()

    def renew(self) -> None:
        """In a forked child, whose locks are its own: nothing is held, and no thread is anywhere in here."""
        self._own, self._own_lock = set(), threading.Lock()

    def entries(self) -> list[CacheEntry]:
        """All shards, the one that was not used for the longest time first."""
        return sorted(cache_entries(self.directory), key=lambda entry: (entry.last_use, entry.sha256))

    def used_bytes(self) -> int:
        """The room of all shards together."""
        with self._locks.gate():
            return sum(entry.num_bytes for entry in cache_entries(self.directory))

    def clear(self) -> tuple[int, int]:
        """Remove every shard that nobody uses: (bytes removed, shards in use)."""
        with self._locks.gate():
            found = self.entries()
            removed = [entry.num_bytes for entry in found if self._evict(entry)]
        return sum(removed), len(found) - len(removed)

    def _claim(self, info: ShardInfo, byte: int) -> Claim:
        if self._is_sound(info):
            if not self._locks.shared(byte):
                return Claim.BUSY
            if self._is_sound(info):  # it may have been removed meanwhile
                self._touch(self.shard_directory(info))
                return Claim.READY
        if not self._locks.exclusive(byte):
            # Whoever fetches it has not published it. While we share it nobody fetches or removes it: what is there
            # then, and is not sound, is what somebody reads. Looked at without, it may be what one who evicts leaves.
            if not self._locks.shared(byte) or self._is_sound(info):
                return Claim.BUSY
            if not self._has_file(info):
                return Claim.HELD
            raise ShardError(
                f"{self.shard_directory(info)}: damaged while another process reads it: stop that one, and run "
                "`lmdali cache clear`"
            )
        if self._is_sound(info):  # published while we asked
            self._locks.shared(byte)
            self._touch(self.shard_directory(info))
            return Claim.READY
        with self._locks.gate(), storage_errors(self.directory):
            _remove(self.shard_directory(info))
            partial = self._partial(info)
            if not is_dir(partial):
                if not self._make_room(info.file_bytes):
                    return Claim.FULL
                partial.mkdir(parents=True)
        return Claim.MINE

    def _has_file(self, info: ShardInfo) -> bool:
        return is_file(self.shard_directory(info) / DATA_FILE)

    def _is_sound(self, info: ShardInfo) -> bool:
        path = self.shard_directory(info) / DATA_FILE
        try:
            check_size(path, expected_bytes=info.file_bytes, expected_entries=info.num_records)
        except (ShardError, OSError):  # it may be removed while it is looked at
            return False
        return True

    def _make_room(self, num_bytes: int) -> bool:
        found = self.entries()
        limit, used = self._limit_with(found), sum(entry.num_bytes for entry in found)
        for entry in found:
            if used + num_bytes <= limit:
                break
            if self._evict(entry):
                used -= entry.num_bytes
        return used + num_bytes <= limit

    def _evict(self, entry: CacheEntry) -> bool:
        """Remove a shard unless it is in use. Own locks would not stop us: they are known by name."""
        byte = lock_byte(entry.sha256)
        with self._own_lock:
            if entry.sha256 in self._own or not self._locks.exclusive(byte):
                return False
            try:
                with storage_errors(entry.path):
                    _remove(entry.path)
            finally:  # what cannot be removed can still be read
                self._locks.release(byte)
        return True

    def _partial(self, info: ShardInfo) -> Path:
        return self.directory / UNFINISHED / f"{info.sha256}.{info.file_bytes}"

    def _touch(self, directory: Path) -> None:
        clock = self.directory / "clock"
        with self._locks.gate(), storage_errors(clock):
            text = clock.read_text() if is_file(clock) else ""
            count = int(text) + 1 if text.isdecimal() else 1
            # Written over in place, never emptied: a process that is killed here must not set it back.
            descriptor = os.open(clock, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.write(descriptor, f"{count:012d}".encode())
            finally:
                os.close(descriptor)
            with suppress(PermissionError):  # another user's, who shares the directory: only its owner may date it
                os.utime(directory / DATA_FILE, (count, count))

    def _let_go(self, sha256: str) -> None:
        with self._own_lock:
            self._locks.release(lock_byte(sha256))
            self._own.discard(sha256)


def _remove(directory: Path) -> None:
    """A directory with its files; the shard itself first, so that what a kill leaves is no shard."""
    (directory / DATA_FILE).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def cache_directory(given: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """The cache directory: as given, of LMDALI_CACHE_DIR, or `lmdali` in the user's cache directory (XDG).

    Raises:
        ConfigError: none of these is there.
    """
    if given is not None or environment.get(CACHE_DIR_VARIABLE):
        return Path(given if given is not None else environment[CACHE_DIR_VARIABLE]).absolute()
    if (directory := user_cache(environment)) is None:
        raise ConfigError(f"there is no home directory to keep remote shards in: set {CACHE_DIR_VARIABLE}")
    return directory


def user_cache(environment: Mapping[str, str] = os.environ) -> Path | None:
    """`lmdali` in the user's cache directory (XDG); None without a home."""
    named, home = Path(environment.get("XDG_CACHE_HOME", "")), Path(environment.get("HOME", ""))
    if named.is_absolute():
        return named / "lmdali"
    return home / ".cache" / "lmdali" if home.is_absolute() else None


def cache_bytes(given: int | None = None, environment: Mapping[str, str] = os.environ) -> int | None:
    """The limit of the cache: as given, or of LMDALI_CACHE_BYTES; None where neither says one.

    Raises:
        ConfigError: the variable is no number.
    """
    text = environment.get(CACHE_BYTES_VARIABLE, "")
    if given is not None or not text:
        return given
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"the environment variable {CACHE_BYTES_VARIABLE} is {text!r}, expected a number of bytes")
    return int(text)
