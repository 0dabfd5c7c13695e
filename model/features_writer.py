"""A feature file under construction: shard by shard, killed at any time, gone on with to the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmdali.model.features_file import (
    FEATURES_FILE,
    INDEX_FILE,
    SHARDS_DIRECTORY,
    Features,
    FeaturesPlan,
    load_features,
    open_shard,
    save_features_file,
)
from lmdali.pipeline.errors import InputError, IntegrityError, LmdaliError
from lmdali.pipeline.files import file_sha256, npy_bytes, read_sealed, seal, storage_errors, write_atomic, write_json
from lmdali.pipeline.output_lock import STAGING_DIRECTORY, hold_whole
from lmdali.pipeline.path_kind import exists, is_dir

_PLAN_FILE = "plan.json"


class FeaturesWriter:
    """Rows come in record order through `add`; each full shard is written at once, under its final name.

    Args:
        directory: of the feature file.
        plan: what it is to hold.
    """

    def __init__(self, directory: Path, plan: FeaturesPlan) -> None:
        self.directory, self.plan = directory, plan
        self._shards = directory / SHARDS_DIRECTORY
        self._plan_path = directory / STAGING_DIRECTORY / _PLAN_FILE
        self._waiting: list[NDArray[np.float32]] = []
        self._done_shards = 0

    @contextmanager
    def hold(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Prepare the directory, and keep other runs out of it meanwhile.

        Raises:
            InputError: it has content and neither flag is given, or what is to be gone on with is of another plan.
            LockedError: another run writes there.
            StorageError: it cannot be written.
        """
        self._refuse_content(resume=resume, overwrite=overwrite)
        with hold_whole(self.directory):
            self._prepare(resume=resume and not overwrite)
            yield

    @property
    def num_done(self) -> int:
        """Records in finished shards: where a run goes on."""
        return min(self._done_shards * self.plan.shard_records, self.plan.num_records)

    def add(self, rows: NDArray[np.float32]) -> None:
        """The rows of the next records: `(n, dims)` float32.

        Raises:
            InputError: a number is not finite, or too large for float16.
            StorageError: a shard cannot be written.
        """
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is found below
            stored = rows.astype(self.plan.precision)
        if not np.isfinite(stored).all():
            if not np.isfinite(rows).all():
                raise InputError(
                    f"{self.plan.source}: its features are not finite: its training diverged: give an earlier one"
                )
            raise InputError(
                f"{self.plan.source}: features up to {np.abs(rows).max():g} do not fit into float16: use "
                "--precision float32"
            )
        self._waiting.append(stored)
        shards = self.plan.shards()
        if self._done_shards == len(shards):
            raise IntegrityError(f"{self.directory}: more rows than the {self.plan.num_records} records planned")
        name, count = shards[self._done_shards]
        if sum(map(len, self._waiting)) >= count:
            waiting = np.concatenate(self._waiting)
            write_atomic(self._shards / name, npy_bytes(waiting[:count]))
            self._waiting = [waiting[count:]] if len(waiting) > count else []
            self._done_shards += 1

    def publish(self) -> Features:
        """Write `features.json`; the file is finished.

        Raises:
            IntegrityError: rows are missing.
        """
        if self.num_done != self.plan.num_records or self._waiting:
            raise IntegrityError(
                f"{self.directory}: {self.num_done} of {self.plan.num_records} records have features: go on with "
                "--resume"
            )
        if not exists(self.directory / FEATURES_FILE):
            with storage_errors(self._shards):
                hashes = [file_sha256(self._shards / name) for name, _ in self.plan.shards()]
            save_features_file(self.directory, self.plan, hashes)
        shutil.rmtree(self.directory / STAGING_DIRECTORY, ignore_errors=True)
        return load_features(self.directory)

    def _refuse_content(self, *, resume: bool, overwrite: bool) -> None:
        if not exists(self.directory):
            return
        if not is_dir(self.directory):
            raise InputError(f"{self.directory}: exists and is not a directory: choose another output")
        found = {path.name for path in self.directory.iterdir()}
        foreign = sorted(found - {FEATURES_FILE, INDEX_FILE, SHARDS_DIRECTORY, STAGING_DIRECTORY})
        # What `write_atomic` leaves when it is killed is ours.
        foreign = [name for name in foreign if not name.startswith((f".{FEATURES_FILE}.", f".{INDEX_FILE}."))]
        if foreign:
            raise InputError(f"{self.directory}: holds {foreign[0]!r}, which is no feature file: choose another output")
        if found and not (resume or overwrite):
            state = "a finished feature file" if FEATURES_FILE in found else "an unfinished feature file"
            raise InputError(
                f"{self.directory}: already holds {state}: add --resume or --overwrite, or choose another output"
            )

    def _prepare(self, *, resume: bool) -> None:
        stored = self._stored_plan() if resume else None
        if stored is None:
            with storage_errors(self.directory):
                # The file that says "finished" goes first, the plan that shards are believed by last of all.
                (self.directory / FEATURES_FILE).unlink(missing_ok=True)
                self._plan_path.unlink(missing_ok=True)
                (self.directory / INDEX_FILE).unlink(missing_ok=True)
                shutil.rmtree(self._shards, ignore_errors=True)
                self._shards.mkdir(parents=True)
            write_json(self._plan_path, seal(self.plan.to_json()))
        elif differences := self.plan.differences(stored):
            raise InputError(
                f"{self.directory}: begun with other settings ({'; '.join(differences)}): use the same, or --overwrite"
            )
        self._clear_leftovers()
        self._done_shards = self._count_whole()

    def _stored_plan(self) -> FeaturesPlan | None:
        """The plan of what is there already; None where nothing of it can be believed."""
        if exists(self.directory / FEATURES_FILE):
            return load_features(self.directory).plan
        if not exists(self._plan_path):
            return None
        document = read_sealed(self._plan_path)
        try:
            return FeaturesPlan(**{name: value for name, value in document.items() if name != "digest"})
        except TypeError as error:
            raise InputError(f"{self.directory}: begun by another version ({error}): use --overwrite") from error

    def _count_whole(self) -> int:
        for number, (name, count) in enumerate(self.plan.shards()):
            try:
                open_shard(self.directory, self.plan, name, count)
            except LmdaliError:
                return number
        return len(self.plan.shards())

    def _clear_leftovers(self) -> None:
        with storage_errors(self.directory):
            for path in [*self.directory.glob(".*.tmp"), *self._shards.glob(".*.tmp")]:
                path.unlink()
