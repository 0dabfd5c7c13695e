"""Crops painted from planes against crops of the decoded image, in every form of output."""

from __future__ import annotations

from itertools import product
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline import crop_kernel, paint_kernel
from lmdali.pipeline import jpeg_kernel as kernel
from lmdali.pipeline.augment import AugmentParams
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.colour_vectors import PIXELS
from lmdali.pipeline.jpeg_layout import JpegLayout, read_layout
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.record_codec import decode_stored, encode_jpeg
from lmdali.pipeline.vectors import HAS_PAIR_SUMS


def decoded(seed: int, size: int, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Planes of noisy pictures, and libjpeg's pixels of the same."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, size, size, 3), np.uint8)
    records = [encode_jpeg(pixels, 95) for pixels in coarse]
    layout = read_layout(records[0])
    assert isinstance(layout, JpegLayout)
    stops = np.cumsum([len(record) for record in records])
    starts = stops - [len(record) for record in records]
    planes, status = kernel.new_planes(count, size), np.full(count, -1)
    windows = np.tile([0, size, 0, size], (count, 1))
    shards = np.frombuffer(b"".join(records), np.uint8)
    kernel.decode_run(shards, starts, stops, *kernel.layout_arrays(layout), windows, planes, status)
    assert (status == kernel.OK).all()
    return planes, np.stack([decode_stored(record, size) for record in records])


def draws(
    seed: int, size: int, crop: int, count: int, *, centered: bool = False
) -> tuple[AugmentParams, PixelTransform]:
    random = np.random.default_rng(seed)
    params = AugmentParams(
        random.integers(0, size - crop + 1, (count, 2)),
        random.random(count) < 0.5,
        random.normal(0, 0.1, (count, 3)).astype(np.float32),
    )
    mean, scale = random.uniform(0, 255, (size, size, 3)), random.uniform(0.1, 2, 3)
    vectors = random.normal(0, 20, (3, 3))
    arrays = (array.astype(np.float32) for array in (mean, scale, vectors))
    return params, PixelTransform(*arrays, centered)


def planar(images: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(np.moveaxis(images, -1, -3))


def check_all(planes: Any, pixels: Any, params: AugmentParams, transform: PixelTransform, crop: int) -> None:
    """Eight kernels: from planes and from raw pixels, against the NumPy reference."""
    size, views, count = pixels.shape[1], len(params) // len(pixels), len(params)
    identity = PixelTransform(np.zeros_like(transform.mean), np.ones(3, np.float32), np.zeros((3, 3), np.float32))
    plain = apply_params(pixels, params, identity, crop).astype(np.uint8)
    normalized = apply_params(pixels, params, transform, crop)
    raw = np.concatenate([np.zeros(7, np.uint8), pixels.reshape(-1)])
    starts = 7 + np.arange(len(pixels)) * pixels[0].size
    where = (size, views, params.crop_yx, params.flip)
    shifts, scale = transform.shifts(params), transform.scale
    for is_planar in (False, True):
        expected, expected_float = (planar(plain), planar(normalized)) if is_planar else (plain, normalized)
        mean = crop_kernel.mean_rows(transform, planar=is_planar), transform.centered
        paint = paint_kernel.paint_run_planar if is_planar else paint_kernel.paint_run
        crop_raw = crop_kernel.crop_run_pixels_planar if is_planar else crop_kernel.crop_run_pixels
        out = np.zeros_like(expected)
        paint(planes, *where, out)
        assert (out == expected).all()
        out[:] = 0
        crop_raw(raw, starts, *where, out)
        assert (out == expected).all()
        paint_float: Any = paint_kernel.paint_run_normalized
        crop_float: Any = crop_kernel.crop_run_normalized
        if is_planar:
            paint_float = paint_kernel.paint_run_normalized_planar
            crop_float = crop_kernel.crop_run_normalized_planar
        out_float = np.full_like(expected_float, np.nan)
        paint_float(planes, *where, *mean, shifts, scale, out_float)
        assert (out_float == expected_float).all()
        out_float[:] = np.nan
        crop_float(raw, starts, *where, *mean, shifts, scale, out_float)
        assert (out_float == expected_float).all()
    assert len(plain) == count


@pytest.mark.parametrize("size", [16, 33, 48, 131])
def test_whole_images_equal_the_decoder(size: int) -> None:
    planes, pixels = decoded(size, size, 3)
    out = np.zeros_like(pixels)
    paint_kernel.paint_whole(planes, out)
    assert (out == pixels).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 33, 48]), st.integers(1, 16), st.integers(1, 3), st.booleans())
@settings(max_examples=60)
def test_views_equal_the_reference_bit_for_bit(seed: int, size: int, crop: int, views: int, centered: bool) -> None:
    planes, pixels = decoded(seed % 7, size, 2)
    params, transform = draws(seed, size, crop, 2 * views, centered=centered)
    check_all(planes, pixels, params, transform, crop)


def test_every_corner_of_the_image() -> None:
    size, crop = 35, 30
    planes, pixels = decoded(1, size, 1)
    corners = np.array([[y, x] for y in range(6) for x in range(6)])
    for mirrored, centered in product((False, True), repeat=2):
        params = AugmentParams(corners, np.full(36, mirrored), np.zeros((36, 3), np.float32))
        check_all(planes, pixels, params, draws(2, size, crop, 1, centered=centered)[1], crop)


def test_no_byte_outside_the_output_is_written() -> None:
    planes, pixels = decoded(3, 33, 1)
    params, transform = draws(4, 33, 17, 1)
    room = np.full(2 * 64 + 17 * 17 * 3, 7, np.float32)
    out = room[64:-64].reshape(1, 17, 17, 3)
    where = (33, 1, params.crop_yx, params.flip)
    paint_kernel.paint_run_normalized(
        planes, *where, transform.mean, False, transform.shifts(params), transform.scale, out
    )
    assert (out == apply_params(pixels, params, transform, 17)).all()
    assert (room[:64] == 7).all() and (room[-64:] == 7).all()


@numba.njit
def _both(samples: Any, in_loops: Any, in_vectors: Any, width: int) -> None:
    at, cb, cr = np.uint64(0), np.uint64(paint_kernel.ROW), np.uint64(2 * paint_kernel.ROW)
    paint_kernel._convert_in_loops(samples, at, samples, cb, cr, in_loops, np.uint64(width))
    paint_kernel._convert_in_vectors(samples, at, samples, cb, cr, in_vectors, np.uint64(width))


def test_every_colour_is_converted_alike_in_loops_and_in_vectors() -> None:
    if not HAS_PAIR_SUMS:
        pytest.skip("this processor has no AVX2")
    row, chroma = paint_kernel.ROW, np.arange(256, dtype=np.uint8)
    samples, in_loops, in_vectors = (np.zeros(4 * row, np.uint8) for _ in range(3))
    for luma in (0, 1, 77, 128, 200, 254, 255):
        samples[:4096] = luma
        for cb in range(0, 256, 16):
            samples[row : row + 4096] = np.repeat(chroma[cb : cb + 16], 256)
            samples[2 * row : 2 * row + 4096] = np.tile(chroma, 16)
            _both(samples, in_loops, in_vectors, 4096)
            for colour in range(3):
                part = slice(colour * row, colour * row + 4096)
                assert np.array_equal(in_loops[part], in_vectors[part]), (luma, cb, colour)


def test_vectors_write_no_more_than_a_vector_behind_a_row() -> None:
    if not HAS_PAIR_SUMS:
        pytest.skip("this processor has no AVX2")
    row = paint_kernel.ROW
    for width in (1, 31, 32, 33, 100):
        made = np.full(4 * row, 7, np.uint8)
        _both(np.zeros(4 * row, np.uint8), np.zeros(4 * row, np.uint8), made, width)
        stop = -(-width // PIXELS) * PIXELS
        for colour in range(3):
            assert (made[colour * row + stop : (colour + 1) * row] == 7).all()
