"""What the first bytes of an image file say: its format, size and oddities, before anything is decoded.

The format is decided by magic bytes, never by a name. Nothing here allocates by what a header claims, so a file that
announces 65535 x 65535 pixels costs as little as any other. Where a decoder would act on a field that the decode
policy overrides (a TIFF's orientation, a GIF's transparent colour), the header carries the byte to change first.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lmdali.pipeline.png_chunks import SIGNATURE, chunks
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.pipeline.tiff_tags import Tag, exif_orientation, orientation, read_tags

_UNSUPPORTED_MAGIC = (
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"BZh", "bzip2 data: unpack it first"),
    (b"\xfd7zXZ\x00", "xz data: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data: unpack it first"),
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II+\x00", "BigTIFF"),
    (b"MM\x00+", "BigTIFF"),
)
_UNSUPPORTED_BRANDS = (b"ftypavif", b"ftypavis", b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1")
_PNM = re.compile(rb"P([456])(?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})((?:\s|#[^\n]*\n)+(\d{1,5}))?\s")
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """A parsed header.

    Attributes:
        format: jpeg, png, webp, bmp, gif, tiff or pnm.
        width: pixels, as stored (before any orientation tag).
        height: pixels, as stored.
        channels: components of a JPEG's pixels (1, 3 or 4); 0 for other formats, where nobody needs it.
        maximum: the sample value that means white where samples keep more or fewer than 8 bits, else 255.
        orientation: Exif orientation 1..8; 1 where there is none or it is invalid.
        oddities: names of what is unusual about the file.
        patches: (offset, bytes) to write before decoding.
        body_offset: where a JPEG's first scan starts; 0 for other formats.
        is_baseline: whether it is a JPEG of the one process that every decoder has (T.81, SOF0).
    """

    format: str
    width: int
    height: int
    channels: int = 0
    maximum: int = 255
    orientation: int = 1
    oddities: tuple[str, ...] = ()
    patches: tuple[tuple[int, bytes], ...] = ()
    body_offset: int = 0
    is_baseline: bool = False


def read_header(data: bytes) -> ImageHeader:
    """Parse the header of an image file of any format lmdali reads.

    Raises:
        SourceRejected: empty, not an image, of a kind that is not read, or ended or broken within its header.
    """
    if not data:
        raise SourceRejected(Rejection.EMPTY, "the file has 0 bytes")
    for matches, parse in _FORMATS:
        if matches(data):
            try:
                header = parse(data)
            except (struct.error, IndexError):
                raise SourceRejected(Rejection.TRUNCATED, f"{len(data)} bytes end inside the header") from None
            if header.width < 1 or header.height < 1:
                raise _corrupt(f"the header says {header.width} x {header.height} pixels")
            return header
    for magic, name in _UNSUPPORTED_MAGIC:
        if data.startswith(magic):
            raise _unsupported(name)
    if data[4:12] in _UNSUPPORTED_BRANDS:
        raise _unsupported("AVIF or HEIF")
    if re.match(rb"P[1237Ff]\s", data):
        raise _unsupported("a portable anymap other than binary PBM, PGM and PPM")
    raise SourceRejected(Rejection.NOT_AN_IMAGE, f"starts with {data[:8]!r}, which is no image format")


def _corrupt(detail: str) -> SourceRejected:
    return SourceRejected(Rejection.CORRUPT, detail)


def _unsupported(detail: str) -> SourceRejected:
    return SourceRejected(Rejection.UNSUPPORTED, detail)


def _flags(**present: bool) -> tuple[str, ...]:
    return tuple(name for name, is_present in present.items() if is_present)


def _jpeg(data: bytes) -> ImageHeader:
    position, turn = 2, 1
    frame: tuple[int, int, int, int, int] | None = None
    while True:
        position = data.find(b"\xff", position)
        if position < 0:
            raise SourceRejected(Rejection.TRUNCATED, f"{len(data)} bytes end inside the header")
        marker = data[position + 1]
        if marker in (0x00, 0xFF):
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
            continue
        if marker == 0xD9:
            raise _corrupt("the end marker comes before any picture")
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker == 0xDA:
            break
        # 0xF7 starts a JPEG-LS frame; 0xC4, 0xC8 and 0xCC share the range of frame markers but are none.
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            frame = frame or (marker, *struct.unpack_from(">BHHB", data, position + 4))
        elif marker == 0xE1 and data.startswith(b"Exif\x00\x00", position + 4) and turn == 1:
            turn = exif_orientation(data[position + 4 : position + 2 + length])
        position += 2 + max(length, 2)
    if frame is None:
        raise _corrupt("a JPEG without a frame header")
    kind, bits, height, width, channels = frame
    if kind not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) or bits != 8 or channels not in (1, 3, 4):
        raise _unsupported(
            f"lossless or hierarchical JPEG, or not 8-bit (frame 0x{kind:02x}, {bits} bits, {channels} channels)"
        )
    oddities = _flags(
        gray=channels == 1, cmyk=channels == 4, orientation_tag=turn != 1, arithmetic=kind in (0xC9, 0xCA)
    )
    return ImageHeader(
        "jpeg",
        width,
        height,
        channels,
        orientation=turn,
        oddities=oddities,
        body_offset=position,
        is_baseline=kind == 0xC0,
    )


def _png(data: bytes) -> ImageHeader:
    width, height, bits, kind = struct.unpack_from(">IIBB", data, 16)
    turn, alpha, animated = 1, kind in (4, 6), False
    for name, first, stop in chunks(data):
        if stop <= len(data) and (name == b"IEND" or not name.isalpha()):
            break
        alpha |= name == b"tRNS"
        animated |= name == b"acTL"
        if name == b"eXIf":
            turn = exif_orientation(data[first + 8 : stop - 4])
    else:
        raise SourceRejected(Rejection.TRUNCATED, f"{len(data)} bytes end before the PNG does")
    oddities = _flags(
        gray=kind in (0, 4),
        palette=kind == 3,
        alpha=alpha,
        sixteen_bit=bits == 16,
        animated=animated,
        orientation_tag=turn != 1,
    )
    maximum = 65535 if bits == 16 else 255
    return ImageHeader("png", width, height, maximum=maximum, orientation=turn, oddities=oddities)


def _gif(data: bytes) -> ImageHeader:
    width, height, packed = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (packed & 7) + 1 if packed & 0x80 else 0)
    transparency: tuple[int, bytes] | None = None
    frames = 0
    while position < len(data) and frames < 2 and data[position] != 0x3B:
        if data[position] == 0x21:
            if data[position + 1] == 0xF9 and frames == 0 and data[position + 3] & 1:
                transparency = (position + 3, bytes([data[position + 3] & 0xFE]))
            position += 2
        elif data[position] == 0x2C:
            frames += 1
            left, top, frame_width, frame_height, packed = struct.unpack_from("<HHHHB", data, position + 1)
            if frames == 1:
                width, height = max(width, left + frame_width), max(height, top + frame_height)
            position += 11 + (3 << (packed & 7) + 1 if packed & 0x80 else 0)
        else:
            raise _corrupt(f"a GIF block of unknown kind 0x{data[position]:02x}")
        while data[position]:
            position += 1 + data[position]
        position += 1
    if frames == 0:
        if position >= len(data):
            raise SourceRejected(Rejection.TRUNCATED, f"{len(data)} bytes end before any picture")
        raise _corrupt("a GIF without a picture")
    oddities = _flags(palette=True, alpha=transparency is not None, animated=frames > 1)
    return ImageHeader("gif", width, height, oddities=oddities, patches=(transparency,) if transparency else ())


def _webp(data: bytes) -> ImageHeader:
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
        raise SourceRejected(Rejection.TRUNCATED, f"{len(data)} bytes end before the WebP does")
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        return ImageHeader("webp", width, height)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHeader(
            "webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, oddities=_flags(alpha=bool(bits >> 28 & 1))
        )
    if kind != b"VP8X":
        raise _corrupt(f"a WebP that starts with the chunk {kind!r}")
    flags, width, height = data[20], _uint24(data, 24) + 1, _uint24(data, 27) + 1
    exif = data.find(b"EXIF", 30) if flags & 0x08 else -1
    turn = exif_orientation(data[exif + 8 :]) if exif > 0 else 1
    oddities = _flags(alpha=bool(flags & 0x10), animated=bool(flags & 0x02), orientation_tag=turn != 1)
    return ImageHeader("webp", width, height, orientation=turn, oddities=oddities)


def _uint24(data: bytes, offset: int) -> int:
    return data[offset] | data[offset + 1] << 8 | data[offset + 2] << 16


def _bmp(data: bytes) -> ImageHeader:
    pixels_offset, header_bytes = struct.unpack_from("<II", data, 10)
    compression = 0
    if header_bytes == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative: rows are stored from the top
    if compression == 0 and pixels_offset + (width * bits + 31) // 32 * 4 * height > len(data):
        raise SourceRejected(Rejection.TRUNCATED, f"{len(data)} bytes are too few for {width} x {height} pixels")
    alpha = header_bytes >= 56 and bits == 32 and struct.unpack_from("<I", data, 66)[0] != 0
    return ImageHeader("bmp", width, height, oddities=_flags(palette=bits <= 8, alpha=alpha))


def _tiff(data: bytes) -> ImageHeader:
    tags = read_tags(data)

    def number(tag: Tag, default: int) -> int:
        return tags[tag].value if tag in tags else default

    bits, photometric = number(Tag.BITS, 1), number(Tag.PHOTOMETRIC, 1)
    # 0 and 1 gray, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr; sample format 1 is unsigned.
    if bits not in (1, 2, 4, 8, 16) or photometric not in (0, 1, 2, 3, 5, 6) or number(Tag.SAMPLE_FORMAT, 1) != 1:
        raise _unsupported(f"a TIFF with {bits}-bit samples, photometric interpretation {photometric}")
    # OpenCV turns a TIFF whatever its flags say, and libtiff multiplies colours by unassociated alpha (value 2).
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    overridden = [tags[tag] for tag in (Tag.ORIENTATION, Tag.EXTRA_SAMPLES) if tag in tags]
    oddities = _flags(
        gray=photometric in (0, 1),
        palette=photometric == 3,
        cmyk=photometric == 5,
        alpha=number(Tag.SAMPLES, 1) > {2: 3, 5: 4, 6: 3}.get(photometric, 1),
        sixteen_bit=bits == 16,
        orientation_tag=orientation(tags) != 1,
    )
    return ImageHeader(
        "tiff",
        number(Tag.WIDTH, 0),
        number(Tag.HEIGHT, 0),
        maximum=65535 if bits == 16 and photometric in (1, 2) else 255,
        orientation=orientation(tags),
        oddities=oddities,
        patches=tuple((tag.offset, (1).to_bytes(tag.num_bytes, order)) for tag in overridden),
    )


def _pnm(data: bytes) -> ImageHeader:
    match = _PNM.match(data)
    if match is None:
        raise _corrupt("a portable anymap whose header cannot be read")
    kind, width, height = match[1], int(match[2]), int(match[3])
    if kind == b"4":
        return ImageHeader("pnm", width, height, oddities=("gray",))
    maximum = int(match[5] or 0)
    if not 1 <= maximum <= 65535:
        raise _corrupt(f"a portable anymap with maximum {maximum}")
    need = width * height * (3 if kind == b"6" else 1) * (2 if maximum > 255 else 1)
    if len(data) - match.end() < need:
        raise SourceRejected(Rejection.TRUNCATED, f"{len(data)} bytes are too few for {width} x {height} pixels")
    return ImageHeader(
        "pnm", width, height, maximum=maximum, oddities=_flags(gray=kind == b"5", sixteen_bit=maximum > 255)
    )


_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], ImageHeader]], ...] = (
    (lambda data: data.startswith(b"\xff\xd8"), _jpeg),
    (lambda data: data.startswith(SIGNATURE), _png),
    (lambda data: data.startswith((b"GIF87a", b"GIF89a")), _gif),
    (lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", _webp),
    (lambda data: data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_BYTES, _bmp),
    (lambda data: data.startswith((b"II*\x00", b"MM\x00*")), _tiff),
    (lambda data: re.match(rb"P[456][\s#]", data) is not None, _pnm),
)
