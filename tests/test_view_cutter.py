"""Views cut on the device are those that threads would have cut, and cross the bus as one image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline import cpu
from lmdali.pipeline.augment import AugmentConfig, AugmentParams, draw_params
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.buffers import BufferRing
from lmdali.pipeline.eigenbasis import load_eigenbasis
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.normaliser import DeviceNormalizer
from lmdali.pipeline.pixel_transform import PixelTransform, pixel_transform
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.verify_policy import CrcPolicy
from lmdali.pipeline.view_cutter import ViewCutter

CPU = torch.device("cpu")


def plan_of(params: AugmentParams, num_images: int) -> BatchPlan:
    zeros = np.zeros((len(params), 3), np.float32)
    return BatchPlan(np.arange(num_images), params, zeros, np.ones(3, np.float32))


def cut_by_hand(pixels: NDArray[np.uint8], params: AugmentParams, size: int) -> NDArray[np.uint8]:
    views = len(params) // len(pixels)
    out = np.empty((len(params), size, size, 3), np.uint8)
    for number, ((y, x), flip) in enumerate(zip(params.crop_yx, params.flip, strict=True)):
        patch = pixels[number // views, y : y + size, x : x + size]
        out[number] = patch[:, ::-1] if flip else patch
    return out


def test_corners_say_where_ten_views_come_from() -> None:
    """Red is the row and green the column, so a view's corner shows its offset; a mirrored one's its last column."""
    pixels = np.zeros((1, 256, 256, 3), np.uint8)
    pixels[0, :, :, 0], pixels[0, :, :, 1] = np.arange(256)[:, None], np.arange(256)[None]
    indices = np.zeros(1, np.int64)
    ten = AugmentConfig.ten_crop()
    params = draw_params(ten, seed=0, epoch=0, indices=indices, positions=indices, image_size=256)
    views = ViewCutter(256, 224)(torch.from_numpy(pixels), plan_of(params, 1))
    corners = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    assert [tuple(view[0, 0, :2].tolist()) for view in views[:5]] == corners
    assert [tuple(view[0, 0, :2].tolist()) for view in views[5:]] == [(y, x + 223) for y, x in corners]


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(0, 10**6))
def test_any_views_are_those_of_the_reference(num_images: int, num_views: int, crop_size: int, seed: int) -> None:
    random, size = np.random.default_rng(seed), 12
    pixels = random.integers(0, 256, (num_images, size, size, 3), np.uint8)
    count = num_images * num_views
    crop_yx = random.integers(0, size - crop_size + 1, (count, 2))
    params = AugmentParams(crop_yx, random.integers(0, 2, count).astype(bool), np.zeros((count, 3), np.float32))
    views = ViewCutter(size, crop_size)(torch.from_numpy(pixels), plan_of(params, num_images))
    assert views.is_contiguous() and np.array_equal(views.numpy(), cut_by_hand(pixels, params, crop_size))


def test_a_batch_without_samples() -> None:
    params = AugmentParams(np.zeros((0, 2), np.int64), np.zeros(0, bool), np.zeros((0, 3), np.float32))
    assert ViewCutter(12, 7)(torch.empty((0, 12, 12, 3), dtype=torch.uint8), plan_of(params, 0)).shape == (0, 7, 7, 3)


class CpuTransfer:
    """`DeviceTransfer` without a GPU: keeps what would cross the bus."""

    sent: list[torch.Size]

    def __init__(self, transform: PixelTransform, spec: OutputSpec, cut: Any) -> None:
        self._normalize, self._cut = DeviceNormalizer(transform, replace(spec, device=CPU)), cut
        CpuTransfer.sent = []

    def send(self, patches: torch.Tensor, labels: NDArray[np.int64], plan: BatchPlan) -> tuple[Any, Any]:
        CpuTransfer.sent.append(patches.shape)
        return self._normalize(patches if self._cut is None else self._cut(patches, plan), plan), labels

    def close(self) -> None:
        pass


@pytest.mark.parametrize("dataset", ["small_jpeg_dataset", "small_raw_dataset"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_threads_send_each_image_once_and_the_batch_is_the_same(
    dataset: str, layout: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory: Path = request.getfixturevalue(dataset)
    monkeypatch.setattr(cpu, "DeviceTransfer", CpuTransfer)
    monkeypatch.setattr(cpu, "BufferRing", lambda shape, dtype, pinned: BufferRing(shape, dtype))
    size = load_manifest(directory).image_size
    augment = replace(AugmentConfig.ten_crop(), crop_size=40)
    transform = pixel_transform(augment, load_eigenbasis(directory), size)
    indices = np.array([5, 0, 3])
    params = draw_params(augment, seed=0, epoch=0, indices=indices, positions=indices, image_size=size)
    plan = BatchPlan(indices, params, transform.shifts(params), transform.scale)
    images = {}
    for device in ("cpu", "cuda:0"):
        reader = ShardReader(directory, load_manifest(directory))
        spec = OutputSpec(4, 10, augment.crop_size, "float32", layout, torch.device(device))
        timers = StageTimers()
        backend = cpu.CpuBackend(
            reader, transform, spec, num_threads=1, prefetch=1, crc=CrcPolicy("first", 6), cache=None, timers=timers
        )
        images[device] = backend.finish(backend.start(plan)).images
        backend.close()
    assert CpuTransfer.sent == [torch.Size([3, size, size, 3])]
    assert torch.equal(images["cuda:0"], images["cpu"])
