"""FFCV's DatasetWriter with its image field, which encodes; decoding and resizing are the user's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from numpy.typing import NDArray

from converters import Job
from converters.opencv_area import square


class _Squares:
    def __init__(self, job: Job) -> None:
        self._files, self._job = job.files(), job

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        path, label = self._files[index]
        return square(path.read_bytes(), self._job), label


def convert(job: Job) -> None:
    """One .beton file."""
    Path(job.out).mkdir(parents=True)
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=job.quality), "label": IntField()}
    writer = DatasetWriter(f"{job.out}/data.beton", fields, num_workers=job.workers)
    writer.from_indexed_dataset(_Squares(job))
