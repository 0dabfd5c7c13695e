"""The threads of a backend that reads records: work cut into runs of samples, found and checked a run at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline import record_kernel
from lmdali.pipeline.errors import RecordError
from lmdali.pipeline.records import crc_problem, parse_record, record_crc
from lmdali.pipeline.shard_reader import Located, ShardReader
from lmdali.pipeline.thread_start import thread_refused
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.verify_policy import CrcPolicy

_NAP_SECONDS = 0.1


class ImageRun(NamedTuple):
    """The stored image files of some records; the memory stays mapped for as long as `bytes` is held.

    Attributes:
        bytes: the whole dataset as one read-only uint8 array.
        starts: (n,) int64, first byte of each image file.
        stops: (n,) int64, the byte after it.
        labels: (n,) int64.
    """

    bytes: NDArray[np.uint8]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    labels: NDArray[np.int64]


class RecordThreads:
    """A pool of threads over one dataset.

    Args:
        reader: the dataset.
        crc: which records have their checksum compared.
        num_threads: threads.
        samples_per_task: of each batch; see `batch_tasks`.
        name: what threads are called in a debugger.
        timers: where `read` and `verify` are counted.
    """

    def __init__(
        self,
        reader: ShardReader,
        crc: CrcPolicy,
        num_threads: int,
        samples_per_task: int,
        name: str,
        timers: StageTimers,
    ) -> None:
        self._reader, self._crc, self._timers = reader, crc, timers
        self._head = record_kernel.head_bytes(reader.manifest.image_size)
        self._samples_per_task = samples_per_task
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    def submit(self, num_samples: int, work: Callable[[int, int], None]) -> list[Future[None]]:
        """Queue `work(first, past the last)` for runs that together are samples 0..num_samples - 1 of a batch.

        Raises:
            MachineError: the system refuses a thread.
        """
        size, tasks = self._samples_per_task, list[Future[None]]()
        try:
            for first in range(0, num_samples, size):
                tasks.append(self._pool.submit(work, first, min(first + size, num_samples)))
        except RuntimeError as error:
            for task in tasks:
                task.cancel()
            if "new thread" not in str(error):  # the program ends
                raise
            raise thread_refused(error) from error
        return tasks

    def find(self, indices: NDArray[np.int64]) -> ImageRun:
        """The images of (n,) records, with checksums compared where the policy wants it.

        Raises:
            RecordError: a record is damaged; shard, record and key are named.
        """
        with self._timers.measure("read"):
            located = self._reader.locate(indices)
            count = len(indices)
            starts, stops, labels, crcs = (np.empty(count, np.int64) for _ in range(4))
            parsed = 0
            while True:
                rest = slice(parsed, None)
                parsed += record_kernel.parse_heads(
                    located.bytes,
                    located.starts[rest],
                    located.stops[rest],
                    self._head,
                    record_kernel.TAIL,
                    starts[rest],
                    stops[rest],
                    labels[rest],
                    crcs[rest],
                )
                if parsed == count:
                    break
                starts[parsed], stops[parsed], labels[parsed], crcs[parsed] = self._parse(located, parsed, indices)
                parsed += 1
            run = ImageRun(located.bytes, starts, stops, labels)
            wanted = self._crc.wanted(indices)
        if len(wanted):
            with self._timers.measure("verify"):
                self._compare(run, crcs, indices, wanted)
        return run

    def _parse(self, located: Located, at: int, indices: NDArray[np.int64]) -> tuple[int, int, int, int]:
        """One value of another layout than ours."""
        start, stop = int(located.starts[at]), int(located.stops[at])
        try:
            record = parse_record(located.bytes[start:stop].data)
        except RecordError as error:
            raise RecordError(self._reader.describe(int(indices[at]), str(error))) from error
        inside = bytes(located.bytes[start:stop]).index(record.data)
        crc = -1 if record.crc32c is None else record.crc32c
        return start + inside, start + inside + len(record.data), record.label, crc

    def _compare(
        self, run: ImageRun, crcs: NDArray[np.int64], indices: NDArray[np.int64], wanted: NDArray[np.int64]
    ) -> None:
        for at in wanted.tolist():
            data = run.bytes[run.starts[at] : run.stops[at]].data
            if record_crc(data, int(run.labels[at])) != crcs[at]:
                raise RecordError(self._reader.describe(int(indices[at]), crc_problem(len(data))))
        self._crc.passed(indices[wanted])

    def cancel(self, tasks: list[Future[None]]) -> None:
        """Drop what has not begun and wait for what has, but for no shard: whoever cancels a batch cancels them all."""
        for task in tasks:
            task.cancel()
        self._reader.give_up_waiting()
        while wait(tasks, timeout=_NAP_SECONDS).not_done:
            self._reader.give_up_waiting()  # of those that began to wait only now

    def close(self) -> None:
        """Join the threads and let go of the shards."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()
