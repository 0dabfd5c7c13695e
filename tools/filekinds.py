"""How a picture becomes a file of the built-in dataset: everyday formats, odd ones, and two that are broken.

Everything is encoded with simplejpeg and cv2; the EXIF segment and the palette PNG, which neither writes in all
versions, are put together here byte by byte.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A way to store a picture: `encode` takes (H, W, 3) uint8 RGB pixels and a generator, and gives a file's bytes."""

    name: str
    suffix: str
    encode: Callable[[Pixels, np.random.Generator], bytes]


def jpeg(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """A baseline JPEG of quality 70 to 95, mostly with halved chroma, sometimes with full."""
    sampling = rng.choice(["420", "444", "422"], p=[0.7, 0.25, 0.05])
    encoded: bytes = simplejpeg.encode_jpeg(pixels, _quality(rng), "RGB", str(sampling))
    return encoded


def progressive_jpeg(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """A JPEG stored in several passes."""
    return _cv2_encode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, _quality(rng)])


def gray_jpeg(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """A JPEG with one component."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    encoded: bytes = simplejpeg.encode_jpeg(gray, _quality(rng), "GRAY", "Gray")
    return encoded


def cmyk_jpeg(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """A JPEG of four inks (stored as YCCK with an Adobe marker, inks inverted, as print software writes it)."""
    white = np.maximum(pixels.max(axis=2, keepdims=True), 1)
    inks_left = np.round(pixels * (255 / white)).astype(np.uint8)
    inverted = np.ascontiguousarray(np.concatenate([inks_left, white], axis=2))
    encoded: bytes = simplejpeg.encode_jpeg(inverted, _quality(rng), "CMYK", "444")
    return encoded


def turned_jpeg(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """A JPEG whose pixels lie on their side or head, with the EXIF orientation tag that says so."""
    orientation, quarter_turns = ((3, 2), (6, 1), (8, 3))[int(rng.integers(3))]
    data = jpeg(np.ascontiguousarray(np.rot90(pixels, quarter_turns)), rng)
    return data[:2] + _exif_segment(orientation) + data[2:]


def png(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """An 8-bit RGB PNG."""
    return _cv2_encode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def deep_png(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """A 16-bit RGB PNG that uses its low bits."""
    deep = pixels.astype(np.uint16) * 256 + rng.integers(0, 256, pixels.shape, np.uint16)
    return _cv2_encode(".png", deep, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def alpha_png(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """An RGBA PNG that fades towards its corners."""
    height, width = pixels.shape[:2]
    x, y = np.linspace(-1, 1, width)[None, :], np.linspace(-1, 1, height)[:, None]
    alpha = (255 * np.clip(2 - x * x - y * y, 0, 1)).astype(np.uint8)
    return _cv2_encode(".png", np.dstack([pixels, alpha]), [cv2.IMWRITE_PNG_COMPRESSION, 1])


def palette_png(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """A PNG of 252 colours: 6 steps of red, 7 of green, 6 of blue (PNG specification, colour type 3)."""
    steps = np.array([6, 7, 6])
    levels = (pixels * steps // 256).astype(np.uint8)
    index = ((levels[..., 0] * 7 + levels[..., 1]) * 6 + levels[..., 2]).astype(np.uint8)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in steps), indexing="ij"), axis=-1).reshape(-1, 3)
    palette = np.round((grid + 0.5) * (256 / steps)).astype(np.uint8)
    height, width = index.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), index], axis=1)  # each row begins with filter type 0
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 1)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def webp(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """A lossy WebP."""
    return _cv2_encode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, _quality(rng)])


def bmp(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """An uncompressed BMP."""
    return _cv2_encode(".bmp", pixels, [])


def truncated_jpeg(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """A JPEG of which the last two fifths are missing."""
    data = jpeg(pixels, rng)
    return data[: len(data) * 3 // 5]


def text(pixels: Pixels, rng: np.random.Generator) -> bytes:
    """No picture at all: what a server says when the picture is gone."""
    return b"404 Not Found\nThe picture that used to be here is gone.\n"


EVERYDAY: tuple[tuple[FileKind, float], ...] = (
    (FileKind(name="JPEG", suffix=".jpg", encode=jpeg), 0.86),
    (FileKind(name="JPEG", suffix=".JPEG", encode=jpeg), 0.05),
    (FileKind(name="gray JPEG", suffix=".jpg", encode=gray_jpeg), 0.02),
    (FileKind(name="PNG", suffix=".png", encode=png), 0.03),
    (FileKind(name="WebP", suffix=".webp", encode=webp), 0.02),
    (FileKind(name="BMP", suffix=".bmp", encode=bmp), 0.02),
)
ODD: tuple[FileKind, ...] = (
    FileKind(name="gray JPEG", suffix=".jpg", encode=gray_jpeg),
    FileKind(name="CMYK JPEG", suffix=".jpg", encode=cmyk_jpeg),
    FileKind(name="EXIF-rotated JPEG", suffix=".jpg", encode=turned_jpeg),
    FileKind(name="progressive JPEG", suffix=".jpg", encode=progressive_jpeg),
    FileKind(name="16-bit PNG", suffix=".png", encode=deep_png),
    FileKind(name="palette PNG", suffix=".png", encode=palette_png),
    FileKind(name="PNG with alpha", suffix=".png", encode=alpha_png),
    FileKind(name="PNG named .jpg", suffix=".jpg", encode=png),
    FileKind(name="WebP named .jpg", suffix=".jpg", encode=webp),
    FileKind(name="JPEG named .png", suffix=".png", encode=jpeg),
)
BROKEN: tuple[FileKind, ...] = (
    FileKind(name="truncated JPEG", suffix=".jpg", encode=truncated_jpeg),
    FileKind(name="text named .jpg", suffix=".jpg", encode=text),
)


def _quality(rng: np.random.Generator) -> int:
    return int(rng.integers(70, 96))


def _cv2_encode(suffix: str, pixels: NDArray[Any], options: list[int]) -> bytes:
    order = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    _, encoded = cv2.imencode(suffix, cv2.cvtColor(pixels, order), options)
    return encoded.tobytes()


def _exif_segment(orientation: int) -> bytes:
    """A JPEG APP1 segment with one tag, 0x0112 (EXIF 2.32, sections 4.5 and 4.6)."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = struct.pack("<2sHIH", b"II", 42, 8, 1) + entry + struct.pack("<I", 0)
    payload = b"Exif\x00\x00" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload
