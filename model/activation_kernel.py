"""What follows a convolution, on a GPU, in one pass: bias, rectifier, response normalisation. Triton, any layout.

With `x = max(c + b, 0)`, `d = k + alpha/size * S(x*x)` and `y = x * d**-beta`, S the sum over neighbouring channels of
one tower, `dL/dx = g * d**-beta - 2 * beta * alpha/size * x * S(g * x * d**-(beta + 1))`. Nothing but the convolution's
output is kept for the way back. That has two passes, because a channel's slope needs its neighbours' terms, and those
need their own neighbours: in one pass, nine channels for each one written, it took five times as long as the way there
on an H100, with registers for one block per processor. A product with a banded matrix on tensor cores took half of
that, but minutes to compile in float32.

Eager torch takes nine passes over the largest activations of the network forward; this takes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmdali.pipeline.gpu_kernels import FUSED

_TILE_ELEMENTS = 1024
_PROGRAMS_PER_PROCESSOR = 8


@dataclass(frozen=True)
class NormConstants:
    """Of a response normalisation: see `layers.ResponseNorm`."""

    size: int
    alpha: float
    beta: float
    k: float


class Activation(torch.autograd.Function):
    """`apply(maps, bias, norm, rectify, towers)`.

    Args of `apply`:
        maps: `(B, C, H, W)` any floating dtype, channels_last or contiguous.
        bias: `(C,)` float32, added first.
        norm: `NormConstants`, or None for no normalisation.
        rectify: apply a ReLU after the bias.
        towers: groups of channels that the normalisation does not cross. With two or more the result holds them one
            behind the other, `(towers * B, C / towers, H, W)`, each of them dense: the next convolutions take them so.

    Returns:
        The maps' dtype and memory format.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, bias: Tensor, norm: NormConstants | None, rectify: bool, towers: int) -> Tensor:
        batch, channels, height, width = maps.shape
        out = torch.empty(
            (towers * batch, channels // towers, height, width),
            dtype=maps.dtype,
            device=maps.device,
            memory_format=_format(maps),
        )
        _launch(_forward, maps, bias, (out,), out, norm, rectify, towers)
        ctx.save_for_backward(maps, bias)
        ctx.how = (norm, rectify, towers)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        maps, bias = ctx.saved_tensors
        norm, rectify, towers = ctx.how
        gradient = gradients[0].contiguous(memory_format=_format(maps))
        slope = torch.empty_like(maps)
        partial = torch.empty((_num_programs(maps), maps.shape[1]), dtype=torch.float32, device=maps.device)
        term = slope
        if norm is not None:
            term = torch.empty_like(maps)
            _launch(_terms, maps, bias, (gradient, slope, term), gradient, norm, rectify, towers)
        _launch(_slopes, maps, bias, (gradient, term, slope, partial), gradient, norm, rectify, towers)
        return slope, partial.sum(0).to(bias.dtype), None, None, None


def _format(maps: Tensor) -> torch.memory_format:
    return torch.channels_last if maps.stride(1) == 1 else torch.contiguous_format


def _num_programs(maps: Tensor) -> int:
    if not maps.is_cuda:
        return 2
    return _PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(maps.device).multi_processor_count


def _launch(
    kernel: Any,
    maps: Tensor,
    bias: Tensor,
    others: tuple[Tensor, ...],
    towered: Tensor,
    norm: NormConstants | None,
    rectify: bool,
    towers: int,
) -> None:
    """Run over all tiles; `towered` is the tensor that has the towers one behind the other."""
    batch, channels, height, width = maps.shape
    per_tower = channels // towers
    block_channels = triton.next_power_of_2(per_tower)
    chosen = norm or NormConstants(1, 0.0, 0.0, 1.0)
    # Triton launches on the current device.
    with torch.cuda.device_of(maps):  # type: ignore[no-untyped-call]
        kernel[(_num_programs(maps), towers)](
            maps,
            bias,
            *others,
            batch * height * width,
            height * width,
            per_tower,
            *(maps.stride(0), maps.stride(3), maps.stride(1)),
            *(towered.stride(0), towered.stride(3), towered.stride(1)),
            towered.stride(0) * batch,
            chosen.alpha / chosen.size,
            chosen.beta,
            chosen.k,
            HALF=chosen.size // 2,
            NORMALIZE=norm is not None,
            RECTIFY=rectify,
            BLOCK_P=max(1, _TILE_ELEMENTS // block_channels),
            BLOCK_C=block_channels,
            num_warps=8,
            **FUSED,
        )


@triton.jit  # type: ignore[untyped-decorator]
def _places(tile, channel, positions, area, per_tower, BLOCK_P: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a tile's positions the image and the place in it, and which of its elements there are."""
    # Divisions of 64 bits would cost more than everything else here.
    position = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    exists = (position < positions)[:, None] & (channel < per_tower)[None, :]
    return (position // area).to(tl.int64), (position % area).to(tl.int64), exists


@triton.jit  # type: ignore[untyped-decorator]
def _near(pointer, at, channel, SHIFT: tl.constexpr, per_tower, stride_c, exists):  # type: ignore[no-untyped-def]
    """The values `SHIFT` channels further on, float32; zeros outside the tower."""
    inside = (channel + SHIFT >= 0) & (channel + SHIFT < per_tower)
    return tl.load(pointer + at + SHIFT * stride_c, mask=exists & inside[None, :], other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _rectified(  # type: ignore[no-untyped-def]
    maps, bias, at, channel, SHIFT: tl.constexpr, per_tower, stride_c, exists, RECTIFY: tl.constexpr
):
    inside = (channel + SHIFT >= 0) & (channel + SHIFT < per_tower)
    b = tl.load(bias + channel + SHIFT, mask=inside, other=0.0).to(tl.float32)
    x = _near(maps, at, channel, SHIFT, per_tower, stride_c, exists) + b[None, :]
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) if RECTIFY else x


@triton.jit  # type: ignore[untyped-decorator]
def _denominator(  # type: ignore[no-untyped-def]
    x, maps, bias, at, channel, per_tower, stride_c, exists, weight, k, HALF: tl.constexpr, RECTIFY: tl.constexpr
):
    """`k + weight * sum x**2` over a channel, whose rectified values `x` are, and those near it."""
    total = x * x
    for shift in tl.static_range(1, HALF + 1):
        before = _rectified(maps, bias, at, channel, -shift, per_tower, stride_c, exists, RECTIFY)
        after = _rectified(maps, bias, at, channel, shift, per_tower, stride_c, exists, RECTIFY)
        total += before * before + after * after
    return k + weight * total


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    maps, bias, out, positions, area, per_tower, stride_n, stride_p, stride_c, out_n, out_p, out_c, out_tower,
    weight, beta, k, HALF: tl.constexpr, NORMALIZE: tl.constexpr, RECTIFY: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tower = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    bias += tower * per_tower
    for tile in range(tl.program_id(0), tl.cdiv(positions, BLOCK_P), tl.num_programs(0)):
        image, place, exists = _places(tile, channel, positions, area, per_tower, BLOCK_P)
        at = (image * stride_n + place * stride_p)[:, None] + ((tower * per_tower + channel) * stride_c)[None, :]
        x = _rectified(maps, bias, at, channel, 0, per_tower, stride_c, exists, RECTIFY)
        if NORMALIZE:
            d = _denominator(x, maps, bias, at, channel, per_tower, stride_c, exists, weight, k, HALF, RECTIFY)
            x = x * tl.exp2(-beta * tl.log2(d))
        at = tower * out_tower + (image * out_n + place * out_p)[:, None] + (channel * out_c)[None, :]
        tl.store(out + at, x.to(out.dtype.element_ty), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _terms(  # type: ignore[no-untyped-def]
    maps, bias, gradient, direct, term, positions, area, per_tower, stride_n, stride_p, stride_c,
    out_n, out_p, out_c, out_tower, weight, beta, k, HALF: tl.constexpr, NORMALIZE: tl.constexpr,
    RECTIFY: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """`direct = g * d**-beta`, and what every neighbour's slope needs of a channel, `g * x * d**-(beta + 1)`."""
    tower = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    bias += tower * per_tower
    for tile in range(tl.program_id(0), tl.cdiv(positions, BLOCK_P), tl.num_programs(0)):
        image, place, exists = _places(tile, channel, positions, area, per_tower, BLOCK_P)
        at = (image * stride_n + place * stride_p)[:, None] + ((tower * per_tower + channel) * stride_c)[None, :]
        above = tower * out_tower + (image * out_n + place * out_p)[:, None] + (channel * out_c)[None, :]
        x = _rectified(maps, bias, at, channel, 0, per_tower, stride_c, exists, RECTIFY)
        d = _denominator(x, maps, bias, at, channel, per_tower, stride_c, exists, weight, k, HALF, RECTIFY)
        g = tl.load(gradient + above, mask=exists, other=0.0).to(tl.float32) * tl.exp2(-beta * tl.log2(d))
        tl.store(direct + at, g.to(direct.dtype.element_ty), mask=exists)
        tl.store(term + at, (g * x / d).to(term.dtype.element_ty), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _slopes(  # type: ignore[no-untyped-def]
    maps, bias, gradient, term, slope, partial, positions, area, per_tower, stride_n, stride_p, stride_c,
    out_n, out_p, out_c, out_tower, weight, beta, k, HALF: tl.constexpr, NORMALIZE: tl.constexpr,
    RECTIFY: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The slope of each element, and the sums over positions that a bias gets, one row per program."""
    tower = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    bias += tower * per_tower
    bias_slope = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(positions, BLOCK_P), tl.num_programs(0)):
        image, place, exists = _places(tile, channel, positions, area, per_tower, BLOCK_P)
        at = (image * stride_n + place * stride_p)[:, None] + ((tower * per_tower + channel) * stride_c)[None, :]
        x = _rectified(maps, bias, at, channel, 0, per_tower, stride_c, exists, RECTIFY)
        if NORMALIZE:
            # What `_terms` left: the gradient is in the place of the slope already.
            g = tl.load(slope + at, mask=exists, other=0.0).to(tl.float32)
            crossed = _near(term, at, channel, 0, per_tower, stride_c, exists)
            for shift in tl.static_range(1, HALF + 1):
                crossed += _near(term, at, channel, -shift, per_tower, stride_c, exists)
                crossed += _near(term, at, channel, shift, per_tower, stride_c, exists)
            g -= 2.0 * beta * weight * x * crossed
        else:
            above = tower * out_tower + (image * out_n + place * out_p)[:, None] + (channel * out_c)[None, :]
            g = tl.load(gradient + above, mask=exists, other=0.0).to(tl.float32)
        if RECTIFY:
            g = tl.where(x > 0.0, g, 0.0)
        g = tl.where(exists, g, 0.0)
        bias_slope += g
        tl.store(slope + at, g.to(slope.dtype.element_ty), mask=exists)
    row = partial + tl.program_id(0) * (per_tower * tl.num_programs(1)) + tower * per_tower
    tl.store(row + channel, tl.sum(bias_slope, axis=0), mask=channel < per_tower)
