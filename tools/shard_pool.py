"""The worker processes of a conversion: whole shards out, counters back."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.decode import native_messages_silenced
from lmdali.pipeline.errors import LmdaliError
from lmdali.tools.conversion import ShardJob, make_shard


class Stopped(BaseException):
    """Raised inside a worker whose run was told to stop; its shard is dropped."""


class ShardPool:
    """Worker processes that each take whole shards.

    Args:
        workers: processes; None means every CPU this process may use.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or usable_cpus()

    def run(self, jobs: Iterator[ShardJob], progress: Callable[[int], None]) -> None:
        """Do all jobs; `progress` receives the number of sources done, several times a second.

        Raises:
            LmdaliError: the first error of any worker, or a worker that died.
        """
        context = multiprocessing.get_context("spawn")  # fork would copy threads and open shards
        done, stop = context.Value("q", 0), context.Event()
        pool = ProcessPoolExecutor(self.workers, context, initializer=_begin_worker, initargs=(done, stop))
        try:
            self._drain(pool, jobs, lambda: progress(done.value))
        except BrokenProcessPool as error:
            raise LmdaliError(
                "a worker process died (killed by the system for memory, or crashed in a decoder): "
                "run again with --resume, with fewer workers if memory was short"
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        progress(done.value)

    def _drain(self, pool: ProcessPoolExecutor, jobs: Iterator[ShardJob], progress: Callable[[], None]) -> None:
        running: set[Future[None]] = set()
        more = True
        while more or running:
            # A few jobs ahead of the workers: their entries are made when needed, not all at once.
            while more and len(running) < self.workers + 2:
                job = next(jobs, None)
                more = job is not None
                if job is not None:
                    running.add(_submit(pool, job))
            finished, running = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            progress()


def _submit(pool: ProcessPoolExecutor, job: ShardJob) -> Future[None]:
    """Submit a job; where that starts a process, it is deaf to signals from its first moment.

    A terminal sends Ctrl-C to all of them, and a worker that is still importing would answer with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        return pool.submit(_work, job)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_done: Any = None
_stop: Any = None


def _begin_worker(done: Any, stop: Any) -> None:
    global _done, _stop
    _done, _stop = done, stop
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, which some filters import later
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed outright cannot stop its workers: they notice by themselves."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(job: ShardJob) -> None:
    try:
        # Every bad file has a row in rejects.parquet; what libpng prints about it would bury the progress bar.
        with native_messages_silenced():
            make_shard(job, _tick)
    except Stopped:
        return


def _tick() -> None:
    with _done.get_lock():
        _done.value += 1
    if _stop.is_set():
        raise Stopped
