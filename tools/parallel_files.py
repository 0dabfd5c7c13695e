"""Files brought somewhere by a few threads: the first error, or a signal, ends all of them soon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from lmdali.pipeline.remote_file import FetchStopped
from lmdali.pipeline.remote_retry import Clock

_LOOK_SECONDS = 0.2


def stoppable_clock(stop: threading.Event) -> Clock:
    """Time that ends: whoever asks for it, or sleeps, gets `FetchStopped` once `stop` is set."""

    def now() -> float:
        if stop.is_set():
            raise FetchStopped
        return time.monotonic()

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise FetchStopped

    return Clock(now=now, sleep=sleep)


def run_all(
    tasks: Sequence[Callable[[], object]],
    *,
    threads: int,
    stop: threading.Event,
    look: Callable[[], object],
    interrupt: Callable[[], object] = lambda: None,
) -> None:
    """Run all tasks; `look` is called several times a second.

    Args:
        tasks: what to do.
        threads: at once.
        stop: set when an error or a signal ends the work; tasks look at it.
        look: shows progress.
        interrupt: ends what tasks wait for, once `stop` is set.

    Raises:
        Exception: the first of any task.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="lmdali-file")
    left = set[Future[object]]()
    try:
        left = {pool.submit(task) for task in tasks}
        while left:
            done, left = wait(left, timeout=_LOOK_SECONDS, return_when=FIRST_EXCEPTION)
            look()
            for future in done:
                future.result()
    except BaseException:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        while left := {future for future in left if not future.done()}:
            interrupt()  # again and again: one may have been about to ask for something
            wait(left, timeout=_LOOK_SECONDS)
        raise
    finally:
        pool.shutdown()
