"""torch DataLoader over LMDB: worker processes that build whole batches with OpenCV (`__getitems__`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from peers.lmdb_copy import LmdbCopy, convert, read
from peers.opencv_view import make_shared_tensor
from peers.task import Task

__all__ = ["batches", "convert"]

Item = tuple[torch.Tensor, torch.Tensor]


class LmdbRecords(Dataset[Item]):
    """Opens LMDB in the worker that reads: handles must not cross a fork."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._copy: LmdbCopy | None = None

    def __len__(self) -> int:
        return self._task.num_records

    def __getitems__(self, indices: list[int]) -> Item:
        if self._copy is None:
            cv2.setNumThreads(0)
            self._copy = LmdbCopy(self._task)
        with self._copy.transaction() as transaction:
            records = [read(transaction, index) for index in indices]
            images = make_shared_tensor(self._task, [data for data, _ in records])
        return images, torch.tensor([label for _, label in records])


def batches(task: Task, variant: str) -> Iterator[torch.Tensor]:
    """Epoch after epoch."""
    loader: DataLoader[Item] = DataLoader(
        LmdbRecords(task),
        batch_size=task.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=task.num_threads,
        persistent_workers=True,
        collate_fn=_as_it_is,
    )
    while True:
        for images, _ in loader:
            yield images


def _as_it_is(batch: Any) -> Any:
    return batch
