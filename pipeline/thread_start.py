"""Threads of ours: how one begins, and what is said where the system has none left."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lmdali.pipeline.errors import MachineError


def start_thread(name: str, work: Callable[..., object], *args: object) -> threading.Thread:
    """A daemon thread that does `work(*args)`.

    Raises:
        MachineError: the system refuses it.
    """
    thread = threading.Thread(target=work, args=args, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise thread_refused(error) from error
    return thread


def thread_refused(error: RuntimeError) -> MachineError:
    """The error for a thread that the system has not started, of Python's."""
    return MachineError(
        f"the system refuses another thread ({error}): raise its limits on processes (ulimit -u, pids.max of a "
        "container) or on memory, or take fewer threads (--workers, num_threads)"
    )
