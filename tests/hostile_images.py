"""A generated folder of odd and broken image files, each with what must become of it."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STORED = "stored"


def _picture(mode: str, width: int = 60, height: int = 40) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def _encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    _picture(mode, *options.pop("sides", (60, 40))).save(out, kind, **options)
    return out.getvalue()


def _animation(kind: str) -> bytes:
    out = io.BytesIO()
    frames = [_picture("RGB").rotate(turn) for turn in (0, 90, 180)]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


def _png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _resized_jpeg_header(width: int, height: int, marker: int = 0xC0, bits: int = 8) -> bytes:
    data = bytearray(_encoded("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _turned(tag: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    return _encoded("JPEG", exif=exif.tobytes())


def hostile_files() -> dict[bytes, tuple[bytes, str]]:
    """File name -> (content, `STORED` or the reason of its rejection)."""
    jpeg, png, gif = _encoded("JPEG"), _encoded("PNG"), _encoded("GIF", "P")
    files: dict[str, tuple[bytes, str]] = {
        "plain.jpg": (jpeg, STORED),
        "progressive.jpg": (_encoded("JPEG", progressive=True), STORED),
        "gray.jpg": (_encoded("JPEG", "L"), STORED),
        "cmyk.jpg": (_encoded("JPEG", "CMYK"), STORED),
        "no_end.jpg": (jpeg[:-2], "truncated"),
        "cut.jpg": (jpeg[: len(jpeg) * 2 // 3], "truncated"),
        "cut_header.jpg": (jpeg[:40], "truncated"),
        "junk_behind.jpg": (jpeg + b"junk" * 100, STORED),
        "two_in_one.jpg": (jpeg + jpeg, STORED),
        "junk_before.jpg": (b"junk" + jpeg, "not_an_image"),
        "lossless.jpg": (_resized_jpeg_header(60, 40, 0xC3), "unsupported"),
        "twelve_bit.jpg": (_resized_jpeg_header(60, 40, 0xC1, 12), "unsupported"),
        "bomb.jpg": (_resized_jpeg_header(65_500, 65_500), "too_many_pixels"),
        "zipped.jpg": (gzip.compress(jpeg, mtime=0), "unsupported"),
        "page.jpg": (b"<html>not found</html>", "not_an_image"),
        "nothing.jpg": (b"", "empty"),
        "zeros.jpg": (bytes(5000), "not_an_image"),
        "png_inside.jpg": (png, STORED),
        "alpha.png": (_encoded("PNG", "RGBA"), STORED),
        "palette.png": (_encoded("PNG", "P", transparency=3), STORED),
        "one_bit.png": (_encoded("PNG", "1"), STORED),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "flipped.png": (png[:60] + bytes([png[60] ^ 255]) + png[61:], "corrupt"),
        "bomb.png": (_png_header(33_000, 33_000), "too_many_pixels"),
        "huge_side.png": (_png_header(1 << 31, 1), "too_many_pixels"),
        "no_side.png": (_png_header(0, 10), "corrupt"),
        "animated.png": (_animation("PNG"), STORED),
        "animated.gif": (_animation("GIF"), STORED),
        "bomb.gif": (gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:], "too_many_pixels"),
        "cut.gif": (gif[:20], "truncated"),
        "plain.bmp": (_encoded("BMP"), STORED),
        "cut.bmp": (_encoded("BMP")[:200], "truncated"),
        "plain.tif": (_encoded("TIFF"), STORED),
        "cmyk.tif": (_encoded("TIFF", "CMYK"), STORED),
        "plain.webp": (_encoded("WEBP"), STORED),
        "cut.webp": (_encoded("WEBP")[:100], "truncated"),
        "plain.ppm": (_encoded("PPM"), STORED),
        "one_pixel.png": (_encoded("PNG", sides=(1, 1)), STORED),
        "one_row.png": (_encoded("PNG", sides=(5000, 1)), STORED),
        "one_column.png": (_encoded("PNG", sides=(1, 5000)), STORED),
        "new\nline.jpg": (jpeg, STORED),
        "\x1b[31mred.jpg": (jpeg, STORED),
        "-rf.jpg": (jpeg, STORED),
        "\N{DROMEDARY CAMEL}.jpg": (jpeg, STORED),
        "n" * 251 + ".jpg": (jpeg, STORED),
        **{f"turned{tag}.jpg": (_turned(tag), STORED) for tag in range(10)},
    }
    return {os.fsencode(name): entry for name, entry in files.items()} | {b"\xff\xfe.jpg": (jpeg, STORED)}


def write_hostile_folder(folder: Path) -> dict[bytes, str]:
    """Write all of them, and what is no file at all, into the class folder `folder`; name -> what must become of it."""
    folder.mkdir(parents=True)
    expected = {}
    for name, (content, outcome) in hostile_files().items():
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
        expected[name] = outcome
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    (folder / "folder.jpg").mkdir()
    return expected | {b"pipe.jpg": "not_a_file", b"dangling.jpg": "dangling_link", b"circle.jpg": "read_failed"}
