"""A whole conversion: plan, lock, workers, publication."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import StorageError
from lmdali.pipeline.files import free_bytes
from lmdali.tools.conversion import ConvertConfig, make_plan, shard_jobs
from lmdali.tools.conversion_report import ConvertSummary, summarize
from lmdali.tools.executors import ShardExecutor, make_executor
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import megabytes
from lmdali.tools.sources import Source


def convert(
    source: Source,
    out: Path,
    config: ConvertConfig,
    *,
    workers: int | None = None,
    executor: ShardExecutor | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> ConvertSummary:
    """Convert a source into a dataset directory.

    Args:
        source: from `open_source`; only read.
        out: a directory that is empty or does not exist, unless `resume` or `overwrite`.
        config: how.
        workers: processes; None means every CPU this process may use.
        executor: who makes the shards; default: `make_executor(workers=workers)`.
        resume: finish what an earlier run began with the same options.
        overwrite: remove a dataset of ours that is there, and start again.
        quiet: no progress.

    Raises:
        LmdaliError: see `lmdali.pipeline.errors`; finished shards are kept for `resume`.
    """
    start = perf_counter()
    plan = make_plan(source, config)
    writer = DatasetWriter(out, plan)
    if resume and writer.is_complete():
        writer.tidy()
        return summarize(out, 0.0, plan.shards())
    if not overwrite:
        check_room(sum(count for _, _, count in writer.unfinished()), config, out)
    with writer.hold(resume=resume, overwrite=overwrite):
        resumed = writer.finished()
        before = sum(shard.num_sources for shard in resumed)
        with progress_bar("convert", plan.num_sources, before=before, quiet=quiet) as progress:
            (executor or make_executor(workers=workers)).run(shard_jobs(source, config, writer), progress)
        writer.publish()
    return summarize(out, perf_counter() - start, resumed)


def check_room(num_sources: int, config: ConvertConfig, out: Path) -> None:
    """Refuse a disk that would certainly be full in the middle of a run.

    Raises:
        StorageError: with what is needed and what is free.
    """
    # Exact for raw; for JPEG half the usual size, below which a run would certainly fail in the middle.
    share = 1.0 if config.encoding == "raw" else 0.5
    needed = round(num_sources * config.record_bytes * share)
    free = free_bytes(out)
    if needed > free:
        found = f"needs at least {megabytes(needed)}, {megabytes(free)} are free"
        raise StorageError(f"{out}: {found}: choose another disk")
