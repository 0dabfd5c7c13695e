"""Normalising where the batch ends up, by torch and by the kernel, against the reference; test_gpu.py has the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdali.pipeline import normaliser
from lmdali.pipeline.augment import AugmentParams
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.host_to_device import torch_dtype
from lmdali.pipeline.normaliser import DeviceNormalizer
from lmdali.pipeline.pixel_transform import PixelTransform

CPU = torch.device("cpu")
HEIGHT = 12


def transform(kind: str, *, scale: bool = False) -> PixelTransform:
    random = np.random.default_rng(1)
    mean = {
        "image": random.uniform(90, 160, (HEIGHT, HEIGHT, 3)),
        "window": random.uniform(90, 160, (HEIGHT, HEIGHT, 3)),
        "channel": np.broadcast_to(random.uniform(90, 160, 3), (HEIGHT, HEIGHT, 3)),
        "none": np.zeros((HEIGHT, HEIGHT, 3)),
    }[kind]
    factors = random.uniform(0.01, 1, 3) if scale else np.ones(3)
    return PixelTransform(
        np.ascontiguousarray(mean, np.float32),
        factors.astype(np.float32),
        random.normal(0, 9, (3, 3)).astype(np.float32),
        kind == "window",
    )


def cut(pixels: np.ndarray[Any, Any], params: AugmentParams, size: int) -> torch.Tensor:
    """What the threads put into the pinned buffer."""
    out = np.empty((len(params), size, size, 3), np.uint8)
    for view, (y, x) in enumerate(params.crop_yx):
        patch = pixels[view, y : y + size, x : x + size]
        out[view] = patch[:, ::-1] if params.flip[view] else patch
    return torch.from_numpy(out)


def all_draws(size: int, *, lit: bool) -> AugmentParams:
    """Every offset, mirrored and not."""
    room = HEIGHT - size + 1
    corners = np.stack(np.meshgrid(np.arange(room), np.arange(room), indexing="ij"), axis=-1).reshape(-1, 2)
    crop_yx, flip = np.concatenate([corners, corners]), np.arange(2 * len(corners)) >= len(corners)
    alphas = np.random.default_rng(2).normal(0, 0.1, (len(flip), 3)) if lit else np.zeros((len(flip), 3))
    return AugmentParams(crop_yx.astype(np.int64), flip, alphas.astype(np.float32))


@pytest.mark.parametrize("size", [1, 7, HEIGHT])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("lit", [False, True])
@pytest.mark.parametrize(
    ("kind", "scale"),
    [("image", False), ("image", True), ("window", False), ("window", True), ("channel", False), ("none", True)],
)
def test_every_patch_equals_the_reference_bit_for_bit(
    size: int, layout: Any, dtype: Any, lit: bool, kind: str, scale: bool
) -> None:
    params = all_draws(size, lit=lit)
    pixels = np.random.default_rng(3).integers(0, 256, (len(params), HEIGHT, HEIGHT, 3), np.uint8)
    arithmetic = transform(kind, scale=scale)
    spec = OutputSpec(len(params), 1, size, dtype, layout, CPU)
    plan = BatchPlan(np.arange(len(params)), params, arithmetic.shifts(params), arithmetic.scale)
    found = DeviceNormalizer(arithmetic, spec)(cut(pixels, params, size), plan)
    expected = torch.from_numpy(apply_params(pixels, params, arithmetic, size)).to(torch_dtype(dtype))
    assert torch.equal(found, expected if layout == "NHWC" else expected.permute(0, 3, 1, 2))
    assert found.is_contiguous() and found.dtype == torch_dtype(dtype)


@given(data=st.data(), size=st.integers(1, HEIGHT), planar=st.booleans())
def test_a_batch_of_any_draws_equals_the_reference(data: st.DataObject, size: int, planar: bool) -> None:
    offsets = st.integers(0, HEIGHT - size)
    draws = data.draw(st.lists(st.tuples(offsets, offsets, st.booleans()), min_size=1, max_size=6))
    crop_yx = np.array([draw[:2] for draw in draws], np.int64)
    flip = np.array([draw[2] for draw in draws])
    params = AugmentParams(crop_yx, flip, np.full((len(draws), 3), 0.1, np.float32))
    pixels = np.random.default_rng(4).integers(0, 256, (len(draws), HEIGHT, HEIGHT, 3), np.uint8)
    arithmetic = transform("image")
    plan = BatchPlan(np.arange(len(draws)), params, arithmetic.shifts(params), arithmetic.scale)
    spec = OutputSpec(len(draws), 1, size, "float32", "NCHW" if planar else "NHWC", CPU)
    found = DeviceNormalizer(arithmetic, spec)(cut(pixels, params, size), plan)
    expected = torch.from_numpy(apply_params(pixels, params, arithmetic, size))
    assert torch.equal(found.permute(0, 2, 3, 1) if planar else found, expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pixels_pass_unchanged_and_only_their_order_is_made(layout: Any) -> None:
    params = all_draws(7, lit=False)
    patches = torch.randint(0, 256, (len(params), 7, 7, 3), dtype=torch.uint8)
    identity = PixelTransform(transform("none").mean, np.ones(3, np.float32), np.zeros((3, 3), np.float32))
    plan = BatchPlan(np.arange(len(params)), params, identity.shifts(params), identity.scale)
    found = DeviceNormalizer(identity, OutputSpec(len(params), 1, 7, "uint8", layout, CPU))(patches, plan)
    assert torch.equal(found if layout == "NHWC" else found.permute(0, 2, 3, 1), patches)
    assert found.is_contiguous()
    assert (found is patches) == (layout == "NHWC"), "no pass where there is nothing to do"


def test_each_plan_brings_the_scale_of_its_epoch() -> None:
    params, lit = all_draws(7, lit=False), transform("window", scale=True)
    lit = replace(lit, unlit=(3, np.ones(3, np.float32)))
    pixels = np.random.default_rng(3).integers(0, 256, (len(params), HEIGHT, HEIGHT, 3), np.uint8)
    normalizer = DeviceNormalizer(lit, OutputSpec(len(params), 1, 7, "float32", "NHWC", CPU))
    for epoch in (2, 3, 2, 4):
        arithmetic = lit.at(epoch)
        plan = BatchPlan(np.arange(len(params)), params, arithmetic.shifts(params), arithmetic.scale)
        found = normalizer(cut(pixels, params, 7), plan)
        assert torch.equal(found, torch.from_numpy(apply_params(pixels, params, arithmetic, 7)))


def test_the_patches_are_not_written_to() -> None:
    params = all_draws(7, lit=True)
    patches = torch.randint(0, 256, (len(params), 7, 7, 3), dtype=torch.uint8)
    before, arithmetic = patches.clone(), transform("image", scale=True)
    plan = BatchPlan(np.arange(len(params)), params, arithmetic.shifts(params), arithmetic.scale)
    normalizer = DeviceNormalizer(arithmetic, OutputSpec(len(params), 1, 7, "float32", "NHWC", CPU))
    first, second = normalizer(patches, plan), normalizer(patches, plan)
    assert torch.equal(patches, before) and torch.equal(first, second)


@settings(max_examples=12)
@given(data=st.data(), size=st.integers(1, HEIGHT), planar=st.booleans(), lit=st.booleans(), scale=st.booleans())
@pytest.mark.parametrize("kind", ["image", "window", "channel", "none"])
def test_one_pass_is_what_the_operations_are_in_turn(
    kind: str, data: st.DataObject, size: int, planar: bool, lit: bool, scale: bool
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install '.[dev]'")
    dtype: Any = data.draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    offsets = st.integers(0, HEIGHT - size)
    draws = data.draw(st.lists(st.tuples(offsets, offsets, st.booleans()), max_size=2))
    crop_yx = np.array([draw[:2] for draw in draws], np.int64).reshape(-1, 2)
    alphas = np.full((len(draws), 3), 0.1 if lit else 0, np.float32)
    params = AugmentParams(crop_yx, np.array([draw[2] for draw in draws], np.bool_), alphas)
    arithmetic = transform(kind, scale=scale)
    plan = BatchPlan(np.arange(len(draws)), params, arithmetic.shifts(params), arithmetic.scale)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    normalizer = DeviceNormalizer(arithmetic, OutputSpec(4, 1, size, dtype, "NCHW" if planar else "NHWC", device))
    patches = torch.randint(0, 256, (len(draws), size, size, 3), dtype=torch.uint8).to(device)
    images = {}
    for kernels in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(normaliser, "has_gpu_kernels", lambda device, kernels=kernels: kernels)
            images[kernels] = normalizer(patches, plan)
    found, expected = images[True], images[False]
    assert found.is_contiguous() and found.shape == expected.shape and found.dtype == expected.dtype
    if dtype == "bfloat16" and device.type == "cpu" and len(draws):
        # Triton's interpreter cuts digits off where a GPU rounds.
        difference = found.view(torch.int16).int() - expected.view(torch.int16).int()
        assert int(difference.abs().max()) <= 1
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [137, 136])
def test_one_pass_goes_over_images_of_many_blocks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest patches above are less than one block of the kernel; of these, rows end in the middle of one."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install '.[dev]'")
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    random = np.random.default_rng(7)
    mean = random.uniform(90, 160, (140, 140, 3)).astype(np.float32)
    arithmetic = PixelTransform(mean, np.full(3, 0.3, np.float32), np.eye(3, dtype=np.float32))
    params = AugmentParams(np.array([[3, 1], [0, 2]]), np.array([True, False]), np.full((2, 3), 2.5, np.float32))
    plan = BatchPlan(np.arange(2), params, arithmetic.shifts(params), arithmetic.scale)
    patches = torch.from_numpy(random.integers(0, 256, (2, size, size, 3), np.uint8))
    for layout in ("NCHW", "NHWC"):
        expected = DeviceNormalizer(arithmetic, OutputSpec(2, 1, size, "float32", layout, CPU))(patches, plan)
        normalizer = DeviceNormalizer(arithmetic, OutputSpec(2, 1, size, "float32", layout, device))
        with monkeypatch.context() as patch:
            patch.setattr(normaliser, "has_gpu_kernels", lambda device: True)
            assert torch.equal(normalizer(patches.to(device), plan).cpu(), expected)
