"""Which JPEGs of other people may be stored as they are, byte for byte, among records that we encoded."""

from __future__ import annotations

import simplejpeg

from lmdali.pipeline.image_header import read_header


def is_storable(data: bytes, size: int = 256) -> bool:
    """Whether a source that decodes without complaint can be a record as it is.

    A record is read by decoders that obey an orientation tag, take every JPEG for YCbCr, or know baseline only; so it
    must look the same to all of them.

    Args:
        data: the whole file.
        size: side of the stored images, pixels.
    """
    header = read_header(data)
    if (header.format, header.width, header.height, header.channels) != ("jpeg", size, size, 3):
        return False
    if not header.is_baseline or header.orientation != 1 or not data.endswith(b"\xff\xd9"):
        return False
    try:
        _, _, colours, sampling = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return colours == "YCbCr" and sampling in ("444", "422", "420", "440")
