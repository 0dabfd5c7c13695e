"""Response normalisation against the formula it is named after."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from lmdali.model.layers import ResponseNorm, window_sum
from lmdali.pipeline.errors import ConfigError


def literal(maps: Tensor, groups: int, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """Section 3.3 as a loop, with alpha divided by size."""
    out = torch.empty_like(maps)
    per_tower = maps.shape[1] // groups
    for i in range(maps.shape[1]):
        tower = i // per_tower
        low = max(tower * per_tower, i - size // 2)
        high = min((tower + 1) * per_tower - 1, i + size // 2)
        total = (maps[:, low : high + 1] ** 2).sum(dim=1)
        out[:, i] = maps[:, i] / (k + alpha / size * total) ** beta
    return out


def random_maps(channels: int, *, side: int = 3, scale: float = 60.0) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(2, channels, side, side, dtype=torch.float64, generator=generator) * scale


@given(st.integers(1, 3), st.integers(1, 7), st.sampled_from([1, 3, 5, 7]), st.sampled_from([0.5, 0.75, 1.0]))
@settings(max_examples=40, deadline=None)
def test_response_norm_equals_the_literal_formula(groups: int, per_tower: int, size: int, beta: float) -> None:
    maps = random_maps(groups * per_tower)
    got = ResponseNorm(groups, size=size, alpha=5e-4, beta=beta, k=2.0)(maps)
    torch.testing.assert_close(got, literal(maps, groups, size, 5e-4, beta, 2.0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [24, 96])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_response_norm_equals_torch_within_each_tower(channels: int, memory_format: torch.memory_format) -> None:
    maps = random_maps(channels).contiguous(memory_format=memory_format).requires_grad_()
    weights = random_maps(channels + 1)[:, :channels]
    got = ResponseNorm(2, alpha=1e-4)(maps)
    want = torch.cat([functional.local_response_norm(part, 5, 1e-4, 0.75, 2.0) for part in maps.chunk(2, 1)], 1)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    (got_slope,) = torch.autograd.grad((got * weights).sum(), maps)
    (want_slope,) = torch.autograd.grad((want * weights).sum(), maps)
    torch.testing.assert_close(got_slope, want_slope, rtol=1e-10, atol=1e-10)


def test_response_norm_gradient_passes_the_numerical_check() -> None:
    maps = random_maps(8, side=2, scale=3.0).requires_grad_()
    assert torch.autograd.gradcheck(ResponseNorm(2, alpha=0.5), (maps,))


def test_response_norm_does_not_cross_the_seam() -> None:
    maps = torch.zeros(1, 96, 1, 1)
    maps[0, 47] = 1000.0
    maps[0, 48] = 1.0
    out = ResponseNorm(2)(maps)
    assert out[0, 48].item() == pytest.approx(1.0 / (2.0 + 1e-4) ** 0.75, rel=1e-6)


def test_response_norm_of_half_precision_is_computed_in_float32() -> None:
    maps = torch.full((1, 10, 2, 2), 300.0, dtype=torch.float16)  # its square overflows float16
    out = ResponseNorm(2)(maps)
    want = ResponseNorm(2)(maps.float())
    assert out.dtype is torch.float16
    torch.testing.assert_close(out.float(), want, rtol=1e-3, atol=0.0)


def test_response_norm_keeps_float32_inside_autocast() -> None:
    maps = random_maps(24).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = ResponseNorm(2)(maps)
    assert torch.equal(inside, ResponseNorm(2)(maps))


def test_window_sum_by_slices_equals_the_banded_product() -> None:
    maps = random_maps(12)
    towers = maps.unflatten(1, (2, 6))
    want = torch.stack([towers[:, :, max(0, i - 2) : i + 3].sum(dim=2) for i in range(6)], dim=2).flatten(1, 2)
    torch.testing.assert_close(window_sum(maps, 2, 5), want, rtol=1e-12, atol=1e-12)
    # The other branch, for devices without the CPU's convolution, runs its code on shapes alone here.
    assert window_sum(maps.to("meta"), 2, 5).shape == maps.shape


@pytest.mark.parametrize(("groups", "size"), [(0, 5), (2, 4), (2, 0)])
def test_response_norm_refuses_impossible_windows(groups: int, size: int) -> None:
    with pytest.raises(ConfigError):
        ResponseNorm(groups, size=size)


@pytest.mark.parametrize("constants", [{"alpha": -1e-4}, {"k": 0.0}, {"k": -1.0}, {"k": float("nan")}])
def test_response_norm_refuses_constants_that_divide_by_nothing(constants: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="alpha >= 0 and k > 0"):
        ResponseNorm(2, **constants)


def test_response_norm_refuses_channels_that_towers_cannot_share() -> None:
    with pytest.raises(ConfigError, match="7 channels"):
        ResponseNorm(2)(torch.zeros(1, 7, 2, 2))
