"""Pooling and blocks of the GPU path against torch, by Triton's interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[dev]'")

from lmdali.model.pool_kernel import MaxPool, blocked_images

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(2, 8, 13, 13), (1, 16, 7, 8), (3, 4, 4, 3)], ids=str)
@pytest.mark.parametrize("values", ["distinct", "tied"])
def test_pooling_is_that_of_torch(shape: tuple[int, ...], values: str) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(shape, generator=generator)
    if values == "tied":
        maps = maps.sign()
    maps = maps.to(DEVICE).contiguous(memory_format=torch.channels_last).requires_grad_()
    other = maps.detach().clone().requires_grad_()
    got, want = MaxPool.apply(maps), functional.max_pool2d(other, 3, 2)
    assert torch.equal(got, want)
    weights = torch.randint(-8, 8, want.shape, generator=generator).float().to(DEVICE)
    got.backward(weights)
    want.backward(weights)
    assert torch.equal(maps.grad, other.grad)


def test_pooling_lets_a_nan_win() -> None:
    maps = torch.zeros(1, 1, 5, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    maps[0, 0, 2, 2] = float("nan")
    assert MaxPool.apply(maps).isnan().all()


@pytest.mark.parametrize("size", [64, 67, 224])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "planes"])
def test_blocks_make_the_first_convolution(size: int, memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(size)
    images = torch.randint(-99, 99, (2, 3, size, size), generator=generator).float().to(DEVICE)
    weight = torch.randint(-9, 9, (5, 3, 11, 11), generator=generator).float().to(DEVICE)
    want = functional.conv2d(functional.pad(images, (0, 3, 0, 3)), weight, stride=4)
    outputs = want.shape[-1]
    blocks = blocked_images(images.contiguous(memory_format=memory_format), outputs + 2, torch.float32)
    blocked = functional.pad(weight, (0, 1, 0, 1)).reshape(5, 3, 3, 4, 3, 4).permute(0, 3, 5, 1, 2, 4)
    got = functional.conv2d(blocks.double(), blocked.reshape(5, 48, 3, 3).double())
    assert torch.equal(got, want.double())
