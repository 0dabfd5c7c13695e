"""CPU time of a process and of the worker processes that it has started: a torch DataLoader's do most of its work."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from time import process_time

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_FIRST_TIME, _LAST_TIME = 11, 15
"""Of the fields behind the command in /proc/PID/stat: user and system time, its own and of its ended children."""


def cpu_seconds() -> float:
    """User and system time of this process and all below it so far; of running ones where there is a /proc."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process_time() + ended.ru_utime + ended.ru_stime + _running_below(os.getpid())


def _running_below(parent: int) -> float:
    total = 0.0
    for child in _children(parent):
        try:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        total += sum(map(int, fields[_FIRST_TIME:_LAST_TIME])) / _TICKS_PER_SECOND + _running_below(child)
    return total


def _children(parent: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # the process has just ended
        # Of each thread: a worker belongs to the one that started it.
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):  # the thread has, and that hides no worker of the others
                found += map(int, path.read_text().split())
    return found
