"""lmdali itself, on the dataset as it is: order, draws, checksums on first reading and stage timers included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lmdali.pipeline import shard_windows
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.loader import LoaderConfig, create_loader
from peers.task import Task

STREAMED = ("streamed", "unhurried")
"""Variants of streamed.py, blocks of whole shards; the second fetches one at a time, and none before its block."""

_running: list[tuple[DatasetLoader, int]] = []
"""The loader that was made last, and its threads."""


def waiting_share(seconds: float) -> float | None:
    """Part of its first `seconds` in which the loader's threads waited for shards, 0..1; None where none is fetched."""
    ((loader, num_threads),) = _running
    counts = loader.fetch_counts
    return None if counts is None else counts.wait_seconds / (num_threads * seconds)


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
    if variant in STREAMED:
        options["order"] = "block"
    if variant == "unhurried":  # no setting of ours: who would want it?
        shard_windows._MAX_WINDOWS_AHEAD = 1
        options["fetches"] = 1
    config = LoaderConfig(
        dataset=task.copy_address if task.address else task.dataset,
        batch_size=task.batch_size,
        num_threads=task.num_threads,
        drop_last=True,
        cache_dir=task.cache or None,
        **options,
    )
    with create_loader(config, rank=0, world_size=1) as loader:
        _running[:] = [(loader, task.num_threads)]
        while True:
            for images, _ in loader:
                yield images
