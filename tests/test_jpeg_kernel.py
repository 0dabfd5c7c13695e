"""The compiled JPEG decode against libjpeg-turbo, and against bytes that no encoder wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline import jpeg_kernel as kernel
from lmdali.pipeline.jpeg_layout import JpegLayout, read_layout
from lmdali.pipeline.paint_kernel import paint_run, paint_whole
from lmdali.pipeline.record_codec import encode_jpeg

KINDS = ("smooth", "noise", "checks", "black and white")


def picture(seed: int, size: int, kind: str = "smooth") -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    if kind == "noise":
        return random.integers(0, 256, (size, size, 3), np.uint8)
    y, x = np.mgrid[:size, :size, :1][:2] / size
    if kind == "checks":
        return np.broadcast_to(((y * size + x * size) % 2 * 255).astype(np.uint8), (size, size, 3))
    if kind == "black and white":
        return (random.random((size, size, 3)) < 0.5).astype(np.uint8) * np.uint8(255)
    waves = 128 + 90 * np.sin(random.uniform(2, 20, 3) * x + random.uniform(2, 20, 3) * y)
    return np.clip(waves + random.normal(0, 6, (size, size, 3)), 0, 255).astype(np.uint8)


def reference(data: bytes) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    return pixels


def layout_of(data: bytes) -> JpegLayout:
    layout = read_layout(data)
    assert isinstance(layout, JpegLayout), layout
    return layout


def decode(records: list[bytes], *, before: bytes = b"", after: bytes = b"") -> tuple[Any, list[int]]:
    """Whole images of records that have the first one's layout, and the statuses."""
    layout = layout_of(records[0])
    shards = np.frombuffer(before + b"".join(records) + after, np.uint8)
    stops = len(before) + np.cumsum([len(record) for record in records])
    starts = stops - [len(record) for record in records]
    status = np.full(len(records), -1)
    windows = np.tile([0, layout.size, 0, layout.size], (len(records), 1))
    planes = kernel.new_planes(len(records), layout.size)
    kernel.decode_run(shards, starts, stops, *kernel.layout_arrays(layout), windows, planes, status)
    out = np.zeros((len(records), layout.size, layout.size, 3), np.uint8)
    paint_whole(planes, out)
    return out, status.tolist()


def coded(data: bytes) -> tuple[bytes, bytes]:
    """Header and coded data."""
    head = len(layout_of(data).head)
    return data[:head], data[head:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 17, 64, 100, 255, 256, 272])
def test_pixels_equal_libjpeg_turbos_bit_for_bit(size: int, kind: str) -> None:
    for quality in (1, 10, 50, 90, 95, 100):
        records = [encode_jpeg(picture(seed, size, kind), quality) for seed in range(2)]
        pixels, status = decode(records)
        assert status == [kernel.OK, kernel.OK]
        for found, record in zip(pixels, records, strict=True):
            assert (found == reference(record)).all(), quality


@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.integers(1, 100), st.integers(16, 80))
@settings(max_examples=150)
def test_any_picture_and_quality(seed: int, kind: str, quality: int, size: int) -> None:
    record = encode_jpeg(picture(seed, size, kind), quality)
    pixels, status = decode([record])
    assert status == [kernel.OK]
    assert (pixels[0] == reference(record)).all()


@given(st.integers(1, 255), st.data())
@settings(max_examples=100)
def test_coefficients_far_too_large_are_equal_or_refused(step: int, data: Any) -> None:
    # Quantisation steps other than the encoder's own make coefficients of every size, up to past 16 bits.
    record = bytearray(encode_jpeg(picture(data.draw(st.integers(0, 99)), 48, "noise"), 100))
    for table in range(2):
        start = 25 + 69 * table
        record[start : start + 64] = bytes([step]) * 64
    pixels, status = decode([bytes(record)])
    assert status[0] in (kernel.OK, kernel.OUT_OF_RANGE)
    if status[0] == kernel.OK:
        assert (pixels[0] == reference(bytes(record))).all()


def test_a_window_decodes_all_that_its_crop_shows() -> None:
    size, crop = 100, 37
    record = encode_jpeg(picture(3, size), 90)
    layout, shards = layout_of(record), np.frombuffer(record, np.uint8)
    expected = reference(record)
    starts, stops, status = np.array([0]), np.array([len(record)]), np.full(1, -1)
    for y in range(0, size - crop + 1, 3):
        for x in range(0, size - crop + 1, 7):
            corner = np.array([[y, x]])
            planes = kernel.new_planes(1, size)
            planes[:] = 0x5555555555555555
            windows = kernel.view_windows(corner, 1, crop)
            kernel.decode_run(shards, starts, stops, *kernel.layout_arrays(layout), windows, planes, status)
            out = np.zeros((1, crop, crop, 3), np.uint8)
            paint_run(planes, size, 1, corner, np.zeros(1, np.bool_), out)
            assert status[0] == kernel.OK
            assert (out[0] == expected[y : y + crop, x : x + crop]).all(), (y, x)


def test_a_window_left_or_right_of_sixteen_blocks_decodes_only_these() -> None:
    size = 272
    record = encode_jpeg(picture(4, size), 90)
    layout, expected = layout_of(record), reference(record)
    for x in (0, 1, 126, 127, 128, 129, 240, 256):
        corner, planes, status = np.array([[5, x]]), kernel.new_planes(1, size), np.full(1, -1)
        planes[:] = 0x5555555555555555
        windows = kernel.view_windows(corner, 1, 16)
        ends = np.array([0]), np.array([len(record)])
        kernel.decode_run(
            np.frombuffer(record, np.uint8), *ends, *kernel.layout_arrays(layout), windows, planes, status
        )
        out = np.zeros((1, 16, 16, 3), np.uint8)
        paint_run(planes, size, 1, corner, np.zeros(1, np.bool_), out)
        assert (out[0] == expected[5:21, x : x + 16]).all(), x
        assert (planes == 0x5555555555555555).any()


def test_windows_hold_all_views_of_an_image() -> None:
    corners = np.array([[0, 5], [9, 2], [3, 3], [4, 4]])
    assert kernel.view_windows(corners, 2, 10).tolist() == [[0, 19, 2, 15], [3, 14, 3, 14]]


def test_rows_below_the_window_may_be_missing() -> None:
    record = encode_jpeg(picture(1, 256, "noise"), 90)
    layout, cut = layout_of(record), record[: len(record) // 2]
    for y, expected in ((0, kernel.OK), (200, kernel.OUT_OF_DATA)):
        status, windows = np.full(1, -1), np.array([[y, y + 32, 0, 256]])
        kernel.decode_run(
            np.frombuffer(cut, np.uint8), np.array([0]), np.array([len(cut)]), *kernel.layout_arrays(layout), windows,
            kernel.new_planes(1, 256), status,
        )  # fmt: skip
        assert status[0] == expected


def test_each_damage_has_its_status() -> None:
    record = encode_jpeg(picture(1, 64), 90)
    head, data = coded(record)
    other_head = head[:30] + bytes([head[30] ^ 1]) + head[31:]
    cases = [
        (record, kernel.OK),
        (record + b"anything", kernel.OK),
        (record[:-2], kernel.MISSING_EOI),
        (record[:-1], kernel.MISSING_EOI),
        (record[:-2] + b"\xff\xd0", kernel.MISSING_EOI),
        (record[:-2] + b"abc\xff\xd9", kernel.MISSING_EOI),
        (record[:-40] + b"\xff\xd9", kernel.OUT_OF_DATA),
        (head, kernel.HEAD_DIFFERS),
        (record[:20], kernel.HEAD_DIFFERS),
        (other_head + data, kernel.HEAD_DIFFERS),
        (head + b"\xff\x00" * 400 + b"\xff\xd9", kernel.BAD_CODE),
        # DC 0, then runs of 16 zeros: the fourth leaves the block.
        (head + bytes.fromhex("3fe7f9fe7f90") + bytes(200) + b"\xff\xd9", kernel.BAD_RUN),
    ]
    for data, expected in cases:
        assert decode([record, data])[1] == [kernel.OK, expected], (data[-10:], expected)


def test_a_record_outside_the_array_is_refused() -> None:
    record = encode_jpeg(picture(1, 16), 90)
    shards, planes = np.frombuffer(record, np.uint8), kernel.new_planes(1, 16)
    for start, stop in ((0, len(record) + 1), (-1, len(record)), (9, 3)):
        status = np.full(1, -1)
        arrays, windows = kernel.layout_arrays(layout_of(record)), np.array([[0, 16, 0, 16]])
        kernel.decode_run(shards, np.array([start]), np.array([stop]), *arrays, windows, planes, status)
        assert status[0] == kernel.HEAD_DIFFERS


def test_stuffed_bytes_in_every_place() -> None:
    # Noise at the best quality has hundreds of them, in runs, and at all distances.
    record = encode_jpeg(picture(5, 256, "black and white"), 100)
    assert record.count(b"\xff\x00") > 200
    pixels, status = decode([record])
    assert status == [kernel.OK] and (pixels[0] == reference(record)).all()


def test_nothing_read_or_written_outside_whatever_the_bytes_are() -> None:
    random = np.random.default_rng(1)
    record = encode_jpeg(picture(2, 48), 80)
    head, data = coded(record)
    layout, counts = layout_of(record), dict.fromkeys(range(7), 0)
    guard = 1 << 12
    for trial in range(3000):
        broken = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 9)):
            broken[place] = random.choice([0, 255, int(random.integers(0, 256))])
        broken = broken[: random.integers(0, len(broken) + 1)] if trial % 3 == 0 else broken
        if trial % 10 == 0:
            broken = bytearray(random.bytes(int(random.integers(0, 4000))).replace(b"\xff", b"\xff\x00"))
        shards = np.frombuffer(head + bytes(broken), np.uint8)  # begins and ends where the record does
        room = np.full(2 * guard + kernel.new_planes(1, 48).shape[1], 0xABCD, np.uint64)
        planes, status = room[guard:-guard].reshape(1, -1), np.full(1, -1)
        kernel.decode_run(
            shards, np.array([0]), np.array([len(shards)]), *kernel.layout_arrays(layout),
            np.array([[0, 48, 0, 48]]), planes, status,
        )  # fmt: skip
        assert (room[:guard] == 0xABCD).all() and (room[-guard:] == 0xABCD).all()
        counts[int(status[0])] += 1
        if status[0] == kernel.OK:
            out = np.zeros((1, 48, 48, 3), np.uint8)
            paint_whole(planes, out)
            assert (out[0] == reference(shards.tobytes())).all()
    assert all(counts[code] for code in (kernel.OK, kernel.BAD_CODE, kernel.OUT_OF_DATA, kernel.BAD_RUN)), counts


def test_records_decode_at_both_ends_of_the_array_and_between_others() -> None:
    records = [encode_jpeg(picture(seed, 64), 90) for seed in range(3)]
    for before, after in ((b"", b""), (b"\xff" * 9, b"\xff" * 9)):
        pixels, status = decode(records, before=before, after=after)
        assert status == [kernel.OK] * 3
        assert all((found == reference(record)).all() for found, record in zip(pixels, records, strict=True))
