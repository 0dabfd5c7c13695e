"""A dataset under construction: planned, filled shard by shard, published in one last step.

While a conversion runs, `.staging/` beside the shards keeps the plan and, for each finished shard, its table rows and
its sums. A shard counts as finished when its directory has its final name; everything about it is on the disk by then.
So a killed run loses the shards that were in progress and nothing else, and publishing is a pure function of files.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmdali.pipeline.dataset_plan import DatasetPlan, Part, PlannedShard, differences, other_options
from lmdali.pipeline.eigenbasis import MEAN_FILE, STATISTICS_FILE, save_statistics
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.files import file_sha256, read_json, storage_errors, sync_directory, write_json
from lmdali.pipeline.manifest import (
    MANIFEST_FILE,
    RECORDS_FILE,
    REJECTS_FILE,
    SHARDS_DIRECTORY,
    Manifest,
    ShardInfo,
    load_manifest,
)
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.output_check import (
    already_holds,
    is_leftover,
    refuse_content,
    refuse_foreign,
    refuse_undecodable,
)
from lmdali.pipeline.output_lock import LOCK_FILE, STAGING_DIRECTORY, hold_part, hold_plan, hold_whole, part_lock_name
from lmdali.pipeline.path_kind import exists, is_dir
from lmdali.pipeline.shard_figures import SHARD_FILE
from lmdali.pipeline.shard_index import OFFSETS_FILE
from lmdali.pipeline.shard_output import PLAN_FILE, ShardOutput
from lmdali.pipeline.shard_writer import TEMPORARY_SUFFIX
from lmdali.pipeline.table_reader import count_values
from lmdali.pipeline.tables import read_staged


class DatasetWriter(ShardOutput):
    """One output directory, held by one run at a time, or by several that each do a part.

    Args:
        directory: the output.
        plan: what it will hold.
        part: do the shards of this part only; None means all, and publishing.
    """

    def __init__(self, directory: Path, plan: DatasetPlan, part: Part | None = None) -> None:
        super().__init__(directory, plan.image_size, plan.fingerprint)
        self.plan, self.part = plan, part

    @contextmanager
    def hold(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Take the output directory, or a part of it, for this run.

        A part needs neither flag beside other parts of the same plan, and `overwrite` removes its own shards only.

        Raises:
            InputError: it has content and neither flag is given, or the plan to resume is another.
            LockedError: another run holds it.
            StorageError: it cannot be written.
        """
        self._refuse(resume=resume, overwrite=overwrite)
        if self.part is not None:
            with hold_part(self.directory, self.part):
                self._prepare_part(overwrite=overwrite)
                yield
            return
        with hold_whole(self.directory):
            try:
                self._prepare(resume=resume, overwrite=overwrite)
                yield
            except BaseException:
                # A run that was refused leaves no trace in a finished dataset.
                if exists(self.directory / MANIFEST_FILE) and not exists(self.staging / PLAN_FILE):
                    shutil.rmtree(self.staging, ignore_errors=True)
                raise
            if exists(self.directory / MANIFEST_FILE):
                # The run that wrote it may have been killed before it could sync its name.
                with storage_errors(self.directory):
                    sync_directory(self.directory)
                shutil.rmtree(self.staging, ignore_errors=True)

    def _prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Clear or check what is there, remove what dead runs left, write the plan."""
        if resume and not overwrite:
            self._check_plan()
        if overwrite or not (self._is_planned() or exists(self.directory / MANIFEST_FILE)):
            self._clear()
        with storage_errors(self.staging):
            (self.directory / SHARDS_DIRECTORY).mkdir(exist_ok=True)
            sync_directory(self.directory)
            clear_leftovers(self.directory)
            if not exists(self.directory / MANIFEST_FILE):
                self.discard([shard.name for shard in self.plan.shards()], finished=False)
        write_json(self.staging / PLAN_FILE, self.plan.to_json())

    def _prepare_part(self, *, overwrite: bool) -> None:
        """The same beside other parts that are at work: only what belongs to this part is touched."""
        with hold_plan(self.directory):
            self._check_plan()
            if exists(self.directory / MANIFEST_FILE):
                raise InputError(f"{self.directory}: was published meanwhile: part {self.part} has nothing left to do")
            if not self._is_planned():
                with storage_errors(self.directory):
                    self._clear_shards(kept="*lock")
                write_json(self.staging / PLAN_FILE, self.plan.to_json())
        with storage_errors(self.staging):
            (self.directory / SHARDS_DIRECTORY).mkdir(exist_ok=True)
            sync_directory(self.directory)
            self.discard([shard.name for shard in self.shards()], finished=overwrite)

    def _is_planned(self) -> bool:
        """Whether shards here can be believed; without a plan they are what a run left that died clearing them away."""
        return exists(self.staging / PLAN_FILE)

    def is_complete(self) -> bool:
        """Whether this very plan was published here before."""
        if not exists(self.directory / MANIFEST_FILE):
            return False
        return load_manifest(self.directory).source.get("plan") == self.plan.fingerprint

    def tidy(self) -> None:
        """Remove what a run leaves that was killed after its last step, once the dataset is complete."""
        if exists(self.staging):
            with self.hold(resume=True, overwrite=False):
                pass

    def shards(self) -> list[PlannedShard]:
        """The shards of the plan, or of this part of it."""
        return self.plan.shards(self.part)

    def finished(self) -> list[PlannedShard]:
        """Those that are done."""
        return [shard for shard in self.shards() if self.has(shard.name)]

    def unfinished(self) -> list[PlannedShard]:
        """Those that are left to do."""
        return [shard for shard in self.shards() if not self.has(shard.name)]

    def publish(self) -> Manifest:
        """Tables, statistics and, last, the manifest.

        Raises:
            InputError: not one source could be stored.
            IntegrityError: a finished shard is of another plan, or what is staged for it is damaged.
        """
        assert self.part is None, "a part is no dataset"
        infos: list[ShardInfo] = []
        size = self.plan.image_size
        total = Moments.zero(size, size)
        for name, _, _ in self.plan.shards():
            figures = self.figures(name)
            self.staged_files(name)
            infos.append(figures.info)
            figures.moments.image_sums = self.image_sums(name)
            total.merge(figures.moments)
        # The run that renamed the last shard may have been killed before it could sync the new name.
        with storage_errors(self.directory):
            sync_directory(self.directory / SHARDS_DIRECTORY)
        if total.num_images == 0:
            raise InputError(f"none of {self.plan.num_sources} sources could be stored: {self._why_rejected()}")
        names = [info.name for info in infos]
        self.join_tables(names, self.directory)
        # The digest is needed by the statistics, and the manifest must be the last file to appear.
        manifest = self._manifest(infos).with_digest()
        save_statistics(self.directory, total, manifest.digest)
        return manifest.save(self.directory)

    def _why_rejected(self) -> str:
        """The reasons of all rejects, and the first one in full."""
        tables = [read_staged(self.staged(shard.name, "rejects")) for shard in self.plan.shards()]
        reasons = Counter(reason for table in tables for reason in table["reason"].to_pylist())
        (first,) = tables[0].slice(0, 1).to_pylist()
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        return f"{counts}; the first is {first['source']!r}: {first['detail']}"

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

    def _refuse(self, *, resume: bool, overwrite: bool) -> None:
        """What is there that this run must not touch: for a part without flags, only what it left there itself."""
        refuse_undecodable(self.directory)
        refuse_foreign(self.directory, is_part=self.part is not None, overwrite=overwrite)
        if resume or overwrite:
            return
        if self.part is None or exists(self.directory / MANIFEST_FILE):
            refuse_content(self.directory)
            return
        begun = exists(self.staging / part_lock_name(self.part))
        if begun or len(self.unfinished()) < len(self.shards()):
            if exists(self.staging / LOCK_FILE):
                with hold_part(self.directory, self.part):
                    pass
            raise already_holds(self.directory, f"some of part {self.part}")

    def _check_plan(self) -> None:
        """Refuse a plan that is not the one begun or published here, naming what differs."""
        if exists(self.directory / MANIFEST_FILE) and not self.is_complete():
            raise other_options(self.directory, load_manifest(self.directory), self.plan)
        path = self.staging / PLAN_FILE
        different = differences(read_json(path), self.plan.to_json()) if exists(path) else ""
        if different:
            next_step = (
                "start again with --overwrite"
                if self.part is None
                else "begin in an empty directory (--overwrite would take the shards of other parts along)"
            )
            raise InputError(
                f"{self.directory}: was begun with other options ({different}): repeat those, or {next_step}"
            )

    def _clear(self) -> None:
        # Manifest and plan go first, and durably: a half-removed dataset must not look whole, nor its shards finished.
        with storage_errors(self.directory):
            (self.directory / MANIFEST_FILE).unlink(missing_ok=True)
            sync_directory(self.directory)
            (self.staging / PLAN_FILE).unlink(missing_ok=True)
            sync_directory(self.staging)
            for name in (STATISTICS_FILE, MEAN_FILE, RECORDS_FILE, REJECTS_FILE):
                (self.directory / name).unlink(missing_ok=True)
            self._clear_shards(kept=LOCK_FILE)

    def _clear_shards(self, kept: str) -> None:
        """Remove all shards and what is staged, but for names that match `kept`."""
        if exists(self.directory / SHARDS_DIRECTORY):
            shutil.rmtree(self.directory / SHARDS_DIRECTORY)
        for staged in self.staging.iterdir():
            if is_dir(staged):
                shutil.rmtree(staged)
            elif not staged.match(kept):
                staged.unlink()


def clear_leftovers(directory: Path) -> None:
    """Remove what killed runs had not yet renamed; for whoever holds the whole directory."""
    shards, staging = directory / SHARDS_DIRECTORY, directory / STAGING_DIRECTORY
    for leftover in shards.glob(f".*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(leftover)
    for name in (OFFSETS_FILE, SHARD_FILE):
        for leftover in shards.glob(f"*/.{name}.*{TEMPORARY_SUFFIX}"):
            leftover.unlink()
    for leftover in [*directory.iterdir(), *staging.iterdir()]:
        if is_leftover(leftover.name):
            leftover.unlink()
