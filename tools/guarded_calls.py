"""Calls into parsers that a hostile file can crash or hang: made in child processes with a memory and a time limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.tables import use_plain_allocator
from lmdali.tools.process_start import children_deaf_to_signals
from lmdali.tools.worker_limits import WorkerLimits, describe_end

Result = TypeVar("Result")

LIMITS = WorkerLimits(seconds=600.0, memory_mb=4_000)
_MAX_CHILDREN = 4


class CallDied(Exception):
    """The child process of a call ended in it.

    Attributes:
        exit_code: as `Process` gives it; that of SIGALRM is the time limit's.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def guarded_map(
    function: Callable[..., Result],
    calls: Iterable[tuple[str, tuple[object, ...]]],
    *,
    parser: str,
    limits: WorkerLimits = LIMITS,
) -> Iterator[Result]:
    """`function(*arguments)` for each call, in order; several at a time.

    Args:
        function: of a module, so that a child can import it; what it returns and raises must pickle.
        calls: (where, arguments): what the call is about, as errors name it.
        parser: what is called, for errors: "the Parquet reader".
        limits: of time and memory, for each call.

    Raises:
        InputError: a child died, took too long or needed too much memory.
        Exception: whatever else `function` raises.
    """
    waiting = list(calls)
    children = [GuardedChild(limits) for _ in range(max(1, min(_MAX_CHILDREN, usable_cpus(), len(waiting))))]
    idle: SimpleQueue[GuardedChild] = SimpleQueue()
    for child in children:
        idle.put(child)

    def call(where: str, arguments: tuple[object, ...]) -> Result:
        child = idle.get()
        try:
            return child.call(function, *arguments)
        except CallDied as death:
            raise _refusal(where, parser, limits, death.exit_code) from None
        except MemoryError:
            raise InputError(
                f"{where}: {parser} needs more than {limits.memory_mb} MB for it: the file is damaged: fetch it again"
            ) from None
        finally:
            idle.put(child)

    threads = ThreadPoolExecutor(len(children))
    try:
        yield from threads.map(call, *zip(*waiting, strict=True)) if waiting else ()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.stop()
        threads.shutdown(wait=True)
        for child in children:
            child.close()


def guarded_call(
    function: Callable[..., Result], where: str, *arguments: object, parser: str, limits: WorkerLimits = LIMITS
) -> Result:
    """One call; see `guarded_map`."""
    (result,) = guarded_map(function, [(where, arguments)], parser=parser, limits=limits)
    return result


def _refusal(where: str, parser: str, limits: WorkerLimits, exit_code: int) -> InputError:
    if exit_code == -signal.SIGALRM:
        return InputError(
            f"{where}: {parser} did not come back within {limits.seconds:g} s: the file is damaged, or its disk hangs"
        )
    return InputError(f"{where}: crashed {parser} ({describe_end(exit_code)}): the file is damaged: fetch it again")


class GuardedChild:
    """One process for one call after the other, started when it is first needed and again after it died.

    Args:
        limits: of time and memory, for each call.
    """

    def __init__(self, limits: WorkerLimits) -> None:
        self.limits = limits
        self._process: Any = None
        self._connection: Connection | None = None
        self._starting, self._is_stopped = threading.Lock(), False

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """`function(*arguments)`, see `guarded_map`.

        Raises:
            CallDied: the process crashed, or took too long.
            MemoryError: it needed too much memory.
            Exception: whatever else `function` raises.
        """
        with self._starting:
            if self._is_stopped:
                raise CallDied(-signal.SIGKILL)
            connection = self._connection or self._start()
        try:
            connection.send((function, arguments))
            result, error = connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self.close()
            raise CallDied(code) from None
        if error is not None:
            raise error
        value: Result = result
        return value

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.limits), daemon=True)
        with children_deaf_to_signals():
            process.start()
        theirs.close()
        self._process, self._connection = process, connection
        return connection

    def stop(self) -> None:
        """End the process, whatever it does for another thread: that one's call raises CallDied, as do later ones."""
        with self._starting:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """End the process. Nobody else may be in a call, for whoever is closes what has died."""
        if self._connection is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._connection = None


def _serve(connection: Connection, limits: WorkerLimits) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a dying C++ library prints says nothing to a user
    use_plain_allocator()
    limits.apply()
    with suppress(EOFError, OSError):  # the other end is gone
        while True:
            function, arguments = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, limits.seconds)
            try:
                answer: tuple[Any, BaseException | None] = (function(*arguments), None)
            except Exception as error:
                answer = (None, error)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(answer)
