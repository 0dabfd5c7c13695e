from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time

import pytest

from lmdali.tools import worker_cpu
from lmdali.tools.worker_cpu import cpu_seconds

BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"


@contextmanager
def busy_worker() -> Iterator[None]:
    """A process that has burnt CPU time, and ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None and worker.stdin is not None
        assert worker.stdout.readline() == "done\n"
        yield
        worker.stdin.write("\n")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system has no /proc")
def test_work_of_a_running_process_counts_and_is_kept_when_it_has_ended() -> None:
    before = cpu_seconds() - process_time()
    with busy_worker():
        running = cpu_seconds() - process_time() - before
        assert 0.25 < running < 30
    ended = cpu_seconds() - process_time() - before
    assert running - 0.05 <= ended < 30


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system has no /proc")
def test_a_thread_that_ends_meanwhile_hides_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, threads = Path(f"/proc/{os.getpid()}/task/0/children"), Path.glob
    monkeypatch.setattr(worker_cpu.Path, "glob", lambda path, pattern: [gone, *threads(path, pattern), gone])
    before = cpu_seconds() - process_time()
    with busy_worker():
        assert 0.25 < cpu_seconds() - process_time() - before < 30


def test_without_proc_only_ended_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> str:
        raise OSError

    monkeypatch.setattr(worker_cpu.Path, "read_text", absent)
    before = process_time()
    assert cpu_seconds() >= before
