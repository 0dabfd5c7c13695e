"""LitData: its chunks, StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming.writer import BinaryWriter

from peers.opencv_view import collate
from peers.task import Task

_CHUNKS_PER_WORKER = 8


def convert(task: Task) -> None:
    """Write the chunks: what `litdata.optimize` does in its workers."""
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    chunk_size = max(task.num_records // (_CHUNKS_PER_WORKER * task.num_threads), 1)
    writer = BinaryWriter(task.folder, chunk_size=chunk_size)
    for number, (data, label) in enumerate(task.records()):
        writer.add_item(number, {"image": data, "label": label})
    writer.done()
    writer.merge()


def batches(task: Task, variant: str) -> Iterator[torch.Tensor]:
    """Epoch after epoch."""

    loader = StreamingDataLoader(
        StreamingDataset(task.folder, shuffle=True, drop_last=True),
        batch_size=task.batch_size,
        num_workers=task.num_threads,
        collate_fn=partial(collate, task),
        persistent_workers=True,
        prefetch_factor=4,
    )
    while True:
        for images, _ in loader:
            yield images
