"""NVTX: the loader's stages as named ranges on the timeline of NVIDIA Nsight Systems, by whichever package is there."""

from __future__ import annotations

import importlib
from typing import Any

from lmdali.pipeline.timing import Ranges

PREFIX = "lmdali "
"""Before the name of a stage, so that our ranges are found among those of torch and DALI."""


class NvtxRanges:
    """Ranges given to two functions of a package.

    Args:
        push: takes a name.
        pop: takes nothing.
        package: that they are of.
    """

    def __init__(self, push: Any, pop: Any, package: str) -> None:
        self._push, self._pop, self.package = push, pop, package

    def push(self, name: str) -> None:
        """Begin a range on this thread."""
        self._push(PREFIX + name)

    def pop(self) -> None:
        """End this thread's last one."""
        self._pop()


def find_nvtx() -> NvtxRanges | None:
    """torch's own NVTX in a build for CUDA, else the package `nvtx`; None where neither is there."""
    for package, push, pop in (("torch.cuda.nvtx", "range_push", "range_pop"), ("nvtx", "push_range", "pop_range")):
        try:
            module = importlib.import_module(package)
            found = NvtxRanges(getattr(module, push), getattr(module, pop), package)
            found.push("probe")
            found.pop()
        except (ImportError, RuntimeError, AttributeError):  # a torch without CUDA has functions that only raise
            continue
        return found
    return None


def marked(ranges: Ranges | None, name: str, function: Any) -> Any:
    """The function, with each call of it as a range; None leaves it as it is."""
    if ranges is None:
        return function

    def call(*arguments: Any) -> Any:
        ranges.push(name)
        try:
            return function(*arguments)
        finally:
            ranges.pop()

    return call
