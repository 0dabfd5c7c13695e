"""What-if, predicted and measured: the answers of `lmdali profile run --what-if` beside the thing itself.

    python benchmarks/predictions.py JPEG RAW [--seconds 6] [--windows 5] [--batch-size 64] [--disk-megabytes 40]

JPEG and RAW hold the same pictures. One loader thread on one CPU is measured, and from it alone is predicted: two
threads on two CPUs, raw records, a disk of so many MB/s, a GPU twice as fast, and that with two CPUs. Then each is
measured, all in turn. The disk is a reader that sleeps, the GPU a step that sleeps: both need no CPU, as theirs do.
Linux with two CPUs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from time import perf_counter, sleep
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from lmdali.pipeline.batch import Batch
from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.shard_reader import Located, ShardReader
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import Rate, WindowPlan, measure
from lmdali.tools.prediction import Costs, Resources
from lmdali.tools.rate_noise import Interval, median_interval
from lmdali.tools.report_table import print_table
from lmdali.tools.step_probes import LoaderProbe
from lmdali.tools.suggestion import Situation
from lmdali.tools.what_if import Prediction, answer

MODEL_SHARE = 0.6
"""The sleeping model's rate over the loader's: one GPU is what is waited for, two are not."""


@dataclass(frozen=True)
class Case:
    """A prediction and what came of it.

    Attributes:
        prediction: from one thread on one CPU.
        measured: images/s of the thing itself.
        error: predicted over measured, with its interval.
    """

    prediction: Prediction
    measured: float
    error: Interval


class LoaderOn:
    """A loader that exists while a window lasts, on so many CPUs, with a disk and a model of known speed.

    Args:
        config: of the loader.
        num_cpus: that its threads and its consumer may use.
        disk: bytes/s; None for what there is.
        step_seconds: that each batch takes after it came.
    """

    def __init__(
        self, config: LoaderConfig, num_cpus: int, *, disk: float | None = None, step_seconds: float = 0.0
    ) -> None:
        self._config, self._num_cpus, self._disk, self._step_seconds = config, num_cpus, disk, step_seconds
        self._stages: dict[str, float] = {}
        self.warmup_steps = LoaderProbe.steps_to_fill(config.depth) + 2

    def run(self) -> Iterator[int]:
        """Each step is one batch."""
        with ExitStack() as stack:
            stack.enter_context(_cpus(self._num_cpus))  # threads are born with their parent's CPUs
            if self._disk is not None:
                stack.enter_context(_throttled(self._disk))
            loader = stack.enter_context(create_loader(self._config, rank=0, world_size=1))
            probe = LoaderProbe(loader, self._step if self._step_seconds else None)
            for images in stack.enter_context(closing(probe.run())):  # type: ignore[type-var]  # a generator
                self._stages = loader.stage_seconds()
                yield images

    def stage_seconds(self) -> dict[str, float]:
        """The timers of the loader that is open."""
        return self._stages

    def _step(self, batch: Batch) -> None:
        sleep(self._step_seconds)


@contextmanager
def _cpus(count: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _throttled(bytes_per_second: float) -> Iterator[None]:
    """One disk for all threads, that reads ahead of them: a record is there when it and all before it were read."""
    locate, lock, free_at = ShardReader.locate, Lock(), perf_counter()

    def slow(self: ShardReader, indices: Any) -> Located:
        nonlocal free_at
        located = locate(self, indices)
        with lock:
            free_at += float(np.sum(located.stops - located.starts)) / bytes_per_second
            until = free_at
        sleep(max(0.0, until - perf_counter()))
        return located

    with patch.object(ShardReader, "locate", slow):
        yield


def compare(jpeg: Path, raw: Path, *, batch_size: int, plan: WindowPlan, disk_megabytes: float) -> dict[str, Case]:
    """Predict and measure every case, by its question."""

    def config(dataset: Path, num_threads: int) -> LoaderConfig:
        # Readahead would ask the throttled disk for everything twice.
        return LoaderConfig(
            dataset=dataset, batch_size=batch_size, num_threads=num_threads, verify="never", readahead_bytes=0
        )

    manifest = load_manifest(jpeg)
    short = WindowPlan(steps=4, windows=2)  # compiles, and says what pace the model must have
    measure([LoaderOn(config(raw, 1), 1)], short)
    step = batch_size / (MODEL_SHARE * measure([LoaderOn(config(jpeg, 1), 1)], short)[0].images_per_second)
    disk = f"disk={disk_megabytes:g}MB/s"
    probes = {
        "loader": LoaderOn(config(jpeg, 1), 1),
        "steps": LoaderOn(config(jpeg, 1), 1, step_seconds=step),
        "cpus=2": LoaderOn(config(jpeg, 2), 2),
        "raw": LoaderOn(config(raw, 1), 1),
        disk: LoaderOn(config(jpeg, 1), 1, disk=1e6 * disk_megabytes),
        "gpus=2": LoaderOn(config(jpeg, 1), 1, step_seconds=step / 2),
        "cpus=2,gpus=2": LoaderOn(config(jpeg, 2), 2, step_seconds=step / 2),
    }
    rates = dict(zip(probes, measure(list(probes.values()), plan), strict=True))
    found = {}
    for question in [name for name in probes if name not in ("loader", "steps")]:
        baseline = rates["steps" if "gpus" in question else "loader"]
        model = batch_size / step if "gpus" in question else None
        situation = _situation(rates["loader"], baseline, model, manifest.image_size, batch_size)
        prediction = answer(question, situation, manifest.mean_record_bytes)
        predicted, middle = prediction.predicted_images_per_second or 0.0, baseline.images_per_second
        # Round by round: what slows the machine down slows both; a disk's rate is what it is.
        pairs = zip(baseline.per_window, rates[question].per_window, strict=True)
        capped = prediction.limit == "the disk"
        error = median_interval([predicted * (1 if capped else before / middle) / after for before, after in pairs])
        found[question] = Case(prediction, rates[question].images_per_second, error)
    return found


def _situation(loader: Rate, baseline: Rate, model: float | None, image_size: int, batch_size: int) -> Situation:
    costs = asdict(Costs.measured(loader, None, on_gpu=model is not None))
    return Situation(
        bound=None,
        costs=Costs(**costs | {"model": None if model is None else 1 / model}),
        resources=Resources(num_cpus=1, num_threads=1, batch_size=batch_size, prefetch=None),
        measured=baseline.images_per_second,
        encoding="jpeg",
        backend="cpu",
        verify="never",
        decoded_cache_bytes=0,
        decoded_bytes=0,
        memory_bytes=None,
        raw_bytes=3 * image_size**2,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jpeg", type=Path)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each loader, all windows together")
    parser.add_argument("--steps", type=int, help="of each loader, instead of seconds")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--disk-megabytes", type=float, default=40.0, help="MB/s of the throttled disk")
    options = parser.parse_args(arguments)
    try:
        plan = WindowPlan(seconds=options.seconds, windows=options.windows, steps=options.steps)
        found = compare(
            options.jpeg, options.raw, batch_size=options.batch_size, plan=plan, disk_megabytes=options.disk_megabytes
        )
    except LmdaliError as error:
        raise SystemExit(str(error)) from None
    machine = machine_facts(torch.device("cpu"))
    columns = ("what if", "before", "predicted", "measured", "predicted / measured", "limited by")
    print_table(f"from one thread on one CPU, {machine['cpu']}", columns, [_row(case) for case in found.values()])
    document = {"machine": machine, "cases": {question: asdict(case) for question, case in found.items()}}
    print(json.dumps(document, allow_nan=False))
    return 0


def _row(case: Case) -> tuple[str, ...]:
    told, error = case.prediction, case.error
    interval = "" if error.low is None or error.high is None else f" ({error.low:.2f} to {error.high:.2f})"
    return (
        told.question,
        f"{told.baseline_images_per_second:,.0f}",
        f"{told.predicted_images_per_second:,.0f}",
        f"{case.measured:,.0f}",
        f"{error.value:.2f}{interval}",
        str(told.limit),
    )


if __name__ == "__main__":
    sys.exit(main())
