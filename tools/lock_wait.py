"""How long a thread waits for Python's lock: what threads that decode cost each other, and the one that trains.

A kernel, a read or a call of a GPU's driver lets go of the lock, and whoever does must get it back to go on. Where many
threads come and go that takes longer than what was done meanwhile, and no processor looks busy. So one more thread
sleeps a little without the lock, again and again, and notes how much later than it should it is running Python again.
Linux counts how long a thread was ready and had no processor; that is taken off, or any busy machine would look alike.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from types import TracebackType
from typing import Any, Self, TypeVar

from lmdali.pipeline.path_kind import exists
from lmdali.pipeline.thread_start import start_thread
from lmdali.tools.stage_detail import Calls

_T = TypeVar("_T")

_SLEEP_SECONDS = 0.5e-3
"""Of a sample. Long enough for somebody else to have taken the lock."""

_IDLE_SECONDS = 0.1

_CONTENDED_SECONDS = 0.1e-3
"""More than an idle process waits, in the median: from here on it is worth a word."""

_PR_SET_TIMERSLACK = 29

SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Of whoever opens it, nanoseconds: on a processor, and ready without one."""

_pread = ctypes.PyDLL(None).pread  # `os.pread` lets go of the lock
_pread.argtypes = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long


@dataclass(frozen=True, kw_only=True)
class LockWait:
    """How much too late a thread that slept was running Python again, seconds.

    Without what it waited for a processor where the system tells (Linux), else with it.

    Attributes:
        idle: while nothing else ran: what timers and a wake-up cost on this machine.
        loading: while the loader ran.
    """

    idle: Calls
    loading: Calls


class LockSampler:
    """Takes samples from when it is entered until it is left: one at least, however soon that is."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._begun, self._stop = threading.Event(), threading.Event()

    def calls(self) -> Calls | None:
        """The samples so far; None without any."""
        return Calls.of(self._late) if self._late else None

    def __enter__(self) -> Self:
        self._thread = start_thread("lmdali-lock-sampler", self._run)
        self._begun.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            _wake_up_in_time()
            with processor_wait() as queued:
                while not (self._late and self._stop.is_set()):
                    ready, start = queued(), perf_counter()
                    self._begun.set()
                    sleep(_SLEEP_SECONDS)  # without the lock
                    late = perf_counter() - start - _SLEEP_SECONDS
                    self._late.append(late - (queued() - ready))
        finally:
            self._begun.set()  # whatever happens here, nobody waits for it


def with_lock_wait(idle: Calls | None, work: Callable[[], _T]) -> tuple[_T, LockWait | None]:
    """Do something that keeps a loader busy, and sample meanwhile.

    Args:
        idle: of `idle_lock_wait`.
        work: called once.

    Returns:
        What `work` returned, and the waits; None where `idle` is none.
    """
    with LockSampler() as sampler:
        result = work()
    loading = sampler.calls()
    return result, None if idle is None or loading is None else LockWait(idle=idle, loading=loading)


def lock_caution(lock: LockWait | None) -> tuple[str, ...]:
    """What to do where the loader adds much to it; nothing otherwise."""
    added = 0.0 if lock is None else lock.loading.p50 - lock.idle.p50
    if added < _CONTENDED_SECONDS:
        return ()
    return (
        f"threads wait {1e3 * added:.1f} ms for Python's lock whenever they come back to it: larger batches, more of "
        "them ahead (--prefetch) or fewer threads (-j) make them come back less often; what else runs Python in this "
        "process makes it worse",
    )


def lock_words(lock: Mapping[str, Any]) -> str:
    """A `LockWait` of a report's document in words."""
    idle, loading = lock["idle"], lock["loading"]
    return (
        f"{1e3 * loading['p50']:.2f} ms until a thread that slept runs Python again, {1e3 * loading['p90']:.2f} ms one "
        f"time in ten; {1e3 * idle['p50']:.2f} ms with nothing running"
    )


def idle_lock_wait() -> Calls | None:
    """Samples of a process in which nothing else runs."""
    with LockSampler() as sampler:
        sleep(_IDLE_SECONDS)
    return sampler.calls()


def _wake_up_in_time() -> None:
    """Linux puts wake-ups together that lie within 50 microseconds, unless a thread wants its own when it is due."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


@contextmanager
def processor_wait() -> Iterator[Callable[[], float]]:
    """A function that says how many seconds the calling thread has been ready to run and was not; 0 if unknown.

    It keeps Python's lock: a wait for that would otherwise come between a reading and the clock.
    """
    if not exists(SCHEDSTAT):
        yield lambda: 0.0
        return
    text = ctypes.create_string_buffer(64)

    with SCHEDSTAT.open("rb") as file:

        def queued() -> float:
            _pread(file.fileno(), text, len(text) - 1, 0)
            return int(text.value.split()[1]) * 1e-9

        yield queued
