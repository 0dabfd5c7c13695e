"""MosaicML Streaming: MDS shards read locally by its StreamingDataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import torch
from torch.utils.data import DataLoader

from peers.opencv_view import collate
from peers.served_bucket import point_s3_clients_at
from peers.task import Task
from peers.torchvision_import import import_torchvision

import_torchvision()  # it imports torchvision
from streaming import MDSWriter, StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402

_SHARDS_PER_WORKER = 8


def convert(task: Task) -> None:
    """Write the shards."""
    average = sum(len(data) for data, _ in task.records()) // task.num_records + 64
    limit = max(average * task.num_records // (_SHARDS_PER_WORKER * task.num_threads), 1 << 20)
    with MDSWriter(columns={"image": "bytes", "label": "int"}, out=task.folder, size_limit=limit) as writer:
        for data, label in task.records():
            writer.write({"image": data, "label": label})


def batches(task: Task, variant: str) -> Iterator[torch.Tensor]:
    """Epoch after epoch."""
    folders = {"local": task.folder}
    if task.address:
        bucket = point_s3_clients_at(task)
        os.environ["S3_ENDPOINT_URL"] = bucket.endpoint
        folders = {"remote": bucket.url, "local": task.cache}
    clean_stale_shared_memory()  # of an earlier run that was ended in the middle
    loader = DataLoader(
        StreamingDataset(**folders, shuffle=True, batch_size=task.batch_size),
        batch_size=task.batch_size,
        drop_last=True,
        num_workers=task.num_threads,
        collate_fn=partial(collate, task),
        persistent_workers=True,
        prefetch_factor=4,
    )
    while True:
        for images, _ in loader:
            yield images
