"""lmdali with the filter `bicubic`, as its command line runs it."""

from __future__ import annotations

from converters import Job
from converters.lmdali_job import run_lmdali


def convert(job: Job) -> None:
    """One dataset."""
    run_lmdali(job, "bicubic")
