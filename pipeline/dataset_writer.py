"""A dataset under construction: planned, filled shard by shard, published in one last step.

While a conversion runs, `.staging/` beside the shards keeps the plan and, for each finished shard, its table rows and
its sums. A shard counts as finished when its directory has its final name; everything about it is on the disk by then.
So a killed run loses the shards that were in progress and nothing else, and publishing is a pure function of files.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from lmdali.pipeline.eigenbasis import MEAN_FILE, STATISTICS_FILE, Moments, save_statistics
from lmdali.pipeline.errors import InputError, IntegrityError, LockedError, StorageError
from lmdali.pipeline.files import (
    canonical_digest,
    file_sha256,
    npy_bytes,
    read_json,
    storage_errors,
    write_atomic,
    write_json,
)
from lmdali.pipeline.manifest import (
    MANIFEST_FILE,
    RECORDS_FILE,
    REJECTS_FILE,
    SHARDS_DIRECTORY,
    Manifest,
    ShardInfo,
    load_manifest,
)
from lmdali.pipeline.shard_writer import SHARD_FILE, TEMPORARY_SUFFIX, ShardWriter, shard_from_json
from lmdali.pipeline.tables import RecordRow, RejectRow, concatenate, count_values, write_rows

STAGING_DIRECTORY = ".staging"
_PLAN_FILE = "plan.json"
_LOCK_FILE = "lock"
_OURS = (MANIFEST_FILE, STATISTICS_FILE, MEAN_FILE, RECORDS_FILE, REJECTS_FILE, SHARDS_DIRECTORY, STAGING_DIRECTORY)


@dataclass(frozen=True)
class DatasetPlan:
    """What will be written; equal plans give equal bytes.

    Attributes:
        image_size: side of the stored images, pixels.
        encoding: "jpeg" or "raw".
        class_names: position is label.
        num_sources: sources in all.
        shard_sources: sources per shard; the last one may have fewer.
        recipe: see `Manifest`.
        source: see `Manifest`.
    """

    image_size: int
    encoding: str
    class_names: tuple[str, ...]
    num_sources: int
    shard_sources: int
    recipe: dict[str, Any]
    source: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """sha256 over all fields."""
        return canonical_digest(self._document())

    def _document(self) -> dict[str, Any]:
        return asdict(self) | {"class_names": list(self.class_names)}

    def shards(self) -> list[tuple[str, int, int]]:
        """(name, first position, number of sources) of every shard."""
        starts = range(0, self.num_sources, self.shard_sources)
        return [(f"{n:05d}", at, min(self.shard_sources, self.num_sources - at)) for n, at in enumerate(starts)]


@dataclass(frozen=True, eq=False)
class ShardContent:
    """What a worker knows of a shard once its last source is done."""

    records: list[RecordRow]
    rejects: list[RejectRow]
    moments: Moments


class DatasetWriter:
    """One output directory, held by one run at a time.

    Args:
        directory: the output.
        plan: what it will hold.
    """

    def __init__(self, directory: Path, plan: DatasetPlan) -> None:
        self.directory, self.plan = directory, plan

    @contextmanager
    def hold(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Take the output directory for this run.

        Raises:
            InputError: it has content and neither flag is given, or the plan to resume is another.
            LockedError: another run holds it.
            StorageError: it cannot be written.
        """
        staging = self.directory / STAGING_DIRECTORY
        self._refuse_foreign(resume=resume, overwrite=overwrite)
        with storage_errors(staging):
            staging.mkdir(parents=True, exist_ok=True)
            lock = (staging / _LOCK_FILE).open("a+")
        with lock:
            _lock(lock, self.directory)
            try:
                self._prepare(staging, resume=resume, overwrite=overwrite)
                yield
            finally:
                if (self.directory / MANIFEST_FILE).exists():
                    shutil.rmtree(staging, ignore_errors=True)

    def _prepare(self, staging: Path, *, resume: bool, overwrite: bool) -> None:
        """Clear or check what is there, remove what dead runs left, write the plan."""
        if overwrite:
            self._clear()
        elif resume:
            self._check_plan()
        shards = self.directory / SHARDS_DIRECTORY
        with storage_errors(staging):
            shards.mkdir(exist_ok=True)
            for leftover in shards.glob(f".*{TEMPORARY_SUFFIX}"):
                shutil.rmtree(leftover)
            for leftover in [*self.directory.iterdir(), *staging.iterdir()]:
                if _is_leftover(leftover.name):
                    leftover.unlink()
        write_json(staging / _PLAN_FILE, self.plan._document())

    def is_complete(self) -> bool:
        """Whether this very plan was published here before."""
        if not (self.directory / MANIFEST_FILE).exists():
            return False
        return load_manifest(self.directory).source.get("plan") == self.plan.fingerprint

    def tidy(self) -> None:
        """Remove what a run leaves that was killed after its last step, once the dataset is complete."""
        if (self.directory / STAGING_DIRECTORY).exists():
            with self.hold(resume=True, overwrite=False):
                pass

    def unfinished(self) -> list[tuple[str, int, int]]:
        """(name, first position, number of sources) of the shards that are left to do."""
        shards = self.directory / SHARDS_DIRECTORY
        return [shard for shard in self.plan.shards() if not (shards / shard[0] / SHARD_FILE).is_file()]

    def is_begun(self) -> bool:
        """Whether this very plan is being carried out here, as far as this machine sees."""
        path = self.directory / STAGING_DIRECTORY / _PLAN_FILE
        return path.is_file() and read_json(path) == self.plan._document()

    def open_shard(self, name: str, first_position: int, num_sources: int) -> ShardWriter:
        """A writer for one planned shard."""
        return ShardWriter(
            self.directory / SHARDS_DIRECTORY,
            name,
            first_position=first_position,
            num_sources=num_sources,
            image_size=self.plan.image_size,
        )

    def finish_shard(self, name: str, shard: ShardWriter, content: ShardContent) -> ShardInfo:
        """Stage the shard's tables and sums, then give it its final name."""
        staged = self.directory / STAGING_DIRECTORY
        write_rows(staged / f"{name}.records", RecordRow, content.records)
        write_rows(staged / f"{name}.rejects", RejectRow, content.rejects)
        assert content.moments.image_sums is not None
        # The last of the three, and it syncs their directory: a shard with its final name must find them all.
        write_atomic(staged / f"{name}.npy", npy_bytes(content.moments.image_sums))
        return shard.publish({"plan": self.plan.fingerprint, "moments": content.moments.to_json()})

    def publish(self) -> Manifest:
        """Tables, statistics and, last, the manifest.

        Raises:
            InputError: not one source could be stored.
            IntegrityError: a finished shard is of another plan.
        """
        infos: list[ShardInfo] = []
        size = self.plan.image_size
        total = Moments.zero(size, size)
        for name, _, _ in self.plan.shards():
            document = read_json(self.directory / SHARDS_DIRECTORY / name / SHARD_FILE)
            if document["plan"] != self.plan.fingerprint:
                raise IntegrityError(f"{self.directory}: shard {name} is of another plan: run again with --overwrite")
            infos.append(shard_from_json(document["shard"]))
            sums = np.load(self.directory / STAGING_DIRECTORY / f"{name}.npy", allow_pickle=False)
            total.merge(Moments.from_json(document["moments"], sums))
        if total.num_images == 0:
            raise InputError(f"none of {self.plan.num_sources} sources could be stored: see --json for the reasons")
        names = [info.name for info in infos]
        self._join(names, RECORDS_FILE, RecordRow, index=True)
        self._join(names, REJECTS_FILE, RejectRow, index=False)
        # The digest is needed by the statistics, and the manifest must be the last file to appear.
        manifest = self._manifest(infos).with_digest()
        save_statistics(self.directory, total, manifest.digest)
        return manifest.save(self.directory)

    def _manifest(self, infos: list[ShardInfo]) -> Manifest:
        labels = count_values(self.directory / RECORDS_FILE, "label")
        return Manifest(
            image_size=self.plan.image_size,
            encoding=self.plan.encoding,
            class_names=self.plan.class_names,
            class_counts=tuple(labels[label] for label in range(len(self.plan.class_names))),
            num_records=sum(info.num_records for info in infos),
            num_rejected=sum(len(info.rejected) for info in infos),
            shards=tuple(infos),
            recipe=self.plan.recipe,
            source=self.plan.source | {"plan": self.plan.fingerprint},
            tables={name: file_sha256(self.directory / name) for name in (RECORDS_FILE, REJECTS_FILE)},
        )

    def _join(self, names: list[str], target: str, kind: type[RecordRow] | type[RejectRow], *, index: bool) -> None:
        suffix = target.removesuffix(".parquet")
        parts = [self.directory / STAGING_DIRECTORY / f"{name}.{suffix}" for name in names]
        concatenate(parts, self.directory / target, kind, index=index)

    def _refuse_foreign(self, *, resume: bool, overwrite: bool) -> None:
        if not self.directory.exists():
            return
        if not self.directory.is_dir():
            raise InputError(f"{self.directory}: exists and is not a directory: choose another output")
        found = sorted(entry.name for entry in self.directory.iterdir())
        foreign = [name for name in found if name not in _OURS and not _is_leftover(name)]
        if foreign:
            raise InputError(f"{self.directory}: has files that are not ours ({foreign[0]!r}): choose an empty output")
        if found and not (resume or overwrite):
            lock_file = self.directory / STAGING_DIRECTORY / _LOCK_FILE
            if lock_file.exists():
                with lock_file.open("a+") as lock:
                    _lock(lock, self.directory)
            state = "a finished dataset" if MANIFEST_FILE in found else "an unfinished conversion"
            raise InputError(
                f"{self.directory}: already holds {state}: add --resume or --overwrite, or choose another output"
            )

    def _check_plan(self) -> None:
        if (self.directory / MANIFEST_FILE).exists() and not self.is_complete():
            raise InputError(f"{self.directory}: holds a finished dataset made with other options: use --overwrite")
        path = self.directory / STAGING_DIRECTORY / _PLAN_FILE
        if not path.exists():
            return
        before, now = read_json(path), self.plan._document()
        different = [key for key in now if before.get(key) != now[key]]
        if different:
            raise InputError(
                f"{self.directory}: was begun with other options ({_differences(before, now, different)}): "
                "repeat those, or start again with --overwrite"
            )

    def _clear(self) -> None:
        # The manifest goes first: a half-removed dataset must not look whole.
        with storage_errors(self.directory):
            (self.directory / MANIFEST_FILE).unlink(missing_ok=True)
            for name in (STATISTICS_FILE, MEAN_FILE, RECORDS_FILE, REJECTS_FILE):
                (self.directory / name).unlink(missing_ok=True)
            shutil.rmtree(self.directory / SHARDS_DIRECTORY, ignore_errors=True)
            for staged in (self.directory / STAGING_DIRECTORY).iterdir():
                if staged.name != _LOCK_FILE:
                    staged.unlink()


def _is_leftover(name: str) -> bool:
    """A file that a killed run had not yet renamed to one of ours."""
    ours = (*_OURS, _PLAN_FILE)
    return name.endswith(TEMPORARY_SUFFIX) and any(name.startswith(f".{final}.") for final in ours)


def _differences(before: dict[str, Any], now: dict[str, Any], keys: list[str]) -> str:
    out = []
    for key in keys:
        if isinstance(now[key], dict) and isinstance(before.get(key), dict):
            inner = [k for k in now[key] if now[key][k] != before[key].get(k)]
            out += [f"{k}: {before[key].get(k)!r} then, {now[key][k]!r} now" for k in inner]
        elif isinstance(now[key], list):
            out.append(f"{key} differ")
        else:
            out.append(f"{key}: {before.get(key)!r} then, {now[key]!r} now")
    return "; ".join(out)


def _lock(lock: IO[str], directory: Path) -> None:
    """flock: the kernel drops it when the holder dies, however it dies."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        raise LockedError(
            f"{directory}: another conversion is writing here ({holder}): wait for it or stop it"
        ) from None
    except OSError as error:
        raise StorageError(
            f"{directory}: this filesystem cannot lock files ({error.strerror}): write to a local disk"
        ) from error
    lock.seek(0)
    lock.truncate()
    lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
    lock.flush()
