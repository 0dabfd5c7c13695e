"""The compiled resize beside the reference, and windows painted from planes beside whole images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from guarded_memory import guarded
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdali.pipeline import jpeg_kernel, paint_kernel
from lmdali.pipeline.resize_kernel import resize_run
from lmdali.pipeline.resized_crop import resize_table, resize_window

SIZE = 40


def window(draw: Any, size: int) -> tuple[int, int, int, int]:
    height, width = draw(st.integers(1, size)), draw(st.integers(1, size))
    return draw(st.integers(0, size - height)), draw(st.integers(0, size - width)), height, width


@given(st.data(), st.sampled_from([1, 3, 16, 40, 57]))
@settings(max_examples=60)
def test_patches_are_those_of_the_reference(data: st.DataObject, side: int) -> None:
    count = data.draw(st.integers(0, 3))
    windows = np.array([window(data.draw, SIZE) for _ in range(count)], np.int64).reshape(-1, 4)
    images = np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    lead = 11  # images lie anywhere in a shard
    shard = np.concatenate([np.zeros(lead, np.uint8), images.reshape(-1)])
    out = np.full((count, side, side, 3), 77, np.uint8)
    starts = lead + np.arange(count) * images[:1].size
    table = resize_table(SIZE, side)
    resize_run(shard, starts, SIZE, windows[:, :2].copy(), windows[:, 2:].copy(), *table, out)
    for image, (y, x, height, width), patch in zip(images, windows, out, strict=True):
        assert (patch == resize_window(image[y : y + height, x : x + width], side)).all()


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_stay_what_they_are(value: int) -> None:
    """255 everywhere is the largest sum that there is."""
    table = resize_table(256, 224)
    pixels, out = np.full(256 * 256 * 3, value, np.uint8), np.empty((1, 224, 224, 3), np.uint8)
    for sides in ((256, 256), (1, 256), (71, 84)):
        resize_run(pixels, np.zeros(1, np.int64), 256, np.zeros((1, 2), np.int64), np.array([sides]), *table, out)
        assert (out == value).all()


@pytest.mark.parametrize("size", [48, 50, 64])
def test_windows_of_planes_are_parts_of_the_whole_image(size: int) -> None:
    random = np.random.default_rng(size)
    planes = jpeg_kernel.new_planes(5, size)
    planes.view(np.uint8)[...] = random.integers(0, 256, planes.view(np.uint8).shape, np.uint8)
    whole = np.empty((5, size, size, 3), np.uint8)
    paint_kernel.paint_whole(planes, whole)
    sides = random.integers(1, size + 1, (5, 2))
    sides[0] = size
    corners = (random.random((5, 2)) * (size - sides + 1)).astype(np.int64)
    out = np.full_like(whole, 99)
    paint_kernel.paint_windows(planes, corners, sides, out)
    for image in range(5):
        (y, x), (height, width) = corners[image], sides[image]
        inside = np.zeros((size, size), bool)
        inside[y : y + height, x : x + width] = True
        assert (out[image][inside] == whole[image][inside]).all()
        assert (out[image][~inside] == 99).all()


def test_nothing_behind_images_planes_and_outputs_is_read_or_written() -> None:
    """Where memory ends, windows in the last corner, a pixel high or wide, and whole ones."""
    size = 50
    for side in (1, 7, 50):
        table = resize_table(size, side)
        guarded_table = [
            guarded(array.view(np.uint8).reshape(-1)).view(array.dtype).reshape(array.shape) for array in table
        ]
        for height, width in ((1, 1), (1, size), (size, 1), (3, 8), (17, 33), (size, size)):
            corner, sides = np.array([[size - height, size - width]]), np.array([[height, width]])
            image = guarded(np.random.default_rng(side).integers(0, 256, size * size * 3, np.uint8))
            out = guarded(np.empty((1, side, side, 3), np.uint8))
            resize_run(image, np.zeros(1, np.int64), size, corner, sides, *guarded_table, out)
            window = image.reshape(size, size, 3)[size - height :, size - width :]
            assert (out[0] == resize_window(window, side)).all()

    words = jpeg_kernel.plane_words(size, size)
    random = np.random.default_rng(0).integers(0, 256, 8 * words, np.uint8)
    planes, whole = guarded(random).view(np.uint64).reshape(1, words), guarded(np.empty((1, size, size, 3), np.uint8))
    paint_kernel.paint_whole(planes, whole)
    for height, width in ((1, 1), (1, size), (size, 1), (3, 9), (size, size)):
        painted = guarded(np.empty((1, size, size, 3), np.uint8))
        corner = np.array([[size - height, size - width]])
        paint_kernel.paint_windows(planes, corner, np.array([[height, width]]), painted)
        part = np.s_[0, size - height :, size - width :]
        assert (painted[part] == whole[part]).all()
