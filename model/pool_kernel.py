"""Max pooling 3x3 with stride 2, and the blocks of the first convolution, for a GPU: Triton, channels last.

torch's own pooling of channels_last maps is its slowest step once normalisation is fused: it took 6 of 24 microseconds
per image on an H100. This one remembers which of nine was the largest in one byte, and its way back gathers, so no two
threads meet.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmdali.pipeline.gpu_kernels import FUSED

_BLOCK = 1024


class MaxPool(torch.autograd.Function):
    """`apply(maps)`: windows of 3x3 every 2 positions, as `F.max_pool2d(maps, 3, 2)`.

    `(B, C, H, W)` channels_last, any floating dtype, to `(B, C, (H - 3) // 2 + 1, (W - 3) // 2 + 1)`.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        batch, channels, height, width = maps.shape
        shape = (batch, channels, (height - 3) // 2 + 1, (width - 3) // 2 + 1)
        out = torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last)
        which = torch.empty(shape, dtype=torch.uint8, device=maps.device, memory_format=torch.channels_last)
        _launch(_pool, out.numel(), (maps, out, which), channels, height, width, shape[2], shape[3])
        ctx.save_for_backward(which)
        ctx.shape = maps.shape
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None]:
        (which,) = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        slope = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
        _launch(_unpool, slope.numel(), (gradient, which, slope), *ctx.shape[1:], which.shape[2], which.shape[3])
        return (slope,)


def blocked_images(images: Tensor, blocks: int, dtype: torch.dtype) -> Tensor:
    """Images cut into blocks of 4x4 pixels, each block a position with 48 channels: what conv1 sees, made dense.

    A convolution of 11x11 with stride 4 is one of 3x3 blocks with stride 1 and 48 input channels, which suits tensor
    cores; three channels leave them mostly empty (H100: 1.6 against 10.8 microseconds per image).

    Args:
        images: `(B, 3, H, W)` any floating dtype and layout; what is past the edge counts as zero.
        blocks: per side.
        dtype: of the result.

    Returns:
        `(B, 48, blocks, blocks)` channels_last; channel `12 * y + 3 * x + c` is colour c of pixel (y, x) of the block.
    """
    batch, _, height, width = images.shape
    out = torch.empty((batch, 48, blocks, blocks), dtype=dtype, device=images.device, memory_format=torch.channels_last)
    _launch(_cut, out.numel(), (images, out), blocks, height, width, *images.stride())
    return out


def _launch(kernel: Any, count: int, tensors: tuple[Tensor, ...], *numbers: int) -> None:
    large = max(tensor.numel() for tensor in tensors) >= 2**31
    # Triton launches on the current device.
    with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
        kernel[(triton.cdiv(count, _BLOCK),)](*tensors, count, *numbers, WIDE=large, BLOCK=_BLOCK, **FUSED)


@triton.jit  # type: ignore[untyped-decorator]
def _elements(WIDE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers of a program's elements; in 64 bits only where they must be, because divisions of those are slow."""
    start = tl.program_id(0).to(tl.int64) * BLOCK if WIDE else tl.program_id(0) * BLOCK
    return start + tl.arange(0, BLOCK)


@triton.jit  # type: ignore[untyped-decorator]
def _pool(  # type: ignore[no-untyped-def]
    maps, out, which, count, channels, height, width, out_height, out_width,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = _elements(WIDE, BLOCK)
    exists = at < count
    channel, position = at % channels, at // channels
    column, rest = position % out_width, position // out_width
    row, image = rest % out_height, rest // out_height
    corner = ((image * height + 2 * row) * width + 2 * column) * channels + channel
    best = tl.load(maps + corner, mask=exists, other=0.0).to(tl.float32)
    winner = tl.zeros((BLOCK,), tl.int32)
    for n in tl.static_range(1, 9):
        value = tl.load(maps + corner + ((n // 3) * width + n % 3) * channels, mask=exists, other=0.0).to(tl.float32)
        # A NaN wins, so that a diverged network is seen; of equals the first does, as in torch.
        better = (value > best) | (value != value)
        best = tl.where(better, value, best)
        winner = tl.where(better, n, winner)
    tl.store(out + at, best.to(out.dtype.element_ty), mask=exists)
    tl.store(which + at, winner.to(tl.uint8), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _unpool(  # type: ignore[no-untyped-def]
    gradient, which, slope, count, channels, height, width, out_height, out_width,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = _elements(WIDE, BLOCK)
    exists = at < count
    channel, position = at % channels, at // channels
    column, rest = position % width, position // width
    row, image = rest % height, rest // height
    total = tl.zeros((BLOCK,), tl.float32)
    # A position lies in up to two windows each way: those that begin at or one before its half.
    for n in tl.static_range(0, 4):
        out_row, out_column = row // 2 - n // 2, column // 2 - n % 2
        y, x = row - 2 * out_row, column - 2 * out_column
        inside = exists & (out_row >= 0) & (out_row < out_height) & (out_column >= 0) & (out_column < out_width)
        inside = inside & (y < 3) & (x < 3)
        source = ((image * out_height + out_row) * out_width + out_column) * channels + channel
        winner = tl.load(which + source, mask=inside, other=255).to(tl.int32)
        hit = inside & (winner == 3 * y + x)
        total += tl.load(gradient + source, mask=hit, other=0.0).to(tl.float32)
    tl.store(slope + at, total.to(slope.dtype.element_ty), mask=exists)


@triton.jit  # type: ignore[untyped-decorator]
def _cut(  # type: ignore[no-untyped-def]
    images, out, count, blocks, height, width, stride_n, stride_c, stride_y, stride_x,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = _elements(WIDE, BLOCK)
    part, position = at % 48, at // 48
    x = 4 * (position % blocks) + (part % 12) // 3
    rest = position // blocks
    y, image = 4 * (rest % blocks) + part // 12, rest // blocks
    inside = (at < count) & (y < height) & (x < width)
    source = image * stride_n + (part % 3) * stride_c + y * stride_y + x * stride_x
    value = tl.load(images + source, mask=inside, other=0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < count)
