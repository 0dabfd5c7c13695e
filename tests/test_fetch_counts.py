"""Counts of shards: what adds up, what is told apart."""

from __future__ import annotations

import pytest

from lmdali.pipeline import fetch_counts
from lmdali.pipeline.fetch_counts import FetchCounters, FetchCounts


def test_time_in_which_several_shards_come_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(fetch_counts, "perf_counter", lambda: clock[0])
    counters = FetchCounters()
    for now, act in ((1, "begin"), (2, "begin"), (4, "end"), (7, "end"), (10, "begin")):
        clock[0] = now
        getattr(counters, f"{act}_fetch")()
    assert counters.now().fetch_seconds == 6
    clock[0] = 12
    assert counters.now().fetch_seconds == 8, "what is on its way counts already"
    assert counters.now().fetch_seconds == 8


def test_counts_add_up() -> None:
    counters = FetchCounters()
    assert counters.now() == FetchCounts()
    counters.add(hits=3)
    counters.add(misses=1, fetched_bytes=500)
    counters.add(waits=1, wait_seconds=0.5)
    assert counters.now() == FetchCounts(3, 1, 500, 0.0, 1, 0.5)


def test_shares_and_rates_need_something_to_be_of() -> None:
    assert FetchCounts().hit_share is None and FetchCounts().bytes_per_second is None
    counts = FetchCounts(hits=1, misses=3, fetched_bytes=600, fetch_seconds=2.0)
    assert counts.hit_share == 0.25
    assert counts.bytes_per_second == 300
