"""LitData's optimize, fed by OpenCV."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from converters import Job
from converters.opencv_area import picture


def _sample(file: tuple[str, int], job: Job) -> dict[str, Any]:
    path, label = file
    return {"image": picture(Path(path).read_bytes(), job), "label": label}


def convert(job: Job) -> None:
    """A folder of chunks."""
    from litdata import optimize

    optimize(
        fn=partial(_sample, job=job),
        inputs=[(str(path), label) for path, label in job.files()],
        output_dir=job.out,
        num_workers=job.workers,
        chunk_bytes="64MB",
    )
