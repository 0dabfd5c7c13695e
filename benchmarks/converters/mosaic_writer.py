"""MosaicML Streaming's MDSWriter, one per process, fed by OpenCV."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from peers.torchvision_import import import_torchvision

from converters import Job
from converters.opencv_area import picture


def convert(job: Job) -> None:
    """A folder of shards per process, as their documentation has it for parallel writing."""
    files = job.files()
    shares = [(files[number :: job.workers], number, job) for number in range(job.workers)]
    with multiprocessing.get_context("spawn").Pool(job.workers) as pool:
        pool.map(_write, shares)


def _write(share: tuple[list[tuple[Path, int]], int, Job]) -> None:
    import_torchvision()
    from streaming import MDSWriter  # it imports torchvision

    files, number, job = share
    with MDSWriter(columns={"image": "bytes", "label": "int"}, out=f"{job.out}/{number}") as writer:
        for path, label in files:
            writer.write({"image": picture(path.read_bytes(), job), "label": label})
