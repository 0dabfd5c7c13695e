"""The compiled crops and the device's arithmetic, both against the NumPy reference."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline import crop_kernel
from lmdali.pipeline.augment import AugmentParams, PixelTransform, apply_params
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.host_to_device import torch_dtype
from lmdali.pipeline.normaliser import DeviceNormalizer

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
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
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


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("centered", [False, True])
def test_the_devices_arithmetic_equals_the_reference(layout: Any, dtype: Any, centered: bool) -> None:
    random = np.random.default_rng(1)
    crop, count = 7, 20
    pixels = random.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    params = AugmentParams(
        random.integers(0, SIZE - crop + 1, (count, 2)),
        random.random(count) < 0.5,
        random.normal(0, 0.1, (count, 3)).astype(np.float32),
    )
    transform = transform_of(3, centered=centered)
    patches = np.empty((count, crop, crop, 3), np.uint8)
    for n, (y, x) in enumerate(params.crop_yx):
        crop_kernel.crop_pixels(pixels[n], y, x, bool(params.flip[n]), patches[n])
    spec = OutputSpec(count, 1, crop, dtype, layout, torch.device("cpu"))
    plan = BatchPlan(np.arange(count), params, transform.shifts(params), transform.scale)
    out = DeviceNormalizer(transform, spec)(torch.from_numpy(patches), plan)
    reference = torch.from_numpy(apply_params(pixels, params, transform, crop))
    reference = reference.permute(0, 3, 1, 2) if layout == "NCHW" else reference
    assert out.is_contiguous() and out.dtype == torch_dtype(dtype)
    assert torch.equal(out, reference.to(torch_dtype(dtype)))


def test_the_device_passes_pixels_through_when_nothing_is_to_be_done() -> None:
    transform = PixelTransform(np.zeros((4, 4, 3), np.float32), np.ones(3, np.float32), np.zeros((3, 3), np.float32))
    patches = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3)
    params = AugmentParams(np.zeros((1, 2), np.int64), np.zeros(1, np.bool_), np.zeros((1, 3), np.float32))
    spec = OutputSpec(1, 1, 4, "uint8", "NCHW", torch.device("cpu"))
    plan = BatchPlan(np.arange(1), params, transform.shifts(params), transform.scale)
    out = DeviceNormalizer(transform, spec)(patches, plan)
    assert torch.equal(out, patches.permute(0, 3, 1, 2))


def test_dtypes_are_found_by_their_torch_name() -> None:
    assert torch_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(AttributeError):
        torch_dtype("float33")
