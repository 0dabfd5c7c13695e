"""Stored records: what is written, and what is read back."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from lmdali.pipeline.errors import ConfigError, RecordError
from lmdali.pipeline.record_codec import decode_stored, encode_jpeg, encode_ppm, ppm_header


def picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth in both directions, different in all three channels, no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 // width, y * 255 // height, (2 * x + y) * 255 // (2 * width + height))
    return np.stack(channels, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("quality", [50, 95, 100])
def test_a_stored_jpeg_equals_opencv_bit_for_bit(quality: int) -> None:
    noise = np.random.default_rng(quality).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for pixels in (picture(256, 256), noise):
        data = encode_jpeg(pixels, quality)
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.array_equal(decode_stored(data), expected)
        assert np.array_equal(decode_stored(memoryview(data)), expected)


def test_a_stored_jpeg_is_baseline_of_three_components_subsampled() -> None:
    data = encode_jpeg(picture(256, 256))
    frame = data.index(b"\xff\xc0")
    assert struct.unpack_from(">BHHB", data, frame + 4) == (8, 256, 256, 3)
    assert data[frame + 11] == 0x22
    assert data == encode_jpeg(picture(256, 256))


def test_a_raw_record_is_an_ordinary_image_file_and_is_read_without_a_copy() -> None:
    pixels = picture(256, 256)
    data = encode_ppm(pixels)
    assert data.startswith(ppm_header()) and len(data) == len(ppm_header()) + 3 * 256 * 256
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], pixels)
    stored = decode_stored(data)
    assert np.array_equal(stored, pixels)
    assert np.shares_memory(stored, np.frombuffer(data, np.uint8)) and not stored.flags.writeable


@pytest.mark.parametrize("encode", [encode_jpeg, encode_ppm])
def test_records_are_decoded_into_the_callers_buffer(encode: object) -> None:
    data = encode(picture(256, 256))  # type: ignore[operator]
    out = np.zeros((256, 256, 3), np.uint8)
    assert decode_stored(data, out=out) is out
    assert np.array_equal(out, decode_stored(data))


def test_a_buffer_of_the_wrong_kind_is_refused() -> None:
    data = encode_jpeg(picture(256, 256))
    for out in (
        np.zeros((128, 256, 3), np.uint8),
        np.zeros((256, 256, 3), np.int8),
        np.zeros((256, 256, 6), np.uint8)[..., ::2],
    ):
        with pytest.raises(ValueError, match="out must be"):
            decode_stored(data, out=out)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [255, 257, 8])
@pytest.mark.parametrize("encode", [encode_jpeg, encode_ppm])
def test_a_record_of_another_size_is_a_record_error(encode: object, side: int) -> None:
    data = encode(picture(side, side))  # type: ignore[operator]
    with pytest.raises(RecordError):
        decode_stored(data)
    with pytest.raises(RecordError):
        decode_stored(data, out=np.zeros((256, 256, 3), np.uint8))
    assert decode_stored(data, size=side).shape == (side, side, 3)


def test_damaged_records_are_record_errors() -> None:
    jpeg, ppm = encode_jpeg(picture(256, 256)), encode_ppm(picture(256, 256))
    for data in (b"", b"P6", jpeg[:-2], jpeg[:100], ppm[:-1], ppm + b"\x00", b"P5" + ppm[2:], b"nonsense"):
        with pytest.raises(RecordError):
            decode_stored(data)


def test_pixels_that_are_no_square_image_are_not_encoded() -> None:
    for bad in (picture(4, 6), picture(4, 4)[..., 0], picture(4, 4).astype(np.float32)):
        for encode in (encode_jpeg, encode_ppm):
            with pytest.raises(ValueError, match="square"):
                encode(bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="quality"):
        encode_jpeg(picture(4, 4), 0)
