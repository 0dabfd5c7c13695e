"""From uint8 patches to normalised images where the batch ends up, exactly as on the CPU: `DeviceNormalizer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.gpu_kernels import has_gpu_kernels
from lmdali.pipeline.host_to_device import torch_dtype, upload, upload_together
from lmdali.pipeline.pixel_transform import PixelTransform


class DeviceNormalizer:
    """Applies a `PixelTransform` to uint8 patches on any device.

    (pixel - mean + shift) * scale is rounded after each operation, as the CPU backend's compiled loop does it, so a
    batch made on a GPU equals one made on the CPU bit for bit. On a GPU with Triton that is one pass over memory.
    Elsewhere it is one of torch's operations after the other, which is also what the kernel is tested against: what is
    the identity is left out, and the last one writes the batch's own dtype and layout. A mean image costs one more
    pass there, which gathers each patch's part of it from a table, unless all patches lose the same window.

    Args:
        transform: the arithmetic; its mean image is kept on the device. Shifts and scale are each plan's.
        spec: form and place of the output.
    """

    def __init__(self, transform: PixelTransform, spec: OutputSpec) -> None:
        self._spec, self._planar = spec, spec.layout == "NCHW"
        self._height, self._width, _ = transform.mean.shape
        self._aligned = False
        mean: NDArray[np.float32] | None = None
        if transform.centered:
            mean = transform.central_mean(spec.crop_size)[None]
            self._height = self._width = spec.crop_size
        elif not (transform.mean == transform.mean[0, 0]).all():
            mean, self._aligned = np.stack([transform.mean, transform.mean[:, ::-1]]), True
        elif transform.mean.any():
            mean = transform.mean[:1, :1][None]
            self._height = self._width = 0
        self._mean = None if mean is None else self._on_device(mean)
        self._scales: dict[bytes, torch.Tensor] = {}

    def operands(self, plan: BatchPlan) -> list[NDArray[np.generic]]:
        """What must be on the device besides the patches.

        Returns:
            (B * V,) int64, where in the mean's images the part begins that each patch loses, unless that is the same
            for all; and (B * V, 3) float32 shifts, unless there are none.
        """
        first = [self._first(plan)] if self._aligned else []
        return [*first, plan.shifts] if plan.shifts.any() else [*first]

    def __call__(
        self, patches: torch.Tensor, plan: BatchPlan, uploaded: Sequence[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Images from patches.

        Args:
            patches: (B * V, S, S, 3) uint8 RGB on the device, contiguous, cropped and flipped.
            plan: the same plan that the patches were cut by.
            uploaded: `operands(plan)` on the device; None brings them there.

        Returns:
            (B * V, 3, S, S) or (B * V, S, S, 3) in the spec's dtype, contiguous; `patches` itself where nothing is to
            be done.
        """
        if uploaded is None:
            uploaded = upload_together(self.operands(plan), self._spec.device)
        first = uploaded[0] if self._aligned else None
        shifts = uploaded[-1] if len(uploaded) > int(self._aligned) else None
        scale = None if (plan.scale == 1).all() else self._scale(plan.scale)
        if self._mean is None and shifts is None and scale is None:
            images = patches.permute(0, 3, 1, 2) if self._planar else patches
            return images.to(torch_dtype(self._spec.dtype)).contiguous()
        if has_gpu_kernels(patches.device):
            return self._in_one_pass(patches, first, shifts, scale)
        return self._step_by_step(patches, first, shifts, scale)

    def _in_one_pass(
        self,
        patches: torch.Tensor,
        first: torch.Tensor | None,
        shifts: torch.Tensor | None,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        from lmdali.pipeline.normalise_kernel import MeanTable, normalise  # Triton is there

        shape = (len(patches), *self._spec.image_shape())
        out = torch.empty(shape, dtype=torch_dtype(self._spec.dtype), device=patches.device)
        mean = None if self._mean is None else MeanTable(self._mean, self._width, self._height)
        normalise(patches, out, mean, first, shifts, scale, planar=self._planar)
        return out

    def _step_by_step(
        self,
        patches: torch.Tensor,
        first: torch.Tensor | None,
        shifts: torch.Tensor | None,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        steps: list[tuple[Callable[..., torch.Tensor], torch.Tensor]] = []
        if self._mean is not None:
            steps.append((torch.sub, self._view_means(self._mean, first)))
        if shifts is not None:
            steps.append((torch.add, self._per_channel(shifts)))
        if scale is not None:
            steps.append((torch.mul, self._per_channel(scale)))
        images = patches.permute(0, 3, 1, 2) if self._planar else patches
        dtype = torch_dtype(self._spec.dtype)
        for number, (operation, operand) in enumerate(steps, start=1):
            kind = dtype if number == len(steps) else torch.float32
            # In place where it fits: fresh memory would cost the cache.
            out = images if images.dtype == kind else torch.empty(images.shape, dtype=kind, device=images.device)
            images = operation(images, operand, out=out)
        return images

    def _scale(self, scale: NDArray[np.float32]) -> torch.Tensor:
        """A scale on the device. A run has one or two of them, so they stay there."""
        key = scale.tobytes()
        if key not in self._scales:
            self._scales[key] = upload(scale.copy(), self._spec.device)
        return self._scales[key]

    def _per_channel(self, values: torch.Tensor) -> torch.Tensor:
        """(..., 3) as something that broadcasts over a batch of this layout."""
        axes = (3, 1, 1) if self._planar else (1, 1, 3)
        return values.reshape(*values.shape[:-1], *axes)

    def _on_device(self, means: NDArray[np.float32]) -> torch.Tensor:
        """(N, H, W, 3) images in the batch's layout, flat."""
        laid_out = means.transpose(0, 3, 1, 2) if self._planar else means
        return torch.from_numpy(np.ascontiguousarray(laid_out)).to(self._spec.device).flatten()

    def _view_means(self, mean: torch.Tensor, first: torch.Tensor | None) -> torch.Tensor:
        """What each patch loses, or what all of them lose."""
        if first is None:
            return mean.reshape(self._spec.image_shape()) if self._width else self._per_channel(mean)
        # Every patch of the mean image and of its mirror image is a row of this view, which stores none of them. The
        # number of a row is that of its first pixel, so rows that run past an edge exist too; nobody asks for them.
        size, (height, width) = self._spec.crop_size, (self._height, self._width)
        last = self._first_pixel(np.ones(1, np.int64), np.array([[height - size, width - size]]))
        rows = int(last[0]) + 1
        if self._planar:
            table = mean.as_strided((rows, 3, size, size), (1, height * width, width, 1))
        else:
            table = mean.as_strided((rows, size, size, 3), (3, 3 * width, 3, 1))
        return table.index_select(0, first)

    def _first(self, plan: BatchPlan) -> NDArray[np.int64]:
        """(B * V,) int64: where in the mean's images the part begins that each patch loses."""
        flip, crop_yx = plan.params.flip.astype(np.int64), plan.params.crop_yx.copy()
        room = self._width - self._spec.crop_size
        crop_yx[:, 1] = np.where(plan.params.flip, room - crop_yx[:, 1], crop_yx[:, 1])
        return self._first_pixel(flip, crop_yx)

    def _first_pixel(self, mirrored: NDArray[np.int64], corner_yx: NDArray[np.int64]) -> NDArray[np.int64]:
        images_apart = self._height * self._width * (3 if self._planar else 1)
        return np.asarray(mirrored * images_apart + corner_yx[:, 0] * self._width + corner_yx[:, 1], np.int64)
