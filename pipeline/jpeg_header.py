"""What compiled decoders must know of a JPEG before its first coefficient: ITU-T T.81, markers SOI to SOS.

A header is parsed strictly: what the compiled paths do not decode is refused with a reason, and libjpeg-turbo decodes
it instead. Understood are baseline files of three components YCbCr in one scan without restart markers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MAX_DC_BITS, _MAX_AC_BITS = 11, 10  # T.81, tables F.1 and F.2, for samples of 8 bits
_DC_SYMBOLS: Final = frozenset(range(_MAX_DC_BITS + 1))
_AC_SYMBOLS: Final = frozenset(symbol for symbol in range(256) if symbol & 15 <= _MAX_AC_BITS)

# T.81, figure A.6: the place in an 8 x 8 block, row by row, of the k-th coefficient.
_ZIGZAG = sorted(
    range(64), key=lambda n: (n // 8 + n % 8, n // 8 if (n // 8 + n % 8) % 2 else n % 8)
)  # odd diagonals run down, even ones up
NATURAL_ORDER: Final = np.array(_ZIGZAG, np.int64)
"""(64,) int64: place in the block, 8 * row + column, of each coefficient in the order of the file."""

SAMPLING_444: Final = (0x11, 0x11, 0x11)
"""`JpegHeader.sampling` where each pixel has its samples of chroma."""

SAMPLING_420: Final = (0x22, 0x11, 0x11)
"""`JpegHeader.sampling` where four pixels share them."""


class _Refused(Exception):
    """The sentence that says why."""


@dataclass(frozen=True, eq=False)
class JpegHeader:
    """A header, checked so that kernels may trust it.

    Attributes:
        num_bytes: SOI to the end of SOS; the coded data starts right after it.
        height: pixels.
        width: pixels.
        sampling: of Y, Cb, Cr, the factors across (upper four bits) and down.
        quant: (3, 64) int16, 1..255, quantisation step of each component, 8 * row + column.
        codes: Huffman tables as T.81 writes them, 16 counts by length and then the symbols; no symbol is larger than
            its table allows, no code all ones, none longer than its counts.
        table_of: which of `codes` has the DC codes of Y, Cb, Cr, then their AC codes.
    """

    num_bytes: int
    height: int
    width: int
    sampling: tuple[int, ...]
    quant: NDArray[np.int16]
    codes: tuple[bytes, ...]
    table_of: tuple[int, ...]


@dataclass
class _Segments:
    """What the segments have said so far."""

    height: int = 0
    width: int = 0
    sampling: tuple[int, ...] = ()
    component_ids: tuple[int, ...] = ()
    quant_of: tuple[int, ...] = ()
    quant: dict[int, bytes] = field(default_factory=dict)
    codes: dict[int, bytes] = field(default_factory=dict)
    is_jfif: bool = False


def read_jpeg_header(data: bytes, max_bytes: int) -> JpegHeader | str:
    """Parse the header of one file.

    Args:
        data: the image file, or at least its first bytes.
        max_bytes: the header is looked for in no more than this.

    Returns:
        The header; or the reason, as a sentence, why the compiled paths do not apply.
    """
    try:
        return _header(data, min(max_bytes, len(data)))
    except _Refused as refusal:
        return str(refusal)
    except IndexError:
        return f"the header does not end within {min(max_bytes, len(data))} bytes"


def _header(data: bytes, limit: int) -> JpegHeader:
    _need(data[:2] == b"\xff\xd8", "it does not begin with SOI")
    segments, position = _Segments(), 2
    while True:
        if data[position] != 0xFF:
            raise _Refused(f"no marker at byte {position}")
        start, marker = position + 4, data[position + 1]
        length = data[position + 2] << 8 | data[position + 3]
        if length < 2:
            raise _Refused(f"the segment at byte {position} is {length} bytes long")
        position += 2 + length
        if position > limit:
            raise IndexError
        body = data[start:position]
        if marker == 0xDA:
            return _scan(segments, body, position)
        _segment(segments, marker, body)


def _segment(segments: _Segments, marker: int, body: bytes) -> None:
    if marker == 0xC0:
        _frame(segments, body)
    elif marker == 0xC4:
        _huffman_tables(segments, body)
    elif marker == 0xDB:
        _quant_tables(segments, body)
    elif marker == 0xDD:
        _need(body == b"\0\0", "it has restart markers")
    elif marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
        segments.is_jfif = True
    elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
        _need(body[11] == 1, f"its Adobe colour transform is {body[11]}, not YCbCr")
    elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
        raise _Refused(f"marker 0x{marker:02X} is none of baseline JPEG")


def _frame(segments: _Segments, body: bytes) -> None:
    _need(not segments.component_ids, "it has two frames")
    _need(len(body) == 15 and body[5] == 3, "it has not three components")
    _need(body[0] == 8, f"its samples have {body[0]} bits")
    segments.height, segments.width = body[1] << 8 | body[2], body[3] << 8 | body[4]
    _need(segments.height > 0 and segments.width > 0, "it has no pixels")
    segments.component_ids, segments.sampling, segments.quant_of = (
        tuple(body[6::3]),
        tuple(body[7::3]),
        tuple(body[8::3]),
    )
    _need(len(set(segments.component_ids)) == 3, "two components have one name")


def _quant_tables(segments: _Segments, body: bytes) -> None:
    for start in range(0, len(body), 65):
        _need(body[start] < 4, "a quantisation table has 16 bits or an unknown number")
        steps = body[start + 1 : start + 65]
        _need(len(steps) == 64 and 0 not in steps, "a quantisation table is cut off or has a zero")
        segments.quant[body[start]] = steps


@lru_cache(maxsize=256)  # there are about as many as qualities of two or three programs
def _in_natural_order(steps: bytes) -> NDArray[np.int16]:
    tables = np.empty((3, 64), np.int16)
    tables[:, NATURAL_ORDER] = np.frombuffer(steps, np.uint8).reshape(3, 64)
    tables.flags.writeable = False
    return tables


def _huffman_tables(segments: _Segments, body: bytes) -> None:
    position = 0
    while position < len(body):
        number, counts = body[position], body[position + 1 : position + 17]
        symbols = body[position + 17 : position + 17 + sum(counts)]
        if number >> 4 > 1 or number & 15 > 3:
            raise _Refused(f"a Huffman table has the number 0x{number:02X}")
        _need(len(counts) == 16 and len(symbols) == sum(counts) <= 256, "a Huffman table is cut off or too long")
        code = 0
        for length, count in enumerate(counts, 1):
            # The code of all ones is no code (T.81, annex C), which libjpeg demands of every length.
            code = code * 2 + count
            if count and code >= 1 << length:
                raise _Refused(f"a Huffman table has too many codes of {length} bits")
        allowed = _AC_SYMBOLS if number >> 4 else _DC_SYMBOLS
        _need(allowed.issuperset(symbols), "a Huffman table codes values too large for 8 bits")
        segments.codes[number] = counts + symbols
        position += 17 + len(symbols)


def _scan(segments: _Segments, body: bytes, num_bytes: int) -> JpegHeader:
    ids = segments.component_ids
    _need(bool(ids), "its scan comes before its frame")
    _need(len(body) == 10 and body[0] == 3 and tuple(body[1:7:2]) == ids, "its scan is not of all three components")
    _need(body[7:] == b"\x00\x3f\x00", "its scan is not sequential")
    # With no marker that says so, libjpeg takes components as YCbCr by their names.
    _need(segments.is_jfif or ids == (1, 2, 3), f"nothing says that components {ids} are YCbCr")
    wanted = (*(spec >> 4 for spec in body[2:7:2]), *(0x10 | spec & 15 for spec in body[2:7:2]))
    for number in wanted:
        if number not in segments.codes:
            raise _Refused(f"Huffman table 0x{number:02X} is missing")
    for number in segments.quant_of:
        if number not in segments.quant:
            raise _Refused(f"quantisation table {number} is missing")
    numbers = sorted(set(wanted))
    return JpegHeader(
        num_bytes=num_bytes,
        height=segments.height,
        width=segments.width,
        sampling=segments.sampling,
        quant=_in_natural_order(b"".join(segments.quant[number] for number in segments.quant_of)),
        codes=tuple(segments.codes[number] for number in numbers),
        table_of=tuple(map(numbers.index, wanted)),
    )


def _need(condition: bool, refusal: str) -> None:
    if not condition:
        raise _Refused(refusal)
