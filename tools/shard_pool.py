"""The worker processes of a conversion: whole shards out, counters back.

Not `ProcessPoolExecutor`, which gives up when one process dies, and not a pool with a common queue: a process that is
killed while it holds the queue's lock, or has read half a message, hangs or breaks all others. Here each worker has its
own pipe, so that its death, at any moment, is the end of that pipe and of nothing else.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from time import monotonic

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import LmdaliError
from lmdali.tools.conversion import ShardJob
from lmdali.tools.process_start import children_deaf_to_signals
from lmdali.tools.shard_recovery import ShardRecovery
from lmdali.tools.shard_worker import NO_POSITION, WorkerState, serve
from lmdali.tools.worker_limits import WorkerLimits, describe_end

_MAX_FAILED_STARTS = 3
_GRACE_SECONDS = 3.0
"""For a worker to finish what it is at when the run is stopped; one that is stuck in a decoder is killed after it."""


class ShardPool:
    """Worker processes that each take whole shards.

    An image that kills its worker, never ends, or takes too much memory becomes a reject; the worker is replaced. Where
    loops are compiled, one worker does so before the others begin, who then find machine code on the disk.

    Args:
        workers: processes; None means every CPU this process may use.
        limits: of time and memory, per image.
    """

    def __init__(self, workers: int | None = None, limits: WorkerLimits | None = None) -> None:
        self.workers = workers or usable_cpus()
        self.limits = limits or WorkerLimits()

    def run(self, jobs: Iterator[ShardJob], progress: Callable[[int], None]) -> None:
        """Do all jobs; `progress` receives the number of sources done, several times a second.

        Raises:
            LmdaliError: the first error of any worker, or workers that die and it is no image's fault.
        """
        workers = [_Worker(self.limits) for _ in range(self.workers)]
        finished = shown = 0
        is_first_alone = True
        try:
            while True:
                _assign(workers[:1] if is_first_alone else workers, jobs)
                if is_first_alone and not workers[0].is_compiling:
                    is_first_alone = False
                    continue
                busy = {worker.connection: worker for worker in workers if worker.is_busy}
                if not busy:
                    break
                for connection in multiprocessing.connection.wait(list(busy), timeout=0.1):
                    finished += busy[connection].receive()  # type: ignore[index]
                # A shard that is begun anew counts from its start again; what is shown never goes back.
                shown = max(shown, finished + sum(worker.done for worker in busy.values()))
                progress(shown)
        finally:
            _stop(workers)
        progress(finished)


def _assign(workers: Sequence[_Worker], jobs: Iterator[ShardJob]) -> None:
    """Give each worker without work a job: a job's entries are made when it is needed, not all at once."""
    for worker in workers:
        if worker.is_free:
            job = next(jobs, None)
            if job is None:
                return
            worker.begin(job)


def _stop(workers: Sequence[_Worker]) -> None:
    """End all processes; none is left, even if this is interrupted in turn."""
    try:
        for worker in workers:
            worker.ask_to_stop()
        deadline = monotonic() + _GRACE_SECONDS
        for worker in workers:
            worker.wait(max(0.0, deadline - monotonic()))
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    """One worker, seen from the pool: a process at a time, replaced when it dies."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits
        self._context = multiprocessing.get_context("spawn")  # fork would copy threads and open shards
        self._process: multiprocessing.context.SpawnProcess | None = None
        self._shard: ShardRecovery | None = None
        """What its step belongs to."""
        self._finishing: ShardRecovery | None = None
        """The one before, which it gives its final name beside that."""
        self._again: ShardRecovery | None = None
        """One that was being finished when the process died; to be begun anew after `_shard`."""
        self._is_ready = False
        self._is_new = True
        self._failed_starts = 0
        self._read: tuple[int, str] | None = None

    @property
    def is_free(self) -> bool:
        """Whether it can take a shard."""
        return self._shard is None

    @property
    def is_busy(self) -> bool:
        """Whether something will come from it."""
        return self._shard is not None or self._finishing is not None

    @property
    def is_compiling(self) -> bool:
        """Whether it is before the first picture of its first shard, where it loads or compiles what converts them."""
        if not self._is_new or self._shard is None or not self._shard.job.pays_compiling:
            return False
        return self._state.position == NO_POSITION and self._state.done == 0

    @property
    def done(self) -> int:
        """Sources that are behind it, of shards that are not finished."""
        filled = len(self._finishing.job.entries) if self._finishing is not None else 0
        return filled + (self._state.done if self._shard is not None and not self._shard.is_trying else 0)

    def begin(self, job: ShardJob) -> None:
        """Take a shard; only for one that is free."""
        self._take(ShardRecovery(job, self._limits))

    def _take(self, shard: ShardRecovery) -> None:
        self._shard = shard
        if self._process is None:
            self._start()
        else:
            self._send_step()

    def receive(self) -> int:
        """Act on a message, or on the death that ends the pipe; returns the number of sources finished by it."""
        try:
            kind, payload = self.connection.recv()
        except (EOFError, OSError):
            return self._replace()
        if kind == "failed":
            raise payload
        if kind == "read":
            self._read = payload
            return 0
        if kind == "finished":
            assert self._finishing is not None
            finished, self._finishing = len(self._finishing.job.entries), None
            return finished
        assert self._shard is not None
        if kind == "filled":
            assert self._finishing is None
            self._finishing = self._shard
            self._leave_shard()
            return 0
        if kind == "ready":
            self._is_ready, self._failed_starts = True, 0
        else:
            assert kind == "tried"
            self._shard.tried()
        self._send_step()
        return 0

    def _leave_shard(self) -> None:
        """The shard asks for nothing more: go on with one that must be begun anew, or be free."""
        self._is_new = False
        self._shard, again, self._again = None, self._again, None
        self._state.done = 0
        if again is not None:
            self._take(again)

    def _send_step(self) -> None:
        assert self._shard is not None
        self._read, self._state.position, self._state.done = None, NO_POSITION, 0
        with suppress(OSError):  # where it has died, its pipe says so to `receive`, too
            self.connection.send(self._shard.step)

    def _start(self) -> None:
        self.connection, theirs = self._context.Pipe()
        self._state = self._context.RawValue(WorkerState, NO_POSITION, 0, 0)
        self._is_ready, self._read = False, None
        process = self._context.Process(target=serve, args=(theirs, self._state, self._limits), daemon=True)
        with theirs, children_deaf_to_signals():
            process.start()
            self._process = process

    def _replace(self) -> int:
        """The process is gone: find out whose fault it was, clear up after it, and go on with another one."""
        assert self._process is not None
        self.connection.close()
        self._process.join()
        exit_code, self._process = self._process.exitcode or 0, None
        finished = self._judge_finishing()
        if self._shard is None:
            return finished
        job = self._shard.job
        if not self._is_ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise LmdaliError(
                    f"worker processes end before they begin ({describe_end(exit_code)}): look above for the reason; "
                    "a script that converts needs `if __name__ == '__main__':`"
                )
        else:
            job.discard_leftovers()
            suspect = self._state.position if self._state.position != NO_POSITION else None
            self._shard.died(exit_code, suspect, self._read)
        self._start()
        return finished

    def _judge_finishing(self) -> int:
        """After a death: the sources of the shard that was being finished, or 0; then it is begun anew, now or next."""
        shard, self._finishing = self._finishing, None
        if shard is None:
            return 0
        shard.job.discard_leftovers()
        if shard.job.is_published:
            return len(shard.job.entries)
        if self._shard is None:
            self._shard, self._state.position = shard, NO_POSITION
        else:
            self._again = shard
        return 0

    def ask_to_stop(self) -> None:
        """Let it leave at the next image; one that waits, or has not begun, leaves at once."""
        if self._process is not None:
            self._state.stop = 1
            self.connection.close()
            if not self._is_ready:
                self._process.kill()

    def wait(self, seconds: float) -> None:
        """Give it some time to leave."""
        if self._process is not None:
            self._process.join(seconds)

    def kill(self) -> None:
        """End it now, if it is there, and remove what it has left half-written."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        for shard in (self._shard, self._finishing, self._again):
            if shard is not None:
                shard.job.discard_leftovers()
