"""How near the pictures of a converter come to the best filter of the same window: PSNR against Pillow's Lanczos."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from convert_run import module_of
from converters import Converter, Job
from numpy.typing import NDArray
from PIL import Image


def mean_psnr(converter: Converter, files: Sequence[bytes], job: Job) -> float:
    """Mean over pictures of the PSNR of each decoded JPEG, dB.

    Args:
        converter: whose pixels.
        files: source files.
        job: size and quality.
    """
    make = module_of(converter.pixels).picture
    values = []
    for data in files:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        expected = np.asarray(
            image.resize(
                (job.size, job.size), Image.Resampling.LANCZOS, box=window(image.size, job.size, converter.window)
            )
        )
        values.append(_psnr(_pixels(make(data, job)), expected))
    return float(np.mean(values))


def window(sides: tuple[int, int], size: int, kind: str) -> tuple[float, float, float, float]:
    """The part of a source that ends up in the square: (left, top, right, bottom) in its pixels.

    Args:
        sides: (width, height) of the source.
        size: side of the square.
        kind: "center": resized by the shorter side, then cut at whole pixels of the result; "center-first": cut at
            whole pixels of the source.
    """
    shorter = min(sides)
    if kind == "center-first":
        left, top = ((side - shorter) // 2 for side in sides)
        return left, top, left + shorter, top + shorter
    scaled = [(2 * size * side + shorter) // (2 * shorter) for side in sides]
    starts = [(new - size) // 2 for new in scaled]
    left, top = (start * side / new for start, side, new in zip(starts, sides, scaled, strict=True))
    right, bottom = ((start + size) * side / new for start, side, new in zip(starts, sides, scaled, strict=True))
    return left, top, min(right, sides[0]), min(bottom, sides[1])


def _pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _psnr(pixels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    error = np.mean((pixels.astype(np.float64) - expected) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-3)))  # a picture of one colour has no error
