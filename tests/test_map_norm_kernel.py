"""Normalisation within maps, the GPU's way against the plain one, by Triton's interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[dev]'")

from lmdali.model.map_norm import MapNorm
from lmdali.model.map_norm_kernel import KernelMapNorm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(2, 8, 13, 13), (1, 3, 4, 9), (2, 5, 2, 2)], ids=str)
def test_values_and_gradients_are_those_of_the_plain_one(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = (torch.randn(shape, generator=generator) * 60).to(DEVICE).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(shape, generator=generator).to(DEVICE)
    wide = maps.double().requires_grad_()
    want = MapNorm()(wide)
    want.backward(weights.double())
    maps.requires_grad_()
    got = KernelMapNorm.apply(maps, 5, 1e-3)
    got.backward(weights)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps.grad.double(), wide.grad, rtol=1e-4, atol=1e-6)
