"""`lmdali merge`: what the parts of a conversion made -> one dataset."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.remote_address import redacted
from lmdali.tools.exit_codes import termination_as_exception
from lmdali.tools.merge_at_address import merge_at_address
from lmdali.tools.output_argument import Output
from lmdali.tools.part_merge import MergeSummary, merge_parts
from lmdali.tools.report_table import megabytes, print_json, print_pairs


@click.command("merge")
@click.argument("out", type=Output())
@click.argument("parts", nargs=-1, metavar="[PART_DIR]...", type=click.Path(path_type=Path, exists=True))
@click.option("--move", is_flag=True, help="Take the shards out of the PART_DIRs, which saves room on another disk.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    help="Where to work when OUT is an address.  [default: in the cache directory]",
)
@click.option("-j", "--workers", type=click.IntRange(1), help="Threads.  [default: every usable CPU]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(
    out: Path | str,
    parts: tuple[Path, ...],
    move: bool,
    scratch: Path | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make a dataset in OUT of the shards that `lmdali convert --part` made there and in every PART_DIR.

    All directories must be of the same plan and have every shard between them. Each shard is checked against its hash,
    linked into OUT (copied from another file system), and the dataset is published: its bytes are those of an undivided
    conversion. The source is not needed. A merge that was interrupted is simply run again.

    OUT may be the address that all parts were converted to. No shard is fetched from there.
    """
    if isinstance(out, str) and (parts or move):
        raise ConfigError("the parts of an address are below it: name no other directory, and leave out --move")
    if isinstance(out, Path) and scratch is not None:
        raise ConfigError("--scratch is for an OUT that is an address")
    with termination_as_exception("nothing is lost: the same command goes on from here"):
        if isinstance(out, str):
            summary = merge_at_address(out, scratch=scratch)
        else:
            summary = merge_parts(out, parts, move=move, workers=workers, quiet=quiet)
    shown = str(out) if isinstance(out, Path) else redacted(out)
    if as_json:
        print_json({**asdict(summary), "out": shown})
    else:
        _report(summary, shown)


def _report(summary: MergeSummary, shown: str) -> None:
    brought = ", ".join(f"{count} {how}" for how, count in summary.brought.items())
    print_pairs(
        shown,
        [
            ("state", "was complete before" if summary.was_complete else "complete"),
            ("shards", f"{summary.num_shards}{f' ({brought})' if brought else ''}"),
            ("stored", f"{summary.num_records:,} images, {summary.num_rejected:,} rejected"),
            ("size", megabytes(summary.file_bytes)),
            ("time", f"{summary.seconds:.1f} s"),
            ("digest", summary.manifest_digest),
        ],
    )
