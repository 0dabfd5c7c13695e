"""The CPUs of this process: how many it may really use (affinity and container limits count), and what they are; and
what to say where the system has no thread for them."""

from __future__ import annotations

import math
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path

from lmdali.pipeline.errors import MachineError
from lmdali.pipeline.torchrun_variables import torchrun_number

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def usable_cpus(process: int = 0) -> int:
    """CPUs that a process may run on, at least 1; 0 is this one.

    `os.cpu_count()` counts the machine's; in a container or under `taskset` that starts too many threads.
    """
    allowed = len(os.sched_getaffinity(process)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def rank_cpus() -> int:
    """This process's part of the usable CPUs, which all that torchrun started on this machine share; at least 1.

    What they share are the CPUs of torchrun itself: those of a rank that was bound to some of them
    (`torchrun --numa-binding`, `numactl`, `taskset`) are divided already.

    Raises:
        ConfigError: LOCAL_WORLD_SIZE is no number.
    """
    own, num_ranks = usable_cpus(), torchrun_number("LOCAL_WORLD_SIZE", 1)
    if num_ranks <= 1:
        return own
    try:
        shared = usable_cpus(os.getppid())
    except OSError:  # it has ended
        shared = own
    return max(1, min(own, shared // num_ranks))


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


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
        "container) or on memory, or lower num_threads"
    )


def _cgroup_cpus() -> float | None:
    try:
        quota, period = _CGROUP_V2.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((_CGROUP_V1 / "cpu.cfs_quota_us").read_text())
        period_us = int((_CGROUP_V1 / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None
