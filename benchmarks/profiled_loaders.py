"""Loaders of other kinds for `lmdali profile run --loader`: the same photographs, fed as others feed them.

    export PROFILED_FOLDER=imagenet/train PROFILED_DATASET=data/train       # photographs, and what convert made of them
    export PYTHONPATH=benchmarks
    lmdali profile run data/train -b 32 --json > ours.json
    lmdali profile run --loader profiled_loaders:torch_folder --json > torch.json
    lmdali profile run --loader profiled_loaders:dali_folder --json > dali.json
    lmdali profile run --loader profiled_loaders:dali_shards --json > dali-shards.json
    lmdali profile report ours.json torch.json dali.json --out loaders.html

Each ends in what the paper's network takes: 224 pixels cropped at random out of 256, flipped at random, float32 planes,
minus a mean. The two that read a folder decode and resize photographs as they are, which `lmdali convert` did once
before. PROFILED_BATCH (32) and PROFILED_WORKERS (every usable CPU) say how they run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lmdali.pipeline.cpu_budget import usable_cpus

SIZE, CROP = 256, 224
MEAN = (124.0, 116.0, 104.0)
"""Gray levels, RGB: near enough to any photographs' for what subtracting them costs."""


def _setting(name: str, default: str | None = None) -> str:
    value = os.environ.get(name, default)
    if value is None:
        raise SystemExit(f"set {name}: see benchmarks/profiled_loaders.py")
    return value


def _batch_size() -> int:
    return int(_setting("PROFILED_BATCH", "32"))


def _workers() -> int:
    return int(_setting("PROFILED_WORKERS", str(usable_cpus())))


class Photographs(Dataset[tuple[torch.Tensor, int]]):
    """A folder of classes as torchvision's ImageFolder has it, by OpenCV.

    Args:
        folder: with one folder for each class.
    """

    def __init__(self, folder: Path) -> None:
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        self._files = [(path, label) for label, one in enumerate(classes) for path in sorted(one.iterdir())]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        """(3, 224, 224) float32, and the class."""
        path, label = self._files[number]
        cut = random_patch(photograph(path), torch.randint(0, 2, ()).item() == 1)
        planes = np.ascontiguousarray(cut.transpose(2, 0, 1), dtype=np.float32)
        planes -= np.array(MEAN, np.float32)[:, None, None]
        return torch.from_numpy(planes), label


def photograph(path: Path) -> NDArray[np.uint8]:
    """RGB with a shorter side of 256 pixels."""
    found = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if found is None:
        raise SystemExit(f"{path}: not an image")
    scale = SIZE / min(found.shape[:2])
    width, height = (max(SIZE, round(scale * side)) for side in found.shape[1::-1])
    return cv2.cvtColor(cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)


def random_patch(image: NDArray[np.uint8], flip: bool) -> NDArray[np.uint8]:
    """224 pixels each way, from anywhere."""
    height, width = image.shape[:2]
    y, x = (int(torch.randint(0, room + 1, ()).item()) for room in (height - CROP, width - CROP))
    cut = image[y : y + CROP, x : x + CROP]
    return cut[:, ::-1] if flip else cut


def _one_opencv_thread(_: int) -> None:
    cv2.setNumThreads(0)


def torch_folder() -> Iterable[Any]:
    """A torch DataLoader with worker processes, over photographs."""
    return DataLoader(
        Photographs(Path(_setting("PROFILED_FOLDER"))),
        batch_size=_batch_size(),
        shuffle=True,
        drop_last=True,
        num_workers=_workers(),
        worker_init_fn=_one_opencv_thread,
        persistent_workers=True,
    )


def dali_folder() -> Iterable[Any]:
    """DALI's file reader, decoder and resizer on the CPU, over photographs."""
    from nvidia.dali import fn

    def read() -> tuple[Any, Any]:
        encoded, label = fn.readers.file(
            file_root=_setting("PROFILED_FOLDER"), random_shuffle=True, name="reader", pad_last_batch=True
        )
        return fn.resize(fn.decoders.image(encoded, device="cpu"), resize_shorter=SIZE), label

    return _dali(read)


def dali_shards() -> Iterable[Any]:
    """DALI's own LMDB reader and decoder on the CPU, over the shards of `lmdali convert`."""
    from nvidia.dali import fn

    shards = sorted(str(path.parent) for path in Path(_setting("PROFILED_DATASET")).glob("shards/*/data.mdb"))

    def read() -> tuple[Any, Any]:
        encoded, label = fn.readers.caffe(path=shards, random_shuffle=True, name="reader", pad_last_batch=True)
        return fn.decoders.image(encoded, device="cpu"), label

    return _dali(read)


class DaliBatches:
    """The epochs of a DALI pipeline as (images, labels) in torch tensors of their own, without the last, short batch.

    Args:
        pipeline: built, with a reader named "reader".
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __len__(self) -> int:
        return int(self._pipeline.reader_meta("reader")["epoch_size"]) // int(self._pipeline.max_batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(len(self)):
            images, labels = self._pipeline.run()
            yield torch.from_numpy(images.as_array()).clone(), torch.from_numpy(labels.as_array()).reshape(-1).long()


def _dali(read: Any) -> Iterable[Any]:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(_batch_size(), _workers(), device_id=None, seed=0, prefetch_queue_depth=2)
    with pipeline:
        images, label = read()
        cut = fn.crop_mirror_normalize(
            images,
            crop=(CROP, CROP),
            crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
            crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
            mirror=fn.random.coin_flip(),
            mean=list(MEAN),
            dtype=types.FLOAT,
            output_layout="CHW",
        )
        pipeline.set_outputs(cut, label)
    pipeline.build()
    return DaliBatches(pipeline)
