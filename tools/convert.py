"""`lmdali convert`: images as they lie on somebody's disk -> a dataset of LMDB shards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import ThresholdError
from lmdali.pipeline.manifest import REJECTS_FILE
from lmdali.tools.class_list import read_class_names
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_report import estimate, report_estimate, report_summary
from lmdali.tools.conversion_run import convert
from lmdali.tools.exit_codes import Terminated, termination_as_exception
from lmdali.tools.sources import SOURCE_FORMATS, open_source

_DEFAULTS = ConvertConfig()


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "source_format",
    type=click.Choice(SOURCE_FORMATS),
    default="auto",
    show_default=True,
    help="What SOURCE is: a folder of class folders, a list of `path label` lines, Parquet as on the Hugging Face Hub, "
    "a Caffe LMDB or a dataset of ours.",
)
@click.option("--root", type=click.Path(path_type=Path), help="Folder that the paths of a list file start from.")
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    help="Class list to use: a training dataset, its source folder, or a file of one name per line.",
)
@click.option(
    "--allow-missing-classes", is_flag=True, help="Accept a SOURCE without images of some classes of --classes."
)
@click.option("--split", help="Which split of a folder of Parquet files: train, validation, ...")
@click.option("--image-column", help="Column of images in Parquet files.  [default: looked for]")
@click.option("--label-column", help="Column of class numbers in Parquet files.  [default: looked for]")
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
@click.option(
    "--reuse-jpeg",
    is_flag=True,
    default=_DEFAULTS.reuse_jpeg,
    help="Store a baseline JPEG that is SIZE x SIZE already as it is, byte for byte.",
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
    allow_missing_classes: bool,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    workers: int | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Convert SOURCE into a dataset of LMDB shards in the directory OUT.

    SOURCE is a folder with one folder per class, a list file, Parquet files or a Caffe LMDB. Each image is decoded to
    RGB, resized so that its shorter side is SIZE, cut to the central square, and stored; what cannot be decoded goes to
    rejects.parquet. SOURCE is never written to.
    """
    config = ConvertConfig(**options)
    opened = open_source(
        source,
        source_format,
        root=root,
        classes=read_class_names(classes) if classes else None,
        allow_missing_classes=allow_missing_classes,
        split=split,
        image_column=image_column,
        label_column=label_column,
    )
    if not quiet and sys.stderr.isatty():
        click.echo(f"{source}: {opened.describe()}", err=True)
    if dry_run:
        report_estimate(estimate(opened, config, workers or usable_cpus(), out), as_json=as_json)
        return
    try:
        with termination_as_exception():
            summary = convert(opened, out, config, workers=workers, resume=resume, overwrite=overwrite, quiet=quiet)
    except (KeyboardInterrupt, Terminated):
        click.echo(f"finished shards are kept in {out}: the same command with --resume goes on from them", err=True)
        raise
    report_summary(summary, opened, out, as_json=as_json)
    bad = summary.num_rejected / (summary.num_stored + summary.num_rejected)
    if bad > config.max_bad:
        raise ThresholdError(
            f"{summary.num_rejected} sources ({bad:.1%}) were rejected, --max-bad allows {config.max_bad:.1%}; "
            f"the dataset is complete without them, see {out / REJECTS_FILE}"
        )
