"""Waits for Python's lock: who holds it is seen, whatever the machine's pace."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import count
from time import perf_counter, sleep

import pytest

from lmdali.tools import lock_wait
from lmdali.tools.lock_wait import (
    SCHEDSTAT,
    LockSampler,
    LockWait,
    idle_lock_wait,
    lock_caution,
    lock_words,
    processor_wait,
    with_lock_wait,
)
from lmdali.tools.stage_detail import Calls

IDLE = Calls(count=180, p50=0.00004, p90=0.00006, p99=0.00008)


@pytest.fixture
def slow_switches() -> Iterator[None]:
    """Whoever holds the lock gives it away after 50 ms, not before."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.05)
    yield
    sys.setswitchinterval(before)


def keep_the_lock(seconds: float) -> None:
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


def test_a_thread_that_keeps_the_lock_is_seen(slow_switches: None) -> None:
    holder = threading.Thread(target=keep_the_lock, args=(0.5,))
    with LockSampler() as sampler:
        holder.start()
        holder.join()
    calls = sampler.calls()
    # It asks, and is given the lock after a switch interval. One time in ten it is, and where this thread was kept from
    # starting the other one, there are more samples of before.
    assert calls is not None and calls.p99 > 0.02


def test_a_wait_for_a_processor_is_not_one_for_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_wait, "processor_wait", lambda: nullcontext(count(0, 1000).__next__))
    calls = idle_lock_wait()
    assert calls is not None and calls.p99 < -500, "a thousand seconds were waited for a processor meanwhile"


@pytest.mark.skipif(not SCHEDSTAT.exists(), reason="the system does not tell how long threads wait")
def test_two_threads_on_one_processor_wait_for_it() -> None:
    waits: list[float] = []
    data, both = b"x" * 10_000_000, threading.Barrier(2)
    cpu = min(os.sched_getaffinity(0))

    def work() -> None:
        os.sched_setaffinity(0, {cpu})  # of this thread
        with processor_wait() as queued:
            both.wait()
            before = queued()
            for _ in range(10):
                hashlib.sha256(data)  # without the lock
            waits.append(queued() - before)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waits) == 2 and max(waits) > 0 and min(waits) >= 0


def test_a_thread_that_sleeps_keeps_nobody_waiting() -> None:
    result, lock = with_lock_wait(idle_lock_wait(), lambda: sleep(0.1) or "done")
    assert result == "done" and lock is not None
    assert lock.idle.count > 0 and lock.loading.count > 0
    assert all(value > -1e-3 for value in (*lock.idle.percentiles, *lock.loading.percentiles))


def test_work_that_is_over_at_once_has_a_figure_and_without_another_there_is_none() -> None:
    for _ in range(20):
        result, lock = with_lock_wait(IDLE, lambda: 3)
        assert result == 3 and lock is not None and lock.loading.count > 0
    assert with_lock_wait(None, lambda: 3) == (3, None)


def test_the_sampler_ends_with_what_it_samples() -> None:
    with pytest.raises(RuntimeError, match="broken"), LockSampler():
        raise RuntimeError("broken")
    assert not [thread for thread in threading.enumerate() if thread.name == "lmdali-lock-sampler"]


@pytest.mark.parametrize(("median", "has_caution"), [(0.00012, False), (0.0003, True)])
def test_a_contended_lock_is_cautioned_about(median: float, has_caution: bool) -> None:
    lock = LockWait(idle=IDLE, loading=Calls(count=900, p50=median, p90=0.001, p99=0.002))
    caution = lock_caution(lock)
    assert bool(caution) == has_caution
    assert not has_caution or ("wait 0.3 ms" in caution[0] and "--prefetch" in caution[0])
    words = lock_words(asdict(lock))
    assert f"{1e3 * median:.2f} ms" in words and "1.00 ms" in words and "0.04 ms with nothing running" in words
    assert lock_caution(None) == ()
