"""Strips of rows give what the whole image would, at the memory of one copy."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline import pixel_layout
from lmdali.pipeline.pixel_layout import rgb_from_bgr, rgb_from_inverted_cmyk, rgb_from_samples


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 200), st.integers(0, 99), st.sampled_from([1, 7, 255]))
def test_any_strip_gives_the_same_pixels(height: int, width: int, strip: int, seed: int, maximum: int) -> None:
    random = np.random.default_rng(seed)
    four = random.integers(0, 256, (height, width, 4), np.uint8)
    narrow = random.integers(0, maximum + 1, (height, width, 3)).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixel_layout, "_STRIP_PIXELS", strip)
        assert np.array_equal(rgb_from_bgr(four[..., :3].copy()), four[..., 2::-1])
        exact = np.floor(four[..., :3] / 255 * (four[..., 3:] / 255) * 255 + 0.5)
        assert np.abs(rgb_from_inverted_cmyk(four) - exact).max() <= 1
        assert np.array_equal(rgb_from_inverted_cmyk(four), (four[..., :3].astype(int) * four[..., 3:] + 127) // 255)
        assert np.array_equal(rgb_from_samples(narrow, maximum), np.floor(narrow[..., ::-1] * 255.0 / maximum + 0.5))


@pytest.mark.parametrize("maximum", [256, 1000, 1023, 4095, 65535])
def test_every_deep_sample_is_rounded(maximum: int) -> None:
    values = np.arange(maximum + 1, dtype=np.uint16).reshape(1, -1, 1).repeat(3, axis=2)
    expected = (values[..., ::-1].astype(np.int64) * 510 + maximum) // (2 * maximum)
    assert np.array_equal(rgb_from_samples(values, maximum), expected)


MEASURE = r"""
import re, sys
from pathlib import Path
from lmdali.pipeline.decode import decode_source
data = Path(sys.argv[1]).read_bytes()
def peak():
    # Not getrusage: its maximum is inherited from the process that this one was forked from.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
decoded = decode_source(data)
print((peak() - before) / (decoded.width * decoded.height))
"""


@pytest.mark.parametrize(
    ("name", "bytes_per_pixel"),
    # What a decoder gives and its copy or the result, beside a little for its own buffers.
    [("plain.png", 3 + 3), ("deep.png", 6 + 6), ("deep.tiff", 6 + 6)],
)
def test_the_peak_of_a_large_source_is_that_of_two_copies(
    tmp_path_factory: pytest.TempPathFactory, name: str, bytes_per_pixel: int
) -> None:
    path = tmp_path_factory.mktemp("large") / name
    picture = np.zeros((4000, 5000, 3), np.uint16 if "deep" in name else np.uint8)
    picture[::7] = 200
    assert cv2.imwrite(str(path), picture)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert 3 <= float(done.stdout) < bytes_per_pixel + 1.5
