"""The command `lmdali convert` for one job."""

from __future__ import annotations

from converters import Job
from lmdali.tools.cli import cli


def run_lmdali(job: Job, filter_name: str) -> None:
    """Hashes, checksums, statistics, tables and decode-back included, as always."""
    options = ["--size", job.size, "--quality", job.quality, "--filter", filter_name, "-j", job.workers, "--quiet"]
    cli(["convert", job.source, job.out, *map(str, options)], standalone_mode=False)
