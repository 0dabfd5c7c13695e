"""Which device a network runs on."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

from lmdali.pipeline.errors import ConfigError, MachineError


def pick_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: the name is none of these.
        MachineError: the GPU that was asked for is not there.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda:N, found {name!r}")
    if device.type == "cpu":
        return device
    index, found = device.index or 0, torch.cuda.device_count()
    if index >= found:
        raise MachineError(f"{name} was asked for, this machine shows {found} GPUs to torch: use --device cpu or auto")
    return torch.device("cuda", index)


def has_gpu_kernels(device: torch.device) -> bool:
    """Whether this project's Triton kernels run on `device`: on a GPU, where torch brought Triton along."""
    return device.type == "cuda" and _triton_is_there()


@cache
def _triton_is_there() -> bool:
    return importlib.util.find_spec("triton") is not None
