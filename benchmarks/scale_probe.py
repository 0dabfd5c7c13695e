"""One measurement of the scale benchmark, in a process of its own.

    python scale_probe.py opening|resume|descriptors|manifest|order FOLDER WARM_UP     (started by scale.py)

Opening is measured in a process that has only imported, and what the imports took is told beside it. Before batches are
read, compiled kernels and threads are paid for on a small dataset, WARM_UP. The answer is the last line on standard
output, JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from scale_dataset import FULL_SIZE, TINY

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.block_order import create_order
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import MANIFEST_FILE, RecordIndex, load_manifest
from lmdali.pipeline.order_digest import epoch_digest
from lmdali.pipeline.sampler import RankSlice
from lmdali.pipeline.shard_reader import ShardReader

MAX_DESCRIPTORS = 256
_BATCH_SIZE = 128
_EPOCH = 7
_CHECKED_BATCHES = 50
_ORDER_SAMPLES = 1_000_000


def opening(folder: Path) -> dict[str, Any]:
    """From a path to a loader that is ready to be iterated: the folder that says 256x256 JPEG, with its statistics."""
    importlib.import_module("lmdali.pipeline.cpu")
    import_seconds = _seconds_since_start()
    before = _reset_peak_bytes()
    start = perf_counter()
    loader = create_loader(LoaderConfig(dataset=folder / FULL_SIZE, backend="cpu"), "cpu", rank=0, world_size=1)
    seconds = perf_counter() - start
    grown = _status_bytes("VmHWM") - before
    reader = ShardReader(folder / FULL_SIZE, load_manifest(folder / FULL_SIZE))
    start = perf_counter()
    reader.check_files()
    check_seconds = perf_counter() - start
    with loader:
        return {
            "seconds": seconds,
            "memory_bytes": grown,
            "check_files_seconds": check_seconds,
            "records": loader.num_samples,
            "manifest_bytes": (folder / FULL_SIZE / MANIFEST_FILE).stat().st_size,
            "import_seconds": import_seconds,
            "imported_bytes": before,
        }


def resume(folder: Path) -> dict[str, Any]:
    """Go to the middle of epoch 7 and read from there; then have every shard mapped, and look up records anywhere."""
    with _tiny_loader(folder) as loader:
        middle = len(loader) // 2 * _BATCH_SIZE
        state = loader.state_dict() | {"epoch": _EPOCH, "sample_in_epoch": middle}
        start, cpu_start = perf_counter(), process_time()
        loader.load_state_dict(state)
        batches = iter(loader)
        found = perf_counter() - start
        first = next(batches)
        first_batch, cpu = perf_counter() - start, process_time() - cpu_start
        planned = loader.stage_seconds()["plan"]
        order = create_order("shuffled", num_samples=loader.num_samples, seed=0, epoch=_EPOCH)
        if first.indices.tolist() != order.indices(middle, middle + _BATCH_SIZE).tolist():
            raise SystemExit(f"{folder}: the first batch after a resume is not the one that was due")
        _check(first, loader)
        for batch in islice(batches, _CHECKED_BATCHES):
            _check(batch, loader)
    return {
        "seconds": found + planned,
        "first_batch_seconds": first_batch,
        "first_batch_cpu_seconds": cpu,
        **_tables(folder / TINY),
    }


def _tables(folder: Path) -> dict[str, Any]:
    """What it costs to have every shard mapped, and to look up a record then."""
    manifest = load_manifest(folder)
    reader = ShardReader(folder, manifest)
    one_of_each = reader.index.first_records[:-1]
    gc.collect()
    before, start = _status_bytes("RssAnon"), perf_counter()
    reader.locate(one_of_each)
    seconds = perf_counter() - start
    grown = _status_bytes("RssAnon") - before
    dice = np.random.Generator(np.random.Philox(key=1))
    asked = dice.integers(0, manifest.num_records, (2000, _BATCH_SIZE))
    start = perf_counter()
    for indices in asked:
        reader.locate(indices)
    return {
        "map_all_seconds": seconds,
        "table_bytes": grown,
        "lookups_per_second": asked.size / (perf_counter() - start),
    }


def descriptors(folder: Path) -> dict[str, Any]:
    """One whole epoch over all shards under a limit of 256 file descriptors, every label compared."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_DESCRIPTORS, MAX_DESCRIPTORS))
    most, samples = 0, 0
    with _tiny_loader(folder, drop_last=False) as loader:
        for batch in loader:
            _check(batch, loader)
            samples += len(batch.labels)
            most = max(most, len(os.listdir("/proc/self/fd")))  # noqa: PTH208  # a generator would hold one open
        mapped = sum("/shards/" in line for line in Path("/proc/self/maps").read_text().splitlines())
        complete = samples == loader.num_samples
    return {"most_open": most, "mapped_shards": mapped, "samples": samples, "complete": complete}


def manifest(folder: Path) -> dict[str, Any]:
    """A manifest alone, whose shards need not exist."""
    before = _reset_peak_bytes()
    start = perf_counter()
    loaded = load_manifest(folder)
    RecordIndex(loaded)
    seconds = perf_counter() - start
    return {
        "seconds": seconds,
        "memory_bytes": _status_bytes("VmHWM") - before,
        "sources": sum(shard.num_sources for shard in loaded.shards),
        "manifest_bytes": (folder / MANIFEST_FILE).stat().st_size,
        "shards": len(loaded.shards),
    }


def order(folder: Path) -> dict[str, Any]:
    """The order from its middle on, alone and with draws and digest; nothing is read but the number of records."""
    num_samples = load_manifest(folder).num_records
    middle = num_samples // 2
    start = perf_counter()
    permutation = create_order("shuffled", num_samples=num_samples, seed=0, epoch=_EPOCH)
    permutation.indices(middle, middle + _BATCH_SIZE)
    first_batch = perf_counter() - start
    count = min(_ORDER_SAMPLES, num_samples - middle)
    start = perf_counter()
    for first in range(middle, middle + count, 8192):
        permutation.indices(first, min(first + 8192, middle + count))
    order_seconds = perf_counter() - start
    start = perf_counter()
    counted = epoch_digest(
        permutation,
        RankSlice(num_samples, _BATCH_SIZE),
        AugmentConfig.paper(),
        seed=0,
        image_size=256,
        start=num_samples - count,
    )
    return {
        "first_batch_seconds": first_batch,
        "order_samples_per_second": count / order_seconds,
        "digest_samples_per_second": counted.num_samples / (perf_counter() - start),
    }


def _tiny_loader(folder: Path, *, drop_last: bool = True) -> DatasetLoader:
    """The paper's augmentation on the records that really are there."""
    config = LoaderConfig(
        dataset=folder / TINY,
        batch_size=_BATCH_SIZE,
        augment=AugmentConfig(crop_size=1),
        backend="cpu",
        drop_last=drop_last,
    )
    return create_loader(config, "cpu", rank=0, world_size=1)


def _check(batch: Batch, loader: DatasetLoader) -> None:
    """Record n has label n % classes; its checksum was compared on the way."""
    if not bool((batch.labels == batch.indices % len(loader.class_names)).all()):
        raise SystemExit("a batch has labels that are not those of its records")


def _warm_up(folder: Path) -> None:
    with _tiny_loader(folder) as loader:
        for batch in loader:
            _check(batch, loader)


def _seconds_since_start() -> float:
    """Age of this process; the kernel's clock has ticks of 10 ms."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _reset_peak_bytes() -> int:
    """Let the peak begin again; returns what the process holds now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {name}: this benchmark needs Linux")


_PROBES: dict[str, Callable[[Path], dict[str, Any]]] = {
    probe.__name__: probe for probe in (opening, resume, descriptors, manifest, order)
}


def main() -> None:
    """Warm up, measure, answer."""
    name, folder, warm_up = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if name in ("resume", "descriptors"):
        _warm_up(warm_up)
    print(json.dumps(_PROBES[name](folder), allow_nan=False))


if __name__ == "__main__":
    main()
