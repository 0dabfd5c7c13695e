"""Pixels to stored records and back: baseline JPEG by libjpeg-turbo, or binary PPM."""

from __future__ import annotations

import numpy as np
import simplejpeg

from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import ConfigError, RecordError


def ppm_header(size: int = 256) -> bytes:
    """The header of every raw record: the pixels start right after it, at the same offset in all records."""
    return b"P6\n%d %d\n255\n" % (size, size)


def encode_ppm(pixels: Pixels) -> bytes:
    """A square `(S, S, 3)` uint8 RGB image as binary PPM (P6)."""
    return ppm_header(_square_side(pixels)) + pixels.tobytes()


def encode_jpeg(pixels: Pixels, quality: int = 95) -> bytes:
    """A square `(S, S, 3)` uint8 RGB image as baseline JPEG, YCbCr 4:2:0, accurate integer DCT."""
    _square_side(pixels)
    if not 1 <= quality <= 100:
        raise ConfigError(f"JPEG quality is {quality}: choose 1 to 100")
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False
    )
    return encoded


def decode_stored(data: bytes | memoryview, size: int = 256, out: Pixels | None = None) -> Pixels:
    """Decode one of our own records, JPEG or PPM; equal to `cv2.imdecode` bit for bit.

    Args:
        data: the image file inside a record.
        size: side of the stored images, pixels.
        out: `(size, size, 3)` uint8, C-contiguous, to decode into; it is also what is returned.

    Returns:
        `(size, size, 3)` uint8 RGB. Without `out`, a raw record is a read-only view of `data`: no copy is made.

    Raises:
        RecordError: damaged, of another size, or no record of ours.
    """
    if bytes(data[:2]) == b"P6":
        return _decode_ppm(data, size, out)
    if out is not None and (out.shape != (size, size, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous):
        raise ValueError(f"out must be ({size}, {size}, 3) uint8, C-contiguous; it is {out.shape} {out.dtype}")
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=out)
    except ValueError as error:
        raise RecordError(f"a stored image does not decode ({error}): run `lmdali verify` on the dataset") from None
    if pixels.shape != (size, size, 3):
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise RecordError(f"a stored image is {found}, the dataset is {size} x {size}: run `lmdali verify`")
    return pixels if out is None else out


def _decode_ppm(data: bytes | memoryview, size: int, out: Pixels | None) -> Pixels:
    header = ppm_header(size)
    if bytes(data[: len(header)]) != header or len(data) != len(header) + 3 * size * size:
        raise RecordError(f"a stored raw image is not the {size} x {size} pixels the dataset has: run `lmdali verify`")
    pixels = np.frombuffer(data, np.uint8, offset=len(header)).reshape(size, size, 3)
    if out is None:
        return pixels
    out[:] = pixels
    return out


def _square_side(pixels: Pixels) -> int:
    if pixels.ndim != 3 or pixels.shape[0] != pixels.shape[1] or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"expected square (S, S, 3) uint8 pixels, found {pixels.shape} {pixels.dtype}")
    return int(pixels.shape[0])
