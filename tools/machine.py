"""Facts about the machine that belong beside every measurement."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from lmdali.pipeline.cpu_budget import cpu_name, usable_cpus
from lmdali.pipeline.release import DALI_PACKAGES, installed_version

_PACKAGES = (
    "lmdali",
    "torch",
    "numpy",
    "numba",
    "lmdb",
    "simplejpeg",
    "opencv-python-headless",
    *DALI_PACKAGES,
)


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Facts, JSON-able; None for what this system does not tell or does not have.

    Args:
        device: that batches and model are on; a GPU is named.
    """
    on_gpu = device.type == "cuda"
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(),
        "num_cpus": usable_cpus(),
        "memory_bytes": _memory_bytes(),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "gpu_memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := installed_version(name)) is not None},
    }


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
