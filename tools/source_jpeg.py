"""JPEG sources by compiled loops, where many are to come: libjpeg-turbo's pixels in less time.

What the loops are not made for (see `source_jpeg_kernel`), and whatever is damaged, is left to libjpeg-turbo. They are
tried on pictures of noise first, and not used at all where a single byte is not libjpeg-turbo's.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from types import ModuleType

import numpy as np
import simplejpeg

from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import MissingExtraError
from lmdali.pipeline.image_header import ImageHeader
from lmdali.pipeline.jpeg_header import read_jpeg_header

_MAX_FILE_BYTES = 1 << 24
"""Larger files are rare, and the memory for their bits would stay."""

_TRIED_SIDES = ((64, 123), (32, 391))


class SourceJpegDecoder:
    """Decodes files, one at a time.

    Args:
        kernel: `source_jpeg_kernel`.
    """

    def __init__(self, kernel: ModuleType) -> None:
        self._kernel, self._scratch = kernel, kernel.Scratch()

    def __call__(self, data: bytes, header: ImageHeader, buffer: Pixels | None = None) -> Pixels | None:
        """Decode one file.

        Args:
            data: the file.
            header: what `read_header` says of it.
            buffer: `(n,)` uint8 memory for the pixels, used where it is large enough.

        Returns:
            `(H, W, 3)` uint8 RGB; None where libjpeg-turbo is to decode it.
        """
        if not header.is_baseline or len(data) > _MAX_FILE_BYTES:
            return None
        details = read_jpeg_header(data, len(data))
        if isinstance(details, str) or not self._kernel.is_made_for(details):
            return None
        if (details.height, details.width) != (header.height, header.width):
            return None
        size = 3 * header.height * header.width
        memory = np.empty(size, np.uint8) if buffer is None or len(buffer) < size else buffer[:size]
        pixels = memory.reshape(header.height, header.width, 3)
        return pixels if self._kernel.decode_picture(data, details, self._scratch, pixels) else None


def source_jpeg_decoder() -> SourceJpegDecoder | None:
    """A decoder; None where numba is missing or its pixels are not libjpeg-turbo's."""
    kernel = _kernel_like_libjpeg()
    return None if kernel is None else SourceJpegDecoder(kernel)


@cache
def _kernel_like_libjpeg() -> ModuleType | None:
    try:
        from lmdali.tools import source_jpeg_kernel
    except (MissingExtraError, MemoryError):
        return None
    random = np.random.default_rng(0)
    decode = SourceJpegDecoder(source_jpeg_kernel)
    for height, width, sampling in product(*_TRIED_SIDES, ("444", "420")):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        data = simplejpeg.encode_jpeg(pixels, 95, "RGB", sampling, fastdct=False)
        made = decode(data, ImageHeader("jpeg", width, height, 3, is_baseline=True))
        if made is None or not np.array_equal(made, simplejpeg.decode_jpeg(data, "RGB", fastdct=False)):
            return None
    return source_jpeg_kernel
