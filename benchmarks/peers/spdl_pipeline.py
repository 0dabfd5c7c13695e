"""SPDL: its pipeline and threads around the same code for a batch as the plain thread pool."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spdl.pipeline import PipelineBuilder

from peers.lmdb_copy import convert
from peers.task import Task
from peers.thread_pool import BatchFiller

__all__ = ["batches", "convert"]

_SINK_BATCHES = 2


def batches(task: Task, variant: str) -> Iterator[NDArray[Any]]:
    """Batches without end; one is valid until the next is asked for."""
    filler, random, threads = BatchFiller(task), np.random.default_rng(), task.num_threads
    # Reused memory: being filled, waiting for the queue, in the queue, and with the consumer.
    ring = cycle([np.empty(task.batch_shape, task.form) for _ in range(2 * threads + _SINK_BATCHES + 2)])

    def source() -> Iterator[NDArray[np.int64]]:
        while True:
            order = random.permutation(task.num_records)
            for first in range(0, task.num_records - task.batch_size + 1, task.batch_size):
                yield order[first : first + task.batch_size]

    def load(indices: NDArray[np.int64]) -> NDArray[Any]:
        batch = next(ring)
        filler.fill(indices, batch)
        return batch

    pipeline = (
        PipelineBuilder()
        .add_source(source())
        .pipe(load, concurrency=threads, output_order="input")
        .add_sink(_SINK_BATCHES)
        .build(num_threads=threads)
    )
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()
