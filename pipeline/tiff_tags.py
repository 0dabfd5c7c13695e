"""The tag directory of a TIFF file, which is also what Exif is inside other files."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

_MAX_TAGS = 512
_NUMBER_KINDS = {3: ("H", 2), 4: ("I", 4)}


class Tag(IntEnum):
    """Tag numbers of TIFF 6.0."""

    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    PHOTOMETRIC = 262
    ORIENTATION = 274
    SAMPLES = 277
    EXTRA_SAMPLES = 338
    SAMPLE_FORMAT = 339


class TagValue(NamedTuple):
    """The first number of a tag, and where it stands.

    Attributes:
        value: the number.
        offset: of its first byte in the data.
        num_bytes: 2 or 4.
    """

    value: int
    offset: int
    num_bytes: int


def read_tags(data: bytes) -> dict[int, TagValue]:
    """The first directory of a TIFF structure; tags that are not 16 or 32-bit integers are left out.

    Raises:
        struct.error: the data end too early or point outside themselves.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return {}
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (num_tags,) = struct.unpack_from(order + "H", data, directory)
    tags: dict[int, TagValue] = {}
    for index in range(min(num_tags, _MAX_TAGS)):
        entry = directory + 2 + 12 * index
        tag, kind, count = struct.unpack_from(order + "HHI", data, entry)
        if kind not in _NUMBER_KINDS or count == 0:
            continue
        letter, num_bytes = _NUMBER_KINDS[kind]
        is_inline = count * num_bytes <= 4
        offset = entry + 8 if is_inline else struct.unpack_from(order + "I", data, entry + 8)[0]
        tags[tag] = TagValue(struct.unpack_from(order + letter, data, offset)[0], offset, num_bytes)
    return tags


def orientation(tags: dict[int, TagValue]) -> int:
    """Orientation 1..8; 1, which is upright, where it is absent or invalid."""
    found = tags.get(Tag.ORIENTATION)
    return found.value if found is not None and 1 <= found.value <= 8 else 1


def exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 in an Exif block; corrupt Exif, of which photographs are full, is the same as none."""
    try:
        return orientation(read_tags(exif.removeprefix(b"Exif\x00\x00")))
    except struct.error:
        return 1
