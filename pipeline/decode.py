"""The one decode policy: bytes of any source file become 8-bit RGB or a named rejection.

What a source becomes, whatever its name says:

* JPEG: libjpeg-turbo through simplejpeg, which decodes bit for bit as `cv2.imdecode` does and, unlike it, reports
  damage instead of printing it. Baseline, progressive and (where the build can) arithmetic; gray, YCbCr, RGB, CMYK
  and YCCK. CMYK is taken as inverted, as Adobe writes it and every common reader assumes. A file cut off is
  `truncated`, never filled with gray. One that is whole but damaged inside gives what libjpeg makes of it, as it does
  in every other training pipeline, and the oddity `damaged`.
* PNG, WebP, BMP, GIF, TIFF, binary PNM: OpenCV. The first frame or page; of an animated PNG the default image.
* Gray, palette and 1-bit become RGB; deeper samples become round(255 * value / maximum).
* Alpha is dropped, not blended: the colour that lies under it is what is stored.
* ICC profiles and gamma are ignored. Exif orientation is ignored unless the policy applies it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.image_header import ImageHeader, read_header
from lmdali.pipeline.pixel_layout import rgb_from_bgr, rgb_from_inverted_cmyk, rgb_from_samples
from lmdali.pipeline.png_chunks import without_animation
from lmdali.pipeline.rejection import Rejection, SourceRejected

Pixels = npt.NDArray[np.uint8]
"""`(H, W, 3)` uint8, RGB, 0..255."""

MAX_PIXELS = 178_956_970
"""Where Pillow, too, refuses: twice its warning level. One such image is 537 MB of RGB."""

_CV2_MAX_PIXELS = 1 << 30
_CV2_MAX_SIDE = 1 << 20
_CV2_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_EXTENSIONS = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png", ".apng"),
    "webp": (".webp",),
    "bmp": (".bmp", ".dib"),
    "gif": (".gif",),
    "tiff": (".tif", ".tiff"),
    "pnm": (".ppm", ".pgm", ".pbm", ".pnm"),
}
# A whole GIF of one black pixel: what no picture can fail on but a build without GIF.
_ONE_PIXEL_GIF = bytes.fromhex("47494638396101000100800000000000ffffff2c00000000010001000002024401003b")


@dataclass(frozen=True, kw_only=True)
class DecodePolicy:
    """What may be chosen about decoding sources; recorded in the manifest.

    Attributes:
        orientation: "ignore" the Exif orientation tag, as the 2012 data did, or "apply" it.
        max_pixels: larger sources are rejected by their header, before anything is allocated.
    """

    orientation: Literal["ignore", "apply"] = "ignore"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.orientation not in ("ignore", "apply"):
            raise ConfigError(f"orientation is {self.orientation!r}: choose 'ignore' or 'apply'")
        if not 1 <= self.max_pixels <= _CV2_MAX_PIXELS:
            raise ConfigError(f"max_pixels is {self.max_pixels}: choose 1 to {_CV2_MAX_PIXELS}")


@dataclass(frozen=True, slots=True)
class DecodedSource:
    """A decoded source.

    Attributes:
        pixels: `(H, W, 3)` uint8 RGB, C-contiguous; turned where the policy applies orientation.
        width: of the source as stored, pixels.
        height: of the source as stored, pixels.
        format: by magic bytes: jpeg, png, webp, bmp, gif, tiff or pnm.
        oddities: names of what was unusual: gray, cmyk, palette, alpha, sixteen_bit, animated, orientation_tag,
            arithmetic, damaged, not_jpeg, misnamed.
    """

    pixels: Pixels
    width: int
    height: int
    format: str
    oddities: tuple[str, ...]


JpegFastPath = Callable[[bytes, ImageHeader, Pixels | None], Pixels | None]
"""Takes a file, its header, and memory for pixels; gives the pixels of libjpeg-turbo, or None to leave it to that."""


def decode_source(
    data: bytes,
    policy: DecodePolicy | None = None,
    *,
    name: str | None = None,
    buffer: Pixels | None = None,
    jpeg: JpegFastPath | None = None,
) -> DecodedSource:
    """Decode one source file.

    Args:
        data: the whole file.
        policy: default: `DecodePolicy()`.
        name: the file's name, used for nothing but the oddity `misnamed`.
        buffer: `(n,)` uint8 memory for the pixels, used where it suits them: they are then good until it is used again.
        jpeg: asked first for the pixels of a JPEG.

    Raises:
        SourceRejected: with a named reason, for anything that does not become right RGB.
        MemoryError: there is not enough for this image, damaged or not.
    """
    policy = policy or DecodePolicy()
    header = read_header(data)
    if header.width * header.height > policy.max_pixels:
        raise SourceRejected(
            Rejection.TOO_MANY_PIXELS,
            f"{header.width} x {header.height} pixels are more than the limit of {policy.max_pixels}",
        )
    damaged = False
    if header.format == "jpeg":
        made = jpeg(data, header, buffer) if jpeg is not None else None
        pixels, damaged = _decode_jpeg(data, header, buffer) if made is None else (made, False)
    else:
        pixels = _decode_with_cv2(data, header)
    if pixels.shape != (header.height, header.width, 3):
        raise SourceRejected(
            Rejection.CORRUPT, f"header says {header.width} x {header.height}, decoder gave {pixels.shape[:2][::-1]}"
        )
    if policy.orientation == "apply":
        pixels = _turn(pixels, header.orientation)
    oddities = list(header.oddities)
    if damaged:
        oddities.append("damaged")
    if header.format != "jpeg":
        oddities.append("not_jpeg")
    if name is not None and not name.rstrip().lower().endswith(_EXTENSIONS[header.format]):
        oddities.append("misnamed")
    return DecodedSource(pixels, header.width, header.height, header.format, tuple(oddities))


@contextmanager
def native_messages_silenced() -> Iterator[None]:
    """Keep what C libraries print about bad files off the terminal; every such file gets its own named rejection.

    libpng and libtiff write to file descriptor 2 past all of Python and OpenCV, so the descriptor itself is pointed
    at the null device for the while. Only for processes that decode in one thread: another thread's messages would be
    lost, too.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 2)
        os.close(sink)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _decode_jpeg(data: bytes, header: ImageHeader, buffer: Pixels | None) -> tuple[Pixels, bool]:
    """Pixels, and whether libjpeg complained on the way to them."""
    if buffer is not None and len(buffer) < 3 * header.width * header.height:
        buffer = None
    try:
        if header.channels == 4:
            return rgb_from_inverted_cmyk(
                simplejpeg.decode_jpeg(data, "CMYK", fastdct=False, fastupsample=False)
            ), False
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=buffer), False
    except ValueError as error:
        complaint = str(error)
    if "Insufficient memory" in complaint:
        raise MemoryError(complaint)
    # Either damage or a layout TurboJPEG's interface does not name (odd sampling factors). OpenCV is the judge of both:
    # it reads on past damage but gives nothing when bytes are missing at the end.
    pixels = _imdecode(data, _CV2_FLAGS)
    odd_sampling = "subsampling" in complaint
    if pixels is None:
        _check_memory(header)
        is_cut = data.rfind(b"\xff\xd9") < header.body_offset or "Premature end of JPEG file" in complaint
        raise SourceRejected(
            Rejection.TRUNCATED if is_cut else Rejection.CORRUPT,
            "the sampling factors or tables make no JPEG" if odd_sampling else complaint,
        )
    # libjpeg leaves blocks that never arrived at zero coefficients, which is mid gray in every channel.
    if not odd_sampling and (pixels[-8:, -8:] == 128).all():
        raise SourceRejected(Rejection.TRUNCATED, f"the last rows of the picture are missing ({complaint})")
    return rgb_from_bgr(pixels), not odd_sampling


def _decode_with_cv2(data: bytes, header: ImageHeader) -> Pixels:
    if max(header.width, header.height) > _CV2_MAX_SIDE:
        raise SourceRejected(Rejection.TOO_MANY_PIXELS, f"a side of more than {_CV2_MAX_SIDE} pixels")
    encoded: bytes | bytearray = data
    if header.patches:
        encoded = bytearray(data)
        for offset, replacement in header.patches:
            encoded[offset : offset + len(replacement)] = replacement
    elif header.format == "png":
        encoded = without_animation(data)
    is_deep = header.maximum > 255
    decoded = _imdecode(encoded, _CV2_FLAGS | cv2.IMREAD_ANYDEPTH if is_deep else _CV2_FLAGS)
    if decoded is None:
        _check_memory(header)
        if header.format == "gif" and _imdecode(_ONE_PIXEL_GIF, _CV2_FLAGS) is None:
            raise SourceRejected(Rejection.UNSUPPORTED, f"OpenCV {cv2.__version__} reads no GIF: install 4.12 or later")
        raise SourceRejected(Rejection.CORRUPT, f"the decoder refused this {header.format.upper()}")
    if header.maximum != 255:
        return rgb_from_samples(decoded, header.maximum if decoded.dtype == np.uint16 or not is_deep else 255)
    return rgb_from_bgr(decoded)


def _imdecode(data: bytes | bytearray, flags: int) -> npt.NDArray[Any] | None:
    """`cv2.imdecode` that gives None in both cases: where OpenCV does, and where it raises.

    Raises:
        MemoryError: there is not enough, and OpenCV says so.
    """
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if getattr(error, "code", 0) == cv2.Error.StsNoMem or "bad_alloc" in str(error):
            raise MemoryError(str(error)) from None
        return None


def _check_memory(header: ImageHeader) -> None:
    """Damage and want of memory look the same from outside most decoders; this tells that it cannot be the latter.

    Raises:
        MemoryError: there is not what decoding such an image may take.
    """
    # Five copies of the pixels is what OpenCV needs for a TIFF of a single strip, the most of all formats (measured).
    np.empty(header.height * header.width * (30 if header.maximum > 255 else 15), np.uint8)


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an Exif orientation (TIFF 6.0, tag 274)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
