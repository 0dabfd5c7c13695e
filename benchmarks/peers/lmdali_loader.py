"""lmdali itself, on the dataset as it is: order, draws, checksums on first reading and stage timers included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.loader import LoaderConfig, create_loader
from peers.task import Task


def batches(task: Task, variant: str) -> Iterator[torch.Tensor]:
    """Epoch after epoch."""
    options: dict[str, Any] = {"backend": "dali" if variant == "dali" else "cpu", "dtype": task.form}
    options["layout"] = "NHWC" if task.form == "uint8" else "NCHW"
    if task.form == "uint8":
        options["augment"] = AugmentConfig(crop_size=task.crop_size, normalize="none", lighting="none")
    elif variant == "paper":
        options["augment"] = AugmentConfig(crop_size=task.crop_size)
    else:
        options["augment"] = AugmentConfig(crop_size=task.crop_size, normalize="channel_mean_std", lighting="none")
    if variant == "cached":
        options["decoded_cache_bytes"] = 4 * task.num_records * task.image_size**2
    config = LoaderConfig(
        dataset=task.dataset, batch_size=task.batch_size, num_threads=task.num_threads, drop_last=True, **options
    )
    with create_loader(config, rank=0, world_size=1) as loader:
        while True:
            for images, _ in loader:
                yield images
