"""A picture in memory as a picture file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from lmdali.model.pen import Pixels
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.output_file import write_output

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LARGEST_SIDES = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
"""Pixels, that the formats or their encoders take; a PNG has room for any sheet."""


def check_suffix(out: Path) -> None:
    """Refuse a name that no picture can be saved under, before the work is done.

    Raises:
        ConfigError: its suffix names no format that is known.
    """
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{out}: a picture's name ends in {', '.join(_SUFFIXES)}")


def save_picture(pixels: Pixels, out: Path) -> None:
    """Write `(H, W, 3)` uint8 RGB as a picture file; its suffix names the format, missing folders are made.

    Raises:
        ConfigError: it is too large for that format.
        StorageError: it cannot be written.
    """
    write_output(out, encode_picture(pixels, out.suffix.lower()))


def encode_picture(pixels: Pixels, suffix: str, *, quality: int | None = None) -> bytes:
    """`(H, W, 3)` uint8 RGB as the content of a picture file.

    Args:
        pixels: the picture.
        suffix: `.png`, `.jpg`, `.jpeg` or `.webp`.
        quality: 1..100 of a WebP file; None for OpenCV's default.

    Raises:
        ConfigError: it is too large for that format.
    """
    height, width = pixels.shape[:2]
    largest = _LARGEST_SIDES.get(suffix, max(height, width))
    if max(height, width) > largest:
        raise ConfigError(
            f"a picture of {width} x {height} pixels, and a {suffix} has at most {largest} on a side: ask for fewer "
            "pictures, or for a .png"
        )
    options = [] if quality is None else [cv2.IMWRITE_WEBP_QUALITY, quality]
    done, encoded = cv2.imencode(suffix, np.ascontiguousarray(pixels[:, :, ::-1]), options)
    assert done
    return encoded.tobytes()
