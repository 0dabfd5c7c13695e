"""What the next bits mean: the tables of T.81, annex K, and any others that a header can have."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdali.pipeline.huffman_tables import LOOKUP_BITS, HuffmanTables, fill_table
from lmdali.pipeline.jpeg_header import JpegHeader, read_jpeg_header
from lmdali.pipeline.record_codec import encode_jpeg

RECORD = encode_jpeg(np.full((48, 48, 3), 128, np.uint8), 90)


def tables_of(data: bytes) -> HuffmanTables:
    header = read_jpeg_header(data, len(data))
    assert isinstance(header, JpegHeader), header
    tables = HuffmanTables()
    # Whatever was there before, as the tables of another file.
    tables.lookup[:] = tables.long_codes[:] = 0xFFFFFFFF
    tables.fill(header)
    return tables


def entry(tables: HuffmanTables, codes_of: int, bits: str) -> tuple[int, int, int, int]:
    """Total bits, bits of the code, bits of the value, advance, for the next bits: as the entropy decoder looks."""
    code = np.uint64(int(bits.ljust(16, "0"), 2))
    found = int(tables.lookup[tables.at[0, codes_of] + (code >> np.uint64(16 - LOOKUP_BITS))])
    if found == 0:
        with np.errstate(over="ignore"):
            found = int(tables.long_codes[tables.at[1, codes_of] + code])
    return found & 63, found >> 6 & 63, 63 - (found >> 12 & 63), found >> 20


def test_codes_are_those_of_annex_k() -> None:
    tables = tables_of(RECORD)
    assert entry(tables, 0, "00") == (2, 2, 0, 1)  # DC of Y, category 0
    assert entry(tables, 0, "111111110") == (20, 9, 11, 1)  # category 11
    assert entry(tables, 1, "11111111110") == (22, 11, 11, 1)  # DC of Cb, category 11
    assert entry(tables, 2, "11111111110") == (22, 11, 11, 1)  # Cr has Cb's
    assert entry(tables, 3, "1010") == (4, 4, 0, 128)  # AC of Y, end of block
    assert entry(tables, 3, "11111111001") == (11, 11, 0, 16)  # sixteen zeros
    assert entry(tables, 3, "100") == (6, 3, 3, 1)  # run 0, three bits
    assert entry(tables, 3, "1111111111111110") == (26, 16, 10, 16)  # the last: run 15, ten bits
    assert entry(tables, 3, "1" * 16)[0] == 0  # no code


@st.composite
def codes(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A table that a header may have, and whether it is one of AC."""
    is_ac = draw(st.booleans())
    counts, room = [], (1 << 16) - 1  # of the 16-bit codes, the last is none
    for length in range(1, 17):
        most = min(room >> 16 - length, 256 - sum(counts), 40)
        counts.append(draw(st.integers(0, most) if length > 3 else st.integers(0, min(most, 1))))
        room -= counts[-1] << 16 - length
    allowed = [symbol for symbol in range(256) if (symbol & 15 <= 10 if is_ac else symbol <= 11)]
    symbols = draw(st.lists(st.sampled_from(allowed), min_size=sum(counts), max_size=sum(counts)))
    return bytes(counts) + bytes(symbols), is_ac


@given(codes(), st.lists(st.integers(0, (1 << 16) - 1), max_size=200))
@settings(max_examples=200)
def test_every_sixteen_bits_lead_to_their_code_or_to_none(table: tuple[bytes, bool], looks: list[int]) -> None:
    data, is_ac = table
    lookup, long_codes = np.full(1 << LOOKUP_BITS, 7, np.uint32), np.full(1 << 16, 7, np.uint32)
    first = fill_table(np.frombuffer(data, np.uint8), is_ac, lookup, long_codes)
    code, expected = 0, {}
    lengths = [length for length, count in enumerate(data[:16], 1) for _ in range(count)]
    for length, symbol in zip(lengths, data[16:], strict=True):
        expected[code] = (code + (1 << 16 - length), length, symbol)
        code += 1 << 16 - length
    assert long_codes[(1 << 16) - first :].tolist() == [7] * first  # what is beyond is another table's
    for look in {*looks, *expected, *(stop - 1 for stop, _, _ in expected.values()), code, (1 << 16) - 1}:
        found = int(lookup[look >> 16 - LOOKUP_BITS]) or int(long_codes[look - first])
        start = max((start for start in expected if start <= look), default=-1)
        if start < 0 or look >= expected[start][0]:
            assert found == 0
            continue
        _, length, symbol = expected[start]
        value_bits, advance = (symbol & 15, (symbol >> 4) + 1) if is_ac else (symbol, 1)
        if is_ac and symbol & 15 == 0 and symbol != 0xF0:
            advance = 128
        assert found == length + value_bits | length << 6 | 63 - value_bits << 12 | advance << 20
