"""Whether this project's GPU kernels can run: `has_gpu_kernels`, and `takes_kernels` for one tensor."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor


def has_gpu_kernels(device: torch.device) -> bool:
    """Whether this project's Triton kernels run on `device`: on a GPU, where torch brought Triton along."""
    return device.type == "cuda" and _triton_is_there()


def takes_kernels(tensor: Tensor) -> bool:
    """Whether they are for this tensor: on such a GPU, and of no more digits than they compute with."""
    return has_gpu_kernels(tensor.device) and tensor.dtype != torch.float64


@cache
def _triton_is_there() -> bool:
    return importlib.util.find_spec("triton") is not None
