"""A picture in memory as a picture file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from lmdali.model.pen import Pixels
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.output_file import write_output

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


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
        StorageError: it cannot be written.
    """
    write_output(out, encode_picture(pixels, out.suffix.lower()))


def encode_picture(pixels: Pixels, suffix: str, *, quality: int | None = None) -> bytes:
    """`(H, W, 3)` uint8 RGB as the content of a picture file.

    Args:
        pixels: the picture.
        suffix: `.png`, `.jpg`, `.jpeg` or `.webp`.
        quality: 1..100 of a WebP file; None for OpenCV's default.
    """
    options = [] if quality is None else [cv2.IMWRITE_WEBP_QUALITY, quality]
    done, encoded = cv2.imencode(suffix, np.ascontiguousarray(pixels[:, :, ::-1]), options)
    assert done
    return encoded.tobytes()
