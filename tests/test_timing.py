"""Stage timers, the count of usable CPUs, and the policy of checksum comparison."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmdali.pipeline import cpu_budget, timing
from lmdali.pipeline.timing import STAGES, StageTimers
from lmdali.pipeline.verify_policy import CrcPolicy


def test_seconds_of_all_threads_add_up() -> None:
    timers = StageTimers()
    threads = [threading.Thread(target=lambda: [timers.add("read", 0.5) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    timers.add("decode", 2.0)
    assert timers.seconds() == dict.fromkeys(STAGES, 0.0) | {"read": 20.0, "decode": 2.0}


def test_a_measured_block_counts_even_when_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    timers, clock = StageTimers(), iter([5.0, 5.25])
    monkeypatch.setattr(timing, "perf_counter", lambda: next(clock))
    with pytest.raises(KeyError), timers.measure("copy"):
        raise KeyError
    assert timers.seconds()["copy"] == 0.25


# CPUs.


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cpu_budget, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(cpu_budget, "_CGROUP_V1", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("9900000 100000", 8), ("", 8)],
)
def test_a_containers_quota_limits_the_cpus(eight_cpus: Path, content: str, expected: int) -> None:
    (eight_cpus / "cpu.max").write_text(content)
    assert cpu_budget.usable_cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3), ("x", 8)])
def test_older_containers_have_the_quota_in_two_files(eight_cpus: Path, quota: str, expected: int) -> None:
    (eight_cpus / "cpu.cfs_quota_us").write_text(quota)
    (eight_cpus / "cpu.cfs_period_us").write_text("100000")
    assert cpu_budget.usable_cpus() == expected


def test_affinity_counts_and_not_the_machine(eight_cpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_budget.usable_cpus() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert cpu_budget.usable_cpus() == 1


def test_without_affinity_the_machines_cpus_count(eight_cpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_budget.usable_cpus() == 1


@pytest.mark.parametrize(
    ("own", "expected"),
    [(64, 8), (8, 8), (32, 8), (2, 2)],
    ids=["not bound", "each to an eighth", "to a NUMA node with three others", "to less"],
)
def test_ranks_that_are_bound_to_cpus_are_not_given_a_part_of_their_part(
    eight_cpus: Path, monkeypatch: pytest.MonkeyPatch, own: int, expected: int
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    affinity = {0: set(range(own)), os.getppid(): set(range(64))}
    monkeypatch.setattr(os, "sched_getaffinity", affinity.__getitem__)
    assert cpu_budget.rank_cpus() == expected


def test_a_rank_whose_launcher_is_gone_takes_its_part_of_its_own_cpus(
    eight_cpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def affinity(process: int) -> set[int]:
        if process:
            raise ProcessLookupError
        return set(range(8))

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    assert cpu_budget.rank_cpus() == 2


# Checksums.


@pytest.mark.parametrize(
    ("verify", "expected"), [("first", [True, False, False]), ("always", [True] * 3), ("never", [False] * 3)]
)
def test_which_reads_compare_the_checksum(verify: Any, expected: list[bool]) -> None:
    policy, wanted = CrcPolicy(verify, 5), []
    for _ in range(3):
        wanted.append(policy.wanted(np.array([4])).tolist() == [0])
        policy.passed(np.array([4]))
    assert wanted == expected
    # Positions among those that were asked for, not record numbers.
    positions = {"first": [1, 3], "always": [0, 1, 2, 3], "never": []}[verify]
    assert policy.wanted(np.array([4, 3, 4, 2])).tolist() == positions


def test_a_record_that_did_not_pass_is_compared_again() -> None:
    policy = CrcPolicy("first", 2)
    for _ in range(2):
        assert policy.wanted(np.array([1])).tolist() == [0]
