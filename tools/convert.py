"""`lmdali convert`: images as they lie on somebody's disk -> a dataset of LMDB shards."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import StorageError, ThresholdError
from lmdali.pipeline.files import free_bytes
from lmdali.pipeline.manifest import RECORDS_FILE, REJECTS_FILE, load_manifest
from lmdali.pipeline.rejection import SourceRejected
from lmdali.pipeline.sampler import EpochOrder
from lmdali.pipeline.tables import count_values
from lmdali.tools.conversion import ConvertConfig, convert_image, make_plan, shard_jobs
from lmdali.tools.exit_codes import Terminated, termination_as_exception
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import megabytes, print_json, print_pairs
from lmdali.tools.shard_pool import ShardPool
from lmdali.tools.sources import Source, open_source, read_class_names

_DRY_RUN_SAMPLES = 200
_DEFAULTS = ConvertConfig()


@dataclass(frozen=True)
class ConvertSummary:
    """What a conversion did.

    Attributes:
        num_stored: records in the dataset.
        num_rejected: sources that were not stored.
        rejected: how many, by reason.
        oddities: stored sources that were unusual, by name; one source may count for several.
        num_shards: shards written.
        payload_bytes: stored image bytes.
        file_bytes: size of all shards.
        seconds: wall time.
        resumed_shards: shards that an earlier run had finished.
        manifest_digest: identity of the dataset.
    """

    num_stored: int
    num_rejected: int
    rejected: dict[str, int]
    oddities: dict[str, int]
    num_shards: int
    payload_bytes: int
    file_bytes: int
    seconds: float
    resumed_shards: int
    manifest_digest: str

    @property
    def images_per_second(self) -> float:
        """Sources handled per second of wall time."""
        return (self.num_stored + self.num_rejected) / max(self.seconds, 1e-9)


def summarize(directory: Path, seconds: float, resumed_shards: int) -> ConvertSummary:
    """Count what a finished dataset holds, from its own tables."""
    manifest = load_manifest(directory)
    oddities: Counter[str] = Counter()
    for names, count in count_values(directory / RECORDS_FILE, "oddities").items():
        for name in filter(None, names.split(",")):
            oddities[name] += count
    rejected = count_values(directory / REJECTS_FILE, "reason")
    return ConvertSummary(
        num_stored=manifest.num_records,
        num_rejected=manifest.num_rejected,
        rejected=dict(rejected.most_common()),
        oddities=dict(oddities.most_common()),
        num_shards=len(manifest.shards),
        payload_bytes=manifest.payload_bytes,
        file_bytes=manifest.file_bytes,
        seconds=seconds,
        resumed_shards=resumed_shards,
        manifest_digest=manifest.digest,
    )


def convert(
    source: Source,
    out: Path,
    config: ConvertConfig,
    *,
    workers: int | None = None,
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
        return summarize(out, 0.0, len(plan.shards()))
    if not overwrite:
        _check_room(sum(count for _, _, count in writer.unfinished()), config, out)
    with writer.hold(resume=resume, overwrite=overwrite):
        left = writer.unfinished()
        before = plan.num_sources - sum(count for _, _, count in left)
        with progress_bar("convert", plan.num_sources, quiet=quiet) as progress:
            ShardPool(workers).run(shard_jobs(source, config, writer), lambda done: progress(before + done))
        writer.publish()
    return summarize(out, perf_counter() - start, len(plan.shards()) - len(left))


def estimate(source: Source, config: ConvertConfig, workers: int, out: Path) -> dict[str, Any]:
    """What a conversion would take, from a sample spread over the source: shards, bytes, seconds, room on the disk."""
    plan = make_plan(source, config)
    total = plan.num_sources
    order = EpochOrder(total, config.seed, 0, shuffle=True)
    stored_bytes, rejected = [], Counter[str]()
    start = perf_counter()
    for index in order.indices(0, min(total, _DRY_RUN_SAMPLES)):
        entry = source.entries[int(index)]
        try:
            stored_bytes.append(len(convert_image(source.read(entry), entry.path, config)[0]))
        except SourceRejected as error:
            rejected[str(error.reason)] += 1
    seconds = perf_counter() - start
    sampled = len(stored_bytes) + rejected.total()
    mean_bytes = sum(stored_bytes) / max(len(stored_bytes), 1)
    expected_bytes = round(total * (1 - rejected.total() / sampled) * (mean_bytes + 2048))
    return {
        "num_sources": total,
        "num_classes": len(plan.class_names),
        "num_shards": len(plan.shards()),
        "expected_bytes": expected_bytes,
        "expected_seconds": seconds / sampled * total / workers,
        "workers": workers,
        "sampled": sampled,
        "sampled_rejects": dict(rejected),
        "free_bytes": free_bytes(out),
        "fits": expected_bytes < free_bytes(out),
    }


def _check_room(num_sources: int, config: ConvertConfig, out: Path) -> None:
    # Exact for raw; for JPEG half the usual size, below which a run would certainly fail in the middle.
    share = 1.0 if config.encoding == "raw" else 0.5
    needed = round(num_sources * config.record_bytes * share)
    free = free_bytes(out)
    if needed > free:
        raise StorageError(f"{out}: needs about {megabytes(needed)}, {megabytes(free)} are free: choose another disk")


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "source_format",
    type=click.Choice(["auto", "folder", "list"]),
    default="auto",
    show_default=True,
    help="What SOURCE is: a folder of class folders, or a list of `path label` lines.",
)
@click.option("--root", type=click.Path(path_type=Path), help="Folder that the paths of a list file start from.")
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    help="Class list to use: a training dataset, its source folder, or a file of one name per line.",
)
@click.option("--size", default=_DEFAULTS.size, show_default=True, help="Side of the stored images, pixels.")
@click.option("--encoding", type=click.Choice(["jpeg", "raw"]), default=_DEFAULTS.encoding, show_default=True)
@click.option("--quality", default=_DEFAULTS.quality, show_default=True, help="JPEG quality.")
@click.option(
    "--orientation",
    type=click.Choice(["ignore", "apply"]),
    default=_DEFAULTS.orientation,
    show_default=True,
    help="EXIF orientation tag; the 2012 data ignored it.",
)
@click.option("--shard-bytes", default=_DEFAULTS.shard_bytes, show_default=True, help="Shard size to aim at.")
@click.option("--seed", default=_DEFAULTS.seed, show_default=True, help="Of the permutation over the shards.")
@click.option(
    "--max-bad",
    default=_DEFAULTS.max_bad,
    show_default=True,
    help="Share of rejected sources above which the exit code is 9.",
)
@click.option("-j", "--workers", type=click.IntRange(1), help="Processes.  [default: every usable CPU]")
@click.option("--resume", is_flag=True, help="Finish what an earlier run began.")
@click.option("--overwrite", is_flag=True, help="Remove a dataset that is there and start again.")
@click.option("--dry-run", is_flag=True, help="Say what it would take, from a sample; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    source: Path,
    out: Path,
    source_format: Any,
    root: Path | None,
    classes: Path | None,
    workers: int | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Convert SOURCE into a dataset of LMDB shards in the directory OUT.

    SOURCE is a folder with one folder per class, or a list file. Each image is decoded to RGB, resized so that its
    shorter side is SIZE, cut to the central square, and stored; what cannot be decoded goes to rejects.parquet.
    SOURCE is never written to.
    """
    config = ConvertConfig(**options)
    opened = open_source(source, source_format, root=root, classes=read_class_names(classes) if classes else None)
    if dry_run:
        _report_estimate(estimate(opened, config, workers or usable_cpus(), out), as_json=as_json)
        return
    try:
        with termination_as_exception():
            summary = convert(opened, out, config, workers=workers, resume=resume, overwrite=overwrite, quiet=quiet)
    except (KeyboardInterrupt, Terminated):
        click.echo(f"finished shards are kept in {out}: the same command with --resume goes on from them", err=True)
        raise
    _report(summary, opened, out, as_json=as_json)
    bad = summary.num_rejected / (summary.num_stored + summary.num_rejected)
    if bad > config.max_bad:
        raise ThresholdError(
            f"{summary.num_rejected} sources ({bad:.1%}) were rejected, --max-bad allows {config.max_bad:.1%}; "
            f"the dataset is complete without them, see {out / REJECTS_FILE}"
        )


def _report(summary: ConvertSummary, source: Source, out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(summary), "images_per_second": summary.images_per_second, "out": str(out)})
        return
    pairs: list[tuple[str, object]] = [
        ("stored", f"{summary.num_stored:,} images in {summary.num_shards} shards, {len(source.class_names)} classes"),
        ("rejected", _counts(summary.rejected) or "none"),
        ("unusual", _counts(summary.oddities) or "none"),
        ("ignored", source.ignored.summary()),
        ("size", f"{megabytes(summary.file_bytes)} on disk, {megabytes(summary.payload_bytes)} of images"),
        ("speed", f"{summary.images_per_second:,.0f} images/s, {summary.seconds:.1f} s"),
        ("digest", summary.manifest_digest),
    ]
    if summary.resumed_shards:
        pairs.insert(1, ("resumed", f"{summary.resumed_shards} shards were there already"))
    print_pairs(str(out), pairs)


def _report_estimate(plan: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    print_pairs(
        "dry run: nothing was written",
        [
            ("sources", f"{plan['num_sources']:,} in {plan['num_classes']} classes"),
            ("shards", plan["num_shards"]),
            ("size", f"about {megabytes(plan['expected_bytes'])}, {megabytes(plan['free_bytes'])} are free"),
            ("time", f"about {plan['expected_seconds']:,.1f} s with {plan['workers']} workers"),
            ("sample", f"{plan['sampled']} sources, rejected: {_counts(plan['sampled_rejects']) or 'none'}"),
            ("fits", "yes" if plan["fits"] else "NO: choose another disk"),
        ],
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
