"""`lmdali upload`: a finished dataset -> an address that loaders can read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from lmdali.tools.dataset_argument import DatasetArgument
from lmdali.tools.dataset_upload import DEFAULT_UPLOADS, upload_dataset
from lmdali.tools.exit_codes import termination_as_exception
from lmdali.tools.report_table import megabytes, print_json, print_pairs


@click.command("upload")
@click.argument("dataset", type=DatasetArgument("upload sends a directory, and the address comes second"))
@click.argument("address")
@click.option(
    "--uploads", type=click.IntRange(1), default=DEFAULT_UPLOADS, show_default=True, help="Shards sent at once."
)
@click.option("--verify", is_flag=True, help="Read everything back, instead of believing the hash kept beside it.")
@click.option("--replace", is_flag=True, help="Take the place of another dataset that is there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(dataset: Path, address: str, uploads: int, verify: bool, replace: bool, as_json: bool, quiet: bool) -> None:
    """Write DATASET below ADDRESS: s3://bucket/folder, file:///folder, or what else fsspec can write.

    Shard by shard, the manifest last: what is not complete is no dataset. What is there already is not sent again, so
    the same command goes on after an interruption, and sends nothing at all when everything is there.
    """
    if "://" not in address:
        raise click.UsageError(f"{address!r} is no address: expected one such as s3://bucket/folder")
    with termination_as_exception("what arrived stays: the same command goes on from here"):
        summary = upload_dataset(dataset, address, uploads=uploads, verify=verify, replace=replace, quiet=quiet)
    if as_json:
        print_json(asdict(summary))
        return
    print_pairs(
        summary.address,
        [
            ("shards", summary.num_shards),
            ("size", megabytes(summary.file_bytes)),
            ("sent", f"{megabytes(summary.sent_bytes)} in {summary.sent_files} files, the rest was there"),
            ("time", f"{summary.seconds:.1f} s"),
            ("digest", summary.manifest_digest),
        ],
    )
