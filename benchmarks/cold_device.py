"""The files of a dataset as a storage device sees them: dropped from memory, and read past the page cache."""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.tools.page_cache import evict

_BLOCK_BYTES = 4096
_PROBES = 64


@dataclass(frozen=True)
class Sample:
    """Seconds that some images took: on the clock, and of all this process's threads."""

    images: int
    seconds: float
    cpu_seconds: float


class Storage:
    """The files of a dataset, as a device sees them.

    Args:
        dataset: directory.
    """

    def __init__(self, dataset: Path) -> None:
        self.manifest = load_manifest(dataset)
        self._reader = ShardReader(dataset, self.manifest)
        self.paths = [self._reader.data_file(info.name) for info in self.manifest.shards]
        self.is_direct = True
        self.resident = 0.0
        self.resident_known = True

    def places(self, indices: NDArray[np.int64]) -> list[tuple[int, int, int]]:
        """Shard number, offset and size of each record, widened to whole blocks."""
        shards, offsets, sizes = self._reader.file_places(indices)
        self._reader.close()  # what is mapped could not be dropped
        first = offsets // _BLOCK_BYTES * _BLOCK_BYTES
        stop = -(-(offsets + sizes) // _BLOCK_BYTES) * _BLOCK_BYTES
        return list(zip(shards.tolist(), first.tolist(), (stop - first).tolist(), strict=True))

    def evict(self) -> None:
        """Drop all pages of the dataset from memory, and see whether they are gone."""
        evict(self.paths)
        dice = np.random.default_rng(0)
        found = [self._is_resident(self.paths[number], dice) for number in dice.integers(0, len(self.paths), _PROBES)]
        self.resident = max(self.resident, sum(found) / len(found))

    def _is_resident(self, path: Path, dice: np.random.Generator) -> bool:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            # Else the kernel takes a question about one page for a reason to read 128 kB or more.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            at = int(dice.integers(0, path.stat().st_size))
            return os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False
        except OSError:
            self.resident_known = False
            return False
        finally:
            os.close(descriptor)

    def open(self, number: int) -> int:
        """A descriptor that reads past the page cache, where the file system lets it."""
        if self.is_direct:
            try:
                return os.open(self.paths[number], os.O_RDONLY | os.O_DIRECT)
            except OSError:
                self.is_direct = False
        descriptor = os.open(self.paths[number], os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return descriptor


def read_device(storage: Storage, indices: NDArray[np.int64], *, depth: int) -> Sample:
    """Each record with one read, `depth` of them at a time."""
    places = storage.places(indices)
    storage.evict()
    descriptors = {number: storage.open(number) for number in {place[0] for place in places}}
    todo, lock = iter(places), threading.Lock()

    def work() -> None:
        memory = memoryview(mmap.mmap(-1, max(size for _, _, size in places)))  # O_DIRECT wants aligned memory
        while True:
            with lock:
                place = next(todo, None)
            if place is None:
                return
            number, first, size = place
            os.preadv(descriptors[number], [memory[:size]], first)

    threads = [threading.Thread(target=work) for _ in range(depth)]
    cpu, start = process_time(), perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sample = Sample(len(indices), perf_counter() - start, process_time() - cpu)
    for descriptor in descriptors.values():
        os.close(descriptor)
    return sample
