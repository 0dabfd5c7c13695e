"""The DALI backend: the same order and draws, decoded and augmented by NVIDIA DALI on a GPU, or without one.

DALI's own LMDB readers shuffle in a buffer of about a thousand samples and give no sample numbers, so they cannot keep
the contract. Here our threads read the records in our order, and the graph takes ready buffers and draws through
`external_source`. Lighting needs no operator of its own: it rides in the per-sample `mean` of `crop_mirror_normalize`.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.pipeline.augment import PixelTransform
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.decode import decode_stored
from lmdali.pipeline.errors import MissingExtraError, RecordError
from lmdali.pipeline.record_threads import RecordThreads
from lmdali.pipeline.records import Record
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.transfer import torch_dtype
from lmdali.pipeline.verify_policy import CrcPolicy

try:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.plugin.pytorch import feed_ndarray
except ImportError as error:
    raise MissingExtraError("nvidia-dali", "dali-cuda13", "the DALI backend") from error

_MAX_SCHEDULED = 2
"""Batches inside DALI at a time; each costs the device one batch of decoded images."""


@dataclass(eq=False)
class _Pending:
    plan: BatchPlan
    encoded: list[NDArray[np.uint8]]
    labels: NDArray[np.int64]
    tasks: list[Future[None]]


class DaliBackend:
    """Batches made by a DALI pipeline.

    Args:
        reader: the dataset.
        transform: the arithmetic of normalisation and lighting.
        spec: form and place of the batches; device "cpu" runs DALI's CPU operators.
        num_threads: threads that read records, and as many inside DALI.
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
        self._reader, self._spec, self._timers = reader, spec, timers
        self._room = reader.manifest.image_size - spec.crop_size
        self._threads = RecordThreads(reader, crc, num_threads, "lmdali-dali")
        self._waiting: deque[_Pending] = deque()
        self._in_pipeline: deque[_Pending] = deque()
        self._build = partial(_build, reader.manifest.image_size, transform, spec, num_threads)
        self._pipeline = self._build()
        self._closed = False

    def start(self, plan: BatchPlan) -> _Pending:
        """Queue the batch's records on the reader threads."""
        count = len(plan.indices)
        pending = _Pending(plan, [np.empty(0, np.uint8)] * count, np.empty(count, np.int64), [])
        pending.tasks = self._threads.submit(count, partial(self._read, pending))
        if count:  # DALI takes no batch of nothing, which a rank may have at the end of an evaluation
            self._waiting.append(pending)
        self._schedule()
        return pending

    def finish(self, pending: _Pending) -> Batch:
        """Outputs of the oldest batch, which must be this one."""
        labels, indices = torch.from_numpy(pending.labels), torch.from_numpy(pending.plan.indices)
        if not len(indices):
            images = torch.empty((0, *self._spec.image_shape()), dtype=torch_dtype(self._spec.dtype))
            return Batch(images.to(self._spec.device), labels.to(self._spec.device), indices)
        try:
            for task in pending.tasks:
                task.result()
            self._schedule()
            images = self._collect(pending)
        except BaseException:
            self.cancel(pending)
            raise
        self._schedule()
        return Batch(images, labels.to(self._spec.device), indices)

    def cancel(self, pending: _Pending) -> None:
        """Drop a batch; what is already inside DALI is taken out and thrown away."""
        self._threads.cancel(pending.tasks)
        try:
            while pending in self._in_pipeline:
                self._take_outputs()
        except RuntimeError:
            self._restart()
        if pending in self._waiting:
            self._waiting.remove(pending)

    def close(self) -> None:
        """Join the readers and free DALI's memory."""
        if not self._closed:
            self._closed = True
            self._threads.close()
            with suppress(RuntimeError):  # an undecodable image in there is nobody's concern any more
                while self._in_pipeline:
                    self._take_outputs()
            del self._pipeline

    def _read(self, pending: _Pending, first: int, last: int) -> None:
        begin = perf_counter()
        for sample in range(first, last):
            index = int(pending.plan.indices[sample])

            def use(record: Record, sample: int = sample) -> None:
                # A copy of the encoded bytes: DALI reads them later, when the shard may have been closed.
                pending.encoded[sample] = np.frombuffer(bytes(record.data), np.uint8)
                pending.labels[sample] = record.label

            self._threads.read(index, use)
        self._timers.add("read", perf_counter() - begin)

    def _schedule(self) -> None:
        """Move batches whose records have been read into DALI, oldest first; a failed one waits for its `finish`."""
        while self._waiting and len(self._in_pipeline) < _MAX_SCHEDULED:
            pending = self._waiting[0]
            if any(not task.done() or task.cancelled() or task.exception() for task in pending.tasks):
                return
            try:
                self._feed(pending)
            except RuntimeError:
                if not self._in_pipeline:
                    raise
                return  # a batch inside broke the pipeline: its `finish` finds out
            self._waiting.popleft()
            self._in_pipeline.append(pending)

    def _feed(self, pending: _Pending) -> None:
        params, views = pending.plan.params, self._spec.num_views
        # crop_pos is a fraction of the free room; k / room comes back as offset k exactly (tests/test_dali.py).
        position = params.crop_yx.astype(np.float32) / np.float32(max(self._room, 1))
        pipe = self._pipeline
        pipe.feed_input("encoded", pending.encoded)
        for view in range(views):
            part = slice(view, None, views)
            pipe.feed_input(f"crop_y_{view}", np.ascontiguousarray(position[part, 0]))
            pipe.feed_input(f"crop_x_{view}", np.ascontiguousarray(position[part, 1]))
            pipe.feed_input(f"flip_{view}", params.flip[part].astype(np.int32))
            if not self._spec.holds_pixels:
                pipe.feed_input(f"shift_{view}", np.ascontiguousarray(-pending.plan.shifts[part]))
        pipe.schedule_run()

    def _collect(self, pending: _Pending) -> torch.Tensor:
        """Images of the oldest batch.

        DALI cannot skip a bad image: its whole pipeline is void then, with what else was inside. So a new one is
        built, and where another batch was the bad one, this one goes through it alone.
        """
        start = perf_counter()
        try:
            images = self._take_outputs()
        except RuntimeError as error:
            self._restart()
            self._name_bad_record(pending)
            self._waiting.remove(pending)
            try:
                self._feed(pending)
                self._in_pipeline.append(pending)
                images = self._take_outputs()
            except RuntimeError:
                raise RecordError(
                    f"{self._reader.directory}: DALI could not decode a batch of records {_shown(pending)}: {error}; "
                    "run `lmdali verify`"
                ) from error
        self._timers.add("copy", perf_counter() - start)
        return images

    def _take_outputs(self) -> torch.Tensor:
        """Take the oldest batch out of DALI into a tensor of our own."""
        outputs = self._pipeline.share_outputs()
        self._in_pipeline.popleft()
        views = [_to_torch(output, self._spec) for output in outputs]
        self._pipeline.release_outputs()
        # Views of one sample next to each other: (B, V, ...) -> (B * V, ...).
        images = views[0] if len(views) == 1 else torch.stack(views, dim=1).flatten(0, 1)
        return images.to(torch_dtype(self._spec.dtype))

    def _restart(self) -> None:
        """A new pipeline in place of a void one; batches that were inside wait again."""
        self._waiting.extendleft(reversed(self._in_pipeline))
        self._in_pipeline.clear()
        self._pipeline = self._build()

    def _name_bad_record(self, pending: _Pending) -> None:
        size = self._reader.manifest.image_size
        for index in pending.plan.indices:
            self._reader.read(int(index), lambda record: decode_stored(record.data, size), verify=False)


def _shown(pending: _Pending) -> str:
    return ", ".join(str(index) for index in pending.plan.indices[:8]) + (", ..." if len(pending.labels) > 8 else "")


def _to_torch(output: Any, spec: OutputSpec) -> torch.Tensor:
    dense = output.as_tensor()
    dtype = torch.uint8 if spec.holds_pixels else torch.float32
    tensor = torch.empty(tuple(dense.shape()), dtype=dtype, device=spec.device)
    if spec.device.type == "cuda":
        feed_ndarray(dense, tensor, cuda_stream=torch.cuda.current_stream(spec.device))
    else:
        feed_ndarray(dense, tensor)
    return tensor


def _build(image_size: int, transform: PixelTransform, spec: OutputSpec, num_threads: int) -> Pipeline:
    """The graph: decode once, then one `crop_mirror_normalize` per view."""
    on_gpu = spec.device.type == "cuda"
    pipeline = Pipeline(
        batch_size=spec.batch_size,
        num_threads=num_threads,
        device_id=(spec.device.index or 0) if on_gpu else None,
        # Batches are pushed in by `feed_input`, as many as we like: DALI must not run ahead of what it was fed.
        exec_pipelined=False,
        exec_async=True,
        prefetch_queue_depth=_MAX_SCHEDULED,
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=False)
        pixels = fn.decoders.image(
            encoded,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            # The accurate IDCT and upsampling, as libjpeg-turbo's defaults are: the same pixels as the CPU backend.
            use_fast_idct=False,
            jpeg_fancy_upsampling=True,
        )
        normalized = not spec.holds_pixels
        if normalized:
            pixels = pixels - types.Constant(transform.mean, device="gpu" if on_gpu else "cpu")
        views = [_view(pixels, view, normalized, transform, spec) for view in range(spec.num_views)]
        pipeline.set_outputs(*views)
    pipeline.build()
    return pipeline


def _view(pixels: Any, view: int, normalized: bool, transform: PixelTransform, spec: OutputSpec) -> Any:
    scalars = {
        name: fn.external_source(name=f"{name}_{view}", dtype=types.FLOAT, ndim=0) for name in ("crop_y", "crop_x")
    }
    flip = fn.external_source(name=f"flip_{view}", dtype=types.INT32, ndim=0)
    arithmetic: dict[str, Any] = {}
    if normalized:
        shift = fn.external_source(name=f"shift_{view}", dtype=types.FLOAT, ndim=1)
        arithmetic = {"mean": shift, "std": [1.0 / float(factor) for factor in transform.scale]}
    return fn.crop_mirror_normalize(
        pixels,
        crop=(spec.crop_size, spec.crop_size),
        crop_pos_y=scalars["crop_y"],
        crop_pos_x=scalars["crop_x"],
        mirror=flip,
        dtype=types.FLOAT if normalized else types.UINT8,
        output_layout="CHW" if spec.layout == "NCHW" else "HWC",
        **arithmetic,
    )
