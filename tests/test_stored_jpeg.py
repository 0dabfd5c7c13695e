"""Decoding back what was just stored: the pixels of `decode_stored`, or the word that it is for libjpeg-turbo to do."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg

from lmdali.pipeline.record_codec import decode_stored, encode_jpeg
from lmdali.tools.stored_jpeg import StoredJpegDecoder


@pytest.mark.parametrize("size", [16, 48, 99])
def test_records_are_decoded_as_by_libjpeg_turbo(size: int) -> None:
    decode, out = StoredJpegDecoder(size), np.empty((size, size, 3), np.uint8)
    for seed in range(4):
        data = encode_jpeg(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8), 90)
        assert decode(data, out)
        assert np.array_equal(out, decode_stored(data, size))


def test_other_files_are_not() -> None:
    decode, out = StoredJpegDecoder(48), np.empty((48, 48, 3), np.uint8)
    pixels = np.zeros((48, 48, 3), np.uint8)
    record = encode_jpeg(pixels, 90)
    for data in (
        simplejpeg.encode_jpeg(pixels, 90, "RGB", "444", False),
        encode_jpeg(np.zeros((32, 32, 3), np.uint8), 90),
        record[:-9],
        b"",
    ):
        assert not decode(data, out)
    assert decode(record, out)
