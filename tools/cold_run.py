"""Reading and loading a dataset that is not in memory: dropped before every pass, and seen to be gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.tools.ceilings import IMAGES_PER_CHUNK, ThreadedProbe, read_probe
from lmdali.tools.measurement import Probe, Rate, WindowPlan
from lmdali.tools.page_cache import data_files, evict, resident_share
from lmdali.tools.step_probes import measure_on
from lmdali.tools.storage_probe import storage_probe

MAX_RESIDENT = 0.05
"""Share of pages in memory up to which a dataset counts as dropped: a program may have touched a few meanwhile."""

MIN_FROM_DEVICE, MAX_WARM_FROM_DEVICE = 0.5, 0.05
"""Share of the stored bytes that a device delivers at least in a cold run, and at most in a warm one."""

Temperature = Literal["cold", "warm", "mixed"]


@dataclass(frozen=True, kw_only=True)
class CacheState:
    """Where the bytes of a measurement came from.

    Attributes:
        state: "warm" from memory, "cold" from a device, "mixed" from both; None where that is not told.
        resident_before: share of the dataset's pages in memory before, 0..1; None where that is not told.
        resident_after: the same after.
        device_bytes_per_image: that devices delivered for this process; None where that is not told.
    """

    state: Temperature | None
    resident_before: float | None
    resident_after: float | None
    device_bytes_per_image: float | None

    @classmethod
    def seen(cls, rate: Rate, before: float | None, after: float | None, record_bytes: float) -> CacheState:
        """From what a rate's windows read, of records of `record_bytes` stored bytes."""
        return cls(
            state=_temperature(rate.device_bytes_per_image, record_bytes),
            resident_before=before,
            resident_after=after,
            device_bytes_per_image=rate.device_bytes_per_image,
        )


def _temperature(delivered: float | None, record_bytes: float) -> Temperature | None:
    if delivered is None:
        return None
    share = delivered / record_bytes
    return "warm" if share <= MAX_WARM_FROM_DEVICE else "cold" if share >= MIN_FROM_DEVICE else "mixed"


@dataclass(frozen=True, kw_only=True)
class ColdRun:
    """Passes that begin with an empty page cache and are at most one epoch long, from the first byte on.

    What is read for batches to come counts against them.

    Attributes:
        storage_sequential: storage alone, in storage order.
        storage: storage alone, shuffled; None for a loader that reads in storage order.
        read_sequential: LMDB records, in storage order.
        read: LMDB records, shuffled; None as `storage`.
        loader: the loader alone.
        cache: of the loader's passes; the largest share before any pass.
        problem: why this was not cold; None where it was.
    """

    storage_sequential: Rate
    read_sequential: Rate
    loader: Rate
    cache: CacheState
    problem: str | None
    storage: Rate | None = None
    read: Rate | None = None


class ColdProbe(Probe):
    """Passes over a dataset that was dropped from memory.

    Args:
        start: epoch to the images of each step; its first value comes before anything is read.
        paths: the dataset's files.
    """

    warmup_steps = 1

    def __init__(self, start: Callable[[int], Iterator[int]], paths: Sequence[Path]) -> None:
        self._start, self._paths = start, paths
        self._epoch = 0
        self.resident_before: list[float | None] = []

    def run(self) -> Iterator[int]:
        """The first step has no images and ends with an empty page cache. Ends with the pass."""
        images = self._start(self._epoch)
        self._epoch += 1
        next(images)
        evict(self._paths)
        self.resident_before.append(resident_share(self._paths))
        yield 0
        yield from images


def measure_cold(config: LoaderConfig, plan: WindowPlan, *, record_bytes: float, quiet: bool = False) -> ColdRun:
    """Cold passes of storage and of a loader on the CPU. Nobody in this process may have the dataset mapped.

    Args:
        config: of the loader.
        plan: a window is a pass.
        record_bytes: mean stored size of a record.
        quiet: no progress.
    """
    dataset = Path(config.dataset)
    paths = data_files(dataset)
    reads = {
        f"{name}{suffix}": ColdProbe(partial(_read_pass, make, dataset, config.threads, shuffle), paths)
        for name, make in (("storage", storage_probe), ("read", read_probe))
        for suffix, shuffle in (("_sequential", False), ("", True))
        if not (shuffle and config.order == "sequential")
    }
    loader = ColdProbe(partial(_loader_pass, config), paths)
    rates = measure_on(torch.device("cpu"), {**reads, "loader": loader}, plan, quiet=quiet)
    known = [share for share in loader.resident_before if share is not None]
    before = max(known) if known else None
    cache = CacheState.seen(rates["loader"], before, resident_share(paths), record_bytes)
    return ColdRun(**rates, cache=cache, problem=_problem(cache, record_bytes))


def _loader_pass(config: LoaderConfig, epoch: int) -> Iterator[int]:
    with create_loader(config, rank=0, world_size=1) as loader:
        loader.set_epoch(epoch)
        yield 0  # files are mapped at their first record
        for batch in loader:
            yield len(batch.labels)


def _read_pass(
    make: Callable[..., ThreadedProbe], dataset: Path, num_threads: int, shuffle: bool, epoch: int
) -> Iterator[int]:
    probe = make(dataset, num_threads=num_threads, seed=epoch, shuffle=shuffle)
    yield 0
    yield from islice(probe.run(), max(1, probe.num_images // IMAGES_PER_CHUNK))


def _problem(cache: CacheState, record_bytes: float) -> str | None:
    resident, delivered = cache.resident_before, cache.device_bytes_per_image
    if resident is not None and resident > MAX_RESIDENT:
        return (
            f"{resident:.0%} of the dataset's pages stayed in memory: another program has it open, or it lies in a "
            "file system that is memory (tmpfs)"
        )
    if delivered is not None and cache.state != "cold":
        return (
            f"devices delivered {delivered / 1e3:,.1f} kB an image, of {record_bytes / 1e3:,.1f} kB: something else "
            "keeps the dataset in memory (a network file system's cache, a host)"
        )
    if resident is None and delivered is None:
        return "this system tells neither which pages are in memory nor what devices delivered"
    return None
