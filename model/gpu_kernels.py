"""Whether this project's GPU kernels can run: `has_gpu_kernels`."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch


def has_gpu_kernels(device: torch.device) -> bool:
    """Whether this project's Triton kernels run on `device`: on a GPU, where torch brought Triton along."""
    return device.type == "cuda" and _triton_is_there()


@cache
def _triton_is_there() -> bool:
    return importlib.util.find_spec("triton") is not None
