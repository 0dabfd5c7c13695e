"""`lmdali stage`: a dataset at an address -> a directory of this machine, for good."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from lmdali.pipeline.shard_fetch import DEFAULT_FETCHES
from lmdali.tools.dataset_download import stage_dataset
from lmdali.tools.exit_codes import termination_as_exception
from lmdali.tools.report_table import megabytes, print_json, print_pairs


@click.command("stage")
@click.argument("source")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--fetches", type=click.IntRange(1), default=DEFAULT_FETCHES, show_default=True, help="Shards fetched at once."
)
@click.option("--verify", is_flag=True, help="Hash what is there already; otherwise sizes are compared.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(source: str, directory: Path, fetches: int, verify: bool, as_json: bool, quiet: bool) -> None:
    """Copy the dataset at SOURCE, an address or a path, into DIRECTORY: all of it, byte for byte.

    Every shard is checked against its hash before it gets its name; the manifest comes last, so that half a copy is no
    dataset. The same command goes on after an interruption, in the middle of a shard; once all is there it compares
    sizes, or hashes with --verify, and brings what is wrong again.
    """
    with termination_as_exception(f"what arrived stays in {directory}: the same command goes on from here"):
        summary = stage_dataset(source, directory, fetches=fetches, verify=verify, quiet=quiet)
    if as_json:
        print_json({**asdict(summary), "directory": str(directory)})
        return
    print_pairs(
        str(directory),
        [
            ("source", summary.source),
            ("shards", f"{summary.num_shards}, {summary.fetched_shards} of them brought now"),
            ("size", f"{megabytes(summary.file_bytes)}, {megabytes(summary.fetched_bytes)} brought now"),
            ("time", f"{summary.seconds:.1f} s"),
            ("digest", summary.manifest_digest),
        ],
    )
