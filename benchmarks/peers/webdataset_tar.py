"""WebDataset: tar shards, a shuffle buffer, batches made in the worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import torch
import webdataset

from peers.opencv_view import make_shared_tensor
from peers.task import Task

_SHARDS_PER_WORKER = 8
_SHUFFLE_SAMPLES = 1000


def convert(task: Task) -> None:
    """Write the tar files."""
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    per_shard = max(task.num_records // (_SHARDS_PER_WORKER * task.num_threads), 1)
    with webdataset.ShardWriter(f"{task.folder}/%05d.tar", maxcount=per_shard, verbose=0) as writer:
        for number, (data, label) in enumerate(task.records()):
            writer.write({"__key__": f"{number:08d}", task.suffix[1:]: data, "cls": label})


def batches(task: Task, variant: str) -> Iterator[torch.Tensor]:
    """Without end: `repeat` starts over in each worker."""

    def collate(samples: list[tuple[bytes, bytes]]) -> tuple[torch.Tensor, torch.Tensor]:
        cv2.setNumThreads(0)
        labels = torch.tensor([int(label) for _, label in samples])
        return make_shared_tensor(task, [data for data, _ in samples]), labels

    shards = sorted(map(str, Path(task.folder).glob("*.tar")))
    if task.address:  # each epoch anew: it keeps nothing unless it is given a cache
        shards = [f"{task.copy_address}/{Path(shard).name}" for shard in shards]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=100)
        .repeat()
        .shuffle(_SHUFFLE_SAMPLES)
        .to_tuple(task.suffix[1:], "cls")
        .batched(task.batch_size, partial=False, collation_fn=collate)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=task.num_threads, prefetch_factor=4)
    for images, _ in loader:
        yield images
