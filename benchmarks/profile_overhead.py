"""What the profiler's own timers cost: the CPU time of a loader with them over that of the same loader without.

    python benchmarks/profile_overhead.py DATASET [--rounds 20] [--steps 20] [--threads N] [--batch-size 128]

Three numbers. The first counts: how often a timer is called per image, times what a call takes (alone, in a loop, both
readings of the clock included), over the loader's CPU time per image. Noise of the machine hardly enters it, and it is
an upper bound of what can be saved. The second tries: loaders with and without timers take turns, a window of each per
round, and the quotient of their CPU times has an interval. Uint8 pixels, where an overhead weighs most. CPU seconds,
because a busy machine disturbs them less than the clock. The third counts like the first, with every call recorded for
its thread, as percentiles and traces need it, and with NVTX ranges (where there is a package for them, but no tool that
listens). Exit code 1 where what is counted, recorded or not, is 1 % or more. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from time import process_time, thread_time
from typing import Any
from unittest.mock import patch

import torch
from overheads import pixel_loader

from lmdali.pipeline import loader as loader_module
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.nvtx_ranges import find_nvtx
from lmdali.pipeline.timing import StageTimers
from lmdali.tools.machine import machine_facts
from lmdali.tools.rate_noise import Interval, quotient_interval
from lmdali.tools.report_table import print_table

LIMIT = 0.01
"""Share of a loader's CPU time that its timers may take."""

_CALLS = 20_000


class NoTimers(StageTimers):
    """Counts nothing."""

    def add(self, stage: str, seconds: float) -> None:
        """Nothing."""

    def measure(self, stage: str) -> Any:
        """Only the block."""
        return nullcontext()


class CountedTimers(StageTimers):
    """Counts its calls, too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def add(self, stage: str, seconds: float) -> None:
        """As always, and remember it."""
        super().add(stage, seconds)
        self.calls.append(stage)  # threads may append at once


@dataclass(frozen=True)
class Overhead:
    """What timers cost.

    Attributes:
        calls_per_image: of a timer.
        seconds_per_call: CPU time, both readings of the clock included.
        cpu_seconds_per_image: of the loader with timers.
        counted: the share of CPU time that the calls take.
        recorded: the same with every call recorded for its thread.
        marked: the same with NVTX ranges; None where there is no package for them.
        tried: CPU time with timers over CPU time without, with its interval.
    """

    calls_per_image: float
    seconds_per_call: float
    cpu_seconds_per_image: float
    counted: float
    recorded: float
    marked: float | None
    tried: Interval


def call_seconds(timers: StageTimers, calls: int = _CALLS) -> float:
    """CPU time of one timed stretch around nothing; the lowest of five loops, as anything else is disturbance."""
    found = []
    for _ in range(5):
        start = thread_time()
        for _ in range(calls):
            with timers.measure("read"):
                pass
        found.append((thread_time() - start) / calls)
    return min(found)


def _endless(loader: DatasetLoader) -> Iterator[int]:
    while True:
        for batch in loader:
            yield len(batch.labels)


def _window(batches: Iterator[int], steps: int) -> tuple[float, int]:
    """CPU seconds of the whole process and images of some steps."""
    start = process_time()
    images = sum(islice(batches, steps))
    return process_time() - start, images


def _counted_calls(config: LoaderConfig, steps: int) -> float:
    timers = CountedTimers()
    with patch.object(loader_module, "StageTimers", lambda: timers), _loader(config) as loader:
        images = sum(islice(_endless(loader), steps))
        # From the first batch on, and with those that are ahead at the end: rather too many calls than too few, which a
        # window in the middle counts where its batches were made before it.
        return len(timers.calls) / images


def _loader(config: LoaderConfig) -> DatasetLoader:
    return create_loader(config, rank=0, world_size=1)


def measure_overhead(config: LoaderConfig, *, rounds: int, steps: int) -> Overhead:
    """Both numbers.

    Args:
        config: of the loader.
        rounds: windows of each loader.
        steps: batches of a window.
    """
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    with _loader(config) as loader:
        for _ in islice(_endless(loader), config.depth + 1):
            pass  # compiled kernels and pages are there from here on
    # A loader works ahead while the other one is measured; so each is closed behind its window and opened for it.
    for number in range(rounds):
        turns = [("with", StageTimers), ("without", NoTimers)]
        for name, timers in turns if number % 2 else turns[::-1]:
            with ExitStack() as stack:
                stack.enter_context(patch.object(loader_module, "StageTimers", timers))
                batches = _endless(stack.enter_context(_loader(config)))
                next(batches)
                spent, images = _window(batches, steps)
            seconds[name].append(spent / images)
    calls, per_call, per_image = _counted_calls(config, steps), call_seconds(StageTimers()), median(seconds["with"])
    recording, marking, ranges = StageTimers(), StageTimers(), find_nvtx()
    recording.start_recording()
    marking.annotate(ranges)
    return Overhead(
        calls_per_image=calls,
        seconds_per_call=per_call,
        cpu_seconds_per_image=per_image,
        counted=calls * per_call / per_image,
        recorded=calls * call_seconds(recording) / per_image,
        marked=None if ranges is None else calls * call_seconds(marking) / per_image,
        tried=quotient_interval(seconds["with"], seconds["without"]),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print; 1 where the timers take too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="batches of a window")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args(arguments)
    try:
        config = pixel_loader(options.dataset, options.batch_size, options.threads)
        found = measure_overhead(config, rounds=options.rounds, steps=options.steps)
    except LmdaliError as error:
        raise SystemExit(str(error)) from None
    machine = machine_facts(torch.device("cpu"))
    print_table(
        f"{options.dataset}, uint8, batches of {options.batch_size}, {options.threads} threads, {machine['cpu']}",
        ("", ""),
        _rows(found),
        header=False,
    )
    document: dict[str, Any] = {"machine": machine, "overhead": asdict(found), "limit": LIMIT}
    print(json.dumps(document, allow_nan=False))
    return int(max(found.counted, found.recorded) >= LIMIT)


def _rows(found: Overhead) -> list[tuple[str, str]]:
    tried = found.tried
    interval = "" if tried.low is None or tried.high is None else f" ({tried.low - 1:+.2%} to {tried.high - 1:+.2%})"
    return [
        ("calls per image", f"{found.calls_per_image:.3f}"),
        ("a call", f"{1e9 * found.seconds_per_call:.0f} ns"),
        ("CPU time of the loader", f"{1e6 * found.cpu_seconds_per_image:.1f} µs/image"),
        ("counted share of the timers", f"{found.counted:.3%}, limit {LIMIT:.0%}"),
        ("... every call recorded for its thread", f"{found.recorded:.3%}"),
        ("... as NVTX ranges", "no NVTX here" if found.marked is None else f"{found.marked:.3%}"),
        ("tried, with over without", f"{tried.value - 1:+.2%}{interval}"),
    ]


if __name__ == "__main__":
    sys.exit(main())
