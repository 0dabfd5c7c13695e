"""img2dataset's own Resizer (its downloads left out), in processes, into plain files' bytes."""

from __future__ import annotations

import io
import multiprocessing
from pathlib import Path
from typing import Any

from converters import Job


def _resizer(job: Job) -> Any:
    from img2dataset.resizer import Resizer

    return Resizer(
        image_size=job.size,
        resize_mode="center_crop",
        resize_only_if_bigger=False,
        encode_quality=job.quality,
        encode_format="jpg",
    )


def picture(data: bytes, job: Job) -> bytes:
    """One JPEG.

    Raises:
        ValueError: it refused the file.
    """
    encoded, *_, error = _resizer(job)(io.BytesIO(data))
    if error is not None:
        raise ValueError(error)
    return bytes(encoded)


def convert(job: Job) -> None:
    """One file of all pictures per process."""
    paths = [path for path, _ in job.files()]
    Path(job.out).mkdir(parents=True)
    shares = [(paths[number :: job.workers], f"{job.out}/{number}", job) for number in range(job.workers)]
    with multiprocessing.get_context("spawn").Pool(job.workers) as pool:
        pool.map(_write, shares)


def _write(share: tuple[list[Path], str, Job]) -> None:
    paths, out, job = share
    resize = _resizer(job)
    with Path(out).open("wb") as file:
        for path in paths:
            file.write(resize(io.BytesIO(path.read_bytes()))[0])
