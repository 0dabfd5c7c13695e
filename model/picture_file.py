"""A picture in memory as a picture file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from lmdali.model.pen import Pixels
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.files import storage_errors, write_atomic

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
    done, encoded = cv2.imencode(out.suffix.lower(), np.ascontiguousarray(pixels[:, :, ::-1]))
    assert done
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, encoded.tobytes())
