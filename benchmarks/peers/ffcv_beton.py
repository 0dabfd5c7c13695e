"""FFCV: its .beton file and loader, with its stock operations or with one hand-written operation after its decoder.

The package's own image writer takes pixels and encodes them again; here the stored JPEG bytes are copied as they are.
Building FFCV needs a compiler, pkg-config and the development files of OpenCV and libturbojpeg.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import IMAGE_MODES, RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.libffcv import imdecode
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from numba.np.ufunc.parallel import get_thread_id
from numpy.typing import NDArray

from peers import compiled_pass
from peers.task import Task


class _StoredBytes(RGBImageField):
    """Writes an image file that is there already."""

    def __init__(self, task: Task) -> None:
        super().__init__(write_mode="raw" if task.encoding == "raw" else "jpg")
        self._side = task.image_size

    def encode(self, destination: Any, image: bytes, malloc: Callable[[int], tuple[int, NDArray[np.uint8]]]) -> None:
        data = image[len(image) - 3 * self._side**2 :] if self.write_mode == "raw" else image
        destination["mode"] = IMAGE_MODES[self.write_mode]
        destination["height"] = destination["width"] = self._side
        destination["data_ptr"], storage = malloc(len(data))
        storage[:] = np.frombuffer(data, np.uint8)


class _Records:
    def __init__(self, task: Task) -> None:
        self._records = list(task.records())

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self._records[index]


class _DecodedView(SimpleRGBImageDecoder):  # type: ignore[misc]
    """Decoder and everything after it in one: decode into a buffer per thread, then the others' compiled pass."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task = task

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, AllocationQuery]]:
        shape, dtype = self._task.batch_shape[1:], np.dtype(self._task.form)
        whole = AllocationQuery((self._task.image_size, self._task.image_size, 3), np.dtype(np.uint8))
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), (AllocationQuery(shape, dtype), whole)

    def generate_code(self) -> Callable[[Any, Any, Any, Any], Any]:
        task, mem_read, rows, side = self._task, self.memory_read, Compiler.get_iterator(), self._task.image_size
        imdecode_c, room, jpeg = Compiler.compile(imdecode), side - task.crop_size, task.encoding == "jpeg"
        mean, shift, scale = compiled_pass.arithmetic(task)
        view = compiled_pass.view_of_floats if task.form == "float32" else compiled_pass.view_of_pixels

        def decode(batch_indices: Any, my_storage: Any, metadata: Any, storage_state: Any) -> Any:
            out, buffers = my_storage
            for row in rows(len(batch_indices)):
                image_data = mem_read(metadata[batch_indices[row]]["data_ptr"], storage_state)
                if jpeg:
                    pixels = buffers[get_thread_id()]
                    imdecode_c(image_data, pixels, side, side, side, side, 0, 0, 1, 1, False, False)
                else:
                    pixels = image_data.reshape(side, side, 3)
                # numba's own generator per thread, as in FFCV's operations.
                y, x = np.random.randint(0, room + 1), np.random.randint(0, room + 1)  # noqa: NPY002
                flip = np.random.rand() < 0.5  # noqa: NPY002
                view(pixels, y, x, flip, mean, shift, scale, out[row])
            return out[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def convert(task: Task) -> None:
    """Write the .beton file."""
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    writer = DatasetWriter(_file(task), {"image": _StoredBytes(task), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(_Records(task))


def batches(task: Task, variant: str) -> Iterator[torch.Tensor]:
    """Epoch after epoch."""
    cv2.setNumThreads(0)
    loader = Loader(
        _file(task),
        batch_size=task.batch_size,
        num_workers=task.num_threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        custom_fields={"image": RGBImageField},
        pipelines={"image": _fused(task) if variant == "fused" else _stock(task), "label": None},
    )
    while True:
        for outputs in loader:
            yield outputs[0]


def _fused(task: Task) -> list[Any]:
    return [_DecodedView(task), ToTensor()]


def _stock(task: Task) -> list[Any]:
    # An area of (224 / 256) ** 2 at ratio 1 is a random window of the crop's size: nothing is left to resize.
    size, share = task.crop_size, (task.crop_size / task.image_size) ** 2
    decoder = RandomResizedCropRGBImageDecoder((size, size), scale=(share, share), ratio=(1.0, 1.0))
    if task.form == "uint8":
        return [decoder, RandomHorizontalFlip(), ToTensor()]
    normalize = NormalizeImage(task.channel_mean, task.channel_std, np.float32)
    return [decoder, RandomHorizontalFlip(), normalize, ToTensor(), ToTorchImage(channels_last=False)]


def _file(task: Task) -> str:
    return str(Path(task.folder) / "records.beton")
