"""The arithmetic of `DeviceNormalizer` in one pass over memory, for a GPU. Triton, bit for bit the eager one.

`(pixel - mean + shift) * scale`, each operation rounded for itself: a sum that is multiplied is no multiply-add, so the
compiler has nothing to contract, and is told not to. Threads next to each other take elements next to each other,
because the part of the mean image under a patch begins anywhere and cannot be read in wide words: each is read where it
lies, from the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lmdali.pipeline.gpu_kernels import UNFUSED

_THREADS = 128
_STEPS = 4
"""Pixels of one thread."""


class MeanTable(NamedTuple):
    """What patches lose, on the device, float32.

    Attributes:
        values: `(3,)`, one number per channel; or images in the layout of the batch, one behind the other, flat.
        width: of an image, pixels; 0 for one number per channel.
        height: of an image, pixels; 0 for one number per channel.
    """

    values: Tensor
    width: int
    height: int


def normalise(
    patches: Tensor,
    out: Tensor,
    mean: MeanTable | None,
    first: Tensor | None,
    shifts: Tensor | None,
    scale: Tensor | None,
    *,
    planar: bool,
) -> None:
    """Write images made from patches; what is None is left out.

    Args:
        patches: `(N, S, S, 3)` uint8, contiguous.
        out: `(N, 3, S, S)` where it is planar, or `(N, S, S, 3)`; contiguous, of a floating dtype of at most 32 bits.
        mean: subtracted.
        first: `(N,)` int64: the first pixel in the mean's images of what each patch loses; None for pixel 0.
        shifts: `(N, 3)` float32, contiguous, added.
        scale: `(3,)` float32, contiguous, multiplied.
        planar: the layout of `out` and of the mean's images.
    """
    count, size = patches.shape[:2]
    if not count:
        return
    values, width, height = mean or (None, 0, 0)
    # Triton launches on the current device.
    with torch.cuda.device_of(patches):  # type: ignore[no-untyped-call]
        (_planes if planar else _pixels)[(count * triton.cdiv(size * size, _STEPS * _THREADS),)](
            patches,
            out,
            values,
            first,
            shifts,
            scale,
            SIZE=size,
            WIDTH=width,
            HEIGHT=height,
            STEPS=_STEPS,
            THREADS=_THREADS,
            num_warps=_THREADS // 32,
            **UNFUSED,
        )


@triton.jit
def _result(pixel, mean, shift, factor):  # type: ignore[no-untyped-def]
    """One rounding after each operation; what is None changes nothing."""
    value = pixel.to(tl.float32)
    if mean is not None:
        value = value - mean
    if shift is not None:
        value = value + shift
    if factor is not None:
        value = value * factor
    return value


@triton.jit  # type: ignore[untyped-decorator]
def _pixels(  # type: ignore[no-untyped-def]
    patches, out, mean, first, shifts, scale,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr, STEPS: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    count: tl.constexpr = 3 * SIZE * SIZE
    blocks: tl.constexpr = tl.cdiv(SIZE * SIZE, STEPS * THREADS)
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    patches += image.to(tl.int64) * count
    out += image.to(tl.int64) * count
    if first is not None:
        mean += 3 * tl.load(first + image)
    if shifts is not None:
        shifts += 3 * image
    for third in tl.static_range(3):
        # Three times the threads on, a thread meets the same channel again.
        lane = third * THREADS + tl.arange(0, THREADS)
        shift = None if shifts is None else tl.load(shifts + lane % 3)
        factor = None if scale is None else tl.load(scale + lane % 3)
        level = None if mean is None or WIDTH > 0 else tl.load(mean + lane % 3)
        for step in tl.static_range(STEPS):
            at = (block * STEPS + step) * (3 * THREADS) + lane
            pixel = tl.load(patches + at, mask=at < count, other=0)
            if WIDTH > 0:
                level = tl.load(mean + at + at // (3 * SIZE) * (3 * (WIDTH - SIZE)), mask=at < count, other=0.0)
            value = _result(pixel, level, shift, factor)
            tl.store(out + at, value.to(out.dtype.element_ty), mask=at < count)


@triton.jit  # type: ignore[untyped-decorator]
def _planes(  # type: ignore[no-untyped-def]
    patches, out, mean, first, shifts, scale,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr, STEPS: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    count: tl.constexpr = SIZE * SIZE
    blocks: tl.constexpr = tl.cdiv(SIZE * SIZE, STEPS * THREADS)
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    patches += image.to(tl.int64) * (3 * count)
    out += image.to(tl.int64) * (3 * count)
    if first is not None:
        mean += tl.load(first + image)
    if shifts is not None:
        shifts += 3 * image
    for step in tl.static_range(STEPS):
        at = (block * STEPS + step) * THREADS + tl.arange(0, THREADS)
        under = at + at // SIZE * (WIDTH - SIZE)
        for channel in tl.static_range(3):
            pixel = tl.load(patches + 3 * at + channel, mask=at < count, other=0)
            shift = None if shifts is None else tl.load(shifts + channel)
            factor = None if scale is None else tl.load(scale + channel)
            level = None if mean is None or WIDTH > 0 else tl.load(mean + channel)
            if WIDTH > 0:
                level = tl.load(mean + channel * HEIGHT * WIDTH + under, mask=at < count, other=0.0)
            value = _result(pixel, level, shift, factor)
            tl.store(out + channel * count + at, value.to(out.dtype.element_ty), mask=at < count)
