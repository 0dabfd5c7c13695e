"""The user's part in peers that leave decoding to the user: OpenCV, one view per record, written straight into a batch.

The same code for all of them, and about as good as Python with OpenCV and NumPy gets, so that rows differ by what the
libraries do. Batches that cross to another process lie in shared memory from the start, as torch's own collation does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from peers.task import Task


def decode(task: Task, data: bytes | memoryview) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of one image file."""
    if task.encoding == "raw":
        count = 3 * task.image_size**2
        return np.frombuffer(data, np.uint8, count, len(data) - count).reshape(task.image_size, task.image_size, 3)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)  # type: ignore[return-value]


def fill(task: Task, records: Sequence[bytes | memoryview], batch: NDArray[Any]) -> None:
    """Decode, crop, mirror and (for float32) normalise records into the rows of a batch."""
    room, size = task.image_size - task.crop_size, task.crop_size
    # (p - mean) / std as p * a + b: two passes over a row's patch, the second in place.
    factor = (1.0 / task.channel_std)[:, None, None]
    offset = (-task.channel_mean / task.channel_std)[:, None, None]
    for data, out in zip(records, batch, strict=True):
        y, x = random.randint(0, room), random.randint(0, room)
        patch = decode(task, data)[y : y + size, x : x + size]
        if random.getrandbits(1):
            patch = patch[:, ::-1]
        if task.form == "uint8":
            out[:] = patch
        else:
            np.multiply(patch.transpose(2, 0, 1), factor, out=out)
            out += offset


def make_array(task: Task, records: Sequence[bytes | memoryview]) -> NDArray[Any]:
    """A batch in fresh memory of this process."""
    batch = np.empty((len(records), *task.batch_shape[1:]), task.form)
    fill(task, records, batch)
    return batch


def make_shared_tensor(task: Task, records: Sequence[bytes | memoryview]) -> torch.Tensor:
    """A batch in shared memory, so that a worker process hands it over without another copy."""
    dtype = torch.uint8 if task.form == "uint8" else torch.float32
    shape = (len(records), *task.batch_shape[1:])
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    storage = torch.UntypedStorage._new_shared(num_bytes)  # type: ignore[no-untyped-call]  # as default_collate
    tensor: torch.Tensor = torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]
    fill(task, records, tensor.numpy())
    return tensor


def collate(task: Task, samples: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """For a DataLoader whose samples are dictionaries: a batch in shared memory, and its labels."""
    cv2.setNumThreads(0)
    labels = torch.tensor([sample["label"] for sample in samples])
    return make_shared_tensor(task, [sample["image"] for sample in samples]), labels
