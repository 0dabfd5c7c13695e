"""The compiled crops against the NumPy reference."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline import crop_kernel
from lmdali.pipeline.augment import AugmentParams
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.pixel_transform import PixelTransform

SIZE = 12


def transform_of(seed: int, *, centered: bool = False) -> PixelTransform:
    random = np.random.default_rng(seed)
    return PixelTransform(
        random.uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32),
        random.uniform(0.1, 2, 3).astype(np.float32),
        random.normal(0, 20, (3, 3)).astype(np.float32),
        centered,
    )


CASES = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(1, SIZE), st.floats(0, 1), st.floats(0, 1), st.booleans(), st.booleans()
)


def case(drawn: Any) -> tuple[NDArray[np.uint8], AugmentParams, PixelTransform, int]:
    seed, crop, y, x, flip, centered = drawn
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    offset = [[round(y * (SIZE - crop)), round(x * (SIZE - crop))]]
    alphas = random.normal(0, 0.1, (1, 3)).astype(np.float32)
    params = AugmentParams(np.array(offset), np.array([flip]), alphas)
    return pixels, params, transform_of(seed, centered=centered), crop


def test_without_a_place_for_machine_code_it_is_compiled_each_time() -> None:
    script = """
import numpy as np
from lmdali.pipeline import crop_kernel

out = np.zeros((2, 2, 3), np.uint8)
crop_kernel.crop_pixels(np.ones((4, 4, 3), np.uint8), 1, 1, True, out)
assert out.all()
"""
    # Only the cache of interactive sessions is allowed, and a file has none: as where no folder can be written.
    environment = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "IPythonCacheLocator"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


@given(CASES)
@settings(max_examples=200)
def test_normalised_crops_equal_the_reference_bit_for_bit(drawn: Any) -> None:
    pixels, params, transform, crop = case(drawn)
    expected = apply_params(pixels[None], params, transform, crop)[0]
    shift = transform.shifts(params)[0]
    (y, x), flip = params.crop_yx[0], bool(params.flip[0])
    out = np.full((crop, crop, 3), np.nan, np.float32)
    mean = crop_kernel.mean_rows(transform, planar=False), transform.centered
    crop_kernel.crop_normalized(pixels, y, x, flip, *mean, shift, transform.scale, out)
    assert (out == expected).all()
    planar_mean = crop_kernel.mean_rows(transform, planar=True), transform.centered
    planar = np.full((3, crop, crop), np.nan, np.float32)
    crop_kernel.crop_normalized_planar(pixels, y, x, flip, *planar_mean, shift, transform.scale, planar)
    assert (planar == expected.transpose(2, 0, 1)).all()


@given(CASES)
@settings(max_examples=200)
def test_plain_crops_copy_pixels(drawn: Any) -> None:
    pixels, params, _, crop = case(drawn)
    (y, x), flip = params.crop_yx[0], bool(params.flip[0])
    expected = pixels[y : y + crop, x : x + crop]
    expected = expected[:, ::-1] if flip else expected
    out, planar = np.zeros((crop, crop, 3), np.uint8), np.zeros((3, crop, crop), np.uint8)
    crop_kernel.crop_pixels(pixels, y, x, flip, out)
    crop_kernel.crop_pixels_planar(pixels, y, x, flip, planar)
    assert (out == expected).all()
    assert (planar == expected.transpose(2, 0, 1)).all()


def test_pixels_that_may_only_be_read_are_cropped_too() -> None:
    # Raw records are cropped straight out of the shard's read-only memory.
    pixels = np.frombuffer(bytes(range(48)), np.uint8).reshape(4, 4, 3)
    out = np.zeros((2, 2, 3), np.uint8)
    crop_kernel.crop_pixels(pixels, 1, 2, True, out)
    assert (out == pixels[1:3, 2:4][:, ::-1]).all()
