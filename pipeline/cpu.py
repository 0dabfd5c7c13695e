"""The CPU backend: threads that read, decode and crop into one reused batch buffer.

Threads, not processes: everything that takes time releases the GIL, and nothing is copied between address spaces. Each
task takes a run of samples, so that Python's cost per task is shared by several images. When the batch goes to a GPU,
threads cut uint8 patches into pinned memory and the arithmetic happens on the device; of several views of an image,
they deliver the whole image, once, and the views are cut there too.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.batch_tasks import samples_per_task
from lmdali.pipeline.buffers import BufferRing
from lmdali.pipeline.decoded_cache import DecodedCache
from lmdali.pipeline.host_to_device import torch_dtype
from lmdali.pipeline.patches import PatchCutter, Samples
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.record_threads import ImageRun, RecordThreads
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.transfer import DeviceTransfer
from lmdali.pipeline.verify_policy import CrcPolicy
from lmdali.pipeline.view_cutter import ViewCutter

BUFFER_DTYPES = {"uint8": np.uint8, "float32": np.float32, "float16": np.uint16, "bfloat16": np.uint16}
"""Of the memory that batches are made in. NumPy has no bfloat16: bits, made from float32 at the end, since the 2012
arithmetic is float32."""

_Draws: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.bool_], NDArray[np.float32]]
"""Crops, sides of windows that are resized, flips and lighting shifts."""

_NO_BYTES: NDArray[np.uint8] = np.empty(0, np.uint8)


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
        prefetch: batches that are started before the first of them is finished, less one.
        crc: which records have their checksum compared.
        cache: where decoded images of JPEG records are kept, or None.
        timers: where stages are counted.
    """

    def __init__(
        self,
        reader: ShardReader,
        transform: PixelTransform,
        spec: OutputSpec,
        *,
        num_threads: int,
        prefetch: int,
        crc: CrcPolicy,
        cache: DecodedCache | None,
        timers: StageTimers,
    ) -> None:
        self._spec, self._timers, self._cache = spec, timers, cache
        on_gpu = spec.device.type == "cuda"
        at_once = samples_per_task(spec.batch_size, num_threads, prefetch)
        self._threads = RecordThreads(reader, crc, num_threads, at_once, "lmdali-cpu", timers)
        # What follows on the device wants pixels next to each other, whatever layout it delivers.
        cut_form = replace(spec, dtype="uint8", layout="NHWC") if on_gpu else spec
        self._views_on_device = on_gpu and spec.num_views > 1
        if self._views_on_device:
            cut_form = replace(cut_form, num_views=1, crop_size=reader.manifest.image_size)
        cut_only = on_gpu or spec.holds_pixels
        self._cutter = PatchCutter(
            reader.manifest,
            None if cut_only else transform,
            cut_form,
            describe=reader.describe,
            cache=cache,
            timers=timers,
        )
        shape = (cut_form.num_images, *cut_form.image_shape())
        self._ring = BufferRing(shape, BUFFER_DTYPES[cut_form.dtype], pinned=on_gpu)
        cut = ViewCutter(reader.manifest.image_size, spec.crop_size) if self._views_on_device else None
        self._transfer = DeviceTransfer(transform, spec, cut) if on_gpu else None

    def start(self, plan: BatchPlan) -> _Pending:
        """Queue the batch's samples on the threads."""
        images, tensor = self._ring.take(len(plan.indices if self._views_on_device else plan.params))
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
        if self._transfer is None:
            with self._timers.measure("collate"):
                return self._collate(pending)
        with self._timers.measure("copy"):
            sent = self._transfer.send(pending.tensor, pending.labels, pending.plan)
            return Batch(*sent, torch.from_numpy(pending.plan.indices))

    def _collate(self, pending: _Pending) -> Batch:
        """The batch in host memory: nothing is moved, the threads wrote each sample where it belongs."""
        images = pending.tensor.view(torch_dtype(self._spec.dtype))
        return Batch(images, torch.from_numpy(pending.labels), torch.from_numpy(pending.plan.indices))

    def is_ready(self, pending: _Pending) -> bool:
        """Whether all tasks are done."""
        return all(task.done() for task in pending.tasks)

    def cancel(self, pending: _Pending) -> None:
        """Drop what has not begun and wait for what has: its buffer may be handed out again right after."""
        self._threads.cancel(pending.tasks)

    def close(self) -> None:
        """Join the threads and let go of the shards."""
        self._threads.close()
        self._ring.close()
        if self._transfer is not None:
            self._transfer.close()

    def _fill(self, pending: _Pending, first: int, stop: int) -> None:
        plan = pending.plan
        indices = plan.indices[first:stop]
        run = self._find(indices)
        pending.labels[first:stop] = run.labels
        where, draws = self._draws(plan, first, stop)
        self._cutter.cut(Samples(run, indices, *draws, plan.scale, pending.images[where]))

    def _draws(self, plan: BatchPlan, first: int, stop: int) -> tuple[slice, _Draws]:
        """Where samples first..stop-1 go in the buffer, and the draws of what is cut of them here."""
        if self._views_on_device:
            count = stop - first
            whole = np.zeros((count, 2), np.int64), None, np.zeros(count, np.bool_), np.zeros((count, 3), np.float32)
            return slice(first, stop), whole
        views = slice(first * self._spec.num_views, stop * self._spec.num_views)
        params = plan.params.part(views.start, views.stop)
        return views, (params.crop_yx, params.sides, params.flip, plan.shifts[views])

    def _find(self, indices: NDArray[np.int64]) -> ImageRun:
        """Where images lie, and their labels; of cached ones nothing is read, and where they lie is not said."""
        if self._cache is None:
            return self._threads.find(indices)
        places = self._cache.find(indices)
        missing = np.flatnonzero(places < 0)
        if len(missing) == len(indices):
            return self._threads.find(indices)
        labels, starts, stops = self._cache.labels[places], np.zeros_like(indices), np.zeros_like(indices)
        if not len(missing):
            return ImageRun(_NO_BYTES, starts, stops, labels)
        found = self._threads.find(indices[missing])
        starts[missing], stops[missing], labels[missing] = found.starts, found.stops, found.labels
        return ImageRun(found.bytes, starts, stops, labels)
