"""Which records share a layout, and which are none of the compiled loader's."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg

from lmdali.pipeline.jpeg_layout import MAX_HEAD_BYTES, JpegLayout, read_layout
from lmdali.pipeline.record_codec import encode_jpeg

GRAY_SQUARE = np.full((48, 48, 3), 128, np.uint8)
RECORD = encode_jpeg(GRAY_SQUARE, 90)


def layout_of(data: bytes) -> JpegLayout:
    layout = read_layout(data)
    assert isinstance(layout, JpegLayout), layout
    return layout


def test_a_record_of_ours_has_one() -> None:
    layout = layout_of(RECORD)
    assert layout.size == 48
    assert layout.head.tobytes() == RECORD[:623]
    assert layout.tables.lookup.any()


def test_every_size_and_quality_has_a_layout() -> None:
    for size in (16, 17, 255, 300):
        for quality in (1, 50, 100):
            layout = layout_of(encode_jpeg(np.zeros((size, size, 3), np.uint8), quality))
            assert layout.size == size and layout.quant.min() >= 1 and layout.quant.max() <= 255


OTHER_KINDS = {
    "its sampling is not 4:2:0": simplejpeg.encode_jpeg(GRAY_SQUARE, 90, "RGB", "444", False),
    "it is 48 x 40 pixels, not square": simplejpeg.encode_jpeg(GRAY_SQUARE[:40].copy(), 90, "RGB", "420", False),
    "a side of 8 pixels is not within 16 to 4096": encode_jpeg(GRAY_SQUARE[:8, :8].copy()),
    "it does not begin with SOI": b"P6\n48 48\n255\n" + bytes(100),
    f"the header does not end within {MAX_HEAD_BYTES} bytes": RECORD[:20]
    + b"\xff\xfe"
    + (4096).to_bytes(2, "big")
    + bytes(4094)
    + RECORD[20:],
}


@pytest.mark.parametrize("reason", OTHER_KINDS)
def test_others_are_refused_with_the_reason(reason: str) -> None:
    assert read_layout(OTHER_KINDS[reason]) == reason
