"""Records asked of storage before they are needed, which the order of an epoch tells long before.

A thread that touches a page that is not in memory waits for it, and then for the next one: two threads do that for
4,700 JPEG records a second on a device that reads 39,000 a second when it is asked for many at a time (cold.py in
benchmarks/, on a virtual disk). So one thread goes some batches ahead of the loader and advises the kernel of each
record (`madvise`, MADV_WILLNEED), which puts the reads into the device's queue and comes back. Advice is all it is:
where it fails or comes too late, pages are read when they are touched, as before.

Where everything is in memory, advice is wasted. The kernel counts the blocks that a thread has asked a device for: a
thread whose advice caused no reading for a while is woken for one batch in sixteen and samples a few records of it,
until one of them had to be read, or until threads wait for pages.
"""

from __future__ import annotations

import os
import resource
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.batch_queue import Place
from lmdali.pipeline.errors import MachineError
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.thread_start import start_thread

DEPTH_BYTES = 64_000_000
"""Stored bytes asked for ahead. A local disk is busy with 6 MB; the rest is for storage that answers late: at 1 GB/s,
64 ms of it."""

MIN_DEPTH_BATCHES, MAX_DEPTH_BATCHES = 2, 64

_QUIET_BATCHES, _MAX_QUIET_BATCHES = 16, 4096
"""Batches without a read before storage counts as warm: first, and after warm has been wrong many times."""

_SAMPLED_RECORDS, _SAMPLED_BATCHES = 4, 16
"""Of a batch, and one batch in so many: waking a thread for each cost 5 % of the rate of raw uint8 pixels."""


class Readahead:
    """A thread that advises the kernel of records to come. It starts with the first of them.

    Args:
        reader: of the dataset; shards that are needed for the first time are mapped here, ahead of their first use.
        batch_size: records of a batch.
        depth_bytes: stored bytes to be asked for ahead, rounded to whole batches: 2 to 64 of them.
        not_read: (n,) record numbers to (n,) bool, those that the loader will not read since it has their pixels.

    Attributes:
        depth_batches: batches that should be announced ahead of the one that is being worked on.
    """

    def __init__(
        self,
        reader: ShardReader,
        batch_size: int,
        *,
        depth_bytes: int = DEPTH_BYTES,
        not_read: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
    ) -> None:
        manifest = reader.manifest
        batch_bytes = max(1, batch_size * manifest.file_bytes // max(1, manifest.num_records))
        self.depth_batches = min(max(-(-depth_bytes // batch_bytes), MIN_DEPTH_BATCHES), MAX_DEPTH_BATCHES)
        self._reader, self._not_read = reader, not_read
        self._inbox = _Inbox(self.depth_batches)
        self._thread: threading.Thread | None = None
        self._num_passed_over = 0
        # Whoever forgets to close must not leave a thread behind.
        self._end = weakref.finalize(self, self._inbox.messages.put, None)
        self._process = os.getpid()

    def ahead(self, indices: NDArray[np.int64]) -> None:
        """Announce the (n,) records of a coming batch; returns at once. Does nothing in a forked child."""
        if os.getpid() != self._process:
            return
        if self._thread is None:
            try:
                self._thread = start_thread("lmdali-readahead", _advise_all, self._reader, self._inbox, self._not_read)
            except MachineError:  # it is only advice: records are read when they are due
                return
        if self._inbox.is_warm:
            self._num_passed_over = (self._num_passed_over + 1) % _SAMPLED_BATCHES
            if self._num_passed_over:
                return
        self._inbox.messages.put(_Announced(indices, self._inbox.generation))

    def forget(self) -> None:
        """What was announced so far will not be needed."""
        self._inbox.generation += 1

    def close(self) -> None:
        """Join the thread, after the advice it is giving now; may be called twice."""
        self.forget()
        if self._thread is not None and os.getpid() == self._process:
            self._end()
            self._thread.join()


class Horizon:
    """Announces the records of each batch once, some batches before the loader comes to it.

    Args:
        indices_of: (place, step counted from there) to the (n,) int64 record numbers of this rank's batch.
        num_steps: steps from a position to the end of its epoch.
        across_epochs: after the last batch of an epoch come those of the next one.
        readahead: whom to tell.
    """

    def __init__(
        self,
        indices_of: Callable[[Place, int], NDArray[np.int64]],
        num_steps: Callable[[int], int],
        *,
        across_epochs: bool,
        readahead: Readahead,
    ) -> None:
        self._indices_of, self._num_steps, self._across = indices_of, num_steps, across_epochs
        self._readahead = readahead
        self._announced: deque[tuple[Place, int]] = deque()
        self._next = (Place(0, 0), 0)

    def reach(self, place: Place, step: int) -> None:
        """The loader is at this batch: announce those behind it. One that does not follow the last one starts anew."""
        if not self._announced or self._announced[0] != (place, step):
            if self._announced:
                self._readahead.forget()
            self._announced.clear()
            self._next = (place, step)
        while len(self._announced) <= self._readahead.depth_batches and self._extend():
            pass
        self._announced.popleft()

    def _extend(self) -> bool:
        place, step = self._next
        if step >= self._num_steps(place.position):
            if not self._across:
                return False
            place, step = Place(place.epoch + 1, 0), 0
        self._announced.append((place, step))
        self._next = (place, step + 1)
        self._readahead.ahead(self._indices_of(place, step))
        return True


class _Announced(NamedTuple):
    indices: NDArray[np.int64]
    generation: int


class _Inbox:
    """What the thread is told; it holds no `Readahead`, so that one can be collected while its thread waits."""

    def __init__(self, depth_batches: int) -> None:
        self.messages: SimpleQueue[_Announced | None] = SimpleQueue()
        self.depth_batches = depth_batches
        self.generation = 0
        self.is_warm = False

    def is_useless(self, announced: _Announced) -> bool:
        """Whether the loader is somewhere else by now, or far past this batch."""
        return announced.generation != self.generation or self.messages.qsize() > 2 * self.depth_batches


def _advise_all(
    reader: ShardReader, inbox: _Inbox, not_read: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None
) -> None:
    """The thread: until it is told None."""
    warmth = Warmth()
    while (announced := inbox.messages.get()) is not None:
        if not inbox.is_useless(announced):
            # The loader meets the same trouble when the batch is due, and reports it there.
            with suppress(Exception):
                records = announced.indices if not_read is None else announced.indices[~not_read(announced.indices)]
                records = warmth.choose(records)
                reader.will_need(reader.locate(np.sort(records)))
                warmth.learn(_blocks_read(), _faults())
                inbox.is_warm = warmth.is_warm
    # An exception out of a signal handler, such as Ctrl-C, may come when a thread has begun and nobody knows it yet:
    # then there are two of them, and either is told once.
    inbox.messages.put(None)


class Warmth:
    """Whether advice is worth while, judged by what it caused.

    Blocks read are those this thread's advice asked for; faults are those of the whole process that waited for storage.
    The second tells what the first does not see: storage that counts no blocks (some network file systems), and pages
    that went after their neighbours were sampled.
    """

    def __init__(self) -> None:
        self._blocks = _blocks_read()
        self._faults = _faults()
        self._quiet = 0
        self._needed = _QUIET_BATCHES

    @property
    def is_warm(self) -> bool:
        """Whether records are in memory as far as can be told."""
        return self._quiet >= self._needed

    def choose(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The records of a batch to advise of: all, or a few that would show that storage is cold again."""
        if not self.is_warm or len(indices) <= _SAMPLED_RECORDS:
            return indices
        return indices[:: -(-len(indices) // _SAMPLED_RECORDS)]

    def learn(self, blocks: int | None, faults: int) -> None:
        """Take note of the counts after a batch; where the system does not count blocks, all advice is worth while."""
        if blocks is None:
            return
        if blocks != self._blocks:
            self._quiet = 0
        elif self.is_warm and faults != self._faults:
            self._quiet, self._needed = 0, min(2 * self._needed, _MAX_QUIET_BATCHES)
        else:
            self._quiet += 1
        self._blocks, self._faults = blocks, faults


def _blocks_read() -> int | None:
    """Blocks of 512 bytes that this thread has had read from storage."""
    if not hasattr(resource, "RUSAGE_THREAD"):  # Linux has it
        return None
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


def _faults() -> int:
    """Page faults of this process that waited for storage."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
