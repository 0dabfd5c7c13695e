"""Starting processes that leave signals to the one that started them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def children_deaf_to_signals() -> Iterator[None]:
    """Processes (and threads) started meanwhile are deaf to SIGINT, SIGTERM and SIGHUP from their first moment.

    A terminal sends Ctrl-C to all processes of a command; one that is still importing would answer with a traceback.
    The signals that arrive here meanwhile are acted on afterwards.
    """
    # Starting multiprocessing's tracker unblocks signals, and the first process would start it: it is started now.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
