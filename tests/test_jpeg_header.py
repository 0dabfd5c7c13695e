"""Headers of our records are understood completely; all others are refused with a reason."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdali.pipeline.decode import encode_jpeg
from lmdali.pipeline.jpeg_header import LOOKUP_BITS, NATURAL_ORDER, JpegLayout, read_layout

GRAY_SQUARE = np.full((48, 48, 3), 128, np.uint8)
RECORD = encode_jpeg(GRAY_SQUARE, 90)
# Where the segments of a record begin: JFIF, two quantisation tables, frame, four Huffman tables, scan.
DQT, SOF, DHT, SOS = 20, 158, 177, 609


def layout_of(data: bytes) -> JpegLayout:
    layout = read_layout(data)
    assert isinstance(layout, JpegLayout), layout
    return layout


def refusal(data: bytes) -> str:
    reason = read_layout(data)
    assert isinstance(reason, str)
    return reason


def patched(offset: int, replacement: bytes) -> bytes:
    return RECORD[:offset] + replacement + RECORD[offset + len(replacement) :]


def inserted(offset: int, segment: bytes) -> bytes:
    return RECORD[:offset] + segment + RECORD[offset:]


def test_the_zigzag_is_that_of_figure_a6() -> None:
    assert NATURAL_ORDER[:10].tolist() == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]
    assert NATURAL_ORDER[-4:].tolist() == [47, 55, 62, 63]
    assert sorted(NATURAL_ORDER.tolist()) == list(range(64))


def test_a_record_of_ours_is_understood() -> None:
    layout = layout_of(RECORD)
    assert layout.size == 48
    assert layout.head.tobytes() == RECORD[:623] and RECORD[SOS : SOS + 2] == b"\xff\xda"
    # Quality 90 of the tables in T.81, annex K: a fifth, at least 1.
    assert layout.quant[0, :8].tolist() == [3, 2, 2, 3, 5, 8, 10, 12]
    assert layout.quant[1, :8].tolist() == [3, 4, 5, 9, 20, 20, 20, 20]
    assert (layout.quant[1] == layout.quant[2]).all()
    assert layout.table_of.tolist() == [0, 1, 1, 2, 3, 3]
    with pytest.raises(FrozenInstanceError):
        layout.size = 1  # type: ignore[misc]


def entry(layout: JpegLayout, table: int, bits: str) -> tuple[int, int, int, int]:
    """Total bits, bits of the code, bits of the value, advance, for the next bits."""
    code = int(bits.ljust(16, "0"), 2)
    found = int(layout.lookup[table, code >> 16 - LOOKUP_BITS])
    if found == 0:
        found = int(layout.long_codes[layout.long_start[table] + code - layout.long_first[table]])
    return found & 63, found >> 6 & 63, 63 - (found >> 12 & 63), found >> 20


def test_codes_are_those_of_annex_k() -> None:
    layout = layout_of(RECORD)
    assert entry(layout, 0, "00") == (2, 2, 0, 1)  # DC of Y, category 0
    assert entry(layout, 0, "111111110") == (20, 9, 11, 1)  # category 11
    assert entry(layout, 1, "11111111110") == (22, 11, 11, 1)  # DC of Cb, category 11
    assert entry(layout, 2, "1010") == (4, 4, 0, 128)  # AC of Y, end of block
    assert entry(layout, 2, "11111111001") == (11, 11, 0, 16)  # sixteen zeros
    assert entry(layout, 2, "100") == (6, 3, 3, 1)  # run 0, three bits
    assert entry(layout, 2, "1111111111111110") == (26, 16, 10, 16)  # the last: run 15, ten bits
    assert entry(layout, 2, "1" * 16)[0] == 0  # no code


def test_every_size_and_quality_has_a_layout() -> None:
    for size in (16, 17, 255, 300):
        for quality in (1, 50, 100):
            layout = layout_of(encode_jpeg(np.zeros((size, size, 3), np.uint8), quality))
            assert layout.size == size and layout.quant.min() >= 1 and layout.quant.max() <= 255


def test_metadata_is_part_of_the_head() -> None:
    for segment in (b"\xff\xfe\x00\x06note", b"\xff\xe1\x00\x08Exif\0\0", b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x01"):
        assert len(layout_of(inserted(DQT, segment)).head) == 623 + len(segment)


def test_optimised_tables_are_understood() -> None:
    ok, data = cv2.imencode(".jpg", GRAY_SQUARE, [cv2.IMWRITE_JPEG_OPTIMIZE, 1])
    assert ok
    assert layout_of(data.tobytes()).lookup.any()


OTHER_KINDS = {
    "sampling": simplejpeg.encode_jpeg(GRAY_SQUARE, 90, "RGB", "444", False),
    "not square": simplejpeg.encode_jpeg(GRAY_SQUARE[:40].copy(), 90, "RGB", "420", False),
    "a side of 8": encode_jpeg(GRAY_SQUARE[:8, :8].copy()),
    "three components": cv2.imencode(".jpg", GRAY_SQUARE[..., 0])[1].tobytes(),
    "marker 0xC2": cv2.imencode(".jpg", GRAY_SQUARE, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes(),
    "restart": cv2.imencode(".jpg", GRAY_SQUARE, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes(),
    "SOI": b"P6\n48 48\n255\n" + bytes(100),
    "end within": RECORD[:600],
    "no marker at byte 20": patched(DQT, b"\x00"),
    "bytes long": patched(DQT + 2, b"\0\1"),
    "two frames": inserted(SOS, RECORD[SOF:DHT]),
    "its samples": patched(SOF + 4, b"\x0c"),
    "one name": patched(SOF + 13, b"\x01"),
    "scan is not of all": patched(SOS + 5, b"\x02"),
    "scan is not sequential": patched(SOS + 11, b"\x01"),
    "quantisation table has 16 bits": patched(DQT + 4, b"\x10"),
    "has a zero": patched(DQT + 9, b"\0"),
    "quantisation table 3": patched(SOF + 12, b"\3"),
    "Huffman table has the number": patched(DHT + 4, b"\x20"),
    "Huffman table 0x13": patched(SOS + 6, b"\x03"),
    "too many codes": patched(DHT + 5, b"\x02\x00\x04"),
    "cut off": patched(DHT + 20, b"\xff"),
    "too large": patched(DHT + 21, b"\x0c"),
    "Adobe": inserted(DQT, b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\0"),
    "says that": RECORD[:2]
    + RECORD[DQT : SOF + 10]
    + b"RGB"[:1]
    + RECORD[SOF + 11 : SOS + 5]
    + b"R"
    + RECORD[SOS + 6 :],
    "before its frame": RECORD[:SOF] + RECORD[DHT:],
    "marker 0xCC": inserted(DQT, b"\xff\xcc\x00\x04\0\0"),
}


@pytest.mark.parametrize("reason", OTHER_KINDS)
def test_what_the_kernel_does_not_decode_is_refused_with_its_reason(reason: str) -> None:
    assert reason in refusal(OTHER_KINDS[reason])


@given(st.lists(st.tuples(st.integers(0, 622), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=1000)
def test_no_header_raises_and_every_table_covers_its_index(changes: list[tuple[int, int]]) -> None:
    data = bytearray(RECORD)
    for place, value in changes:
        data[place] = value
    layout = read_layout(bytes(data))
    if isinstance(layout, JpegLayout):
        # What the kernel does not check again: each 16 bits lead to an entry, no value is longer than its place.
        for table in range(len(layout.lookup)):
            first, start = int(layout.long_first[table]), int(layout.long_start[table])
            missing = np.flatnonzero(layout.lookup[table] == 0)
            assert (missing << 16 - LOOKUP_BITS >= first).all()
            assert start + (1 << 16) - first <= len(layout.long_codes)
        entries = np.concatenate([layout.lookup.ravel(), layout.long_codes])
        entries = entries[entries > 0]
        assert (entries & 63).max() <= 27 and ((entries >> 20) <= 128).all() and ((entries >> 20) >= 1).all()
        assert layout.table_of.max() < len(layout.lookup)
        assert 16 <= layout.size <= 4096


@given(st.binary(max_size=300))
def test_anything_else_is_refused(data: bytes) -> None:
    assert refusal(data)
    assert refusal(b"\xff\xd8" + data)
