"""The DALI backend: the same order and draws, decoded and augmented by NVIDIA DALI on a GPU, or without one.

DALI's own LMDB readers shuffle in a buffer of about a thousand samples and give no sample numbers, so they cannot keep
the contract. Here our threads find the records in our order, and the graph takes them and the draws through
`external_source`. On a GPU the mixed decoder takes JPEG (hardware engines and nvJPEG together); raw records need no
decoder and enter as pixels. Lighting needs no operator of its own: it rides in the per-sample `mean` of
`crop_mirror_normalize`.

Stage timers: `decode` is what the consumer waits for DALI to decode and augment, `copy` what it takes to hand over.
"""

from __future__ import annotations

import weakref
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.batch_tasks import samples_per_task
from lmdali.pipeline.buffers import BufferRing
from lmdali.pipeline.dali_graph import build_graph, feed_draws
from lmdali.pipeline.errors import RecordError
from lmdali.pipeline.host_to_device import torch_dtype, upload
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.record_threads import RecordThreads
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.transfer import HeldMemory
from lmdali.pipeline.verify_policy import CrcPolicy

_MAX_SCHEDULED = 2
"""Batches inside DALI at a time; each costs the device one batch of decoded images."""


@dataclass(eq=False)
class _Pending:
    plan: BatchPlan
    images: Any  # a list of views of the shards, or for raw records on their way to a GPU one pinned array
    labels: NDArray[np.int64]
    tasks: list[Future[None]]


class DaliBackend:
    """Batches made by a DALI pipeline.

    On a GPU batches come without a copy: the tensor's memory is DALI's output buffer (DLPack). DALI would take that
    back in the order of its own stream, which knows nothing of the consumer's; so it is kept here until the device has
    passed what the consumer's stream was given by the time the last tensor on that memory went away. A consumer
    that reads a batch on yet another stream must let the current one wait for that. bfloat16 (unknown to DALI) and ten
    views are made from DALI's output by one pass of torch.

    Args:
        reader: the dataset.
        transform: the arithmetic of normalisation and lighting.
        spec: form and place of the batches; device "cpu" runs DALI's CPU operators.
        num_threads: threads that find records, and as many inside DALI.
        prefetch: batches that are started before the first of them is finished, less one.
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
        prefetch: int,
        crc: CrcPolicy,
        timers: StageTimers,
    ) -> None:
        self._reader, self._spec, self._timers = reader, spec, timers
        self._size, self._raw = reader.manifest.image_size, reader.manifest.encoding == "raw"
        self._on_gpu = spec.device.type == "cuda"
        self._mean = transform.constant_mean
        at_once = samples_per_task(spec.batch_size, num_threads, prefetch)
        self._threads = RecordThreads(reader, crc, num_threads, at_once, "lmdali-dali", timers)
        self._waiting: deque[_Pending] = deque()
        self._in_pipeline: deque[_Pending] = deque()
        # Shards are mapped from files, which a GPU can only read through a copy: better by all our threads than by one.
        shape = (spec.batch_size, self._size, self._size, 3)
        self._ring = BufferRing(shape, np.uint8, pinned=True) if self._raw and self._on_gpu else None
        self._held = HeldMemory(spec.device)
        self._build = partial(build_graph, self._size, transform, spec, num_threads=num_threads, raw=self._raw)
        self._pipeline = self._build()
        self._closed = False

    def start(self, plan: BatchPlan) -> _Pending:
        """Queue the batch's records on the reader threads."""
        count = len(plan.indices)
        images: Any = [None] * count if self._ring is None else self._ring.take(count)[0]
        pending = _Pending(plan, images, np.empty(count, np.int64), [])
        pending.tasks = self._threads.submit(count, partial(self._read, pending))
        if count:  # DALI takes no batch of nothing, which a rank may have at the end of an evaluation
            self._waiting.append(pending)
        self._schedule()
        return pending

    def finish(self, pending: _Pending) -> Batch:
        """Outputs of the oldest batch, which must be this one."""
        indices = torch.from_numpy(pending.plan.indices)
        if not len(indices):
            images = torch.empty((0, *self._spec.image_shape()), dtype=torch_dtype(self._spec.dtype))
            return Batch(images.to(self._spec.device), upload(pending.labels, self._spec.device), indices)
        try:
            for task in pending.tasks:
                task.result()
            self._schedule()
            images = self._collect(pending)
        except BaseException:
            self.cancel(pending)
            raise
        self._schedule()
        return Batch(images, upload(pending.labels, self._spec.device), indices)

    def is_ready(self, pending: _Pending) -> bool:
        """Whether all records are read; what DALI has done with them is not seen from here."""
        return all(task.done() for task in pending.tasks)

    def cancel(self, pending: _Pending) -> None:
        """Drop a batch; what is already inside DALI is taken out and thrown away."""
        self._threads.cancel(pending.tasks)
        try:
            while pending in self._in_pipeline:
                self._drop_oldest()
        except RuntimeError:
            self._restart()
        except AttributeError:  # the program ends, and DALI has freed its pipelines before it came to us
            self._in_pipeline.clear()
        if pending in self._waiting:
            self._waiting.remove(pending)

    def close(self) -> None:
        """Join the readers and free DALI's memory; batches that were delivered stay valid."""
        if not self._closed:
            self._closed = True
            self._threads.close()
            with suppress(RuntimeError):  # an undecodable image in there is nobody's concern any more
                while self._in_pipeline:
                    self._drop_oldest()
            self._held.close()
            del self._pipeline

    def _read(self, pending: _Pending, first: int, last: int) -> None:
        run = self._threads.find(pending.plan.indices[first:last])
        with self._timers.measure("read"):
            pending.labels[first:last] = run.labels
            for sample, start, stop in zip(range(first, last), run.starts.tolist(), run.stops.tolist(), strict=True):
                # A view: no copy is made, and what is in `pending` keeps the shards mapped.
                stored = run.bytes[start:stop]
                if not self._raw:
                    pending.images[sample] = stored
                    continue
                pixels = self._decode(int(pending.plan.indices[sample]), stored)
                if self._ring is None:
                    pending.images[sample] = pixels
                else:
                    np.copyto(pending.images[sample], pixels)

    def _decode(self, index: int, stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels of a record by the CPU backend's decoder, which names what is wrong with it; raw ones are a view."""
        try:
            return decode_stored(stored.data, self._size)
        except RecordError as error:
            raise RecordError(self._reader.describe(index, str(error))) from error

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
        self._pipeline.feed_input("images", pending.images)
        feed_draws(self._pipeline, pending.plan, self._spec, self._size, self._mean)
        self._pipeline.schedule_run()

    def _collect(self, pending: _Pending) -> torch.Tensor:
        """Images of the oldest batch.

        DALI cannot skip a bad image: its whole pipeline is void then, with what else was inside. So a new one is
        built, and where another batch was the bad one, this one goes through it alone.
        """
        try:
            return self._take_oldest()
        except RuntimeError as error:
            self._restart()
            self._name_bad_record(pending)
            self._waiting.remove(pending)
            try:
                self._feed(pending)
                self._in_pipeline.append(pending)
                return self._take_oldest()
            except RuntimeError:
                raise RecordError(
                    f"{self._reader.directory}: DALI could not decode a batch of records {_shown(pending)}: {error}; "
                    "run `lmdali verify`"
                ) from error

    def _take_oldest(self) -> torch.Tensor:
        """The oldest batch, in the order of the consumer's stream; the host waits until it is under way, no longer."""
        self._held.let_go()
        with self._timers.measure("decode"):
            stream = torch.cuda.current_stream(self._spec.device) if self._on_gpu else None
            outputs = self._pipeline.share_outputs(cuda_stream=stream)
        with self._timers.measure("copy"):
            pending = self._in_pipeline.popleft()
            # from_dlpack lets torch's current stream wait for DALI's, whatever stream the outputs are bound to.
            views = [self._lend(output.as_tensor()) for output in outputs]
            self._pipeline.release_outputs()
            if self._on_gpu:
                self._held.hold(pending.images)  # decoders may still read the host's memory
            # Views of one sample next to each other: (B, V, ...) -> (B * V, ...).
            images = views[0] if len(views) == 1 else torch.stack(views, dim=1).flatten(0, 1)
            return images.to(torch_dtype(self._spec.dtype))

    def _lend(self, output: Any) -> torch.Tensor:
        """DALI's memory as a tensor."""
        tensor = from_dlpack(output)
        if self._on_gpu:
            # The storage's Python object lives as long as anything looks at the memory: views, graphs, batches.
            weakref.finalize(tensor.untyped_storage(), self._held.hold, output).atexit = False
        return tensor

    def _name_bad_record(self, pending: _Pending) -> None:
        if not self._raw:
            for index, stored in zip(pending.plan.indices.tolist(), pending.images, strict=True):
                self._decode(index, stored)

    def _drop_oldest(self) -> None:
        self._pipeline.share_outputs()  # no stream: the host waits, so that nothing is read or written any more
        self._in_pipeline.popleft()
        self._pipeline.release_outputs()

    def _restart(self) -> None:
        """A new pipeline in place of a void one; batches that were inside wait again."""
        self._waiting.extendleft(reversed(self._in_pipeline))
        self._in_pipeline.clear()
        self._pipeline = self._build()


def _shown(pending: _Pending) -> str:
    return ", ".join(str(index) for index in pending.plan.indices[:8]) + (", ..." if len(pending.labels) > 8 else "")
