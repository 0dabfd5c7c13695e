"""What most people write by hand: libjpeg-turbo, OpenCV's area filter, central square, libjpeg-turbo."""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from converters import Job

cv2.setNumThreads(1)


def square(data: bytes, job: Job) -> NDArray[np.uint8]:
    """The pixels, RGB; gray and CMYK as well."""
    if simplejpeg.decode_jpeg_header(data)[2] == "CMYK":
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    else:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    height, width = pixels.shape[:2]
    scale = job.size / min(height, width)
    new_width, new_height = max(round(width * scale), job.size), max(round(height * scale), job.size)
    pixels = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (new_height - job.size) // 2, (new_width - job.size) // 2
    return np.array(pixels[top : top + job.size, left : left + job.size], np.uint8)


def picture(data: bytes, job: Job) -> bytes:
    """One JPEG."""
    encoded: bytes = simplejpeg.encode_jpeg(square(data, job), job.quality, "RGB", "420")
    return encoded
