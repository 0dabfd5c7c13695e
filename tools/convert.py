"""`lmdali convert`: images as they lie on somebody's disk -> a dataset of LMDB shards."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_plan import Part
from lmdali.pipeline.errors import ConfigError, ThresholdError
from lmdali.pipeline.manifest import REJECTS_FILE
from lmdali.pipeline.output_check import check_output
from lmdali.pipeline.remote_address import redacted
from lmdali.pipeline.shard_cache import cache_directory
from lmdali.tools.audit_report import duplicate_facts
from lmdali.tools.class_list import read_class_names
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_part import PartSummary, convert_part, report_part
from lmdali.tools.conversion_report import ConvertSummary, report_estimate, report_summary
from lmdali.tools.conversion_run import convert
from lmdali.tools.conversion_upload import check_destination, convert_part_to_address, convert_to_address
from lmdali.tools.dry_run import estimate
from lmdali.tools.executors import EXECUTORS, make_executor
from lmdali.tools.exit_codes import termination_as_exception
from lmdali.tools.given_option import is_given
from lmdali.tools.output_argument import Output, refuse_overlap
from lmdali.tools.resize import FILTERS
from lmdali.tools.source_options import source_options
from lmdali.tools.sources import Source, open_source
from lmdali.tools.worker_limits import WorkerLimits

_DEFAULTS = ConvertConfig()
_LIMITS = WorkerLimits()


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=Output())
@source_options
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    help="Class list to use: a training dataset, its source, or a file of one name per line.",
)
@click.option(
    "--allow-missing-classes", is_flag=True, help="Accept a SOURCE without images of some classes of --classes."
)
@click.option("--size", default=_DEFAULTS.size, show_default=True, help="Side of the stored images, pixels.")
@click.option(
    "--filter",
    type=click.Choice(FILTERS),
    default=_DEFAULTS.filter,
    show_default=True,
    help="area: as the 2012 data were made; bicubic: sharper, not of 2012.",
)
@click.option(
    "--encoding",
    type=click.Choice(["jpeg", "raw"]),
    default=_DEFAULTS.encoding,
    show_default=True,
    help="What is stored: JPEG files, or pixels, which take more room and no decoding.",
)
@click.option("--quality", default=_DEFAULTS.quality, show_default=True, help="JPEG quality, 1 to 100.")
@click.option(
    "--orientation",
    type=click.Choice(["ignore", "apply"]),
    default=_DEFAULTS.orientation,
    show_default=True,
    help="EXIF orientation tag; the 2012 data ignored it.",
)
@click.option(
    "--shard-bytes", default=_DEFAULTS.shard_bytes, show_default=True, help="Size of a shard to aim at, bytes."
)
@click.option("--seed", default=_DEFAULTS.seed, show_default=True, help="Of the permutation over the shards.")
@click.option(
    "--max-bad",
    default=_DEFAULTS.max_bad,
    show_default=True,
    help="Share of rejected sources, 0 to 1, above which the exit code is 9.",
)
@click.option(
    "--reuse-jpeg",
    is_flag=True,
    default=_DEFAULTS.reuse_jpeg,
    help="Store a baseline JPEG that is SIZE x SIZE already as it is, byte for byte.",
)
@click.option("-j", "--workers", type=click.IntRange(1), help="Processes.  [default: every usable CPU]")
@click.option(
    "--executor",
    "executor_name",
    type=click.Choice(EXECUTORS),
    default="local",
    show_default=True,
    help="Who makes the shards: processes of this machine, or a Dask cluster.",
)
@click.option("--scheduler", help="Address of a running Dask cluster.  [default: start one here]")
@click.option(
    "--time-limit",
    default=_LIMITS.seconds,
    show_default=True,
    help="Seconds an image may take; one that never ends is rejected. For --executor local.",
)
@click.option(
    "--memory-limit",
    default=_LIMITS.memory_mb,
    show_default=True,
    help="MB a worker may allocate; an image that needs more is rejected. For --executor local.",
)
@click.option("--part", metavar="I/N", help="Only every N-th shard, from the I-th on; `lmdali merge` joins the parts.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    help="Where shards are made when OUT is an address.  [default: in the cache directory]",
)
@click.option("--check-duplicates", is_flag=True, help="Also report duplicates within the dataset; see `lmdali audit`.")
@click.option("--resume", is_flag=True, help="Finish what an earlier run began.")
@click.option("--overwrite", is_flag=True, help="Remove a dataset that is there and start again.")
@click.option("--dry-run", is_flag=True, help="Say what it would take, from a sample; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    source: Path,
    out: Path | str,
    source_format: Any,
    classes: Path | None,
    workers: int | None,
    executor_name: Any,
    scheduler: str | None,
    time_limit: float,
    memory_limit: int,
    part: str | None,
    scratch: Path | None,
    check_duplicates: bool,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Convert SOURCE into a dataset of LMDB shards in OUT, a directory or an address such as s3://bucket/folder.

    SOURCE is a folder with one folder per class, a list file, archives as they come (those of ILSVRC2010 and 2012,
    WebDataset shards), Parquet files as on the Hugging Face Hub, or a Caffe LMDB. Each image is decoded to RGB, resized
    so that its shorter side is SIZE, cut to the central square, and stored; what cannot be decoded goes to
    rejects.parquet. SOURCE is never written to.

    With --part 2/8 on one of eight machines, each makes its share of the shards, in one OUT on a disk that all of them
    see or each in its own; `lmdali merge` then makes the dataset of them. All need the same SOURCE and options.

    To an address, every shard is sent as soon as it is finished and then removed here; the manifest comes last. With
    --resume any machine goes on from the shards that are there.
    """
    config = ConvertConfig(**{field.name: options.pop(field.name) for field in fields(ConvertConfig)})
    limited = any(is_given(click.get_current_context(), name) for name in ("time_limit", "memory_limit"))
    limits = WorkerLimits(seconds=time_limit, memory_mb=memory_limit) if limited else None
    executor = make_executor(executor_name, workers=workers, limits=limits, scheduler=scheduler)
    chosen_part = Part.parse(part) if part else None
    _refuse_pairs(out, chosen_part, scratch, check_duplicates=check_duplicates)
    if (place := out if isinstance(out, Path) else scratch) is not None:
        refuse_overlap(source, place)
    if not dry_run:
        check = check_output if isinstance(out, Path) else check_destination
        check(out, is_part=chosen_part is not None, resume=resume, overwrite=overwrite)  # type: ignore[arg-type]
    names = read_class_names(classes) if classes else None
    opened = open_source(source, source_format, classes=names, **options)
    if not quiet and sys.stderr.isatty():
        click.echo(f"{source}: {opened.describe()}", err=True)
    if dry_run:
        disk = out if isinstance(out, Path) else scratch or cache_directory()
        report_estimate(estimate(opened, config, workers or usable_cpus(), disk, limits=limits), as_json=as_json)
        return
    run: dict[str, Any] = {"executor": executor, "resume": resume, "overwrite": overwrite, "quiet": quiet}
    shown = out if isinstance(out, Path) else redacted(out)
    kept = f"finished shards are kept in {shown}: the same command with --resume goes on from them"
    with termination_as_exception(kept):
        made = _convert(opened, out, config, chosen_part, scratch, run)
    if isinstance(made, PartSummary):
        report_part(made, opened, shown, as_json=as_json)
        note = "see the table that merging writes"
    else:
        duplicates = duplicate_facts(Path(out), workers=workers, quiet=quiet) if check_duplicates else None
        report_summary(made, opened, shown, duplicates=duplicates, as_json=as_json)
        note = f"the dataset is complete without them, see {shown}/{REJECTS_FILE}"
    _check_rejects(made.num_rejected, made.num_stored, config.max_bad, note)


def _refuse_pairs(out: Path | str, part: Part | None, scratch: Path | None, *, check_duplicates: bool) -> None:
    """Options that do not go together."""
    if part is not None and check_duplicates:
        raise ConfigError("--check-duplicates needs the whole dataset: run `lmdali audit` after `lmdali merge`")
    if isinstance(out, str) and check_duplicates:
        raise ConfigError(f"--check-duplicates is for a directory: run `lmdali audit {redacted(out)}` afterwards")
    if isinstance(out, Path) and scratch is not None:
        raise ConfigError("--scratch is for an OUT that is an address: a directory is written to where it is")


def _convert(
    source: Source,
    out: Path | str,
    config: ConvertConfig,
    part: Part | None,
    scratch: Path | None,
    run: dict[str, Any],
) -> ConvertSummary | PartSummary:
    if isinstance(out, Path):
        return convert(source, out, config, **run) if part is None else convert_part(source, out, config, part, **run)
    if part is None:
        return convert_to_address(source, out, config, scratch=scratch, **run)
    return convert_part_to_address(source, out, config, part, scratch=scratch, **run)


def _check_rejects(num_rejected: int, num_stored: int, max_bad: float, note: str) -> None:
    bad = num_rejected / max(num_stored + num_rejected, 1)
    if bad > max_bad:
        raise ThresholdError(
            f"{num_rejected} sources ({bad:.1%}) were rejected, --max-bad allows {max_bad:.1%}; {note}"
        )
