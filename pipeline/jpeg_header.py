"""What the compiled JPEG path must know of a record before its first coefficient: ITU-T T.81, markers SOI to SOS.

One encoder writes all records of a dataset, so their headers are equal byte for byte. A header is parsed once, here,
strictly; after that a record belongs to its layout when its first bytes are the layout's. Whatever the compiled path
does not decode is refused with a reason, and libjpeg-turbo decodes it instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

LOOKUP_BITS: Final = 10
"""Codes up to this length are decoded by one look at a table of 4 kB: four such tables and a row of blocks fit L1."""

MAX_HEAD_BYTES: Final = 4096
"""A header is looked for in no more than this: ours have 623 bytes, and metadata belongs in the tables of a dataset."""

_MIN_SIZE, _MAX_SIZE = 16, 4096
_MAX_DC_BITS, _MAX_AC_BITS = 11, 10  # T.81, tables F.1 and F.2, for samples of 8 bits
_END_OF_BLOCK, _ZERO_RUN = 0x00, 0xF0
_PAST_BLOCK = 128  # no place that a run can lead to
_SAMPLING = (0x22, 0x11, 0x11)

# T.81, figure A.6: the place in an 8 x 8 block, row by row, of the k-th coefficient.
_ZIGZAG = sorted(
    range(64), key=lambda n: (n // 8 + n % 8, n // 8 if (n // 8 + n % 8) % 2 else n % 8)
)  # odd diagonals run down, even ones up
NATURAL_ORDER: Final = np.array(_ZIGZAG, np.int64)
"""(64,) int64: place in the block, 8 * row + column, of each coefficient in the order of the file."""


class _Refused(Exception):
    """The sentence that says why."""


@dataclass(frozen=True, eq=False)
class JpegLayout:
    """Everything that records with the same header share, checked so that the kernel may trust it.

    Attributes:
        head: (H,) uint8, SOI to the end of SOS; the coded data starts right after it.
        size: side of the image, pixels.
        quant: (3, 64) int16, 1..255, quantisation step of each component, 8 * row + column.
        lookup: (T, 1 << LOOKUP_BITS) uint32, entries of the codes that are short enough, by the next bits; 0 elsewhere.
        long_codes: uint32 entries of the longer codes, by the next 16 bits minus `long_first` plus `long_start`; 0 is
            no code.
        long_first: (T,) int64, the first 16 bits that begin no short code.
        long_start: (T,) int64, where a table's part of `long_codes` begins.
        table_of: (6,) int64, row of the tables above for the DC codes of Y, Cb, Cr, then for their AC codes.

    An entry has, from the lowest bit: 6 bits for the length of code and value together, 6 for that of the code, 6 for
    63 minus that of the value, 2 unused, and 8 for how many coefficients on the next one is: 128 ends the block.
    """

    head: NDArray[np.uint8]
    size: int
    quant: NDArray[np.int16]
    lookup: NDArray[np.uint32]
    long_codes: NDArray[np.uint32]
    long_first: NDArray[np.int64]
    long_start: NDArray[np.int64]
    table_of: NDArray[np.int64]


@dataclass
class _Header:
    """What the segments have said so far."""

    size: int = 0
    component_ids: tuple[int, ...] = ()
    quant_of: tuple[int, ...] = ()
    quant: dict[int, NDArray[np.int16]] = field(default_factory=dict)
    codes: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    is_jfif: bool = False


def read_layout(data: bytes | memoryview) -> JpegLayout | str:
    """Parse the header of one record.

    Args:
        data: the record's image file, or at least its first bytes.

    Returns:
        The layout; or the reason, as a sentence, why the compiled path does not apply.
    """
    head = bytes(data[:MAX_HEAD_BYTES])
    try:
        return _layout(head)
    except _Refused as refusal:
        return str(refusal)
    except IndexError:
        return f"the header does not end within {len(head)} bytes"


def _layout(head: bytes) -> JpegLayout:
    _need(head[:2] == b"\xff\xd8", "it does not begin with SOI")
    header, position = _Header(), 2
    while True:
        _need(head[position] == 0xFF, f"no marker at byte {position}")
        marker = head[position + 1]
        length = head[position + 2] << 8 | head[position + 3]
        _need(length >= 2, f"the segment at byte {position} is {length} bytes long")
        start, position = position + 4, position + 2 + length
        body = head[start:position]
        if len(body) != length - 2:
            raise IndexError
        if marker == 0xDA:
            return _with_tables(header, _scan(header, body), head[:position])
        _segment(header, marker, body)


def _segment(header: _Header, marker: int, body: bytes) -> None:
    if marker == 0xC0:
        _frame(header, body)
    elif marker == 0xC4:
        _huffman_tables(header, body)
    elif marker == 0xDB:
        _quant_tables(header, body)
    elif marker == 0xDD:
        _need(body == b"\0\0", "it has restart markers")
    elif marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
        header.is_jfif = True
    elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
        _need(body[11] == 1, f"its Adobe colour transform is {body[11]}, not YCbCr")
    else:
        _need(0xE0 <= marker <= 0xEF or marker == 0xFE, f"marker 0x{marker:02X} is none of baseline JPEG")


def _frame(header: _Header, body: bytes) -> None:
    _need(not header.component_ids, "it has two frames")
    _need(len(body) == 15 and body[5] == 3, "it has not three components")
    _need(body[0] == 8, f"its samples have {body[0]} bits")
    height, width = body[1] << 8 | body[2], body[3] << 8 | body[4]
    _need(height == width, f"it is {width} x {height} pixels, not square")
    _need(_MIN_SIZE <= width <= _MAX_SIZE, f"a side of {width} pixels is not within {_MIN_SIZE} to {_MAX_SIZE}")
    _need(tuple(body[7::3]) == _SAMPLING, "its sampling is not 4:2:0")
    header.size, header.component_ids, header.quant_of = width, tuple(body[6::3]), tuple(body[8::3])
    _need(len(set(header.component_ids)) == 3, "two components have one name")


def _quant_tables(header: _Header, body: bytes) -> None:
    for start in range(0, len(body), 65):
        _need(body[start] < 4, "a quantisation table has 16 bits or an unknown number")
        steps = np.frombuffer(body[start + 1 : start + 65], np.uint8).astype(np.int16)
        _need(len(steps) == 64 and bool(steps.all()), "a quantisation table is cut off or has a zero")
        header.quant[body[start]] = table = np.empty(64, np.int16)
        table[NATURAL_ORDER] = steps


def _huffman_tables(header: _Header, body: bytes) -> None:
    position = 0
    while position < len(body):
        number, counts = body[position], body[position + 1 : position + 17]
        symbols = body[position + 17 : position + 17 + sum(counts)]
        _need(number >> 4 < 2 and number & 15 < 4, f"a Huffman table has the number 0x{number:02X}")
        _need(len(counts) == 16 and len(symbols) == sum(counts) <= 256, "a Huffman table is cut off or too long")
        code = 0
        for length, count in enumerate(counts, 1):
            # The code of all ones is no code (T.81, annex C), which libjpeg demands of every length.
            code = code * 2 + count
            _need(count == 0 or code < 1 << length, f"a Huffman table has too many codes of {length} bits")
        is_ac = bool(number >> 4)
        sizes_fit = all(s & 15 <= _MAX_AC_BITS if is_ac else s <= _MAX_DC_BITS for s in symbols)
        _need(sizes_fit, "a Huffman table codes values too large for 8 bits")
        header.codes[number] = counts, symbols
        position += 17 + len(symbols)


def _scan(header: _Header, body: bytes) -> tuple[int, ...]:
    """The six Huffman tables of the scan: DC of Y, Cb, Cr, then AC."""
    ids = header.component_ids
    _need(bool(ids), "its scan comes before its frame")
    _need(len(body) == 10 and body[0] == 3 and tuple(body[1:7:2]) == ids, "its scan is not of all three components")
    _need(body[7:] == b"\x00\x3f\x00", "its scan is not sequential")
    # With no marker that says so, libjpeg takes components as YCbCr by their names.
    _need(header.is_jfif or ids == (1, 2, 3), f"nothing says that components {ids} are YCbCr")
    tables = (*(spec >> 4 for spec in body[2:7:2]), *(0x10 | spec & 15 for spec in body[2:7:2]))
    for number in tables:
        _need(number in header.codes, f"Huffman table 0x{number:02X} is missing")
    for number in header.quant_of:
        _need(number in header.quant, f"quantisation table {number} is missing")
    return tables


def _with_tables(header: _Header, tables: tuple[int, ...], head: bytes) -> JpegLayout:
    numbers = sorted(set(tables))
    made = [_entries(*header.codes[number], is_ac=number >= 0x10) for number in numbers]
    sizes = [len(long_codes) for _, long_codes in made]
    return JpegLayout(
        head=np.frombuffer(head, np.uint8),
        size=header.size,
        quant=np.stack([header.quant[number] for number in header.quant_of]),
        lookup=np.stack([lookup for lookup, _ in made]),
        long_codes=np.concatenate([*(long_codes for _, long_codes in made), np.zeros(1, np.uint32)]),
        long_first=np.array([(1 << 16) - size for size in sizes]),
        long_start=np.cumsum([0, *sizes[:-1]]),
        table_of=np.array([numbers.index(number) for number in tables]),
    )


def _entries(counts: bytes, symbols: bytes, *, is_ac: bool) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Entries of the short codes, by the next LOOKUP_BITS bits, and of the others, by the next 16 bits."""
    by_bits = np.zeros(1 << 16, np.uint32)
    lengths = [length for length, count in enumerate(counts, 1) for _ in range(count)]
    first = num_short = 0
    for length, symbol in zip(lengths, symbols, strict=True):
        value_bits, advance = (symbol & 15, (symbol >> 4) + 1) if is_ac else (symbol, 1)
        if is_ac and value_bits == 0 and symbol != _ZERO_RUN:
            advance = _PAST_BLOCK  # libjpeg, too, ends the block at every run without a value but the longest
        stop = first + (1 << 16 - length)
        by_bits[first:stop] = length + value_bits | length << 6 | 63 - value_bits << 12 | advance << 20
        num_short = stop if length <= LOOKUP_BITS else num_short
        first = stop
    step = 1 << 16 - LOOKUP_BITS
    lookup = np.zeros(1 << LOOKUP_BITS, np.uint32)
    lookup[: num_short // step] = by_bits[:num_short:step]
    return lookup, by_bits[num_short:].copy()


def _need(condition: bool, refusal: str) -> None:
    if not condition:
        raise _Refused(refusal)
