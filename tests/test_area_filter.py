from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from guarded_memory import guarded
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmdali.tools import area_filter
from lmdali.tools.area_filter import AreaFilter
from lmdali.tools.area_kernel import shrink_area
from lmdali.tools.resize import scaled_sides

Pixels = npt.NDArray[np.uint8]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def with_opencv(pixels: Pixels, sides: tuple[int, int], size: int) -> Pixels:
    """The whole picture shrunk, then cut."""
    fy, fx = sides[0] / pixels.shape[0], sides[1] / pixels.shape[1]
    whole = cv2.resize(pixels, None, fx=fx, fy=fy, interpolation=cv2.INTER_AREA)
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    return whole[top : top + size, left : left + size]


@pytest.fixture(autouse=True)
def tried_anew() -> Iterator[None]:
    area_filter._kernel_like_opencv.cache_clear()
    yield
    area_filter._kernel_like_opencv.cache_clear()


@pytest.fixture(scope="module")
def compiled() -> AreaFilter:
    shrink = AreaFilter()
    shrink.compile()
    assert shrink.is_compiled
    return shrink


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 400), st.integers(1, 3000), st.integers(1, 300), st.booleans())
@example(257, 257, 256, False)
@example(256, 256, 128, False)  # a half: OpenCV has another loop
@example(300, 450, 100, False)
@example(375, 500, 256, False)
@example(1, 3000, 1, False)
@example(400, 401, 3, True)
def test_the_compiled_loop_gives_the_bytes_of_opencv(
    compiled: AreaFilter, height: int, width: int, size: int, is_upright: bool
) -> None:
    if is_upright:
        height, width = width, height
    if min(height, width) <= size:
        size = max(1, min(height, width) - 1)
    if min(height, width) <= size:
        return
    pixels, sides = noise(height, width), scaled_sides(height, width, size)
    square = compiled.central_square(pixels, sides, size)
    assert square.flags.c_contiguous
    assert np.array_equal(square, with_opencv(pixels, sides, size))


@pytest.mark.parametrize("shade", [0, 1, 127, 254, 255])
def test_one_shade_stays_that_shade(compiled: AreaFilter, shade: int) -> None:
    pixels = np.full((613, 411, 3), shade, np.uint8)
    square = compiled.central_square(pixels, scaled_sides(613, 411, 256), 256)
    assert (square == shade).all()


def test_nothing_is_read_beyond_the_picture(compiled: AreaFilter) -> None:
    # It is square, so that its last pixel is needed.
    height, width = 300, 300
    pixels = guarded(noise(height, width))
    sides = scaled_sides(height, width, 256)
    assert np.array_equal(compiled.central_square(pixels, sides, 256), with_opencv(pixels, sides, 256))


def test_a_window_of_a_larger_picture_is_shrunk_too(compiled: AreaFilter) -> None:
    pixels = noise(500, 700)[20:420, 31:640]
    sides = scaled_sides(400, 609, 256)
    assert np.array_equal(compiled.central_square(pixels, sides, 256), with_opencv(pixels, sides, 256))


def test_a_loop_whose_bytes_are_not_those_of_opencv_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounds_otherwise(*arguments: Any) -> None:
        shrink_area(*arguments)
        arguments[-1][100, 100] ^= 1

    monkeypatch.setattr("lmdali.tools.area_kernel.shrink_area", rounds_otherwise)
    shrink = AreaFilter()
    shrink.compile()
    assert not shrink.is_compiled


def test_without_numba_opencv_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("lmdali.tools.area_kernel", "lmdali.pipeline.crop_kernel"):
        monkeypatch.delitem(sys.modules, name)
    shrink = AreaFilter()
    shrink.compile()
    assert not shrink.is_compiled
    pixels, sides = noise(300, 500), scaled_sides(300, 500, 256)
    assert np.array_equal(shrink.central_square(pixels, sides, 256), with_opencv(pixels, sides, 256))
