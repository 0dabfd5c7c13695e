"""From uint8 patches to normalised images on the device: the CPU backend's last step when a GPU follows.

uint8 crosses the bus, a quarter of float32's bytes; mean, shift, scale and layout are applied where the batch ends up.
"""

from __future__ import annotations

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


class DeviceNormalizer:
    """Applies a `PixelTransform` to uint8 patches with torch operations on any device.

    Args:
        transform: the arithmetic; its mean image is kept on the device.
        spec: form and place of the output.
    """

    def __init__(self, transform: PixelTransform, spec: OutputSpec) -> None:
        self._spec = spec
        self._identity = transform.is_identity
        self._mean = torch.from_numpy(transform.mean).to(spec.device)
        self._scale = torch.from_numpy(transform.scale).to(spec.device)

    def __call__(self, patches: torch.Tensor, plan: BatchPlan) -> torch.Tensor:
        """Images from patches.

        Args:
            patches: (B * V, S, S, 3) uint8 RGB on the device, cropped and flipped.
            plan: the same plan that the patches were cut by.

        Returns:
            Images in the spec's dtype and layout, contiguous.
        """
        images = patches
        if not self._identity:
            shifts = self._to_device(plan.shifts)
            images = (patches.to(torch.float32) - self._mean_patches(plan) + shifts[:, None, None]) * self._scale
        if self._spec.layout == "NCHW":
            images = images.permute(0, 3, 1, 2)
        return images.to(torch_dtype(self._spec.dtype)).contiguous()

    def _mean_patches(self, plan: BatchPlan) -> torch.Tensor:
        """(B * V, S, S, 3) float32: the mean image cut and flipped as each view was."""
        span = np.arange(self._spec.crop_size)
        mirrored = np.where(plan.params.flip[:, None], span[::-1], span)
        rows = self._to_device(plan.params.crop_yx[:, :1] + span)
        columns = self._to_device(plan.params.crop_yx[:, 1:] + mirrored)
        return self._mean[rows[:, :, None], columns[:, None, :]]

    def _to_device(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._spec.device, non_blocking=True)


class DeviceCopier:
    """Copies pinned host batches on a stream of its own, so that the copy runs beside the consumer's kernels.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, host: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Start a copy; the event is recorded after it."""
        with torch.cuda.stream(self._stream):
            on_device = host.to(self._device, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return on_device, event

    def hand_over(self, on_device: torch.Tensor, event: torch.cuda.Event) -> None:
        """Let the consumer's current stream wait for the copy, and keep the memory until it is done with it."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(event)
        on_device.record_stream(stream)
