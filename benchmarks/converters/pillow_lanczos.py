"""Pillow with its best filter, in processes."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path

from PIL import Image

from converters import Job


def picture(data: bytes, job: Job) -> bytes:
    """One JPEG."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = job.size / min(image.size)
    width, height = (max(round(side * scale), job.size) for side in image.size)
    left, top = (width - job.size) // 2, (height - job.size) // 2
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    resized.crop((left, top, left + job.size, top + job.size)).save(out, "JPEG", quality=job.quality)
    return out.getvalue()


def convert(job: Job) -> None:
    """One file of all pictures per process."""
    paths = [path for path, _ in job.files()]
    Path(job.out).mkdir(parents=True)
    shares = [(paths[number :: job.workers], f"{job.out}/{number}", job) for number in range(job.workers)]
    with multiprocessing.get_context("spawn").Pool(job.workers) as pool:
        pool.map(_write, shares)


def _write(share: tuple[list[Path], str, Job]) -> None:
    paths, out, job = share
    with Path(out).open("wb") as file:
        for path in paths:
            file.write(picture(path.read_bytes(), job))
