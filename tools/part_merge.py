"""The parts of a conversion become one dataset: every shard found once, checked, brought in; then all is published."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_plan import DatasetPlan, PlannedShard, differences
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError, LmdaliError
from lmdali.pipeline.files import read_json, storage_errors, sync_directory, sync_file
from lmdali.pipeline.manifest import MANIFEST_FILE, SHARDS_DIRECTORY, Manifest, ShardInfo, load_manifest
from lmdali.pipeline.output_lock import STAGING_DIRECTORY, hold_whole, parts_seen
from lmdali.pipeline.path_kind import exists, is_dir
from lmdali.pipeline.shard_check import check_data_file, restore_offsets
from lmdali.pipeline.shard_figures import SHARD_FILE
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.shard_output import PLAN_FILE, ShardOutput
from lmdali.pipeline.shard_writer import TEMPORARY_SUFFIX
from lmdali.tools.progress import progress_bar

_NAMED = 12
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True)
class MergeSummary:
    """What a merge did.

    Attributes:
        num_shards: of the dataset.
        brought: shards that came from part directories, by how: "linked", "copied" or "moved".
        num_records: of the dataset.
        num_rejected: sources that were not stored.
        file_bytes: size of all shards.
        manifest_digest: identity of the dataset.
        was_complete: the output had been published before, and nothing was left to do.
        seconds: wall time.
    """

    num_shards: int
    brought: dict[str, int]
    num_records: int
    num_rejected: int
    file_bytes: int
    manifest_digest: str
    was_complete: bool
    seconds: float


def merge_parts(
    out: Path, parts: Sequence[Path], *, move: bool = False, workers: int | None = None, quiet: bool = False
) -> MergeSummary:
    """Publish a dataset whose shards were made in parts; the bytes are those of an undivided conversion.

    Args:
        out: the dataset: a directory that parts were made in, or a new one.
        parts: further directories with parts.
        move: take the shards out of `parts`; otherwise they are linked there, or copied from another file system.
        workers: threads that check and copy; None means every CPU this process may use.
        quiet: no progress.

    Raises:
        InputError: no plan, different plans, or shards that are missing.
        IntegrityError: shards that are damaged.
        LockedError: a part is still being made.
    """
    start = perf_counter()
    places = [out.resolve(), *(part.resolve() for part in parts)]
    if len(set(places)) != len(places):
        raise ConfigError("a directory is named twice: name the output once, and each directory of parts once")
    staging = out / STAGING_DIRECTORY
    if exists(out / MANIFEST_FILE) and not exists(staging / PLAN_FILE) and not parts:
        if exists(staging):  # a merge was killed while it removed it, its very last step
            with hold_whole(out):
                shutil.rmtree(staging, ignore_errors=True)
        return summarize_merge(load_manifest(out), start, was_complete=True)
    plan = _common_plan(out, parts)
    writer = DatasetWriter(out, plan)
    was_complete = writer.is_complete()
    brought: Counter[str] = Counter()
    if was_complete:
        writer.tidy()
    else:
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(hold_whole(part, writable=move))
            others = [ShardOutput(part, writer.image_size, writer.plan_fingerprint) for part in parts]
            if not exists(staging / PLAN_FILE):  # no shard here counts, so what is refused now leaves no trace
                _find_shards(writer, others)
            stack.enter_context(writer.hold(resume=True, overwrite=False))
            homes = _find_shards(writer, [writer, *others])
            brought = _bring_all(writer, homes, move=move, workers=workers, quiet=quiet)
            writer.publish()
    return summarize_merge(load_manifest(out), start, was_complete=was_complete, brought=brought)


def summarize_merge(
    manifest: Manifest, start: float, *, was_complete: bool, brought: Mapping[str, int] | None = None
) -> MergeSummary:
    """What a merge that began at `start` did, from the manifest of its dataset."""
    return MergeSummary(
        num_shards=len(manifest.shards),
        brought=dict(brought or {}),
        num_records=manifest.num_records,
        num_rejected=manifest.num_rejected,
        file_bytes=manifest.file_bytes,
        manifest_digest=manifest.digest,
        was_complete=was_complete,
        seconds=perf_counter() - start,
    )


def _common_plan(out: Path, parts: Sequence[Path]) -> DatasetPlan:
    """The plan of all directories."""
    found: tuple[Path, DatasetPlan] | None = None
    for directory in (out, *parts):
        path = directory / STAGING_DIRECTORY / PLAN_FILE
        if not exists(path):
            if directory == out and parts:
                continue
            raise InputError(
                f"{directory}: no {STAGING_DIRECTORY}/{PLAN_FILE} here: expected what `lmdali convert --part` leaves"
            )
        try:
            plan = DatasetPlan.from_json(read_json(path))
        except (KeyError, TypeError) as error:
            raise IntegrityError(f"{path}: {error!r}: the file is damaged: make this part again") from error
        if found is None:
            found = directory, plan
        elif plan.fingerprint != found[1].fingerprint:
            different = differences(found[1].to_json(), plan.to_json()).replace(" then", f" in {found[0]}")
            different = different.replace(" now", " here")
            raise InputError(f"{directory}: was made with other options: {different}: make all parts with the same")
    assert found is not None
    return found[1]


def _find_shards(writer: DatasetWriter, outputs: Sequence[ShardOutput]) -> list[tuple[PlannedShard, ShardOutput]]:
    """Every shard of the plan and the one of some directories that has it."""
    shards = writer.plan.shards()
    planned = {shard.name for shard in shards}
    for output in outputs:
        folder = output.directory / SHARDS_DIRECTORY
        names = sorted(path.name for path in folder.iterdir()) if is_dir(folder) else []
        foreign = [name for name in names if name not in planned and not name.startswith(".")]
        if foreign:
            raise InputError(f"{folder}: {foreign[0]!r} is no shard of the plan: take it away")
    found = [(shard, [output for output in outputs if output.has(shard.name)]) for shard in shards]
    _refuse_missing([shard.name for shard, homes in found if not homes], writer, outputs)
    for shard, (first, *others) in found:
        # The same shard twice, from a merge that was interrupted or a directory that was copied, is no harm.
        for other in others:
            if other.figures(shard.name).info != first.figures(shard.name).info:
                raise IntegrityError(
                    f"{other.directory}: its shard {shard.name} differs from that in {first.directory}: they were made "
                    "by different decoders, or one is damaged; take the wrong one away"
                )
    return [(shard, homes[0]) for shard, homes in found]


def _refuse_missing(missing: list[str], writer: DatasetWriter, outputs: Sequence[ShardOutput]) -> None:
    if not missing:
        return
    seen = {part for output in outputs for part in parts_seen(output.directory)}
    counts = sorted({part.count for part in seen})

    def named(name: str) -> str:
        makers = [f"{int(name) % count + 1}/{count}" for count in counts]
        return f"{name} (part {' or '.join(makers)})" if makers else name

    listed = named_shards([named(name) for name in missing])
    raise InputError(
        f"{writer.directory}: {len(missing)} of {len(writer.plan.shards())} shards are missing: {listed}: "
        "finish those parts with `lmdali convert --part I/N --resume`, or name their directories"
    )


def named_shards(names: Sequence[str]) -> str:
    """Some of many names, for a message."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _bring_all(
    writer: DatasetWriter,
    homes: list[tuple[PlannedShard, ShardOutput]],
    *,
    move: bool,
    workers: int | None,
    quiet: bool,
) -> Counter[str]:
    """Check every shard and bring it into the output; all problems are found before the first is raised."""
    brought: Counter[str] = Counter()
    problems: list[LmdaliError] = []
    done = 0
    with (
        progress_bar("merge", len(homes), unit="shards", quiet=quiet) as progress,
        ThreadPoolExecutor(workers or usable_cpus()) as pool,
    ):
        futures = [pool.submit(_bring, writer, shard, home, move=move) for shard, home in homes]
        try:
            for future in futures:
                try:
                    brought[future.result()] += 1
                except IntegrityError as error:
                    problems.append(error)
                done += 1
                progress(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if problems:
        listed = "; ".join(map(str, problems[:_NAMED])) + ("; ..." if len(problems) > _NAMED else "")
        raise IntegrityError(
            f"{len(problems)} of {len(homes)} shards cannot be used: {listed}: make or copy those again"
        )
    del brought["kept"]
    return brought


def _bring(writer: DatasetWriter, shard: PlannedShard, home: ShardOutput, *, move: bool) -> str:
    """Check one shard and bring it into the output; says how: kept, linked, copied or moved.

    What is staged for a shard arrives before the shard does, and leaves its old place after it: at any moment one of
    the two places has all of it.
    """
    info = home.figures(shard.name).info
    if (info.name, info.first_position, info.num_sources) != shard:
        raise IntegrityError(
            f"{home.shard_directory(shard.name)}: its figures are those of shard {info.name}: copy it again"
        )
    staged = home.staged_files(shard.name)
    source, target = home.shard_directory(shard.name), writer.shard_directory(shard.name)
    if home is writer:
        check_data_file(target, info)
        restore_offsets(target, info)
        return "kept"
    with storage_errors(target):
        are_linked = [_link_or_copy(path, writer.staging / path.name) for path in staged]
        sync_directory(writer.staging)
        if not all(are_linked):
            writer.staged_files(shard.name)  # read back: a copy may have gone wrong
        if move and source.stat().st_dev == target.parent.stat().st_dev:
            check_data_file(source, info)
            restore_offsets(source, info)
            os.rename(source, target)  # noqa: PTH104  # not over an empty directory
            sync_directory(target.parent)
            sync_directory(source.parent)
            how = "moved"
        else:
            how = _bring_copy(source, target, info)
        if move:
            home.discard([shard.name], finished=True)
            how = "moved"
    return how


def _bring_copy(source: Path, target: Path, info: ShardInfo) -> str:
    """A second name for the files of a shard, or a copy that was read back."""
    check_data_file(source, info)
    aside = target.with_name(f".{info.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    aside.mkdir()
    try:
        is_linked = _link_or_copy(source / DATA_FILE, aside / DATA_FILE)
        _link_or_copy(source / SHARD_FILE, aside / SHARD_FILE)
        if not is_linked:
            check_data_file(aside, info)
        restore_offsets(aside, info)
        sync_directory(aside)
        os.rename(aside, target)  # noqa: PTH104
        sync_directory(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return "linked" if is_linked else "copied"


def _link_or_copy(source: Path, target: Path) -> bool:
    """Give a file a second name, which takes no room and is safe for files that never change; or copy it durably."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return True
    shutil.copyfile(source, target)
    sync_file(target)
    return False
