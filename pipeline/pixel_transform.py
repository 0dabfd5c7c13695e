"""The arithmetic of augmentation: what a pixel loses, what lighting adds to it, and what it is multiplied by.

`AugmentConfig` says what is wanted, a dataset's statistics have the numbers; `augment_reference` does it in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentConfig, AugmentParams
from lmdali.pipeline.eigenbasis import Eigenbasis
from lmdali.pipeline.errors import ConfigError

_IMAGENET_MEAN = 255 * np.array([0.485, 0.456, 0.406])
IMAGENET_DEVIATION = 255 * np.array([0.229, 0.224, 0.225])
"""(3,) gray levels: what `normalize="imagenet"` divides by, as torchvision does."""


@dataclass(frozen=True, eq=False)
class PixelTransform:
    """The arithmetic of one dataset and config: out = (pixel - mean + shift) * scale, in gray levels.

    Attributes:
        mean: (H, W, 3) float32, the mean image or a constant; zeros for "none".
        scale: (3,) float32 factors per channel.
        vectors: (3, 3) float32; `alphas @ vectors.T` is the shift of each image, gray levels.
        centered: every view loses the central window of the mean, whatever its crop and flip.
        unlit: (epoch, (3,) float32): from that epoch on images are not lit, and this is their scale; None for never.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    vectors: NDArray[np.float32]
    centered: bool = False
    unlit: tuple[int, NDArray[np.float32]] | None = None

    def at(self, epoch: int) -> PixelTransform:
        """The arithmetic of one epoch, counted from 0: `scale` is the epoch's."""
        if self.unlit is None or epoch < self.unlit[0]:
            return self
        return replace(self, scale=self.unlit[1], unlit=None)

    def central_mean(self, size: int) -> NDArray[np.float32]:
        """(size, size, 3) float32, the central window of the mean."""
        y, x = ((side - size) // 2 for side in self.mean.shape[:2])
        return self.mean[y : y + size, x : x + size]

    @property
    def constant_mean(self) -> NDArray[np.float32] | None:
        """(3,) float32 gray levels that all pixels of all views lose; None for a mean image or its window."""
        first: NDArray[np.float32] = self.mean[0, 0]
        return first if not self.centered and (self.mean == first).all() else None

    def view_mean(self, crop_yx: NDArray[np.int64], flip: bool, size: int) -> NDArray[np.float32]:
        """(size, size, 3) float32, what is subtracted from a view as it is delivered: cropped, and perhaps mirrored."""
        if self.centered:
            return self.central_mean(size)
        y, x = crop_yx
        window = self.mean[y : y + size, x : x + size]
        return window[:, ::-1] if flip else window

    def shifts(self, params: AugmentParams) -> NDArray[np.float32]:
        """(B * V, 3) float32 lighting shift of each view, gray levels."""
        return np.asarray(params.alphas.astype(np.float64) @ self.vectors.T.astype(np.float64), np.float32)


def pixel_transform(config: AugmentConfig, basis: Eigenbasis | None, image_size: int) -> PixelTransform:
    """Resolve a config against the statistics of a dataset.

    Raises:
        ConfigError: statistics are needed and not there, or the mean image has another size.
    """
    mean = np.zeros((image_size, image_size, 3), np.float32)
    scale, vectors = np.ones(3, np.float32), np.zeros((3, 3), np.float32)
    if config.normalize == "imagenet":
        mean, scale = mean + _IMAGENET_MEAN.astype(np.float32), (1 / IMAGENET_DEVIATION).astype(np.float32)
    if not config.needs_basis:
        return PixelTransform(mean, scale, vectors)
    if basis is None:
        raise ConfigError("mean subtraction and lighting need statistics: run `lmdali pca` on the training set")
    if config.normalize == "mean_image":
        if basis.mean_image is None or basis.mean_image.shape != mean.shape:
            found = None if basis.mean_image is None else basis.mean_image.shape
            raise ConfigError(
                f'normalize="mean_image" needs a mean image of {mean.shape}, the statistics have {found}: take '
                'those of a dataset of this size as basis, or normalize="channel_mean"'
            )
        mean = basis.mean_image
    elif config.normalize in ("channel_mean", "channel_mean_std"):
        mean = np.broadcast_to(basis.mean.astype(np.float32), mean.shape).copy()
    if config.normalize == "channel_mean_std":
        scale = (1.0 / np.maximum(basis.std, 1e-6)).astype(np.float32)
    if config.lighting == "eigenvalues":
        # The text's rule is not free of units: lambda is meant on the scale 0..1 (docs/format.md, statistics).
        vectors = (basis.eigenvectors * (255.0 * basis.unit_eigenvalues)).astype(np.float32)
    elif config.lighting == "roots":
        vectors = (basis.eigenvectors * np.sqrt(basis.eigenvalues)).astype(np.float32)
    unlit = None
    if config.lighting_rescale:
        unlit = None if config.lighting_epochs is None else (config.lighting_epochs, scale)
        scale = scale / np.float32(1.0 + config.lighting_std)
    centered = config.normalize == "mean_image" and config.mean_window == "center"
    return PixelTransform(mean, scale, vectors, centered, unlit)
