"""`lmdali repair`: damaged files of a dataset, made again byte for byte."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lmdali.pipeline.errors import ConfigError, IntegrityError
from lmdali.pipeline.manifest import Manifest
from lmdali.tools.dataset_argument import DatasetArgument
from lmdali.tools.exit_codes import termination_as_exception
from lmdali.tools.report_table import print_json, print_pairs
from lmdali.tools.shard_repair import RepairReport, repair_dataset
from lmdali.tools.source_options import source_options
from lmdali.tools.sources import Source, open_source

_NAMED = 12


@click.command("repair")
@click.argument("dataset", type=DatasetArgument("repair writes into it"))
@click.option("--source", type=click.Path(path_type=Path), help="What DATASET was converted from.")
@source_options
@click.option("--shards", metavar="N,N,...", help="Look at these shards only, for example 00003,00007.")
@click.option("-j", "--workers", type=click.IntRange(1), help="Processes and threads.  [default: every usable CPU]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    dataset: Path,
    source: Path | None,
    source_format: Any,
    shards: str | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Check the files of DATASET and make again those that are damaged or missing.

    Shards and tables are converted again from --source with the options in the manifest, which must be the source they
    were made of; one whose hash is not that in the manifest is refused, and what is there stays. Offsets, statistics
    and the figures of shards follow from the shards and need no source. A repair that was killed is simply run again.
    """

    def opened(manifest: Manifest) -> Source:
        assert source is not None
        names = manifest.class_names
        return open_source(source, source_format, classes=names, allow_missing_classes=True, **options)

    names = None if shards is None else [name.strip() for name in shards.split(",")]
    if names is not None and not all(names):
        raise ConfigError(f"--shards is {shards!r}: expected numbers such as 00003,00007")
    names = None if names is None else [name.zfill(5) for name in names]
    with termination_as_exception("shards that were made again are kept: the same command goes on from them"):
        report = repair_dataset(dataset, None if source is None else opened, shards=names, workers=workers, quiet=quiet)
    if as_json:
        print_json({**asdict(report), "dataset": str(dataset)})
    else:
        _report(report, dataset)
    if report.refused:
        raise IntegrityError(f"{dataset}: {len(report.refused)} files stay damaged, first: {report.refused[0]}")


def _report(report: RepairReport, dataset: Path) -> None:
    def listed(names: list[str]) -> str:
        return f"{', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}" or "none"

    print_pairs(
        str(dataset),
        [
            ("shards made again", listed(report.rebuilt_shards)),
            ("files written again", listed(report.restored_files)),
            ("still damaged", len(report.refused) or "none"),
            ("time", f"{report.seconds:.1f} s"),
        ],
    )
