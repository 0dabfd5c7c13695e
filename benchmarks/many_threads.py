"""How many threads the loader keeps busy, seen on a machine of few processors: its kernels sleep instead of computing.

    python benchmarks/many_threads.py DATASET [--threads 4 8 16 32] [--batch-size 128] [--microseconds 280]
                                      [--releases 20] [--prefetch N] [--seconds 1.5]

A thread that sleeps in a kernel needs no processor, and holds Python's lock as little as one that decodes. So sixteen
"decode" on two processors, and what keeps them from it is Python: tasks, and the lock that all of them want once a
kernel is done. Kernels that return at once would not show that: nobody waits.

The consumer is one that trains on a CPU, and then one that sends batches to a GPU: each of torch's calls lets go of the
lock, and has to get it back (--releases a batch, each with 6 microseconds of work without it). The ceiling is threads
that do nothing but sleep as long. "lock ms" is how long a thread that slept waits until it runs Python again, in the
median. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from overheads import pixel_loader

from lmdali.pipeline import cpu, patches
from lmdali.pipeline.batch_tasks import samples_per_task
from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.jpeg_decoder import JpegDecoder
from lmdali.pipeline.loader import create_loader
from lmdali.tools.lock_wait import idle_lock_wait, with_lock_wait
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import WindowPlan, measure
from lmdali.tools.report_table import print_table
from lmdali.tools.step_probes import LoaderProbe

_DECODE_SHARE = 0.7
"""Of a kernel's time; the rest is cropping."""

_CALL_SECONDS = 6e-6
"""What a call of the driver takes."""

_usleep = ctypes.CDLL(None).usleep  # ctypes lets go of the lock meanwhile, as numba's kernels do


def sleep_for(seconds: float) -> None:
    """Sleep without Python's lock."""
    _usleep(round(1e6 * seconds))


@contextmanager
def sleeping_kernels(seconds: float) -> Iterator[None]:
    """Loaders made in here plan, find records, queue and deliver; instead of decoding an image they sleep."""

    class SleepingCutter(patches.PatchCutter):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._crop = self._paint = lambda *given: sleep_for((1 - _DECODE_SHARE) * seconds * len(given[-1]))

    def decode(self: JpegDecoder, data: Any, starts: Any, *_: Any) -> NDArray[np.bool_]:
        sleep_for(_DECODE_SHARE * seconds * len(starts))
        return np.ones(len(starts), np.bool_)

    with patch.object(JpegDecoder, "decode", decode), patch.object(cpu, "PatchCutter", SleepingCutter):
        yield


class SendingProbe(LoaderProbe):
    """A consumer that does with each batch what lets go of Python's lock so many times."""

    def __init__(self, loader: Any, releases: int) -> None:
        super().__init__(loader, lambda batch: [_driver_call() for _ in range(releases)])


def _driver_call() -> None:
    """A system call, a few times: a sleep this short would last ten times as long."""
    end = perf_counter() + _CALL_SECONDS
    while perf_counter() < end:
        _getppid()


_getppid = ctypes.CDLL(None).getppid


def ceiling(num_threads: int, images: int, seconds: float, for_seconds: float) -> float:
    """Images per second of threads that sleep for two kernels of `images` images again and again."""
    done = [0] * num_threads
    end = perf_counter() + for_seconds

    def work(number: int) -> None:
        while perf_counter() < end:
            sleep_for(_DECODE_SHARE * seconds * images)
            sleep_for((1 - _DECODE_SHARE) * seconds * images)
            done[number] += images

    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    start = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (perf_counter() - start)


def measure_threads(options: argparse.Namespace, show: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """A row for each number of threads and each consumer, shown when it is known."""
    rows = []
    seconds = 1e-6 * options.microseconds
    plan, idle = WindowPlan(seconds=options.seconds), idle_lock_wait()
    for num_threads in options.threads:
        config = pixel_loader(options.dataset, options.batch_size, num_threads)
        config = replace(config, prefetch=options.prefetch, verify="never")
        at_once = samples_per_task(config.batch_size, num_threads, config.depth)
        most = ceiling(num_threads, min(at_once, config.batch_size), seconds, options.seconds)
        with sleeping_kernels(seconds), create_loader(config, rank=0, world_size=1) as loader:
            for name, releases in (("trains on the CPU", 0), ("sends to a GPU", options.releases)):
                work = partial(measure, [SendingProbe(loader, releases)], plan)
                (rate,), lock = with_lock_wait(idle, work)
                row = {
                    "threads": num_threads,
                    "prefetch": config.depth,
                    "samples_per_task": at_once,
                    "consumer": name,
                    "images_per_second": rate.images_per_second,
                    "share_of_ceiling": rate.images_per_second / most,
                    "cpu_seconds_per_image": rate.cpu_seconds_per_image,
                    "lock_wait_seconds": None if lock is None else lock.loading.p50,
                }
                rows.append(row)
                show(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--microseconds", type=float, default=280, help="of an image's kernels")
    parser.add_argument("--releases", type=int, default=20, help="of the lock, by a consumer that sends to a GPU")
    parser.add_argument("--prefetch", type=int, help="batches ahead; without it, the loader's default")
    parser.add_argument("--seconds", type=float, default=1.5, help="per row")
    options = parser.parse_args(arguments)
    columns = (
        "threads",
        "prefetch",
        "samples a task",
        "consumer",
        "images/s",
        "of the ceiling",
        "CPU us/image",
        "lock ms",
    )
    try:
        rows = measure_threads(options, lambda row: print(_cells(row), flush=True))
    except LmdaliError as error:
        raise SystemExit(str(error)) from None
    machine = machine_facts(torch.device("cpu"))
    print_table(
        f"{options.dataset}, batches of {options.batch_size}, {options.microseconds:g} us an image, {machine['cpu']}",
        columns,
        [_cells(row) for row in rows],
    )
    print(json.dumps({"machine": machine, "rows": rows}, allow_nan=False))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["threads"]),
        str(row["prefetch"]),
        str(row["samples_per_task"]),
        row["consumer"],
        f"{row['images_per_second']:,.0f}",
        f"{row['share_of_ceiling']:.2f}",
        f"{1e6 * row['cpu_seconds_per_image']:.1f}",
        "" if row["lock_wait_seconds"] is None else f"{1e3 * row['lock_wait_seconds']:.2f}",
    )


if __name__ == "__main__":
    main()
