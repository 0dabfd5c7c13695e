"""Where retrieved images stand in the order of raw pixel distance.

The paper (section 6.1): "Notice that at the pixel level, the retrieved training images are generally not close in L2 to
the query images in the first column." Percentiles put a number to that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from lmdali.model.pen import Pixels
from lmdali.pipeline.batch import Loader
from lmdali.pipeline.errors import InputError, IntegrityError


@dataclass(frozen=True, eq=False)
class PixelOrder:
    """Pixel distances of retrieved images.

    Attributes:
        distances: `(Q, k)` float64, root of the summed squared differences of gray levels.
        percentiles: `(Q, k)` float64: the part of all other images that is nearer to the query in pixels, 0 for the
            nearest of all and 100 for the farthest; about 50 where pixels say nothing.
    """

    distances: NDArray[np.float64]
    percentiles: NDArray[np.float64]


def order_by_pixels(
    loader: Loader,
    queries: Pixels,
    retrieved: NDArray[np.int64],
    own: NDArray[np.int64],
    *,
    on_progress: Callable[[int], None] = lambda done: None,
) -> PixelOrder:
    """Measure each query against every image of a dataset, and see where those stand that were retrieved.

    Args:
        loader: delivers every image once, `(B, S, S, 3)` uint8 RGB, in any order.
        queries: `(Q, S, S, 3)` uint8 RGB.
        retrieved: `(Q, k)` record numbers.
        own: `(Q,)` record number of the query itself, which does not count, or -1.
        on_progress: told the number of images done.

    Raises:
        InputError: the images have another size than the queries.
        IntegrityError: the loader left an image out.
    """
    squares = np.full((len(queries), loader.num_samples), np.nan)
    done = 0
    for batch in loader:
        images = batch.images.cpu().numpy()
        if images.shape[1:] != queries.shape[1:]:
            raise InputError(
                f"images of {images.shape[1:]} cannot be compared with queries of {queries.shape[1:]}: use datasets of "
                "one image size"
            )
        for index, image in zip(batch.indices.tolist(), images, strict=True):
            squares[:, index] = [cv2.norm(image, query, cv2.NORM_L2SQR) for query in queries]
        done += len(images)
        on_progress(done)
    if np.isnan(squares).any():
        raise IntegrityError(f"{int(np.isnan(squares[0]).sum())} of {loader.num_samples} images were not delivered")
    return _percentiles(squares, retrieved, own)


def _percentiles(squares: NDArray[np.float64], retrieved: NDArray[np.int64], own: NDArray[np.int64]) -> PixelOrder:
    chosen = np.take_along_axis(squares, retrieved, axis=1)
    for row, record in enumerate(own.tolist()):
        if record >= 0:
            squares[row, record] = np.inf
    nearer = (np.sort(squares, axis=1)[:, None, :] < chosen[:, :, None]).sum(axis=2)
    others = squares.shape[1] - (own >= 0) - 1
    return PixelOrder(np.sqrt(chosen), 100.0 * nearer / np.maximum(others, 1)[:, None])
