"""LitData: its chunks, StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import downloader
from litdata.streaming.writer import BinaryWriter

from peers.opencv_view import collate
from peers.served_bucket import point_s3_clients_at
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
    source: dict[str, Any] = {"input_dir": task.folder}
    if task.address:
        bucket = point_s3_clients_at(task)
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # no TLS on this machine
        options = {"endpoint_url": bucket.endpoint}
        source = {"input_dir": bucket.url, "cache_dir": task.cache, "storage_options": options}
    loader = StreamingDataLoader(
        StreamingDataset(**source, shuffle=True, drop_last=True),
        batch_size=task.batch_size,
        num_workers=task.num_threads,
        collate_fn=partial(collate, task),
        persistent_workers=True,
        prefetch_factor=4,
    )
    while True:
        for images, _ in loader:
            yield images
