"""A dataset copied for good onto a local disk: resumed where it was cut, every byte checked, the manifest last.

While it goes on, `.staging/` has the manifest that is being copied and the shards that are on their way. A shard gets
its place in one step, once its hash is right, so that a kill loses nothing that has arrived.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from lmdali.pipeline.dataset_files import side_files
from lmdali.pipeline.dataset_writer import clear_leftovers
from lmdali.pipeline.eigenbasis import MEAN_FILE, STATISTICS_FILE
from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError, RemoteError, ShardError, StorageError
from lmdali.pipeline.file_store import FileStore
from lmdali.pipeline.files import (
    MAX_JSON_BYTES,
    file_sha256,
    free_bytes,
    storage_errors,
    sync_directory,
    write_atomic,
)
from lmdali.pipeline.manifest import MANIFEST_FILE, SHARDS_DIRECTORY, Manifest, ShardInfo, load_manifest
from lmdali.pipeline.output_check import refuse_foreign
from lmdali.pipeline.output_lock import STAGING_DIRECTORY, hold_whole
from lmdali.pipeline.path_kind import exists, is_file
from lmdali.pipeline.remote_file import FileFetch, fetch_small
from lmdali.pipeline.remote_retry import Attempts, RetryConfig
from lmdali.pipeline.remote_store import Store
from lmdali.pipeline.shard_cache import cache_directory
from lmdali.pipeline.shard_check import check_data_file
from lmdali.pipeline.shard_fetch import DEFAULT_FETCHES
from lmdali.pipeline.shard_figures import SHARD_FILE, ShardFigures
from lmdali.pipeline.shard_header import DATA_FILE, check_size
from lmdali.pipeline.shard_index import OFFSETS_FILE
from lmdali.pipeline.shard_output import PLAN_FILE
from lmdali.pipeline.shard_walk import kept_offsets_fit
from lmdali.pipeline.stores import store_of
from lmdali.tools.output_argument import refuse_overlap
from lmdali.tools.parallel_files import run_all, stoppable_clock
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import megabytes
from lmdali.tools.side_files import statistics_problems

_MAX_SMALL_BYTES = 1 << 30
_SMALL_TRIES = 3


@dataclass(frozen=True)
class StageSummary:
    """What staging did.

    Attributes:
        source: where the dataset is from, without credentials.
        num_shards: of the dataset.
        fetched_shards: those that were not there yet.
        fetched_bytes: of their `data.mdb`, as far as they came now and not in an earlier run.
        file_bytes: size of all shards.
        manifest_digest: identity of the dataset.
        seconds: wall time.
    """

    source: str
    num_shards: int
    fetched_shards: int
    fetched_bytes: int
    file_bytes: int
    manifest_digest: str
    seconds: float


def stage_dataset(
    source: str,
    directory: Path,
    *,
    fetches: int = DEFAULT_FETCHES,
    verify: bool = False,
    quiet: bool = False,
    retry: RetryConfig | None = None,
) -> StageSummary:
    """Have a whole dataset in a local directory, equal to the source byte for byte.

    Args:
        source: its address or path.
        directory: where to; an unfinished or finished copy of it, empty, or missing.
        fetches: shards at once.
        verify: hash what is there already; otherwise sizes are compared.
        quiet: no progress.
        retry: patience.

    Raises:
        ConfigError: one of the two is within the other.
        InputError: something else is in the directory.
        RemoteError: the source cannot be had, or is damaged.
        LockedError: another run writes there.
        StorageError: the disk is too small, or refuses.
    """
    start, config = perf_counter(), retry or RetryConfig()
    store = store_of(source, config)
    if isinstance(store, FileStore):
        refuse_overlap(store.folder, directory)
    refuse_foreign(directory, is_part=False, overwrite=False)
    if isinstance(store, FileStore) and not exists(store.folder / MANIFEST_FILE):
        load_manifest(store.folder)  # which says what is there instead
    payload = fetch_small(store, MANIFEST_FILE, max_bytes=MAX_JSON_BYTES, config=config)
    _refuse_others(directory, payload)
    with hold_whole(directory):
        _refuse_others(directory, payload)
        copy = _Copy(store, directory, payload, config, verify=verify)
        copy.bring_shards(fetches, quiet=quiet)
        copy.bring_side_files()
        clear_leftovers(directory)
        write_atomic(directory / MANIFEST_FILE, payload)
        shutil.rmtree(copy.staging, ignore_errors=True)
    return StageSummary(
        source=store.shown,
        num_shards=len(copy.manifest.shards),
        fetched_shards=copy.fetched_shards,
        fetched_bytes=copy.fetched_bytes,
        file_bytes=copy.manifest.file_bytes,
        manifest_digest=copy.manifest.digest,
        seconds=perf_counter() - start,
    )


def _refuse_others(directory: Path, payload: bytes) -> None:
    """What is in the directory must be this dataset, or a part of it that an earlier run brought."""
    staged = directory / STAGING_DIRECTORY / MANIFEST_FILE
    if exists(directory / STAGING_DIRECTORY / PLAN_FILE):
        raise InputError(f"{directory}: holds an unfinished conversion: choose another directory")
    for path, what in ((directory / MANIFEST_FILE, "another dataset"), (staged, "a part of another dataset")):
        if exists(path) and path.read_bytes() != payload:
            raise InputError(f"{directory}: holds {what}: remove it, or choose another directory")
    if exists(directory / SHARDS_DIRECTORY) and not (exists(directory / MANIFEST_FILE) or exists(staged)):
        raise InputError(f"{directory}: holds shards of unknown origin: remove it, or choose another directory")


class _Copy:
    """The directory as it fills."""

    def __init__(self, store: Store, directory: Path, payload: bytes, config: RetryConfig, *, verify: bool) -> None:
        self._store, self._directory, self._config = store, directory, config
        self._was_complete, self._verify = exists(directory / MANIFEST_FILE), verify
        self.staging = directory / STAGING_DIRECTORY
        write_atomic(self.staging / MANIFEST_FILE, payload)
        self.manifest: Manifest = load_manifest(self.staging)
        self._stop = threading.Event()
        self._clock = stoppable_clock(self._stop)
        self._lock = threading.Lock()
        self._running: list[FileFetch] = []
        self.fetched_shards = self.fetched_bytes = 0
        try:
            self._cache: Path | None = cache_directory() / "shards"
        except ConfigError:
            self._cache = None

    def bring_shards(self, threads: int, *, quiet: bool) -> None:
        """Every shard that is not there."""
        shards = self._directory / SHARDS_DIRECTORY
        with storage_errors(shards):
            shards.mkdir(exist_ok=True)
            missing = [info for info in self.manifest.shards if not self._has(info)]
            self._check_room(missing)
            if missing and self._was_complete:  # it is not whole: nobody shall think so while it is mended
                (self._directory / MANIFEST_FILE).unlink()
                sync_directory(self._directory)
        here = self.manifest.file_bytes - sum(info.file_bytes for info in missing)
        total = round(self.manifest.file_bytes / 1e6)
        with progress_bar("stage", total, unit="MB", quiet=quiet) as progress:

            def look() -> None:
                with self._lock:
                    came = self.fetched_bytes + sum(fetch.fetched_bytes for fetch in self._running)
                progress(min(total, round((here + came) / 1e6)))

            tasks = [partial(self._bring, info) for info in missing]
            run_all(tasks, threads=threads, stop=self._stop, look=look, interrupt=self._store.interrupt)
        with storage_errors(shards):
            sync_directory(shards)

    def bring_side_files(self) -> None:
        """Tables, statistics and mean image, each as the manifest says or as they agree with each other."""
        files = side_files(self.manifest)
        if self._was_complete and not self._verify and all(is_file(self._directory / f.name) for f in files):
            return
        for name, _, sha256, _ in files:
            if sha256 is not None:
                self._bring_table(name, sha256)
        self._bring_small(
            {name: self._directory / name for name in (STATISTICS_FILE, MEAN_FILE)},
            lambda: statistics_problems(self._directory, self.manifest, None),
        )

    def _has(self, info: ShardInfo) -> bool:
        """Whether a shard is in its place, whole as far as was asked."""
        folder = self._directory / SHARDS_DIRECTORY / info.name
        try:
            if self._verify:
                check_data_file(folder, info)
                return not self._shard_problems(folder, info)
            check_size(folder / DATA_FILE, expected_bytes=info.file_bytes, expected_entries=info.num_records)
        except (ShardError, OSError):
            return False
        return True

    def _check_room(self, missing: list[ShardInfo]) -> None:
        here = [path.stat().st_size for path in self.staging.glob(f"*/{DATA_FILE}")]
        needed, free = sum(info.file_bytes for info in missing) - sum(here), free_bytes(self._directory)
        if needed > free:
            raise StorageError(
                f"{self._directory}: needs {megabytes(needed)} more, {megabytes(free)} are free: choose another disk"
            )

    def _bring(self, info: ShardInfo) -> None:
        """One shard with its files, in one step."""
        aside = self.staging / info.name
        final = self._directory / SHARDS_DIRECTORY / info.name
        with storage_errors(aside):
            aside.mkdir(exist_ok=True)
        self._bring_data(info, aside / DATA_FILE)
        folder = f"{SHARDS_DIRECTORY}/{info.name}"
        self._bring_small(
            {f"{folder}/{name}": aside / name for name in (OFFSETS_FILE, SHARD_FILE)},
            lambda: self._shard_problems(aside, info),
        )
        with storage_errors(final):
            sync_directory(aside)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
        with self._lock:
            self.fetched_shards += 1

    def _bring_data(self, info: ShardInfo, path: Path) -> None:
        if self._cache is not None and not exists(path) and is_file(self._cache / info.sha256 / DATA_FILE):
            try:
                self._fetch(FileStore(self._cache / info.sha256), DATA_FILE, info, path)
                return
            except RemoteError:  # removed meanwhile, or damaged: the source has it
                pass
        self._fetch(self._store, f"{SHARDS_DIRECTORY}/{info.name}/{DATA_FILE}", info, path)

    def _fetch(self, store: Store, name: str, info: ShardInfo, path: Path) -> None:
        fetch = FileFetch(
            store,
            name,
            num_bytes=info.file_bytes,
            sha256=info.sha256,
            config=self._config,
            clock=self._clock,
            stopped=self._stop.is_set,
        )
        with self._lock:
            self._running.append(fetch)
        try:
            fetch.into(path)
        finally:
            with self._lock:
                self._running.remove(fetch)
                self.fetched_bytes += fetch.fetched_bytes

    def _shard_problems(self, folder: Path, info: ShardInfo) -> list[str]:
        """What is wrong with the files beside a shard; one that is missing is no problem of a copy."""
        problems = []
        if is_file(folder / OFFSETS_FILE) and not kept_offsets_fit(folder, info):
            problems.append(f"{OFFSETS_FILE}: does not fit")
        if is_file(folder / SHARD_FILE):
            try:
                if ShardFigures.load(folder).info != info:
                    problems.append(f"{SHARD_FILE}: does not say what {MANIFEST_FILE} says")
            except IntegrityError as error:
                problems.append(str(error))
        return problems

    def _bring_table(self, name: str, sha256: str) -> None:
        path, aside = self._directory / name, self.staging / name
        if is_file(path) and file_sha256(path) == sha256:
            return
        attempts = Attempts(f"{self._store.shown}/{name}", self._config, self._clock)
        with closing(attempts.run(lambda: self._store.open(name, 0))) as body:
            size = body.num_bytes
        if size is None:  # a server that says no sizes
            write_atomic(aside, fetch_small(self._store, name, max_bytes=_MAX_SMALL_BYTES, config=self._config))
            size = aside.stat().st_size
        fetch = FileFetch(
            self._store, name, num_bytes=size, sha256=sha256, config=self._config, stopped=self._stop.is_set
        )
        fetch.into(aside)
        with storage_errors(path):
            aside.replace(path)
            sync_directory(self._directory)

    def _bring_small(self, files: dict[str, Path], problems: Callable[[], list[str]]) -> None:
        """Files that the manifest has no hashes of: what one says must agree with the others."""
        for _ in range(_SMALL_TRIES):
            for name, path in files.items():
                try:
                    payload = fetch_small(
                        self._store, name, max_bytes=_MAX_SMALL_BYTES, config=self._config, clock=self._clock
                    )
                    write_atomic(path, payload)
                except RemoteError as error:
                    if not error.is_missing:
                        raise
                    path.unlink(missing_ok=True)
            found = problems() if all(is_file(path) for path in files.values()) else []
            if not found:
                return
        raise RemoteError(
            f"{self._store.shown}: {found[0]}: the source is damaged: run `lmdali verify` and `lmdali repair` there"
        )
