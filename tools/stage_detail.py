"""Single calls of a loader's stages: their percentiles per thread, how full the queue was, and a trace of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.output_file import write_output
from lmdali.pipeline.timing import STAGES, Recording
from lmdali.tools.measurement import WindowPlan
from lmdali.tools.step_probes import LoaderProbe

MAX_SECONDS = 1.0
"""What is recorded at most: thousands of calls."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Durations of the calls of one stage, seconds. A call has as many images as its stage takes at once.

    Attributes:
        count: calls.
        p50: median.
        p90: nine of ten took no longer.
        p99: 99 of 100 took no longer.
    """

    count: int
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Calls:
        """Of at least one call."""
        p50, p90, p99 = np.percentile(np.asarray(seconds), (50, 90, 99)).tolist()
        return cls(count=len(seconds), p50=p50, p90=p90, p99=p99)

    @property
    def percentiles(self) -> tuple[float, float, float]:
        """p50, p90 and p99."""
        return self.p50, self.p90, self.p99


@dataclass(frozen=True, kw_only=True)
class QueueDetail:
    """What the consumer found when it asked for batches.

    Attributes:
        mean_ready: batches that were done.
        mean_started: batches that were begun.
        empty_share: of the times when none was done, 0..1.
    """

    mean_ready: float
    mean_started: float
    empty_share: float


@dataclass(frozen=True, kw_only=True)
class StageDetail:
    """The inside of a loader.

    Attributes:
        stages: stage -> its calls, of all threads; stages without a call are not there.
        threads: name of a thread -> stage -> its calls.
        queue: None if no batch was asked for.
    """

    stages: dict[str, Calls]
    threads: dict[str, dict[str, Calls]]
    queue: QueueDetail | None

    @classmethod
    def of(cls, recording: Recording) -> StageDetail:
        """Summed up."""
        stages: dict[str, list[float]] = defaultdict(list)
        threads: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for call in recording.calls:
            stages[call.stage].append(call.seconds)
            threads[recording.threads[call.thread]][call.stage].append(call.seconds)
        return cls(
            stages=_summed(stages),
            threads={name: _summed(threads[name]) for name in sorted(threads)},
            queue=_queue(recording),
        )


def _summed(seconds: dict[str, list[float]]) -> dict[str, Calls]:
    return {stage: Calls.of(seconds[stage]) for stage in STAGES if stage in seconds}


def _queue(recording: Recording) -> QueueDetail | None:
    if not recording.queue:
        return None
    ready = [reading.ready for reading in recording.queue]
    return QueueDetail(
        mean_ready=sum(ready) / len(ready),
        mean_started=sum(reading.started for reading in recording.queue) / len(ready),
        empty_share=ready.count(0) / len(ready),
    )


def record_stages(loader: DatasetLoader, plan: WindowPlan) -> Recording:
    """Every call of the loader alone, for as long as a window of the plan, after the usual warm-up.

    In a pass of its own, so that no rate pays for it.
    """
    probe = LoaderProbe(loader)
    seconds, steps = min(plan.seconds / plan.windows, MAX_SECONDS), 0
    with closing(probe.run()) as batches:  # type: ignore[type-var]  # a generator
        for _ in range(probe.warmup_steps):
            next(batches)
        loader.timers.start_recording()
        start = perf_counter()
        while perf_counter() - start < seconds if plan.steps is None else steps < plan.steps:
            next(batches)
            steps += 1
        return loader.timers.stop_recording()


def write_trace(path: Path, recording: Recording) -> None:
    """A recording in Chrome's trace format: one lane for each thread, and the queue as a counter.

    Raises:
        StorageError: the file cannot be written.
    """
    named: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": thread, "args": {"name": name}}
        for thread, name in sorted(recording.threads.items())
    ]
    begun = min((call.end - call.seconds for call in recording.calls), default=0.0)
    calls = [
        {
            "ph": "X",
            "name": call.stage,
            "pid": 1,
            "tid": call.thread,
            "ts": 1e6 * (call.end - call.seconds - begun),
            "dur": 1e6 * call.seconds,
        }
        for call in recording.calls
    ]
    queue = [
        {"ph": "C", "name": "batches ready", "pid": 1, "ts": 1e6 * (read.at - begun), "args": {"ready": read.ready}}
        for read in recording.queue
    ]
    document = {"traceEvents": named + calls + queue, "displayTimeUnit": "ms"}
    write_output(path, json.dumps(document, allow_nan=False).encode())
