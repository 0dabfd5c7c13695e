"""What a backend is given and what it must deliver: the seam between the order of samples and their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentConfig, AugmentParams

if TYPE_CHECKING:
    import torch

    from lmdali.pipeline.batch import Batch

BackendName = Literal["auto", "cpu", "dali", "synthetic"]
DType = Literal["float32", "float16", "bfloat16", "uint8"]
Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class OutputSpec:
    """The form of a batch.

    Attributes:
        batch_size: samples in the largest batch.
        num_views: views per sample.
        crop_size: side of a view, pixels.
        dtype: of the images.
        layout: axis order of the images.
        device: where the batch is delivered.
        resized: views are windows of any size, resized; the draws have their sides.
    """

    batch_size: int
    num_views: int
    crop_size: int
    dtype: DType
    layout: Layout
    device: torch.device
    resized: bool = False

    @classmethod
    def of(
        cls, augment: AugmentConfig, batch_size: int, dtype: DType, layout: Layout, device: torch.device
    ) -> OutputSpec:
        """The form of batches that an augmentation makes."""
        resized = augment.crop == "resized"
        return cls(batch_size, augment.num_views, augment.crop_size, dtype, layout, device, resized)

    @property
    def num_images(self) -> int:
        """Images in the largest batch."""
        return self.batch_size * self.num_views

    @property
    def holds_pixels(self) -> bool:
        """Whether images are stored pixels, cropped and flipped and no more."""
        return self.dtype == "uint8"

    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image in this layout."""
        size = self.crop_size
        return (3, size, size) if self.layout == "NCHW" else (size, size, 3)


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Everything about a batch but its pixels and labels.

    Attributes:
        indices: (B,) int64 record numbers.
        params: draws for the B * V views.
        shifts: (B * V, 3) float32 lighting shifts, gray levels.
        scale: (3,) float32 factors per channel, those of the epoch.
    """

    indices: NDArray[np.int64]
    params: AugmentParams
    shifts: NDArray[np.float32]
    scale: NDArray[np.float32]


class Backend(Protocol):
    """Turns plans into batches. `start` returns at once; batches are finished in the order they were started."""

    def start(self, plan: BatchPlan) -> Any:
        """Begin to work on a batch; the return value is handed to `finish` or `cancel`."""
        ...

    def finish(self, pending: Any) -> Batch:
        """Wait for a batch. Raises what went wrong with it."""
        ...

    def is_ready(self, pending: Any) -> bool:
        """Whether `finish` would return without waiting for our threads."""
        ...

    def cancel(self, pending: Any) -> None:
        """Give up a started batch; afterwards nobody writes to its memory."""
        ...

    def close(self) -> None:
        """Stop threads; may be called twice."""
        ...
