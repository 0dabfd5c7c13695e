"""What follows a convolution, on a GPU, in one pass: bias, rectifier, response normalisation. Triton, any layout.

With `x = max(c + b, 0)`, `d = k + alpha/size * S(x*x)` and `y = x * d**-beta`, S the sum over neighbouring channels of
one tower, `dL/dx = g * d**-beta - 2 * beta * alpha/size * x * S(g * x * d**-(beta + 1))`. A tile holds all channels of
a tower for some positions, so S is a product with a banded matrix of ones: on tensor cores it costs less than the
memory traffic does. Nothing but the convolution's output is kept for the way back.

Eager torch takes nine passes over the largest activations of the network forward; this takes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_CHANNELS = 512
"""A tower's channels must fit one tile; wider layers are left to the eager path."""

_MIN_POSITIONS = 64
"""Rows of a tile: the fewest that Hopper's matrix instructions take."""

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
        _launch(_backward, maps, bias, (gradient, slope, partial), gradient, norm, rectify, towers)
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
    chosen = norm or NormConstants(1, 0.0, 0.0, 1.0)
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
        # Half-precision maps have fewer digits than the sum has in bfloat16; float32 ones keep theirs. The interpreter
        # takes the bits of a bfloat16 for a number.
        HALF_PRECISION=maps.dtype != torch.float32 and maps.is_cuda,
        BLOCK_P=_MIN_POSITIONS,
        BLOCK_C=max(16, triton.next_power_of_2(per_tower)),
        num_warps=4,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _window_sum(values, HALF: tl.constexpr, HALF_PRECISION: tl.constexpr, BLOCK_C: tl.constexpr):  # type: ignore[no-untyped-def]
    channel = tl.arange(0, BLOCK_C)
    band = tl.abs(channel[:, None] - channel[None, :]) <= HALF
    if HALF_PRECISION:
        total = tl.dot(values.to(tl.bfloat16), band.to(tl.bfloat16))
    else:
        total = tl.dot(values, band.to(tl.float32), input_precision="ieee")
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    maps, bias, out, positions, area, per_tower, stride_n, stride_p, stride_c, out_n, out_p, out_c, out_tower,
    weight, beta, k, HALF: tl.constexpr, NORMALIZE: tl.constexpr, RECTIFY: tl.constexpr, HALF_PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tower = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    b = tl.load(bias + tower * per_tower + channel, mask=channel < per_tower, other=0.0).to(tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(positions, BLOCK_P), tl.num_programs(0)):
        position = (tl.zeros((BLOCK_P,), tl.int64) + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        image, place = position // area, position % area
        exists = (position < positions)[:, None] & (channel < per_tower)[None, :]
        at = (image * stride_n + place * stride_p)[:, None] + ((tower * per_tower + channel) * stride_c)[None, :]
        x = tl.load(maps + at, mask=exists, other=0.0).to(tl.float32) + b[None, :]
        if RECTIFY:
            x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        if NORMALIZE:
            denominator = k + weight * _window_sum(x * x, HALF, HALF_PRECISION, BLOCK_C)
            x = x * tl.exp2(-beta * tl.log2(denominator))
        at = tower * out_tower + (image * out_n + place * out_p)[:, None] + (channel * out_c)[None, :]
        tl.store(out + at, x.to(out.dtype.element_ty), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    maps, bias, gradient, slope, partial, positions, area, per_tower, stride_n, stride_p, stride_c,
    out_n, out_p, out_c, out_tower, weight, beta, k, HALF: tl.constexpr, NORMALIZE: tl.constexpr,
    RECTIFY: tl.constexpr, HALF_PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tower = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    b = tl.load(bias + tower * per_tower + channel, mask=channel < per_tower, other=0.0).to(tl.float32)
    bias_slope = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(positions, BLOCK_P), tl.num_programs(0)):
        position = (tl.zeros((BLOCK_P,), tl.int64) + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
        image, place = position // area, position % area
        exists = (position < positions)[:, None] & (channel < per_tower)[None, :]
        at = tower * out_tower + (image * out_n + place * out_p)[:, None] + (channel * out_c)[None, :]
        g = tl.load(gradient + at, mask=exists, other=0.0).to(tl.float32)
        at = (image * stride_n + place * stride_p)[:, None] + ((tower * per_tower + channel) * stride_c)[None, :]
        given = tl.load(maps + at, mask=exists, other=0.0).to(tl.float32) + b[None, :]
        x = tl.where(exists, given, 0.0)
        if RECTIFY:
            x = tl.maximum(x, 0.0)
        if NORMALIZE:
            denominator = k + weight * _window_sum(x * x, HALF, HALF_PRECISION, BLOCK_C)
            direct = g * tl.exp2(-beta * tl.log2(denominator))
            crossed = _window_sum(direct * x / denominator, HALF, HALF_PRECISION, BLOCK_C)
            g = direct - 2.0 * beta * weight * x * crossed
        if RECTIFY:
            g = tl.where(given > 0.0, g, 0.0)
        g = tl.where(exists, g, 0.0)
        bias_slope += tl.sum(g, axis=0)
        tl.store(slope + at, g.to(slope.dtype.element_ty), mask=exists)
    tl.store(
        partial + tl.program_id(0) * (per_tower * tl.num_programs(1)) + tower * per_tower + channel,
        bias_slope,
        mask=channel < per_tower,
    )
