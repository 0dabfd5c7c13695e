"""Normalisation within maps against the formula of the original code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lmdali.model.map_norm import MapNorm


def random_maps(*shape: int, scale: float = 60.0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) * scale


def literal(maps: Tensor) -> Tensor:
    """Every pixel's own window, cut off at the edges; the divisor stays 25."""
    out = torch.empty_like(maps)
    for y in range(maps.shape[2]):
        for x in range(maps.shape[3]):
            window = maps[:, :, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
            out[:, :, y, x] = maps[:, :, y, x] / (1 + 1e-3 / 25 * (window**2).sum(dim=(2, 3))) ** 0.75
    return out


@pytest.mark.parametrize("side", [1, 4, 9])
def test_map_norm_equals_the_literal_formula(side: int) -> None:
    maps = random_maps(2, 3, side, side)
    torch.testing.assert_close(MapNorm()(maps), literal(maps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_map_norm_and_its_gradient_equal_the_formula_by_average_pooling(memory_format: torch.memory_format) -> None:
    maps = random_maps(2, 6, 7, 7).contiguous(memory_format=memory_format).requires_grad_()
    weights = random_maps(2, 6, 7, 7).flip(0)
    got, want = MapNorm()(maps), maps / (1 + 1e-3 * functional.avg_pool2d(maps * maps, 5, 1, 2)) ** 0.75
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    (got_slope,) = torch.autograd.grad((got * weights).sum(), maps)
    (want_slope,) = torch.autograd.grad((want * weights).sum(), maps)
    torch.testing.assert_close(got_slope, want_slope, rtol=1e-10, atol=1e-12)


def test_map_norm_gradient_passes_the_numerical_check() -> None:
    assert torch.autograd.gradcheck(MapNorm(), (random_maps(1, 2, 6, 6).requires_grad_(),))


def test_maps_do_not_see_each_other() -> None:
    maps = random_maps(1, 4, 6, 6)
    altered = maps.clone()
    altered[:, 2] += 100.0
    changed = (MapNorm()(maps) != MapNorm()(altered)).flatten(2).any(dim=2)[0]
    assert changed.tolist() == [False, False, True, False]


def test_half_precision_is_computed_in_float32() -> None:
    maps = torch.full((1, 2, 6, 6), 300.0, dtype=torch.float16)  # its square overflows float16
    out = MapNorm()(maps)
    assert out.dtype is torch.float16
    torch.testing.assert_close(out.float(), MapNorm()(maps.float()), rtol=1e-3, atol=0.0)
