"""torch DataLoader over ImageFolder: one file per image, Pillow, torchvision's transforms, default collation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from peers.task import Task
from peers.torchvision_import import import_torchvision

import_torchvision()
from torchvision import transforms  # noqa: E402  # after its operators have been made up for
from torchvision.datasets import ImageFolder  # noqa: E402


def convert(task: Task) -> None:
    """One folder per class."""
    for number, (data, label) in enumerate(task.records()):
        folder = Path(task.folder) / f"{label:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:08d}{task.suffix}").write_bytes(data)


def batches(task: Task, variant: str) -> Iterator[torch.Tensor]:
    """Epoch after epoch."""
    views: list[Any] = [transforms.RandomCrop(task.crop_size), transforms.RandomHorizontalFlip()]
    if task.form == "uint8":
        views.append(np.array)
    else:
        mean, std = [m / 255 for m in task.mean], [s / 255 for s in task.std]
        views += [transforms.ToTensor(), transforms.Normalize(mean, std, inplace=True)]
    loader = DataLoader(
        ImageFolder(task.folder, transforms.Compose(views)),
        batch_size=task.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=task.num_threads,
        persistent_workers=True,
        prefetch_factor=4,
    )
    while True:
        for images, _ in loader:
            yield images
