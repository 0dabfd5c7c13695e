"""The parts of lmdali's exact recipe and nothing else: decode, resize, encode, decode back, from memory to nowhere."""

from __future__ import annotations

from converters import Job
from converters.part_processes import run_parts
from lmdali.tools.conversion import ConvertConfig, convert_image


def picture(data: bytes, job: Job) -> bytes:
    """One JPEG."""
    return convert_image(data, "picture", ConvertConfig(size=job.size, quality=job.quality))[0]


def convert(job: Job) -> None:
    """All pictures, none kept."""
    run_parts(job, "area")
