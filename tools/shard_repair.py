"""What is damaged in a dataset is made again: shards and tables from the source, everything else from the shards.

Nothing is believed for having been made again: a shard must have the hash in the manifest before it takes the place of
the damaged one, which stays where it is until then. Work goes on in `.staging/repair/`, itself an output directory, so
a repair that was killed keeps the shards it had finished.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_plan import PlannedShard
from lmdali.pipeline.dataset_writer import clear_leftovers
from lmdali.pipeline.eigenbasis import MEAN_FILE, STATISTICS_FILE, save_statistics
from lmdali.pipeline.errors import InputError, IntegrityError, LmdaliError, ShardError
from lmdali.pipeline.files import file_sha256, read_json, storage_errors, sync_directory, write_json
from lmdali.pipeline.manifest import MANIFEST_FILE, SHARDS_DIRECTORY, Manifest, ShardInfo, load_manifest
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.output_lock import STAGING_DIRECTORY, hold_whole
from lmdali.pipeline.path_kind import is_dir
from lmdali.pipeline.shard_check import check_data_file, restore_offsets
from lmdali.pipeline.shard_figures import SHARD_FILE, ShardFigures
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.shard_index import OFFSETS_FILE
from lmdali.pipeline.shard_output import ShardOutput
from lmdali.tools.conversion import jobs_of
from lmdali.tools.conversion_run import check_room
from lmdali.tools.pca import count_moments, dataset_moments
from lmdali.tools.progress import progress_bar
from lmdali.tools.rebuild_check import config_of, refuse_other_source, why_different
from lmdali.tools.shard_pool import ShardPool
from lmdali.tools.side_files import checked_figures, damaged_tables, manifest_problems, statistics_problems
from lmdali.tools.sources import Source

_WORKPLACE = "repair"
_NAMED = 8


@dataclass
class RepairReport:
    """What a repair found and did.

    Attributes:
        rebuilt_shards: shards that were damaged or missing, and are sound again.
        restored_files: other files that were written again.
        refused: what could not be made again with the same bytes, and why.
        seconds: wall time.
    """

    rebuilt_shards: list[str] = field(default_factory=list)
    restored_files: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    seconds: float = 0.0


def repair_dataset(
    directory: Path,
    open_source: Callable[[Manifest], Source] | None = None,
    *,
    shards: Sequence[str] | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> RepairReport:
    """Make every damaged file of a dataset again, byte for byte.

    Args:
        directory: a finished dataset.
        open_source: opens what it was converted from; only called when a shard or table has to be made again.
        shards: look at these only; None means all.
        workers: processes and threads; None means every CPU this process may use.
        quiet: no progress.

    Raises:
        InputError: not a finished dataset, no such shard, or a source that is needed and missing or another.
        ManifestError: the manifest itself is damaged: then only converting again helps.
        LockedError: a conversion or another repair is at work.
    """
    start = perf_counter()
    manifest = load_manifest(directory)
    names = {info.name for info in manifest.shards}
    unknown = sorted(set(shards or ()) - names)
    if unknown:
        raise InputError(f"{directory}: has no shard {unknown[0]!r}, only {min(names)} to {max(names)}")
    chosen = [info for info in manifest.shards if shards is None or info.name in shards]
    with _hold(directory):
        repair = _Repair(directory, manifest, workers=workers or usable_cpus(), quiet=quiet)
        repair.records(chosen, open_source)
        repair.side_files(chosen)
    repair.report.seconds = perf_counter() - start
    return repair.report


@contextmanager
def _hold(directory: Path) -> Iterator[None]:
    """Keep others away. Only an interrupted repair leaves its finished shards, for the next one."""
    with hold_whole(directory):
        with storage_errors(directory):
            clear_leftovers(directory)
        try:
            yield
        except Exception:
            shutil.rmtree(directory / STAGING_DIRECTORY, ignore_errors=True)
            raise
        shutil.rmtree(directory / STAGING_DIRECTORY, ignore_errors=True)


class _Repair:
    """One run over a dataset that is held."""

    def __init__(self, directory: Path, manifest: Manifest, *, workers: int, quiet: bool) -> None:
        self._directory, self._manifest, self._workers, self._quiet = directory, manifest, workers, quiet
        workplace = directory / STAGING_DIRECTORY / _WORKPLACE
        self._made = ShardOutput(workplace, manifest.image_size, str(manifest.source.get("plan")))
        self._lost: set[str] = set()
        self.report = RepairReport()

    def records(self, chosen: list[ShardInfo], open_source: Callable[[Manifest], Source] | None) -> None:
        """Make damaged shards and tables again."""
        damaged = self._damaged(chosen)
        tables = damaged_tables(self._directory, self._manifest)
        # A table has rows of all shards, and only converting a shard gives its rows.
        needed = list(self._manifest.shards) if tables else damaged
        if not needed:
            return
        if open_source is None:
            what = [*(f"shard {info.name}" for info in damaged), *tables]
            listed = ", ".join(what[:_NAMED]) + (", ..." if len(what) > _NAMED else "")
            raise InputError(
                f"{self._directory}: {len(what)} damaged ({listed}): only the source gives them again: add --source"
            )
        source = open_source(self._manifest)
        refuse_other_source(self._directory, self._manifest, source)
        self._convert(source, needed)
        wrong = [info for info in needed if self._made.figures(info.name).info != info]
        for info in damaged:
            if info not in wrong:
                self._swap(info.name)
                self.report.rebuilt_shards.append(info.name)
        self._lost = {info.name for info in damaged if info in wrong}
        for info in wrong:
            if info.name in self._lost:  # others are sound where they are, and were only made for a table
                self.report.refused.append(f"shard {info.name}: {self._why_wrong(info, tables)}")
        if tables and not wrong:
            self._swap_tables(tables)
        elif tables:
            needs = (
                f"needs every shard made again as it was, and {len(wrong)} of {len(needed)} are not, first "
                f"{wrong[0].name}: {self._why_wrong(wrong[0], tables)}"
            )
            self.report.refused += [f"{name}: {needs}" for name in tables]

    def _why_wrong(self, info: ShardInfo, tables: Container[str]) -> str:
        why = why_different(self._directory, self._manifest, info, self._made, tables)
        return f"made again it is not what it was: {why}"

    def side_files(self, chosen: list[ShardInfo]) -> None:
        """Write again whatever follows from the shards, where it is not what it should be."""
        if manifest_problems(self._directory):
            path = self._directory / MANIFEST_FILE
            write_json(path, read_json(path))
            self.report.restored_files.append(MANIFEST_FILE)
        for info in chosen:
            if info.name not in self._lost:
                self._shard_side_files(info)
        total: Moments | None = Moments.zero(self._manifest.image_size, self._manifest.image_size)
        for info in self._manifest.shards:
            try:
                moments = checked_figures(self._directory, self._manifest, info).moments
            except IntegrityError:  # one of a shard that is lost, or that was not to be looked at
                total = None
                break
            assert total is not None
            total.merge(moments)
        if total is not None and statistics_problems(self._directory, self._manifest, total):
            self._restore_statistics(total)

    def _restore_statistics(self, total: Moments) -> None:
        try:
            moments, digest = dataset_moments(self._directory, recompute=True, quiet=self._quiet)
        except IntegrityError as error:
            self.report.refused.append(f"{STATISTICS_FILE}: follows from sound shards only: {error}")
            return
        save_statistics(self._directory, moments, digest)
        self.report.restored_files += [STATISTICS_FILE, MEAN_FILE]
        self.report.refused += statistics_problems(self._directory, self._manifest, total)

    def _damaged(self, chosen: list[ShardInfo]) -> list[ShardInfo]:
        def is_damaged(info: ShardInfo) -> bool:
            try:
                check_data_file(self._directory / SHARDS_DIRECTORY / info.name, info)
            except ShardError:
                return True
            return False

        damaged = []
        with (
            progress_bar("check", len(chosen), unit="shards", quiet=self._quiet) as progress,
            ThreadPoolExecutor(self._workers) as pool,
        ):
            for done, (info, bad) in enumerate(zip(chosen, pool.map(is_damaged, chosen), strict=True), 1):
                damaged += [info] if bad else []
                progress(done)
        return damaged

    def _convert(self, source: Source, needed: list[ShardInfo]) -> None:
        """Make shards in the workplace, except those that an interrupted repair has left there sound."""
        config = config_of(self._directory, self._manifest)
        with storage_errors(self._made.directory):
            self._made.staging.mkdir(parents=True, exist_ok=True)
            (self._made.directory / SHARDS_DIRECTORY).mkdir(exist_ok=True)
            left = [info for info in needed if not self._is_made(info)]
            self._made.discard([info.name for info in left], finished=True)
        planned = [PlannedShard(info.name, info.first_position, info.num_sources) for info in left]
        total, to_do = sum(info.num_sources for info in needed), sum(info.num_sources for info in left)
        check_room(to_do, config, self._directory)
        with progress_bar("repair", total, before=total - to_do, quiet=self._quiet) as progress:
            ShardPool(self._workers).run(jobs_of(source, config, self._made, planned), progress)

    def _is_made(self, info: ShardInfo) -> bool:
        try:
            self._made.staged_files(info.name)
            check_data_file(self._made.shard_directory(info.name), info)
            return self._made.figures(info.name).info == info
        except LmdaliError:
            return False

    def _swap(self, name: str) -> None:
        """A sound shard takes the place of a damaged one, file by file: at no moment is there none."""
        made, place = self._made.shard_directory(name), self._directory / SHARDS_DIRECTORY / name
        with storage_errors(place):
            place.parent.mkdir(exist_ok=True)
            if is_dir(place):
                for file in (DATA_FILE, OFFSETS_FILE, SHARD_FILE):
                    (made / file).replace(place / file)
                sync_directory(place)
            else:
                os.rename(made, place)  # noqa: PTH104
            sync_directory(place.parent)

    def _swap_tables(self, tables: Iterable[str]) -> None:
        with storage_errors(self._directory):
            self._made.join_tables([info.name for info in self._manifest.shards], self._made.directory)
            for name in tables:
                if file_sha256(self._made.directory / name) == self._manifest.tables[name]:
                    (self._made.directory / name).replace(self._directory / name)
                    self.report.restored_files.append(name)
                else:
                    self.report.refused.append(
                        f"{name}: made again it is not what it was: the source changed where nothing was stored, or "
                        "another version, of pyarrow or ours, wrote it; convert again to have tables that fit"
                    )
            sync_directory(self._directory)

    def _shard_side_files(self, info: ShardInfo) -> None:
        place = self._directory / SHARDS_DIRECTORY / info.name
        if restore_offsets(place, info):
            self.report.restored_files.append(f"{SHARDS_DIRECTORY}/{info.name}/{OFFSETS_FILE}")
        try:
            checked_figures(self._directory, self._manifest, info)
        except IntegrityError:
            size = self._manifest.image_size
            moments = Moments.zero(size, size)
            moments.merge(count_moments([place], info.num_records, quiet=True))
            ShardFigures(info, self._made.plan_fingerprint, moments).save(place)
            self.report.restored_files.append(f"{SHARDS_DIRECTORY}/{info.name}/{SHARD_FILE}")
