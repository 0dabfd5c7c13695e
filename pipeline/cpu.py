"""The CPU backend: threads that read, decode and crop into one reused batch buffer.

Threads, not processes: LMDB, libjpeg-turbo and the compiled crop all release the GIL, and nothing is copied between
address spaces. Each task takes a run of samples, so that Python's cost per task is shared by several images. When the
batch goes to a GPU, threads cut uint8 patches into pinned memory and the arithmetic happens on the device.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.pipeline import crop_kernel
from lmdali.pipeline.augment import PixelTransform
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.buffers import BufferRing
from lmdali.pipeline.decode import decode_stored
from lmdali.pipeline.record_threads import RecordThreads
from lmdali.pipeline.records import Record
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.transfer import DeviceCopier, DeviceNormalizer, torch_dtype
from lmdali.pipeline.verify_policy import CrcPolicy


@dataclass(eq=False)
class _Pending:
    plan: BatchPlan
    images: NDArray[Any]
    tensor: torch.Tensor
    labels: NDArray[np.int64]
    tasks: list[Future[None]]


class CpuBackend:
    """Batches made by threads of this process.

    Args:
        reader: the dataset.
        transform: the arithmetic of normalisation and lighting.
        spec: form and place of the batches.
        num_threads: worker threads.
        crc: which records have their checksum compared.
        timers: where stages are counted.
    """

    def __init__(
        self,
        reader: ShardReader,
        transform: PixelTransform,
        spec: OutputSpec,
        *,
        num_threads: int,
        crc: CrcPolicy,
        timers: StageTimers,
    ) -> None:
        self._spec, self._timers = spec, timers
        self._on_gpu = spec.device.type == "cuda"
        self._threads = RecordThreads(reader, crc, num_threads, "lmdali-cpu")
        self._scratch = threading.local()
        self._size, self._raw = reader.manifest.image_size, reader.manifest.encoding == "raw"
        cut_only = self._on_gpu or spec.holds_pixels or transform.is_identity
        # Half precision is made from float32 at the end: the 2012 arithmetic is float32, and NumPy has no bfloat16.
        self._planar = spec.layout == "NCHW" and not self._on_gpu
        mean = np.ascontiguousarray(transform.mean.transpose(2, 0, 1)) if self._planar else transform.mean
        self._normalized = None if cut_only else (mean, transform.scale)
        shape = spec.image_shape() if self._planar else (spec.crop_size, spec.crop_size, 3)
        self._ring = BufferRing((spec.num_images, *shape), np.uint8 if cut_only else np.float32, pinned=self._on_gpu)
        self._normalizer = DeviceNormalizer(transform, spec) if self._on_gpu else None
        self._copier = DeviceCopier(spec.device) if self._on_gpu else None

    def start(self, plan: BatchPlan) -> _Pending:
        """Queue the batch's samples on the threads."""
        images, tensor = self._ring.take(len(plan.params))
        pending = _Pending(plan, images, tensor, np.empty(len(plan.indices), np.int64), [])
        pending.tasks = self._threads.submit(len(plan.indices), partial(self._fill, pending))
        return pending

    def finish(self, pending: _Pending) -> Batch:
        """Wait for the batch's tasks; the first error of any of them is raised."""
        try:
            for task in pending.tasks:
                task.result()
        except BaseException:
            self.cancel(pending)
            raise
        labels, indices = torch.from_numpy(pending.labels), torch.from_numpy(pending.plan.indices)
        if self._normalizer is None or self._copier is None:
            return Batch(pending.tensor.to(torch_dtype(self._spec.dtype)), labels, indices)
        start = perf_counter()
        patches, event = self._copier.copy(pending.tensor)
        on_device_labels, label_event = self._copier.copy(labels.pin_memory())
        self._copier.hand_over(patches, event)
        self._copier.hand_over(on_device_labels, label_event)
        images = self._normalizer(patches, pending.plan)
        # The pinned buffer may be filled again once nobody holds it: wait until the copy has read it.
        event.synchronize()
        self._timers.add("copy", perf_counter() - start)
        return Batch(images, on_device_labels, indices)

    def cancel(self, pending: _Pending) -> None:
        """Drop what has not begun and wait for what has: its buffer may be handed out again right after."""
        self._threads.cancel(pending.tasks)

    def close(self) -> None:
        """Join the threads and close the shards that nobody else reads."""
        self._threads.close()

    def _fill(self, pending: _Pending, first: int, last: int) -> None:
        totals = [0.0, 0.0, 0.0]
        for sample in range(first, last):
            self._fill_one(pending, sample, totals)
        for stage, seconds in zip(("read", "decode", "augment"), totals, strict=True):
            self._timers.add(stage, seconds)

    def _fill_one(self, pending: _Pending, sample: int, totals: list[float]) -> None:
        views = range(sample * self._spec.num_views, (sample + 1) * self._spec.num_views)
        index = int(pending.plan.indices[sample])
        start = perf_counter()

        def use(record: Record) -> None:
            # Everything happens while the record is mapped: raw pixels are cropped straight out of the shard.
            read = perf_counter()
            pixels = decode_stored(record.data, self._size, out=None if self._raw else self._decoded())
            decoded = perf_counter()
            self._crop(pending, pixels, views)
            pending.labels[sample] = record.label
            totals[0] += read - start
            totals[1] += decoded - read
            totals[2] += perf_counter() - decoded

        self._threads.read(index, use)

    def _crop(self, pending: _Pending, pixels: NDArray[np.uint8], views: range) -> None:
        params = pending.plan.params
        for view in views:
            y, x = params.crop_yx[view]
            flip, out = bool(params.flip[view]), pending.images[view]
            if self._normalized is None:
                (crop_kernel.crop_pixels_planar if self._planar else crop_kernel.crop_pixels)(pixels, y, x, flip, out)
            else:
                mean, scale = self._normalized
                kernel = crop_kernel.crop_normalized_planar if self._planar else crop_kernel.crop_normalized
                kernel(pixels, y, x, flip, mean, pending.plan.shifts[view], scale, out)

    def _decoded(self) -> NDArray[np.uint8]:
        """This thread's buffer for one decoded image."""
        buffer: NDArray[np.uint8] | None = getattr(self._scratch, "pixels", None)
        if buffer is None:
            buffer = self._scratch.pixels = np.empty((self._size, self._size, 3), np.uint8)
        return buffer
