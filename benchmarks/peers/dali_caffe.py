"""DALI alone, as its documentation reads Caffe LMDBs: `readers.caffe` on our very shards, CPU operators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from lmdali.pipeline.manifest import SHARDS_DIRECTORY, load_manifest
from peers.task import Task

_SHUFFLE_BUFFER = 1024  # the reader's default


def batches(task: Task, variant: str) -> Iterator[torch.Tensor]:
    """Epoch after epoch; "roi" decodes no more than the crop needs."""
    iterator = DALIGenericIterator(
        _graph(task, region_only=variant == "roi"),
        ["images", "labels"],
        reader_name="reader",
        last_batch_policy=LastBatchPolicy.DROP,
        auto_reset=True,
    )
    while True:
        for outputs in iterator:
            yield outputs[0]["images"]


def _graph(task: Task, *, region_only: bool) -> object:
    dataset = Path(task.dataset)
    shards = [str(dataset / SHARDS_DIRECTORY / shard.name) for shard in load_manifest(dataset).shards]

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=task.batch_size, num_threads=task.num_threads, device_id=None, prefetch_queue_depth=2
    )
    def graph() -> tuple[object, object]:
        encoded, labels = fn.readers.caffe(
            path=shards, random_shuffle=True, initial_fill=_SHUFFLE_BUFFER, name="reader"
        )
        place = {name: fn.random.uniform(range=(0.0, 1.0)) for name in ("crop_pos_x", "crop_pos_y")}
        size = (task.crop_size, task.crop_size)
        if region_only:
            pixels, cut = fn.decoders.image_crop(encoded, crop=size, output_type=types.RGB, **place), {}
        else:
            pixels, cut = fn.decoders.image(encoded, output_type=types.RGB), {"crop": size, **place}
        arithmetic = {} if task.form == "uint8" else {"mean": list(task.mean), "std": list(task.std)}
        images = fn.crop_mirror_normalize(
            pixels,
            mirror=fn.random.coin_flip(probability=0.5),
            dtype=types.UINT8 if task.form == "uint8" else types.FLOAT,
            output_layout="HWC" if task.form == "uint8" else "CHW",
            **cut,
            **arithmetic,
        )
        return images, labels

    return graph()
