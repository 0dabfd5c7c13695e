"""Time in which only sleeping takes long: what a profile measures then depends on the sleeps, and on no machine.

A loader's threads are simulated: a task is done at once when it is submitted, by the thread that would be free first,
and whoever asks for its result goes on from when that thread would have been through. So threads sleep side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import slow_model

from lmdali.pipeline import fetch_counts, record_threads, shard_fetch, timing
from lmdali.tools import (
    ceilings,
    foreign_loader,
    foreign_profile,
    measurement,
    profiler,
    stage_detail,
    step_probes,
    streamed_profile,
)

TICK_SECONDS = 1e-6
"""What a look at the clock takes, or much would take no time at all."""


class VirtualTime:
    """The clock of everything that a profile measures, from when it is made.

    Args:
        monkeypatch: puts the real one back.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self._thread = 0.0, threading.get_ident()
        tools = (foreign_loader, foreign_profile, measurement, profiler, stage_detail, step_probes, streamed_profile)
        for module in (timing, fetch_counts, shard_fetch, *tools):
            monkeypatch.setattr(module, "perf_counter", self.read)
        for module in (record_threads, ceilings):
            monkeypatch.setattr(module, "ThreadPoolExecutor", lambda *size, **_: _Pool(self, *size))
        monkeypatch.setattr(slow_model, "sleep", self.sleep)
        # Neither processors nor disks are at work.
        monkeypatch.setattr(measurement, "cpu_seconds", lambda: 0.0)
        monkeypatch.setattr(measurement, "device_bytes", lambda: 0)

    def read(self) -> float:
        """In place of `perf_counter`."""
        if threading.get_ident() == self._thread:  # others, which fetch shards, look without moving it
            self.now += TICK_SECONDS
        return self.now

    def sleep(self, seconds: float) -> None:
        """In place of `time.sleep`."""
        self.now += seconds


class _Task(Future[Any]):
    """Done at a moment."""

    def __init__(self, time: VirtualTime, end: float) -> None:
        super().__init__()
        self._time, self._end = time, end

    def done(self) -> bool:
        return self._time.now >= self._end

    def result(self, timeout: float | None = None) -> Any:
        self._time.now = max(self._time.now, self._end)
        return super().result(timeout)


class _Pool:
    def __init__(self, time: VirtualTime, num_threads: int) -> None:
        self._time, self._free_at = time, [0.0] * num_threads

    def submit(self, work: Callable[..., Any], *arguments: Any) -> _Task:
        asked, free_at = self._time.now, min(self._free_at)
        self._time.now = max(asked, free_at)
        try:
            made, error = work(*arguments), None
        except Exception as raised:
            made, error = None, raised
        task = _Task(self._time, self._time.now)
        self._free_at[self._free_at.index(free_at)] = self._time.now
        self._time.now = asked
        if error is None:
            task.set_result(made)
        else:
            task.set_exception(error)
        return task

    def shutdown(self, **_: bool) -> None:
        pass
