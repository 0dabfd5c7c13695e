"""What the loader's own checks and helpers cost from the second epoch on: each switched, everything else equal.

    python benchmarks/overheads.py DATASET [--seconds 20] [--rounds 20] [--threads N] [--batch-size 128]

Loaders of uint8 pixels, where an overhead weighs most, in this one process; each has had a whole epoch before. Every
round gives each a short window, and a ratio is the median over the rounds of windows beside each other. The share is
CPU time of the whole process, which a busy machine disturbs less than the clock.

What Python's part allows at most, however many cores decode, is `many_threads.py`'s. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from lmdali.pipeline import loader as loader_module
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.timing import StageTimers
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import Probe, Rate, WindowPlan, measure
from lmdali.tools.report_table import print_table
from lmdali.tools.step_probes import LoaderProbe


class NoTimers(StageTimers):
    """Counts nothing; the clock is still read."""

    def add(self, stage: str, seconds: float) -> None:
        """Nothing."""


class RecordedTimers(StageTimers):
    """Keeps every call from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.start_recording()


def variants(config: LoaderConfig) -> dict[str, tuple[LoaderConfig, type[StageTimers]]]:
    """Name to configuration and timers; the first is what all others are compared with."""
    return {
        'as it comes: verify="first", timers, readahead': (config, StageTimers),
        'verify="never"': (replace(config, verify="never"), StageTimers),
        'verify="always"': (replace(config, verify="always"), StageTimers),
        "no stage timers": (config, NoTimers),
        "stages recorded call by call": (config, RecordedTimers),
        "no readahead": (replace(config, readahead_bytes=0), StageTimers),
        "as it comes, once more": (config, StageTimers),
    }


def run_benchmark(config: LoaderConfig, plan: WindowPlan) -> dict[str, Rate]:
    """Rates of all variants, after an epoch of each."""
    probes: dict[str, Probe] = {}
    with ExitStack() as stack:
        for name, (varied, timers) in variants(config).items():
            with patch.object(loader_module, "StageTimers", timers):
                loader = stack.enter_context(create_loader(varied, rank=0, world_size=1))
            for _ in loader:
                pass
            probes[name] = LoaderProbe(loader)
        return dict(zip(probes, measure(list(probes.values()), plan), strict=True))


def rows(rates: dict[str, Rate]) -> list[dict[str, Any]]:
    """One row per variant, with ratios to the first."""
    first = next(iter(rates.values()))
    return [
        {
            "variant": name,
            "images_per_second": rate.images_per_second,
            "rate_ratio": median(a / b for a, b in zip(rate.per_window, first.per_window, strict=True)),
            "cpu_seconds_per_image": rate.cpu_seconds_per_image,
            "cpu_ratio": rate.cpu_seconds_per_image / first.cpu_seconds_per_image,
        }
        for name, rate in rates.items()
    ]


def pixel_loader(dataset: Path, batch_size: int, num_threads: int) -> LoaderConfig:
    """The loader with the least work for an image, where whatever else it does shows most."""
    return LoaderConfig(
        dataset=dataset,
        batch_size=batch_size,
        augment=AugmentConfig.pixels(),
        backend="cpu",
        dtype="uint8",
        layout="NHWC",
        num_threads=num_threads,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="per variant, all rounds together")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args(arguments)
    try:
        config = pixel_loader(options.dataset, options.batch_size, options.threads)
        plan = WindowPlan(seconds=options.seconds, windows=options.rounds)
        found = rows(run_benchmark(config, plan))
    except LmdaliError as error:
        raise SystemExit(str(error)) from None
    machine = machine_facts(torch.device("cpu"))
    print_table(
        f"{options.dataset}, uint8, batches of {options.batch_size}, {options.threads} threads, {machine['cpu']}",
        ("", "images/s", "rate, ratio", "CPU ms/image", "CPU, ratio"),
        [
            (
                row["variant"],
                f"{row['images_per_second']:,.0f}",
                f"{row['rate_ratio']:.3f}",
                f"{1e3 * row['cpu_seconds_per_image']:.4f}",
                f"{row['cpu_ratio']:.3f}",
            )
            for row in found
        ],
    )
    print(json.dumps({"machine": machine, "rows": found}, allow_nan=False))


if __name__ == "__main__":
    main()
