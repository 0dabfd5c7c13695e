"""Normalisation within each map for a GPU: Triton, channels last; `map_norm.MapNorm` calls it.

With `d = 1 + alpha * M(x*x)`, M the mean over a square window that counts zeros outside the map, `y = x * d**-0.75` and
`dL/dx = g * d**-0.75 - 1.5 * alpha * x * M(g * x * d**-1.75)`. Windows overlap, so their reads come from the cache.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmdali.pipeline.gpu_kernels import FUSED

_BLOCK = 1024


class KernelMapNorm(torch.autograd.Function):
    """`apply(maps, size, alpha)`: `(B, C, H, W)` channels_last, any floating dtype; the same comes back."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: int, alpha: float) -> Tensor:
        out = torch.empty_like(maps)
        _launch(_normalize, (maps, out), size, alpha)
        ctx.save_for_backward(maps)
        ctx.constants = (size, alpha)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (maps,) = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        direct, term, slope = (torch.empty_like(maps) for _ in range(3))
        _launch(_terms, (maps, gradient, direct, term), *ctx.constants)
        _launch(_slope, (maps, direct, term, slope), *ctx.constants)
        return slope, None, None


def _launch(kernel: Any, tensors: tuple[Tensor, ...], size: int, alpha: float) -> None:
    _, channels, height, width = tensors[0].shape
    count = tensors[0].numel()
    # Triton launches on the current device.
    with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
        kernel[(triton.cdiv(count, _BLOCK),)](
            *tensors, count, channels, height, width, alpha / size**2, HALF=size // 2, BLOCK=_BLOCK, **FUSED
        )


@triton.jit  # type: ignore[untyped-decorator]
def _window_sum(  # type: ignore[no-untyped-def]
    maps, at, count, channels, height, width, SQUARE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    position = (at // channels).to(tl.int32)  # of all images; in 64 bits the divisions would be slow
    column, row = position % width, (position // width) % height
    total = tl.zeros((BLOCK,), tl.float32)
    for dy in tl.static_range(-HALF, HALF + 1):
        for dx in tl.static_range(-HALF, HALF + 1):
            inside = (at < count) & (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
            value = tl.load(maps + at + (dy * width + dx) * channels, mask=inside, other=0.0).to(tl.float32)
            total += value * value if SQUARE else value
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _normalize(  # type: ignore[no-untyped-def]
    maps, out, count, channels, height, width, weight, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(maps + at, mask=at < count, other=0.0).to(tl.float32)
    denominator = 1.0 + weight * _window_sum(maps, at, count, channels, height, width, True, HALF, BLOCK)
    tl.store(out + at, (x * tl.exp2(-0.75 * tl.log2(denominator))).to(out.dtype.element_ty), mask=at < count)


@triton.jit  # type: ignore[untyped-decorator]
def _terms(  # type: ignore[no-untyped-def]
    maps, gradient, direct, term, count, channels, height, width, weight, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(maps + at, mask=at < count, other=0.0).to(tl.float32)
    denominator = 1.0 + weight * _window_sum(maps, at, count, channels, height, width, True, HALF, BLOCK)
    scaled = tl.load(gradient + at, mask=at < count, other=0.0).to(tl.float32) * tl.exp2(-0.75 * tl.log2(denominator))
    tl.store(direct + at, scaled.to(direct.dtype.element_ty), mask=at < count)
    tl.store(term + at, (scaled * x / denominator).to(term.dtype.element_ty), mask=at < count)


@triton.jit  # type: ignore[untyped-decorator]
def _slope(  # type: ignore[no-untyped-def]
    maps, direct, term, slope, count, channels, height, width, weight, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(maps + at, mask=at < count, other=0.0).to(tl.float32)
    crossed = _window_sum(term, at, count, channels, height, width, False, HALF, BLOCK)
    value = tl.load(direct + at, mask=at < count, other=0.0).to(tl.float32) - 1.5 * weight * x * crossed
    tl.store(slope + at, value.to(slope.dtype.element_ty), mask=at < count)
