"""Worker processes: what comes back from them, and what they leave. Each test costs the start of a process."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import LmdaliError, StorageError
from lmdali.tools.conversion import ConvertConfig, ShardJob, make_plan, shard_jobs
from lmdali.tools.shard_pool import ShardPool
from lmdali.tools.source_entries import SourceEntry
from lmdali.tools.sources import open_source


@dataclass(frozen=True)
class FailingReader:
    """Sends an error of ours, a foreign one, or the end of the process."""

    how: str

    def read(self, entry: SourceEntry) -> bytes:
        if self.how == "ours":
            raise StorageError("/data: the disk is on fire")
        if self.how == "foreign":
            raise ZeroDivisionError("a bug")
        os._exit(3)


@pytest.fixture
def jobs(small_source: Path, tmp_path: Path) -> Iterator[list[ShardJob]]:
    source, config = open_source(small_source), ConvertConfig(size=16)
    plan = replace(make_plan(source, config), shard_sources=10)
    writer = DatasetWriter(tmp_path / "out", plan)
    with writer.hold(resume=False, overwrite=False):
        yield list(shard_jobs(source, config, writer))
    assert not list((tmp_path / "out" / "shards").glob(".*")), "half-written shards stayed"
    assert not multiprocessing.active_children()


def test_all_jobs_are_done_and_every_source_is_counted(jobs: list[ShardJob]) -> None:
    seen: list[int] = []
    ShardPool(2).run(iter(jobs), seen.append)
    assert seen == sorted(seen) and seen[-1] == 40
    assert jobs[0].writer.unfinished() == []


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("ours", StorageError, "the disk is on fire"),
        ("foreign", ZeroDivisionError, "a bug"),
        ("death", LmdaliError, "a worker process died"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_raised_here(
    jobs: list[ShardJob], how: str, kind: type[Exception], message: str
) -> None:
    jobs[1] = replace(jobs[1], reader=FailingReader(how))
    if how == "death":
        jobs[:] = jobs[1:2]  # a shard in the making cannot be removed by a process that is gone
    with pytest.raises(kind, match=message):
        ShardPool(1).run(iter(jobs), lambda done: None)
    assert "00001" in [name for name, _, _ in jobs[0].writer.unfinished()]
    for leftover in jobs[0].writer.directory.glob("shards/.*"):
        assert how == "death"
        (leftover / "data.mdb").unlink()
        leftover.rmdir()


def test_no_jobs_are_no_work() -> None:
    seen: list[int] = []
    ShardPool(1).run(iter(()), seen.append)
    assert set(seen) == {0}


def test_the_default_is_every_usable_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdali.tools.shard_pool.usable_cpus", lambda: 7)
    assert ShardPool().workers == 7
    assert ShardPool(3).workers == 3
