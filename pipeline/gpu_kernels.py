"""Whether this project's GPU kernels can run: `has_gpu_kernels`, and `takes_kernels` for one tensor."""

from __future__ import annotations

import importlib.util
import subprocess
import warnings
from functools import cache

import torch
from torch import Tensor

FUSED = {"enable_fp_fusion": True}
"""For a launch: a product and the sum that it goes into are rounded once, as one operation. What is not said is a
default of Triton's, which changes with its version, and with it the last bits; Triton 3.9 warns of that."""

UNFUSED = {"enable_fp_fusion": False}
"""For a launch: each operation is rounded for itself, as torch's are."""


def has_gpu_kernels(device: torch.device) -> bool:
    """Whether this project's Triton kernels run on `device`: on a GPU, where torch brought Triton along."""
    return device.type == "cuda" and _triton_works()


def takes_kernels(tensor: Tensor) -> bool:
    """Whether they are for this tensor: on such a GPU, and of no more digits than they compute with."""
    return has_gpu_kernels(tensor.device) and tensor.dtype != torch.float64


@cache
def _triton_works() -> bool:
    """Triton is there, and finds what it builds its connection to the driver with; torch's own operators do without."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # no C compiler, no Python.h, another driver
        warnings.warn(
            f"Triton cannot build here, so GPU work takes torch's own operators, which are slower: {error} "
            "(it needs a C compiler and the headers of Python: gcc, python3-dev)",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True
