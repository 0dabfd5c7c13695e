"""Normalisation within each map, which the original code has behind its second response normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmdali.pipeline.gpu_kernels import takes_kernels

_SIZE, _ALPHA = 5, 1e-3


class MapNorm(nn.Module):
    """`y = x / (1 + 1e-3 / 25 * sum x**2) ** 0.75`, the sum over the 5x5 window of the same map, zeros outside of it.

    The paper does not mention it; the released configuration of run #145, from which the paper's tables come, has it
    between the second response normalisation and the pooling, with these constants.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise `(B, C, H, W)` maps, any floating dtype; the arithmetic is float32 or better."""
        if takes_kernels(maps) and maps.is_contiguous(memory_format=torch.channels_last):
            from lmdali.model.map_norm_kernel import KernelMapNorm  # Triton is there

            normalised: Tensor = KernelMapNorm.apply(maps, _SIZE, _ALPHA)  # type: ignore[no-untyped-call]
            return normalised
        wide = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
        out: Tensor = _Normalize.apply(wide)  # type: ignore[no-untyped-call]
        return out.to(maps.dtype)


class _Normalize(torch.autograd.Function):
    """The closed form and its gradient, five passes over memory where autograd needs twice as many.

    `d = 1 + alpha * M(x*x)`, `y = x * d**-0.75`; the window mean M is symmetric (outside it counts zeros), so
    `dL/dx = g * d**-0.75 - 1.5 * alpha * x * M(g * x * d**-1.75)`.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        denominator = _window_mean(maps * maps).mul_(_ALPHA).add_(1.0)
        scale = (denominator * denominator.sqrt()).rsqrt_()  # d**-0.75 without pow, as in ResponseNorm
        ctx.save_for_backward(maps, denominator, scale)
        return maps * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        maps, denominator, scale = ctx.saved_tensors
        direct = gradients[0] * scale
        crossed = _window_mean((direct * maps).div_(denominator))
        slope: Tensor = direct.addcmul_(maps, crossed, value=-1.5 * _ALPHA)
        return slope


def _window_mean(maps: Tensor) -> Tensor:
    means: Tensor = nn.functional.avg_pool2d(maps, _SIZE, stride=1, padding=_SIZE // 2)
    return means
