"""One setting of a loader among several that take turns: open only while it is measured, and what memory that takes."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.tools.step_probes import LoaderProbe

_PAGES = Path("/proc/self/statm")
_MORE_BUFFERS = 2
"""A new loader's last buffers are written for the first time so many steps after its queue is full."""


@dataclass
class Position:
    """Where in a dataset the next window begins, whoever's it is.

    Attributes:
        state: of the loader that was there last; None at the beginning.
    """

    state: dict[str, Any] | None = None


class SettingProbe:
    """A loader that exists while a window lasts: so there is one at a time, with all memory to itself.

    Settings of one dataset share a position, so that no window reads what another one has just warmed.

    Args:
        config: of the loader.
        device: of its batches.
        position: of its dataset.

    Attributes:
        prefetch: of the loader.
        backend_name: that delivered; empty before the first window.
        resident_bytes: by which the process had grown at the end of each window.
    """

    def __init__(self, config: LoaderConfig, device: torch.device, position: Position) -> None:
        self._config, self._device, self._position = config, device, position
        self.prefetch = config.depth
        self.warmup_steps = LoaderProbe.steps_to_fill(self.prefetch) + _MORE_BUFFERS
        self.backend_name = ""
        self.resident_bytes: list[int] = []
        self._stages: dict[str, float] = {}

    def run(self) -> Iterator[int]:
        """Each step is one batch."""
        give_back_memory()
        before = own_memory()
        with create_loader(self._config, self._device, rank=0, world_size=1) as loader:
            self.backend_name = loader.backend_name
            if self._position.state is not None:
                loader.load_state_dict(self._position.state)
            with closing(LoaderProbe(loader).run()) as steps:  # type: ignore[type-var]
                try:
                    for images in steps:
                        self._stages = loader.stage_seconds()
                        yield images
                finally:
                    after = own_memory()
                    if before is not None and after is not None:
                        self.resident_bytes.append(max(0, after - before))
            self._position.state = loader.state_dict()

    def stage_seconds(self) -> dict[str, float]:
        """The timers of the loader that is open, as they were at its last step."""
        return self._stages

    @property
    def resident(self) -> float | None:
        """Median of `resident_bytes`; None where the system does not say."""
        return median(self.resident_bytes) if self.resident_bytes else None


@contextmanager
def settled_heap() -> Iterator[None]:
    """Garbage collection passes over all that is there already: to look at it takes longer than a short window."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library can: else it would hide what is taken next."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def own_memory() -> int | None:
    """Resident bytes of this process without pages of mapped files, which are the page cache's; None if not told."""
    try:
        _, resident, shared, *_ = _PAGES.read_text().split()
    except (OSError, ValueError):
        return None
    return (int(resident) - int(shared)) * mmap.PAGESIZE
