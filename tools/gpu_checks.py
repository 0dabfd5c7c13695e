"""Whether torch, its kernels and DALI can use the GPUs of this machine, and why not."""

from __future__ import annotations

import importlib
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmdali.pipeline.errors import install_line
from lmdali.pipeline.release import DALI_PACKAGES, installed_version
from lmdali.tools.finding import Finding, first_line
from lmdali.tools.report_table import megabytes

DRIVER = Path("/proc/driver/nvidia/version")
SHARED_MEMORY = Path("/dev/shm")

_ENOUGH_SHARED_BYTES = 512_000_000
_EXTRAS = {"12": "dali-cuda12", "13": "dali-cuda13"}
"""Major version of CUDA -> the extra that brings DALI."""


def gpu_findings() -> Iterator[Finding]:
    """Driver and torch, each GPU, then DALI."""
    driver = driver_version(DRIVER)
    if installed_version("torch") is None:
        yield Finding("NVIDIA driver", driver or "none")
        return
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # whatever a broken build raises; DALI's check needs its version of CUDA
        advice = "pip install --force-reinstall torch; one for CUDA has its line at pytorch.org/get-started"
        yield Finding("torch", f"cannot be imported: {first_line(error)}", "problem", advice)
        return
    if driver is None and torch.cuda.is_available():
        driver = "of unknown version"  # a sandbox may hide the driver's files, and not the driver
    yield _torch(torch, driver)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield from _gpu(torch, index)
        if torch.cuda.device_count() > 1:
            yield from _shared_memory()
    yield from _dali(torch, driver)


def driver_version(path: Path) -> str | None:
    """Version of NVIDIA's kernel driver; None where there is none.

    Args:
        path: where the driver says it.
    """
    try:
        found = re.search(r"Kernel Module.*?(?<![\w.])(\d+(?:\.\d+)+)", path.read_text())
    except OSError:
        return None
    return found[1] if found else "of unknown version"


def _torch(torch: Any, driver: str | None) -> Finding:
    found = f"torch {torch.__version__}, {'built for CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU only'}"
    if driver is None:
        return Finding("torch", f"{found}; no NVIDIA driver here")
    found += f"; NVIDIA driver {driver}"
    if torch.cuda.is_available():
        return Finding("torch", found)
    if torch.version.cuda is None:
        advice = "install torch for CUDA: pytorch.org/get-started has the line for this machine"
        return Finding("torch", f"{found}: this build cannot use a GPU", "problem", advice)
    try:
        torch.cuda.init()
        reason = "torch finds no GPU"
    except Exception as error:  # RuntimeError and AssertionError, by what is wrong
        reason = first_line(error)
    advice = "look at nvidia-smi and CUDA_VISIBLE_DEVICES; a driver too old for this build needs a newer one"
    return Finding("torch", f"{found}: {reason}", "problem", advice)


def _gpu(torch: Any, index: int) -> Iterator[Finding]:
    from lmdali.pipeline.gpu_kernels import has_gpu_kernels

    what, device = f"cuda:{index}", torch.device("cuda", index)
    try:
        facts = torch.cuda.get_device_properties(device)
        total = torch.arange(4, device=device).sum().item()
        assert total == 6, total
    except Exception as error:
        advice = "look at nvidia-smi; a torch built for other GPUs says `no kernel image`"
        yield Finding(what, f"does not compute: {first_line(error)}", "problem", advice)
        return
    found = f"{facts.name}, {megabytes(facts.total_memory)}, compute capability {facts.major}.{facts.minor}"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        has_kernels = has_gpu_kernels(device)
    if has_kernels:
        yield Finding(what, found)
    else:
        why = str(said[0].message) if said else "Triton is not installed, so torch's own operators are used: slower"
        yield Finding(what, f"{found}; {why}", "caution", "pip install triton, and have gcc and Python's headers")


def _shared_memory() -> Iterator[Finding]:
    """NCCL's ranks of one machine talk through it; containers have 64 MB unless told otherwise."""
    try:
        size = shutil.disk_usage(SHARED_MEMORY).total
    except OSError:
        return
    if size < _ENOUGH_SHARED_BYTES:
        advice = "start the container with --shm-size=1g or --ipc=host"
        found = f"{SHARED_MEMORY} has {megabytes(size)}: ranks that share it may end with an error of NCCL's"
        yield Finding("shared memory", found, "caution", advice)


def _dali(torch: Any, driver: str | None) -> Iterator[Finding]:
    needed = _EXTRAS.get((torch.version.cuda or "").partition(".")[0], "dali-cuda13")
    found = [f"{package} {version}" for package in DALI_PACKAGES if (version := installed_version(package))]
    if not found:
        placeholder = installed_version("nvidia-dali")
        if placeholder is not None:
            text = f"nvidia-dali {placeholder} is a placeholder, not DALI"
            yield Finding("DALI", text, "problem", f"pip uninstall -y nvidia-dali, then {install_line(needed)}")
        else:
            text = "not installed: JPEG is decoded by CPU threads" + (
                "" if driver else ", as it would be without a GPU"
            )
            yield Finding("DALI", text, "note" if driver else "ok", install_line(needed) if driver else "")
        return
    importlib.import_module("lmdali.pipeline.augment")  # what the next one needs besides is not to blame on DALI
    try:
        importlib.import_module("lmdali.pipeline.dali_graph")
    except Exception as error:  # whatever a broken build raises
        advice = f"pip install --force-reinstall {found[0].split()[0]}"
        yield Finding("DALI", f"{found[0]} cannot be imported: {first_line(error)}", "problem", advice)
        return
    yield Finding("DALI", ", ".join(found))
