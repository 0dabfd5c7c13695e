"""Which images are blamed for dead workers: the state machine alone, without a process."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import LmdaliError
from lmdali.tools.conversion import ConvertConfig, ShardJob, make_plan
from lmdali.tools.file_reader import FileReader
from lmdali.tools.shard_recovery import ShardRecovery
from lmdali.tools.source_entries import EntryTable, Ignored, Scan, SourceEntry
from lmdali.tools.sources import Source
from lmdali.tools.worker_limits import EXIT_OUT_OF_MEMORY, WorkerLimits

FIRST = 100


def job(count: int) -> ShardJob:
    config, reader = ConvertConfig(), FileReader("/nowhere")
    entries = [SourceEntry(f"a/{number}.jpg", 0) for number in range(count)]
    table = EntryTable()
    for entry in entries:
        table.append(entry.path, entry.label)
    plan = make_plan(Source("folder", Scan(("a",), table, Ignored()), reader), config)
    return ShardJob(DatasetWriter(Path("/nowhere/out"), plan), config, reader, entries, "00007", FIRST)


def work(recovery: ShardRecovery, killers: dict[int, int], strikes: list[int]) -> tuple[set[int], int]:
    """Do a shard in which `killers` end processes, and the images of `strikes` once each; (set aside, images done)."""
    images = 0
    for _ in range(10_000):
        step = recovery.step
        for position in range(step.job.first_position, step.job.first_position + len(step.job.entries)):
            if position in step.job.set_aside:
                continue
            images += 1
            if position in strikes:
                strikes.remove(position)
                recovery.died(-signal.SIGKILL, position, None)
                break
            if position in killers:
                recovery.died(killers[position], position, (5, "hash"))
                break
        else:
            if not step.is_trial:
                return set(step.job.set_aside), images
            recovery.tried()
    raise AssertionError("it does not end")


@given(
    st.dictionaries(st.integers(FIRST, FIRST + 29), st.sampled_from([-11, -14, 3, EXIT_OUT_OF_MEMORY])),
    st.lists(st.integers(FIRST, FIRST + 29), unique=True, max_size=5),
)
def test_exactly_the_killers_are_set_aside(killers: dict[int, int], strikes: list[int]) -> None:
    aside, _ = work(ShardRecovery(job(30), WorkerLimits()), killers, list(strikes))
    assert aside == set(killers)


def test_many_killers_cost_a_pass_and_not_a_pass_each() -> None:
    killers = dict.fromkeys(range(FIRST, FIRST + 1000, 10), -int(signal.SIGSEGV))
    aside, images = work(ShardRecovery(job(1000), WorkerLimits()), killers, [])
    assert len(aside) == 100
    assert images < 2 * 1000 + 3 * 100


def test_a_row_says_what_was_seen() -> None:
    limits = WorkerLimits(seconds=2.5, memory_mb=77)
    recovery = ShardRecovery(job(4), limits)
    killers = {FIRST: -14, FIRST + 1: EXIT_OUT_OF_MEMORY, FIRST + 2: -7, FIRST + 3: 3}
    work(recovery, killers, [])
    rows = recovery.step.job.set_aside
    assert [(row.reason, row.detail, row.source) for _, row in sorted(rows.items())] == [
        ("timed_out", "was not converted within 2.5 s", "a/0.jpg"),
        ("out_of_memory", "needs more than the 77 MB that a worker may take", "a/1.jpg"),
        ("decoder_crashed", "the decoder ended its process: SIGBUS", "a/2.jpg"),
        ("decoder_crashed", "the decoder ended its process: exit code 3", "a/3.jpg"),
    ]
    assert {(row.source_bytes, row.source_sha256) for row in rows.values()} == {(5, "hash")}


def test_an_image_that_is_sound_alone_and_kills_in_its_shard_is_an_error_and_no_loop() -> None:
    recovery = ShardRecovery(job(3), WorkerLimits())
    recovery.died(EXIT_OUT_OF_MEMORY, FIRST + 1, None)
    assert len(recovery.step.job.entries) == 1 and recovery.is_trying
    recovery.tried()
    assert recovery.step.job.set_aside == {} and not recovery.is_trying
    with pytest.raises(LmdaliError, match=r"died twice .* at 'a/1.jpg', .* --memory-limit, and run again"):
        recovery.died(EXIT_OUT_OF_MEMORY, FIRST + 1, None)


def test_deaths_that_no_image_explains_end_the_run() -> None:
    recovery = ShardRecovery(job(3), WorkerLimits())
    recovery.died(-signal.SIGKILL, None, None)
    recovery.died(-signal.SIGKILL, None, None)
    with pytest.raises(LmdaliError, match=r"shard 00007: 3 worker .* \(SIGKILL\): .* fewer --workers"):
        recovery.died(-signal.SIGKILL, None, None)


def test_what_was_set_aside_before_stays_so() -> None:
    first = ShardRecovery(job(3), WorkerLimits())
    work(first, {FIRST: 3}, [])
    again = ShardRecovery(replace(job(3), set_aside=first.step.job.set_aside), WorkerLimits())
    assert work(again, {FIRST: 3}, []) == ({FIRST}, 2)
