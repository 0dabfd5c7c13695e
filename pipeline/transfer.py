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

from lmdali.pipeline.augment import PixelTransform
from lmdali.pipeline.backend import BatchPlan, OutputSpec


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of that name."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def upload(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A small array on the device, in the order of its current stream, without waiting for the copy.

    On a GPU the values pass through pinned memory of torch's own, which torch does not use again before the copy is
    done. On the CPU the tensor shares the array's memory.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


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

    def hold(self, memory: object) -> None:
        """Keep `memory` until the device has done what its current stream has been given so far."""
        event = self._record(self._device)
        if self._closed:  # nobody would ever let go of it
            event.synchronize()
        else:
            self._held.append((event, memory))

    def let_go(self) -> None:
        """Drop what the device is done with."""
        while self._held and self._held[0][0].query():
            self._held.popleft()

    def close(self) -> None:
        """Wait for the device and drop everything; what comes later is waited for one by one."""
        self._closed = True
        while self._held:
            self._held.popleft()[0].synchronize()


class DeviceNormalizer:
    """Applies a `PixelTransform` to uint8 patches with torch operations on any device.

    (pixel - mean + shift) * scale is rounded after each operation, as the CPU backend's compiled loop does it, so a
    batch made on a GPU equals one made on the CPU bit for bit. What is the identity is left out; the last operation
    writes the batch's own dtype and layout. A mean image costs one pass that gathers each patch's part of it from a
    table that fits the L2 cache, unless all patches lose the same window. So: 3 passes with the paper's mean image and
    lighting, 2 without lighting, 1 for a mean per channel or a central window; a scale (std, 2012 code) adds one;
    pixels need one for NCHW or a float dtype, none for NHWC uint8.

    Args:
        transform: the arithmetic; its mean image is kept on the device. Shifts and scale are each plan's.
        spec: form and place of the output.
    """

    def __init__(self, transform: PixelTransform, spec: OutputSpec) -> None:
        self._spec, self._planar = spec, spec.layout == "NCHW"
        self._height, self._width, _ = transform.mean.shape
        self._mean = self._table = None
        if transform.centered:
            window = torch.from_numpy(transform.central_mean(spec.crop_size))
            self._mean = (window.permute(2, 0, 1) if self._planar else window).contiguous().to(spec.device)
        elif not (transform.mean == transform.mean[0, 0]).all():
            self._table = self._mean_table(transform.mean)
        elif transform.mean.any():
            self._mean = self._per_channel(torch.from_numpy(transform.mean[0, 0].copy())).to(spec.device)
        self._scales: dict[bytes, torch.Tensor] = {}

    def __call__(self, patches: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
        """Images from patches.

        Args:
            patches: (B * V, S, S, 3) uint8 RGB on the device, cropped and flipped.
            plan: the same plan that the patches were cut by.

        Returns:
            (B * V, 3, S, S) or (B * V, S, S, 3) in the spec's dtype, contiguous; `patches` itself where nothing is to
            be done.
        """
        dtype = torch_dtype(self._spec.dtype)
        images = patches.permute(0, 3, 1, 2) if self._planar else patches
        steps = self._steps(plan)
        if not steps:
            return images.to(dtype).contiguous()
        for number, (operation, operand) in enumerate(steps, start=1):
            kind = dtype if number == len(steps) else torch.float32
            # In place where it fits: fresh memory would cost the cache.
            out = images if images.dtype == kind else torch.empty(images.shape, dtype=kind, device=images.device)
            images = operation(images, operand, out=out)
        return images

    def _steps(self, plan: BatchPlan) -> list[tuple[Callable[..., torch.Tensor], torch.Tensor]]:
        """The operations of this batch that change anything, in the order of the formula."""
        steps: list[tuple[Callable[..., torch.Tensor], torch.Tensor]] = []
        if self._table is not None:
            steps.append((torch.sub, self._table.index_select(0, upload(self._offsets(plan), self._spec.device))))
        elif self._mean is not None:
            steps.append((torch.sub, self._mean))
        if plan.shifts.any():
            steps.append((torch.add, self._per_channel(upload(plan.shifts, self._spec.device))))
        if not (plan.scale == 1).all():
            steps.append((torch.mul, self._scale(plan.scale)))
        return steps

    def _scale(self, scale: NDArray[np.float32]) -> torch.Tensor:
        """A scale on the device. A run has one or two of them, so they stay there."""
        key = scale.tobytes()
        if key not in self._scales:
            self._scales[key] = self._per_channel(torch.from_numpy(scale.copy())).to(self._spec.device)
        return self._scales[key]

    def _per_channel(self, values: torch.Tensor) -> torch.Tensor:
        """(..., 3) as something that broadcasts over a batch of this layout."""
        axes = (3, 1, 1) if self._planar else (1, 1, 3)
        return values.reshape(*values.shape[:-1], *axes)

    def _mean_table(self, mean: NDArray[np.float32]) -> torch.Tensor:
        """Every patch of the mean image and of its mirror image as one row of a view: no patch is stored.

        The number of a row is the number of its first pixel, so rows that run past an edge exist too; nobody asks for
        them.
        """
        size, (height, width) = self._spec.crop_size, (self._height, self._width)
        both = np.stack([mean, mean[:, ::-1]])  # (2, H, W, 3)
        if self._planar:
            both = both.transpose(0, 3, 1, 2)
        flat = torch.from_numpy(np.ascontiguousarray(both)).to(self._spec.device).flatten()
        last = self._first_pixel(np.ones(1, np.int64), np.array([[height - size, width - size]]))
        rows = int(last[0]) + 1
        if self._planar:
            return flat.as_strided((rows, 3, size, size), (1, height * width, width, 1))
        return flat.as_strided((rows, size, size, 3), (3, 3 * width, 3, 1))

    def _offsets(self, plan: BatchPlan) -> NDArray[np.int64]:
        """(B * V,) int64 rows of the table that belong to the patches."""
        flip, crop_yx = plan.params.flip.astype(np.int64), plan.params.crop_yx.copy()
        room = self._width - self._spec.crop_size
        crop_yx[:, 1] = np.where(plan.params.flip, room - crop_yx[:, 1], crop_yx[:, 1])
        return self._first_pixel(flip, crop_yx)

    def _first_pixel(self, mirrored: NDArray[np.int64], corner_yx: NDArray[np.int64]) -> NDArray[np.int64]:
        images_apart = self._height * self._width * (3 if self._planar else 1)
        return np.asarray(mirrored * images_apart + corner_yx[:, 0] * self._width + corner_yx[:, 1], np.int64)


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
        with torch.cuda.stream(self._stream):
            patches_there = patches.to(self._device, non_blocking=True)
            images = self._normalize(patches_there if self._cut is None else self._cut(patches_there, plan), plan)
            on_device_labels = upload(labels, self._device)
            self._held.hold(patches)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_event(event)
        for tensor in (images, on_device_labels):
            tensor.record_stream(consumer)
        return images, on_device_labels

    def close(self) -> None:
        """Wait until no copy reads the caller's memory any more."""
        self._held.close()
