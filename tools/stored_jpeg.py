"""Stored JPEGs decoded back by the loader's compiled decoder, where many are to come: the same pixels, sooner."""

from __future__ import annotations

import numpy as np

from lmdali.pipeline.decode import Pixels


class StoredJpegDecoder:
    """Decodes records of one encoder, one at a time.

    Args:
        size: side of the stored pictures, pixels.

    Raises:
        MissingExtraError: numba is not installed.
    """

    def __init__(self, size: int) -> None:
        # Imported where it is needed: numba takes a second.
        from lmdali.pipeline.jpeg_decoder import JpegDecoder
        from lmdali.pipeline.jpeg_kernel import new_planes
        from lmdali.pipeline.paint_kernel import paint_whole

        self._decoder, self._paint = JpegDecoder(size), paint_whole
        self._planes, self._windows = new_planes(1, size), np.array([[0, size, 0, size]])

    def __call__(self, data: bytes, out: Pixels) -> bool:
        """Decode one record.

        Args:
            data: the image file.
            out: `(size, size, 3)` uint8, C-contiguous, filled with RGB.

        Returns:
            Whether it was; if not, libjpeg-turbo is to decode it.
        """
        starts, stops = np.zeros(1, np.int64), np.array([len(data)])
        record = np.frombuffer(data, np.uint8)
        if not self._decoder.decode(record, starts, stops, self._windows, self._planes)[0]:
            return False
        self._paint(self._planes, out[np.newaxis])
        return True
