"""One record <-> bytes: the only place that knows the byte layout of a stored value and of its key.

A value is a Caffe `Datum` (proto2, caffe.proto): channels=1, height=2, width=3, data=4, label=5, float_data=6,
encoded=7. `data` holds a whole image file, `encoded` is true, and `label` is written even when it is 0, because DALI
delivers an empty label where the field is absent. We add one field of our own, number 100, which every protobuf
parser skips: a CRC-32C over `data` and the label. LMDB itself has no checksums.

A key is `%08d_path`, as Caffe's convert_imageset writes it, where the number is the source's position in the plan of
the conversion; so keys sort in storage order and a record is found by its number alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import crc32c as crc32c_package

from lmdali.pipeline.errors import RecordError

MAX_KEY_BYTES = 511
"""LMDB's own limit (MDB_MAXKEYSIZE)."""

MAX_POSITION = 99_999_999
"""Eight digits; LMDB iterates in byte order, so a ninth digit would break the order of keys."""

_UINT64 = (1 << 64) - 1
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_CRC_FIELD = 100
_CRC_TAG = bytes([(_CRC_FIELD << 3 | _FIXED32) & 0x7F | 0x80, (_CRC_FIELD << 3 | _FIXED32) >> 7])

TAIL_AFTER_LABEL = b"\x38\x01" + _CRC_TAG
"""Ends every value of ours, between its label and its checksum: `encoded` is true, and the checksum's tag."""


@dataclass(frozen=True, slots=True)
class Record:
    """A parsed value.

    Attributes:
        data: the image file (JPEG or PPM); for an unencoded foreign Datum the planar BGR bytes.
        label: class number; -1 where a foreign Datum has none.
        crc32c: the stored `record_crc`, or None in a foreign Datum.
        shape: (channels, height, width); zeros where a foreign Datum leaves them out.
        encoded: whether `data` is an image file. DALI takes an absent field as true, and so do we.
    """

    data: memoryview
    label: int
    crc32c: int | None
    shape: tuple[int, int, int]
    encoded: bool

    @property
    def is_intact(self) -> bool:
        """Whether data and label are what was stored; False for a foreign Datum, which cannot tell."""
        return self.crc32c == record_crc(self.data, self.label)


def record_crc(data: bytes | memoryview, label: int) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) of `data` and then the label as 8 bytes, little-endian."""
    return crc32c_package.crc32c(label.to_bytes(8, "little", signed=True), crc32c_package.crc32c(data))


def crc_problem(num_bytes: int) -> str:
    """What is wrong with a record of `num_bytes` image bytes whose checksum is not the stored one."""
    return f"CRC-32C of its {num_bytes} bytes and label differs from the stored one"


def pack_record(data: bytes, *, label: int, height: int, width: int) -> bytes:
    """Bytes of the Datum for one encoded RGB image file."""
    crc = record_crc(data, label).to_bytes(4, "little")
    parts = (_sides(height, width), _varint(len(data)), data, b"\x28", _varint(label), TAIL_AFTER_LABEL, crc)
    return b"".join(parts)


def packed_crc(value: bytes) -> int:
    """The checksum at the end of a value that `pack_record` made."""
    return int.from_bytes(value[-4:], "little")


@cache
def _sides(height: int, width: int) -> bytes:
    """What a value begins with, up to the length of its image: the same for all records of a dataset."""
    return b"\x08\x03\x10" + _varint(height) + b"\x18" + _varint(width) + b"\x22"


def parse_record(value: bytes | memoryview) -> Record:
    """Parse a Datum without copying its `data`.

    Raises:
        RecordError: the bytes are not a Datum.
    """
    view = memoryview(value)
    sizes = [0, 0, 0]
    data = view[:0]
    label, crc, encoded = -1, None, True
    at, end = 0, len(view)
    try:
        while at < end:
            tag, at = _read_varint(view, at)
            field, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                number, at = _read_varint(view, at)
                if 1 <= field <= 3:
                    sizes[field - 1] = number
                elif field == 5:
                    label = number - (1 << 64) if number >> 63 else number
                elif field == 7:
                    encoded = bool(number)
            elif wire == _LENGTH_DELIMITED:
                length, at = _read_varint(view, at)
                if at + length > end:
                    raise IndexError
                if field == 4:
                    data = view[at : at + length]
                at += length
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
                if at + size > end:
                    raise IndexError
                if field == _CRC_FIELD:
                    crc = int.from_bytes(view[at : at + size], "little")
                at += size
            else:
                raise IndexError
    except IndexError:
        raise RecordError(f"not a Caffe Datum: unreadable field near byte {at} of {end}") from None
    return Record(data, label, crc, (sizes[0], sizes[1], sizes[2]), encoded)


def record_key(position: int, path: str) -> bytes:
    """`%08d_path`, cut at the end of the path where LMDB's key limit asks for it.

    Raises:
        RecordError: the position has more than eight digits.
    """
    if not 0 <= position <= MAX_POSITION:
        raise RecordError(f"position {position} is outside 0..{MAX_POSITION}: split the source into several datasets")
    return (key_prefix(position) + path.encode("utf-8", "surrogateescape"))[:MAX_KEY_BYTES]


def key_prefix(position: int) -> bytes:
    """The part of a key that identifies its record: the first key not before it is the record's."""
    return b"%08d_" % position


def _varint(number: int) -> bytes:
    out = bytearray()
    number &= _UINT64  # protobuf writes negative numbers as 64-bit two's complement
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = view[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & _UINT64, at
        shift += 7
        if shift > 63:
            raise IndexError
