"""Where finished shards go, and what is staged beside them until their dataset is published.

A shard counts as finished when its directory has its final name; its table rows, its sums and their hashes are on the
disk by then.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import InputError, IntegrityError
from lmdali.pipeline.files import canonical_digest, file_sha256, npy_bytes, read_json, write_json, write_synced
from lmdali.pipeline.manifest import RECORDS_FILE, REJECTS_FILE, SHARDS_DIRECTORY, ShardInfo
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.output_lock import STAGING_DIRECTORY
from lmdali.pipeline.path_kind import is_file
from lmdali.pipeline.shard_figures import SHARD_FILE, ShardFigures
from lmdali.pipeline.shard_writer import TEMPORARY_SUFFIX, ShardWriter
from lmdali.pipeline.tables import RecordRow, RejectRow, concatenate, staged_bytes

PLAN_FILE = "plan.json"
_SUMS_SUFFIX, HASHES_SUFFIX = "npy", "hashes"
STAGED_SUFFIXES = ("records", "rejects", _SUMS_SUFFIX, HASHES_SUFFIX)
"""The last one says that the others are there."""


@dataclass(frozen=True, eq=False)
class ShardContent:
    """What a worker knows of a shard once its last source is done."""

    records: list[RecordRow]
    rejects: list[RejectRow]
    moments: Moments


class ShardOutput:
    """The shards of one output directory; picklable, for workers.

    Args:
        directory: the output.
        image_size: side of the stored images, pixels.
        plan_fingerprint: of the plan that the shards belong to.
    """

    def __init__(self, directory: Path, image_size: int, plan_fingerprint: str) -> None:
        self.directory, self.image_size, self.plan_fingerprint = directory, image_size, plan_fingerprint

    @property
    def staging(self) -> Path:
        """Directory of what is no part of the finished dataset."""
        return self.directory / STAGING_DIRECTORY

    def is_begun(self) -> bool:
        """Whether the plan of these shards is being carried out here, as far as this machine sees."""
        path = self.staging / PLAN_FILE
        return is_file(path) and canonical_digest(read_json(path)) == self.plan_fingerprint

    def shard_directory(self, name: str) -> Path:
        """Where a finished shard is."""
        return self.directory / SHARDS_DIRECTORY / name

    def has(self, name: str) -> bool:
        """Whether a shard is finished, with all that publishing it needs; a published one no longer has that."""
        return is_file(self.shard_directory(name) / SHARD_FILE) and is_file(self.staged(name, HASHES_SUFFIX))

    def staged(self, name: str, suffix: str) -> Path:
        """A file staged for a shard: `records`, `rejects`, `npy` or `hashes`."""
        return self.staging / f"{name}.{suffix}"

    def open_shard(self, name: str, first_position: int, num_sources: int) -> ShardWriter:
        """A writer for one planned shard."""
        return ShardWriter(
            self.directory / SHARDS_DIRECTORY,
            name,
            first_position=first_position,
            num_sources=num_sources,
            image_size=self.image_size,
        )

    def finish_shard(self, name: str, shard: ShardWriter, content: ShardContent) -> ShardInfo:
        """Stage the shard's tables and sums, then give it its final name."""
        sums, num_images = content.moments.image_sums, content.moments.num_images
        assert sums is not None
        payloads = {
            "records": staged_bytes(RecordRow, content.records),
            "rejects": staged_bytes(RejectRow, content.rejects),
            # In the smallest integers that hold them, a quarter of int64 in a small shard.
            _SUMS_SUFFIX: npy_bytes(sums.astype(np.min_scalar_type(255 * num_images))),
        }
        for suffix, payload in payloads.items():
            write_synced(self.staged(name, suffix), payload)
        # The last of the four, and it syncs their directory: a shard with its final name must find them all.
        hashes = {suffix: hashlib.sha256(payload).hexdigest() for suffix, payload in payloads.items()}
        write_json(self.staged(name, HASHES_SUFFIX), hashes)
        return shard.publish({"plan": self.plan_fingerprint, "moments": content.moments.to_json()})

    def figures(self, name: str) -> ShardFigures:
        """The figures kept in a finished shard.

        Raises:
            IntegrityError: they are damaged, or of another plan.
        """
        figures = ShardFigures.load(self.shard_directory(name))
        if figures.plan != self.plan_fingerprint:
            raise IntegrityError(f"{self.directory}: shard {name} is of another plan: run again with --overwrite")
        return figures

    def staged_files(self, name: str) -> list[Path]:
        """Everything staged for a shard, each file with the bytes that were written.

        Raises:
            IntegrityError: one is missing or damaged.
        """
        hashes_file = self.staged(name, HASHES_SUFFIX)
        try:
            hashes: dict[str, Any] = read_json(hashes_file)
        except InputError as error:
            raise IntegrityError(f"{hashes_file}: missing: {_AGAIN.format(name=name)}") from error
        for suffix in STAGED_SUFFIXES[:-1]:
            path = self.staged(name, suffix)
            if not is_file(path) or file_sha256(path) != hashes.get(suffix):
                raise IntegrityError(f"{path}: missing or damaged: {_AGAIN.format(name=name)}")
        return [self.staged(name, suffix) for suffix in STAGED_SUFFIXES]

    def image_sums(self, name: str) -> NDArray[np.int64]:
        """(H, W, 3) int64 sums at each position over the images of a finished shard."""
        sums: NDArray[np.int64] = np.load(self.staged(name, _SUMS_SUFFIX), allow_pickle=False).astype(np.int64)
        return sums

    def join_tables(self, names: list[str], target: Path) -> None:
        """Write the tables of a dataset of these shards, from what is staged for them, into the directory `target`."""
        for table, kind in ((RECORDS_FILE, RecordRow), (REJECTS_FILE, RejectRow)):
            parts = [self.staged(name, table.removesuffix(".parquet")) for name in names]
            concatenate(parts, target / table, kind, index=kind is RecordRow)

    def discard(self, names: Iterable[str], *, finished: bool) -> None:
        """Remove what dead runs left of some shards, made or removed by half; with `finished` the shards themselves."""
        wanted = set(names)
        shards = self.directory / SHARDS_DIRECTORY
        for entry in list(shards.iterdir()):
            # A temporary name is `.00000.HEX.tmp`.
            if entry.name.endswith(TEMPORARY_SUFFIX) and entry.name[1:].split(".")[0] in wanted:
                shutil.rmtree(entry)
            elif entry.name in wanted and (finished or not self.has(entry.name)):
                # What says that it is finished goes first: a half-removed shard must not look whole.
                (entry / SHARD_FILE).unlink(missing_ok=True)
                shutil.rmtree(entry)
        for entry in list(self.staging.iterdir()):
            is_temporary = entry.name.startswith(".")
            if (is_temporary or finished) and entry.name.lstrip(".").split(".")[0] in wanted:
                entry.unlink()


_AGAIN = "remove the directory shards/{name} and run the conversion again with --resume"
