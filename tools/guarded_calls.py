"""Calls into parsers that a hostile file can crash or hang: made in child processes with a memory and a time limit."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import InputError

Result = TypeVar("Result")

MEMORY_BYTES = 4_000_000_000
SECONDS = 600.0
_MAX_WORKERS = 4
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def guarded_map(
    function: Callable[..., Result],
    calls: Iterable[tuple[str, tuple[object, ...]]],
    *,
    parser: str,
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[Result]:
    """`function(*arguments)` for each call, in order; several at a time.

    Args:
        function: of a module, so that a child can import it; what it returns and raises must pickle.
        calls: (file, arguments): the file is what the call is about, and is named in errors.
        parser: what is called, for errors: "the Parquet reader".
        seconds: a call that takes longer is stopped.
        memory_bytes: of data a child may have.

    Raises:
        InputError: a child died or took too long; and whatever `function` raises.
    """
    waiting = list(calls)
    workers = max(1, min(_MAX_WORKERS, usable_cpus(), len(waiting)))
    context = multiprocessing.get_context("spawn")
    pool: Any = ProcessPool(workers, initializer=_begin, initargs=(memory_bytes,), context=context)
    try:
        # Ctrl-C goes to every process of a terminal: a child that is still importing would answer with a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            futures = deque((file, pool.schedule(function, args=args, timeout=seconds)) for file, args in waiting)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while futures:
            file, future = futures.popleft()  # forgotten once read: results can be large
            try:
                result: Result = future.result()
            except ProcessExpired as error:
                raise InputError(
                    f"{file!r}: crashed {parser} (exit status {error.exitcode}): the file is damaged: fetch it again"
                ) from None
            except TimeoutError:
                raise InputError(
                    f"{file!r}: {parser} did not come back within {seconds:g} s: the file is damaged, or its disk hangs"
                ) from None
            yield result
        pool.close()
    finally:
        pool.stop()
        pool.join()


def _begin(memory_bytes: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # which stops a call that takes too long
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a dying C++ library prints says nothing to a user
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
