"""Headers that the compiled decoders take are understood completely; all others are refused with a reason."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdali.pipeline.jpeg_header import NATURAL_ORDER, JpegHeader, read_jpeg_header
from lmdali.pipeline.record_codec import encode_jpeg

GRAY_SQUARE = np.full((48, 48, 3), 128, np.uint8)
RECORD = encode_jpeg(GRAY_SQUARE, 90)
# Where the segments of a record begin: JFIF, two quantisation tables, frame, four Huffman tables, scan.
DQT, SOF, DHT, SOS = 20, 158, 177, 609


def header_of(data: bytes) -> JpegHeader:
    header = read_jpeg_header(data, len(data))
    assert isinstance(header, JpegHeader), header
    return header


def refusal(data: bytes) -> str:
    reason = read_jpeg_header(data, len(data))
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
    header = header_of(RECORD)
    assert (header.height, header.width, header.sampling) == (48, 48, (0x22, 0x11, 0x11))
    assert header.num_bytes == 623 and RECORD[SOS : SOS + 2] == b"\xff\xda"
    # Quality 90 of the tables in T.81, annex K: a fifth, at least 1.
    assert header.quant[0, :8].tolist() == [3, 2, 2, 3, 5, 8, 10, 12]
    assert header.quant[1, :8].tolist() == [3, 4, 5, 9, 20, 20, 20, 20]
    assert (header.quant[1] == header.quant[2]).all()
    assert header.table_of == (0, 1, 1, 2, 3, 3)
    assert (
        [sum(codes[:16]) for codes in header.codes] == [len(codes) - 16 for codes in header.codes] == [12, 12, 162, 162]
    )
    with pytest.raises(FrozenInstanceError):
        header.width = 1  # type: ignore[misc]


@pytest.mark.parametrize(("sampling", "factors"), [("444", 0x11), ("422", 0x21), ("440", 0x12), ("411", 0x41)])
def test_sides_and_sampling_are_told(sampling: str, factors: int) -> None:
    header = header_of(simplejpeg.encode_jpeg(GRAY_SQUARE[:40].copy(), 80, "RGB", sampling, False))
    assert (header.height, header.width, header.sampling) == (40, 48, (factors, 0x11, 0x11))


def test_metadata_is_part_of_the_header() -> None:
    for segment in (b"\xff\xfe\x00\x06note", b"\xff\xe1\x00\x08Exif\0\0", b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x01"):
        assert header_of(inserted(DQT, segment)).num_bytes == 623 + len(segment)


def test_no_more_is_read_than_was_allowed() -> None:
    data = inserted(DQT, b"\xff\xfe" + (5000).to_bytes(2, "big") + bytes(4998))
    end = header_of(data).num_bytes
    assert isinstance(read_jpeg_header(data, end), JpegHeader)
    assert read_jpeg_header(data, end - 1) == f"the header does not end within {end - 1} bytes"


def test_optimised_tables_are_understood() -> None:
    ok, data = cv2.imencode(".jpg", GRAY_SQUARE, [cv2.IMWRITE_JPEG_OPTIMIZE, 1])
    assert ok
    assert max(len(codes) for codes in header_of(data.tobytes()).codes) < 16 + 12


OTHER_KINDS = {
    "no pixels": patched(SOF + 5, b"\0\0"),
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
def test_no_header_raises_and_what_kernels_trust_holds(changes: list[tuple[int, int]]) -> None:
    data = bytearray(RECORD)
    for place, value in changes:
        data[place] = value
    header = read_jpeg_header(bytes(data), len(data))
    if isinstance(header, JpegHeader):
        assert header.height > 0 < header.width and len(header.sampling) == 3
        assert header.quant.shape == (3, 64) and header.quant.min() >= 1
        for table, codes in enumerate(header.codes):
            is_ac = table in header.table_of[3:]
            assert sum(codes[:16]) == len(codes) - 16
            assert sum(count << 16 - length for length, count in enumerate(codes[:16], 1)) < 1 << 16
            assert all(symbol & 15 <= 10 if is_ac else symbol <= 11 for symbol in codes[16:])
        assert len(header.table_of) == 6 and max(header.table_of) < len(header.codes)


@given(st.binary(max_size=300))
def test_anything_else_is_refused(data: bytes) -> None:
    assert refusal(data)
    assert refusal(b"\xff\xd8" + data)
