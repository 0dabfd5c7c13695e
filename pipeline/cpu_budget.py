"""The CPUs of this process: how many it may really use (affinity and container limits count), and what they are."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

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
