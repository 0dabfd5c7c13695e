"""CPU time and memory of a process and of everything it started, read from /proc: worker processes count too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Positions after the command's closing parenthesis in /proc/PID/stat; proc_pid_stat(5) counts two more, and from 1.
_SESSION, _FIRST_TIME, _LAST_TIME = 3, 11, 15


def cpu_seconds(session: int) -> float:
    """User and system time of all processes of a session, and of their children that have ended.

    Args:
        session: session number: whoever starts a contestant gives it a session of its own.
    """
    return sum(sum(map(int, fields[_FIRST_TIME:_LAST_TIME])) for _, fields in _stats(session)) / _TICKS_PER_SECOND


def memory_bytes(session: int) -> int:
    """Private and shared memory that is no page cache, shared pages divided among those who share them."""
    total = 0
    for pid, _ in _stats(session):
        try:
            lines = (pid / "smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        for line in lines:
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += 1024 * int(line.split()[1])
    return total


def _stats(session: int) -> Iterator[tuple[Path, list[str]]]:
    """Folder in /proc and fields of each process of a session."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[_SESSION]) == session:
                yield folder, fields
