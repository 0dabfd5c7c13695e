"""The Huffman tables of a JPEG as its entropy decoder wants them: what the next bits mean, in one look or two."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.crop_kernel import compiled
from lmdali.pipeline.jpeg_header import JpegHeader

LOOKUP_BITS: Final = 10
"""Codes up to this length are decoded by one look at a table of 4 kB: four such tables and a row of blocks fit L1."""

_ZERO_RUN = 0xF0
_PAST_BLOCK = 128  # no place that a run can lead to
_MAX_TABLES = 6
_CODE_BITS = 16


class HuffmanTables:
    """Memory for the tables of one header at a time.

    Attributes:
        lookup: flat uint32, the entries of codes up to `LOOKUP_BITS`, by the next bits; 0 where the code is longer.
        long_codes: flat uint32, the entries of longer codes, by the next 16 bits; 0 is no code.
        at: (2, 6) uint64, where the tables of `lookup` and those of `long_codes` begin, the latter as if they began
            with the code of sixteen zeros: DC of Y, Cb, Cr, then AC.

    An entry has, from the lowest bit: 6 bits for the length of code and value together, 6 for that of the code, 6 for
    63 minus that of the value, 2 unused, and 8 for how many coefficients on the next one is: 128 ends the block.
    """

    def __init__(self) -> None:
        self.lookup = np.empty(_MAX_TABLES << LOOKUP_BITS, np.uint32)
        # Few codes are long: of this memory, next to nothing is ever touched.
        self.long_codes = np.empty(_MAX_TABLES << _CODE_BITS, np.uint32)
        self.at = np.zeros((2, _MAX_TABLES), np.uint64)

    def fill(self, header: JpegHeader) -> None:
        """Make the tables of a header."""
        long_at = []
        for table, codes in enumerate(header.codes):
            first = fill_table(
                np.frombuffer(codes, np.uint8),
                table in header.table_of[3:],
                self.lookup[table << LOOKUP_BITS : table + 1 << LOOKUP_BITS],
                self.long_codes[table << _CODE_BITS : table + 1 << _CODE_BITS],
            )
            long_at.append((table << _CODE_BITS) - first)
        of = header.table_of
        self.at[:] = np.array([[table << LOOKUP_BITS for table in of], [long_at[table] for table in of]])


@compiled
def fill_table(
    codes: NDArray[np.uint8], is_ac: bool, lookup: NDArray[np.uint32], long_codes: NDArray[np.uint32]
) -> int:
    """Entries of one table; see `HuffmanTables`.

    Args:
        codes: uint8 of `JpegHeader.codes`.
        is_ac: whether a symbol has a run, too.
        lookup: (1 << LOOKUP_BITS,) uint32, filled with the entries by the next bits; 0 where the code is longer.
        long_codes: (65536,) uint32, whose beginning is filled with the entries of longer codes, by the next 16 bits
            minus what is returned; 0 is no code.

    Returns:
        The first 16 bits that begin no short code; `65536 -` that many entries of `long_codes` are filled.
    """
    lookup[:] = 0
    step = 16 - LOOKUP_BITS
    first = num_short = 0
    symbol_at = 16
    for length in range(1, 17):
        for _ in range(codes[length - 1]):
            symbol = np.int64(codes[symbol_at])
            symbol_at += 1
            value_bits, advance = (symbol & 15, (symbol >> 4) + 1) if is_ac else (symbol, 1)
            if is_ac and value_bits == 0 and symbol != _ZERO_RUN:
                advance = _PAST_BLOCK  # libjpeg, too, ends the block at every run without a value but the longest
            entry = np.uint32(length + value_bits | length << 6 | 63 - value_bits << 12 | advance << 20)
            stop = first + (1 << 16 - length)
            if length <= LOOKUP_BITS:
                lookup[first >> step : stop >> step] = entry
                num_short = stop
            else:
                long_codes[first - num_short : stop - num_short] = entry
            first = stop
    long_codes[first - num_short : 65536 - num_short] = 0
    return num_short
