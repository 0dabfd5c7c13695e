from __future__ import annotations

import subprocess
import sys

import pytest

from lmdali.pipeline.errors import ConfigError
from lmdali.tools.worker_limits import WorkerLimits, describe_end


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"seconds": -1}, {"seconds": float("nan")}, {"memory_mb": 0}])
def test_limits_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="limit must be"):
        WorkerLimits(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("code", "name"), [(-11, "SIGSEGV"), (-9, "SIGKILL"), (7, "exit code 7"), (-40, "signal 40")])
def test_the_end_of_a_process_has_a_name(code: int, name: str) -> None:
    assert describe_end(code) == name


def test_a_limited_process_is_refused_memory_but_not_address_space() -> None:
    program = """
import mmap
from lmdali.tools.worker_limits import WorkerLimits
WorkerLimits(memory_mb=200).apply()
bytearray(150_000_000)
file_like = mmap.mmap(-1, 2_000_000_000, flags=mmap.MAP_SHARED)  # as LMDB maps a shard
try:
    bytearray(250_000_000)
except MemoryError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=250)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_the_timer_ends_a_process_that_holds_the_interpreter() -> None:
    # The expression is one C call that lets no Python handler run.
    program = """
import signal
from lmdali.tools.worker_limits import WorkerLimits
signal.signal(signal.SIGALRM, signal.SIG_IGN)
WorkerLimits().apply()
signal.setitimer(signal.ITIMER_REAL, 0.1)
sum(range(10 ** 14))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=250)
    assert done.returncode == -14
