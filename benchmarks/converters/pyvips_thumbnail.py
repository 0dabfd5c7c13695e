"""libvips, which shrinks while it decodes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("VIPS_CONCURRENCY", "1")  # read when the library is loaded

import pyvips

from converters import Job


def picture(data: bytes, job: Job) -> bytes:
    """One JPEG."""
    image = pyvips.Image.thumbnail_buffer(data, job.size, height=job.size, crop="centre", no_rotate=True)
    if image.bands == 1:
        image = image.colourspace("srgb")
    encoded: bytes = image.jpegsave_buffer(Q=job.quality, strip=True)
    return encoded


def convert(job: Job) -> None:
    """One file of all pictures."""
    Path(job.out).mkdir(parents=True)

    def make(path: Path) -> bytes:
        return picture(path.read_bytes(), job)

    with ThreadPoolExecutor(job.workers) as pool, Path(job.out, "pictures").open("wb") as file:
        for data in pool.map(make, [path for path, _ in job.files()]):
            file.write(data)
