"""The chunks of a PNG file, and the file without its animation."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ANIMATION = frozenset((b"acTL", b"fcTL", b"fdAT"))


class Chunk(NamedTuple):
    """One chunk, by its place in the file.

    Attributes:
        name: four bytes, letters in a file that is whole.
        first: offset of its length field.
        stop: past its checksum; beyond the file's end where it is cut off.
    """

    name: bytes
    first: int
    stop: int


def chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a PNG file, to the end of the data, whatever their names: also what lies behind IEND."""
    position = len(SIGNATURE)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        chunk = Chunk(name, position, position + 12 + length)
        yield chunk
        position = chunk.stop


def without_animation(data: bytes) -> bytes:
    """A PNG file whose decoder will see its default image and nothing else.

    OpenCV's reader of animations (4.11 to 5.0) believes what their chunks say and ends the process on some damaged
    ones (opencv/opencv#27744). An animation's first frame is the default image, unless the file has one beside the
    animation for programs that know none; which is then what Pillow opens, too.

    Args:
        data: the whole file.

    Returns:
        `data` itself where nothing is to be left out.
    """
    kept, position = [], 0
    for chunk in chunks(data):
        if chunk.name in _ANIMATION:
            kept.append(data[position : chunk.first])
            position = chunk.stop
    return b"".join([*kept, data[position:]]) if position else data
