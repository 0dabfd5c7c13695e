"""Bias, rectifier and normalisation in one GPU pass against float64, by Triton's interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[dev]'")

from lmdali.model.activation_kernel import Activation, NormConstants
from lmdali.model.layers import ResponseNorm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRINTED = NormConstants(5, 5e-4, 0.75, 2.0)


def expected(maps: Tensor, bias: Tensor, norm: NormConstants | None, rectify: bool, towers: int) -> Tensor:
    out = maps + bias[:, None, None]
    out = out.relu() if rectify else out
    if norm is not None:
        out = ResponseNorm(towers, size=norm.size, alpha=norm.alpha, beta=norm.beta, k=norm.k)(out)
    return torch.cat(out.chunk(towers, 1))


def arguments(shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shape[1])
    maps = (torch.randn(shape, generator=generator) * 60).to(DEVICE, dtype).contiguous(memory_format=memory_format)
    bias = (torch.randn(shape[1], generator=generator) * 20).to(DEVICE)
    return maps.requires_grad_(), bias.requires_grad_()


NORMS = (None, PRINTED, NormConstants(3, 1e-2, 0.5, 1.0), NormConstants(7, 0.1, 0.75, 2.0))
SHAPES = (((2, 24, 5, 7), 2), ((1, 96, 9, 9), 2), ((3, 18, 3, 2), 3), ((1, 40, 3, 3), 1))
# Each normalisation with each shape, half of them rectified: so is each of them with and without.
CASES = [(*SHAPES[s], (n + s) % 2 == 1, NORMS[n]) for n in range(len(NORMS)) for s in range(len(SHAPES))]


@pytest.mark.parametrize(("shape", "towers", "rectify", "norm"), CASES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "planes"])
def test_one_pass_equals_the_steps(
    shape: tuple[int, ...], towers: int, memory_format: torch.memory_format, rectify: bool, norm: NormConstants | None
) -> None:
    maps, bias = arguments(shape, memory_format, torch.float32)
    wide, wide_bias = (tensor.detach().double().requires_grad_() for tensor in (maps, bias))
    got = Activation.apply(maps, bias, norm, rectify, towers)
    want = expected(wide, wide_bias, norm, rectify, towers)
    assert got.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    got.backward(weights)
    want.backward(weights.double())
    torch.testing.assert_close(maps.grad.double(), wide.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias.grad.double(), wide_bias.grad, rtol=1e-5, atol=1e-4)


def test_half_precision_is_as_good_as_its_digits() -> None:
    maps, bias = arguments((2, 96, 6, 6), torch.channels_last, torch.bfloat16)
    got = Activation.apply(maps, bias, PRINTED, True, 2)
    assert got.dtype == torch.bfloat16
    want = expected(maps.double(), bias.double(), PRINTED, True, 2)
    torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=1e-2)


def test_a_nan_goes_through() -> None:
    maps, bias = arguments((1, 16, 2, 2), torch.channels_last, torch.float32)
    with torch.no_grad():
        maps[0, 3, 1, 1] = float("nan")
    got = Activation.apply(maps, bias, None, True, 1)
    assert got.isnan().sum() == 1
