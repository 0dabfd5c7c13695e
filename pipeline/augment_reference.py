"""The NumPy reference that applies draws: what every backend and kernel is tested against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentParams
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.resized_crop import resize_window


def apply_params(
    pixels: NDArray[np.uint8], params: AugmentParams, transform: PixelTransform, crop_size: int
) -> NDArray[np.float32]:
    """The reference: views of decoded images, one plain NumPy step after the other.

    Args:
        pixels: (B, H, W, 3) uint8 RGB.
        params: draws for the B * V views.
        transform: the arithmetic of the epoch, `transform.at(epoch)`.
        crop_size: side S of a view.

    Returns:
        (B * V, S, S, 3) float32, gray levels minus the mean, times the scale.
    """
    views_per_image = len(params) // len(pixels)
    shifts = transform.shifts(params)
    out = np.empty((len(params), crop_size, crop_size, 3), np.float32)
    for view, (y, x) in enumerate(params.crop_yx):
        height, width = (crop_size, crop_size) if params.sides is None else params.sides[view]
        patch, flip = pixels[view // views_per_image, y : y + height, x : x + width], bool(params.flip[view])
        if params.sides is None:
            mean = transform.view_mean(params.crop_yx[view], flip, crop_size)
        else:
            patch, mean = resize_window(patch, crop_size), transform.mean[0, 0]  # the same for all pixels
        patch = patch[:, ::-1] if flip else patch
        out[view] = (patch.astype(np.float32) - mean + shifts[view]) * transform.scale
    return out
