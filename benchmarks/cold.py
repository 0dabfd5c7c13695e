"""The loader on a dataset that is not in memory, beside what the device can do and what page faults do.

    python benchmarks/cold.py DATASET [--records 4096] [--rounds 5] [--threads N] [--batch-size 128]

The dataset's pages are dropped before every measurement, and that they are gone is checked. All contestants of a round
read the same records: the device alone (O_DIRECT, whole blocks, 1 to 64 reads in flight), threads that touch mapped
records in the loader's order and wait for each page, and the loader (uint8 crops, no checksums) without and with
readahead. Then the same two loaders with everything in memory. Clocks begin before the first batch and stop at the
last one, so what is under way for later batches counts against a loader. Rates are medians over the rounds, which go
through the contestants in turn, there and back. Linux only; other programs that have the dataset mapped keep its pages
in memory. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from cold_device import Sample, Storage, read_device
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.readahead import DEPTH_BYTES
from lmdali.pipeline.sampler import EpochOrder
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.tools.machine import machine_facts
from lmdali.tools.report_table import print_table

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
WARM_PASSES = 3
"""Reading from memory is quick, and the difference that matters there is small."""

_TOUCH_RECORDS = 16


def touch_records(storage: Storage, dataset: Path, indices: NDArray[np.int64], *, num_threads: int) -> Sample:
    """Every byte of each mapped record copied once: what a reader without any advice gets."""
    storage.evict()
    reader, scratch = ShardReader(dataset, storage.manifest), threading.local()

    def work(first: int) -> None:
        located = reader.locate(indices[first : first + _TOUCH_RECORDS])
        if not hasattr(scratch, "memory"):
            scratch.memory = np.empty(1 << 22, np.uint8)
        for start, stop in zip(located.starts.tolist(), located.stops.tolist(), strict=True):
            np.copyto(scratch.memory[: stop - start], located.bytes[start:stop])

    cpu, start = process_time(), perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, range(0, len(indices), _TOUCH_RECORDS)))
    return Sample(len(indices), perf_counter() - start, process_time() - cpu)


def run_loader(config: LoaderConfig, epoch: int, num_records: int, storage: Storage | None) -> Sample:
    """The first records of an epoch through a fresh loader; cold if storage is given."""
    with create_loader(config, rank=0, world_size=1) as loader:
        loader.set_epoch(epoch)
        if storage is not None:
            storage.evict()
        cpu, start = process_time(), perf_counter()
        images = sum(len(batch.labels) for batch in _batches(loader, num_records // config.batch_size))
        return Sample(images, perf_counter() - start, process_time() - cpu)


def _batches(loader: Any, count: int) -> Iterator[Any]:
    """So many batches, into the following epochs if need be."""
    while count > 0:
        for batch in islice(iter(loader), count):
            count -= 1
            yield batch


def contestants(
    storage: Storage, dataset: Path, config: LoaderConfig, no_readahead: LoaderConfig, num_records: int
) -> dict[str, Callable[[int], Sample]]:
    """What is measured in each round; every one takes the number of the round."""
    threads = config.num_threads or usable_cpus()

    def order(epoch: int) -> NDArray[np.int64]:
        count = storage.manifest.num_records
        return EpochOrder(count, config.seed, epoch, shuffle=True).indices(0, num_records)

    def device(depth: int, epoch: int) -> Sample:
        return read_device(storage, order(epoch), depth=depth)

    def warm(which: LoaderConfig, epoch: int) -> Sample:
        run_loader(which, epoch, num_records, None)
        return run_loader(which, epoch, WARM_PASSES * num_records, None)

    def cold(which: LoaderConfig, epoch: int) -> Sample:
        return run_loader(which, epoch, num_records, storage)

    return {
        **{f"cold: device, {depth} reads in flight": partial(device, depth) for depth in DEPTHS},
        "cold: page faults": lambda epoch: touch_records(storage, dataset, order(epoch), num_threads=threads),
        "cold: loader without readahead": partial(cold, no_readahead),
        "cold: loader": partial(cold, config),
        "warm: loader without readahead": partial(warm, no_readahead),
        "warm: loader": partial(warm, config),
    }


def measure(running: dict[str, Callable[[int], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """Round after round through all of them, there and back."""
    samples: dict[str, list[Sample]] = {name: [] for name in running}
    for number in range(rounds):
        for name in running if number % 2 == 0 else reversed(running):
            samples[name].append(running[name](number))
    return samples


def summarize(samples: Sequence[Sample], record_bytes: float) -> dict[str, Any]:
    """Medians over the rounds."""
    rates = [sample.images / sample.seconds for sample in samples]
    return {
        "images_per_second": median(rates),
        "low": min(rates),
        "high": max(rates),
        "megabytes_per_second": median(rates) * record_bytes / 1e6,
        "cpu_seconds_per_image": median(sample.cpu_seconds / sample.images for sample in samples),
        "per_round": rates,
    }


def run_benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything; the JSON document."""
    storage = Storage(arguments.dataset)
    batch_size = arguments.batch_size
    num_records = min(arguments.records, storage.manifest.num_records) // batch_size * batch_size
    config = LoaderConfig(
        dataset=arguments.dataset,
        batch_size=batch_size,
        augment=AugmentConfig.pixels(),
        backend="cpu",
        dtype="uint8",
        layout="NHWC",
        num_threads=arguments.threads,
        readahead_bytes=arguments.readahead_bytes,
        verify="never",
    )
    no_readahead = replace(config, readahead_bytes=0)
    run_loader(config, 0, num_records, None)  # compiles what is compiled at its first use
    samples = measure(contestants(storage, arguments.dataset, config, no_readahead, num_records), arguments.rounds)
    record_bytes = storage.manifest.file_bytes / storage.manifest.num_records
    rows = {name: summarize(of_name, record_bytes) for name, of_name in samples.items()}
    device = [name for name in rows if name.startswith("cold: device")]
    best = max(device, key=lambda name: rows[name]["images_per_second"])
    for name, row in rows.items():
        base = best if name.startswith("cold") else "warm: loader without readahead"
        row["ratio"] = median(a / b for a, b in zip(row["per_round"], rows[base]["per_round"], strict=True))
    latency = 1 / rows[device[0]]["images_per_second"]
    return {
        "dataset": str(arguments.dataset),
        "num_records": num_records,
        "record_bytes": record_bytes,
        "batch_size": batch_size,
        "num_threads": arguments.threads,
        "rounds": arguments.rounds,
        "past_page_cache": storage.is_direct,
        "resident_share": storage.resident if storage.resident_known else None,
        "single_read_seconds": latency,
        "machine": machine_facts(torch.device("cpu")),
        "rows": rows,
    }


def print_rates(document: dict[str, Any]) -> None:
    """The table, and what limits it."""
    print_table(
        f"{document['dataset']}: {document['num_records']} records of {document['record_bytes'] / 1e3:.1f} kB, "
        f"{document['num_threads']} threads, batch {document['batch_size']}, {document['machine']['cpu']}\n"
        "ratio: cold, to the device's best; warm, to the loader without readahead; same round",
        ("", "images/s", "spread", "MB/s", "ratio", "CPU ms/image"),
        [
            (
                name,
                f"{row['images_per_second']:,.0f}",
                f"± {(row['high'] - row['low']) / 2 / row['images_per_second']:.0%}",
                f"{row['megabytes_per_second']:,.0f}",
                f"{row['ratio']:.3f}",
                f"{1e3 * row['cpu_seconds_per_image']:.4f}",
            )
            for name, row in document["rows"].items()
        ],
    )
    resident = document["resident_share"]
    print(
        "after dropping pages, this share of probes was still in memory: "
        + ("not told by this file system" if resident is None else f"{resident:.0%} at most")
    )
    if not document["past_page_cache"]:
        print("O_DIRECT is refused here: the device's rates are those of buffered reads")
    print(
        f"one read at a time took {1e3 * document['single_read_seconds']:.2f} ms; whether a host or a controller below "
        "this system kept the data in its memory cannot be told from here"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--records", type=int, default=4096, help="per contestant and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--readahead-bytes", type=int, default=DEPTH_BYTES)
    try:
        document = run_benchmark(parser.parse_args(arguments))
    except LmdaliError as error:
        raise SystemExit(str(error)) from None
    print_rates(document)
    print(json.dumps(document, allow_nan=False))


if __name__ == "__main__":
    main()
