"""Grain: ArrayRecord files, `MapDataset`, worker processes by `mp_prefetch`."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grain
from array_record.python.array_record_module import ArrayRecordWriter
from numpy.typing import NDArray

from peers.opencv_view import make_array
from peers.task import Task

_LABEL = struct.Struct("<i")


def convert(task: Task) -> None:
    """Write one ArrayRecord file, every record on its own as random access asks for."""
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(_file(task), "group_size:1,uncompressed")
    for data, label in task.records():
        writer.write(_LABEL.pack(label) + data)
    writer.close()


def batches(task: Task, variant: str) -> Iterator[NDArray[Any]]:
    """Without end."""
    dataset = (
        grain.MapDataset.source(grain.sources.ArrayRecordDataSource(_file(task)))
        .seed(1)
        .shuffle()
        .repeat()
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=task.batch_size))
        .batch(task.batch_size, drop_remainder=True, batch_fn=partial(_batch, task))
        .mp_prefetch(grain.MultiprocessingOptions(num_workers=task.num_threads, per_worker_buffer_size=2))
    )
    for images, _ in dataset:
        yield images


def _batch(task: Task, records: list[bytes]) -> tuple[NDArray[Any], list[int]]:
    views = [memoryview(record)[_LABEL.size :] for record in records]
    return make_array(task, views), [_LABEL.unpack_from(record)[0] for record in records]


def _file(task: Task) -> str:
    return str(Path(task.folder) / "records.arrayrecord")
