"""The threads of a backend that read records: work cut into runs of samples, checksums by policy, an orderly end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from lmdali.pipeline.records import Record
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.verify_policy import CrcPolicy

_SAMPLES_PER_TASK = 16
"""Python's cost per task is shared by several images."""


class RecordThreads:
    """A pool of threads over one dataset.

    Args:
        reader: the dataset.
        crc: which records have their checksum compared.
        num_threads: threads.
        name: what they are called in a debugger.
    """

    def __init__(self, reader: ShardReader, crc: CrcPolicy, num_threads: int, name: str) -> None:
        self._reader, self._crc = reader, crc
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    def submit(self, num_samples: int, work: Callable[[int, int], None]) -> list[Future[None]]:
        """Queue `work(first, past the last)` for runs that together are samples 0..num_samples - 1 of a batch."""
        starts = range(0, num_samples, _SAMPLES_PER_TASK)
        return [self._pool.submit(work, first, min(first + _SAMPLES_PER_TASK, num_samples)) for first in starts]

    def read(self, index: int, use: Callable[[Record], None]) -> None:
        """`ShardReader.read`, with the checksum compared where the policy wants it."""
        verify = self._crc.wanted(index)
        self._reader.read(index, use, verify=verify)
        if verify:
            self._crc.passed(index)

    @staticmethod
    def cancel(tasks: list[Future[None]]) -> None:
        """Drop what has not begun and wait for what has."""
        for task in tasks:
            task.cancel()
        wait(tasks)

    def close(self) -> None:
        """Join the threads and close the shards that nobody else reads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()
