"""From uint8 patches in pinned memory to normalised images on a GPU: the CPU backend's last step.

uint8 crosses the bus, a quarter of float32's bytes; mean, shift, scale, layout and dtype are made where the batch ends
up. Nothing here makes the host wait for the device: streams wait for streams, and memory that the device still reads is
kept until an event says that it no longer does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.host_to_device import Uploader
from lmdali.pipeline.normaliser import DeviceNormalizer
from lmdali.pipeline.pixel_transform import PixelTransform

_LABEL_BYTES, _OPERAND_BYTES = 8, 8 + 12
"""Of a sample, and of a view: where its part of the mean begins, and three shifts."""


class Event(Protocol):
    """A place in a stream."""

    def query(self) -> bool:
        """Whether the device has passed it."""
        ...

    def synchronize(self) -> None:
        """Wait until it has."""
        ...


def _current_event(device: torch.device) -> Event:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


class HeldMemory:
    """Keeps memory alive that a device may still read, and lets go of it later without waiting.

    Args:
        device: whose current stream is meant by "now".
        record: makes an event on that stream; for tests.
    """

    def __init__(self, device: torch.device, record: Callable[[torch.device], Event] = _current_event) -> None:
        self._device, self._record = device, record
        # No lock: the garbage collector may call `hold` at any time, in any thread. A deque's ends are atomic.
        self._held: deque[tuple[Event, object]] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, memory: object, event: Event | None = None) -> None:
        """Keep `memory` until the device has passed `event`; None means what its current stream was given so far."""
        self._held.append((event or self._record(self._device), memory))
        if self._closed:  # looked at last: where another thread closes meanwhile, one of the two drops it
            self._drop_all()

    def let_go(self) -> None:
        """Drop what the device is done with."""
        while self._held and self._held[0][0].query():
            self._held.popleft()

    def close(self) -> None:
        """Wait for the device and drop everything; what comes later is waited for one by one."""
        self._closed = True
        self._drop_all()

    def _drop_all(self) -> None:
        while True:
            try:
                event, memory = self._held.popleft()
            except IndexError:  # another thread may have taken the last one
                return
            event.synchronize()
            del memory  # not before: the device may be reading it


class DeviceTransfer:
    """Sends batches to a GPU on a stream of its own, where they are also normalised, beside the consumer's kernels.

    Args:
        transform: the arithmetic.
        spec: form and place of the batches; the device is a GPU.
        cut: makes the patches of a plan on the device, from whole images; None where they come as patches.
    """

    def __init__(
        self,
        transform: PixelTransform,
        spec: OutputSpec,
        cut: Callable[[torch.Tensor, BatchPlan], torch.Tensor] | None = None,
    ) -> None:
        self._device, self._cut = spec.device, cut
        self._normalize = DeviceNormalizer(transform, spec)
        self._stream = torch.cuda.Stream(spec.device)  # type: ignore[no-untyped-call]
        self._held = HeldMemory(spec.device)
        operands = _LABEL_BYTES * spec.batch_size + _OPERAND_BYTES * spec.num_images
        self._uploader = Uploader(spec.device, operands // 8 + 8)

    def send(
        self, patches: torch.Tensor, labels: NDArray[np.int64], plan: BatchPlan
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Start the copy of a batch. The consumer's current stream waits for it; the host does not.

        Args:
            patches: (B, S, S, 3) uint8 in pinned memory, or (B, H, H, 3) whole images where there is a `cut`. Held
                here until the copy has read it: whoever owns the memory may use it again when the tensor is gone.
            labels: (B,) int64.
            plan: of the batch.

        Returns:
            Images in the spec's form, and labels, on the device.
        """
        self._held.let_go()
        arrays = [labels, *self._normalize.operands(plan)]
        with torch.cuda.stream(self._stream):
            patches_there = patches.to(self._device, non_blocking=True)
            (on_device_labels, *operands), packed = self._uploader.send(arrays)
            cut = patches_there if self._cut is None else self._cut(patches_there, plan)
            images = self._normalize(cut, plan, operands)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        self._held.hold((patches, packed), event)
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_event(event)
        for tensor in (images, on_device_labels):
            tensor.record_stream(consumer)
        return images, on_device_labels

    def close(self) -> None:
        """Wait until no copy reads the caller's memory any more."""
        self._held.close()
