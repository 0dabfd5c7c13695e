"""The floor: what anybody can write in sixty lines. Threads, LMDB, simplejpeg, one compiled pass, reused batches.

No order that can be resumed, no checksums, no error that names a record: only speed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from peers import compiled_pass
from peers.decode_buffer import decode_buffer
from peers.lmdb_copy import LmdbCopy, convert, read
from peers.task import Task

__all__ = ["BatchFiller", "batches", "convert"]

_BATCHES_AHEAD = 2


class BatchFiller:
    """Fills rows of batches, from any thread."""

    def __init__(self, task: Task) -> None:
        self._task, self._copy, self._local = task, LmdbCopy(task), threading.local()
        self._room, side = task.image_size - task.crop_size, task.image_size
        self._raw, self._shape = task.encoding == "raw", (side, side, 3)
        self._arithmetic = compiled_pass.arithmetic(task)

    def fill(self, indices: NDArray[np.int64], batch: NDArray[Any]) -> NDArray[np.int64]:
        """Fill the rows of `batch`, one per record number; returns their labels."""
        local = self._local
        if not hasattr(local, "random"):
            local.random, local.pixels = np.random.default_rng(), decode_buffer(self._shape[0])
        crops = local.random.integers(0, self._room, (len(indices), 2), endpoint=True).tolist()
        flips = (local.random.random(len(indices)) < 0.5).tolist()
        labels = np.empty(len(indices), np.int64)
        with self._copy.transaction() as transaction:
            for row, number in enumerate(indices.tolist()):
                data, labels[row] = read(transaction, number)
                if self._raw:
                    count = self._shape[0] * self._shape[1] * 3
                    pixels = np.frombuffer(data, np.uint8, count, len(data) - count).reshape(self._shape)
                else:
                    pixels = local.pixels
                    simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=pixels)
                y, x = crops[row]
                compiled_pass.one_view(pixels, y, x, flips[row], *self._arithmetic, batch[row])
        return labels


def batches(task: Task, variant: str) -> Iterator[NDArray[Any]]:
    """Batches without end; one is valid until the next is asked for."""
    filler, random, threads = BatchFiller(task), np.random.default_rng(), task.num_threads
    ring = cycle([np.empty(task.batch_shape, task.form) for _ in range(_BATCHES_AHEAD + 2)])
    in_flight: deque[tuple[NDArray[Any], list[Future[NDArray[np.int64]]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while True:
            order = random.permutation(task.num_records)
            for first in range(0, task.num_records - task.batch_size + 1, task.batch_size):
                batch = next(ring)
                parts = zip(
                    np.array_split(order[first : first + task.batch_size], 2 * threads),
                    np.array_split(batch, 2 * threads),
                    strict=True,
                )
                in_flight.append((batch, [pool.submit(filler.fill, numbers, rows) for numbers, rows in parts]))
                if len(in_flight) > _BATCHES_AHEAD:
                    batch, futures = in_flight.popleft()
                    for future in futures:
                        future.result()
                    yield batch
