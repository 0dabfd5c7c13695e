"""A real cluster of two processes, shared by the tests that need no other; starting one costs about three seconds."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import InputError, LmdaliError, MachineError, MissingExtraError, StorageError
from lmdali.tools import dask_shard
from lmdali.tools.conversion import ConvertConfig, ShardJob, make_plan, shard_jobs
from lmdali.tools.conversion_upload import convert_to_address
from lmdali.tools.dask_executor import DaskExecutor
from lmdali.tools.dask_shard import Surroundings, installed_versions, refuse_other_versions
from lmdali.tools.shard_making import make_shard
from lmdali.tools.source_entries import SourceEntry
from lmdali.tools.sources import Source, SourceReader, open_source

dask = pytest.importorskip("dask", reason="dask is the extra 'dask'")
distributed = pytest.importorskip("distributed", reason="distributed is of the extra 'dask'")

CONFIG = ConvertConfig(size=16)


@dataclass(frozen=True)
class KillingReader:
    """Kills the worker that reads one source: each time, or until a marker file is there."""

    inner: SourceReader
    path: str
    marker: Path | None = None

    def read(self, entry: SourceEntry) -> bytes:
        if entry.path == self.path and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.read(entry)


@dataclass(frozen=True)
class FullDiskReader:
    def read(self, entry: SourceEntry) -> bytes:
        raise StorageError("/data: the disk is on fire")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    # A worker that dies fails its task at once here; else four would have to.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # there is one even without a dashboard, and 8787 may be another suite's
            scheduler_kwargs={"dashboard": False},
            silence_logs=50,
        ) as local,
    ):
        yield local.scheduler_address


@pytest.fixture
def source(small_source: Path) -> Source:
    return open_source(small_source)


def begin(source: Source, out: Path) -> DatasetWriter:
    return DatasetWriter(out, replace(make_plan(source, CONFIG), shard_sources=8))


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def expected(source: Source, tmp_path: Path) -> dict[str, bytes]:
    writer = begin(source, tmp_path / "expected")
    with writer.hold(resume=False, overwrite=False):
        for job in shard_jobs(source, CONFIG, writer):
            make_shard(job)
        writer.publish()
    return files(tmp_path / "expected")


def test_a_cluster_makes_the_same_bytes_though_a_worker_is_killed_in_the_middle(
    cluster: str, source: Source, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    writer, seen = begin(source, Path("out")), list[int]()  # relative: the workers have another working directory
    with writer.hold(resume=False, overwrite=False):
        jobs = list(shard_jobs(source, CONFIG, writer))
        killing = KillingReader(source.reader, jobs[2].entries[4].path, tmp_path / "killed")
        jobs[2] = replace(jobs[2], reader=killing)
        DaskExecutor(scheduler=cluster).run(iter(jobs), seen.append)
        assert not list((tmp_path / "out/shards").glob(".*"))
        writer.publish()
    assert (tmp_path / "killed").exists()
    assert seen == sorted(seen) and seen[-1] == 40
    assert files(tmp_path / "out") == expected


def test_a_cluster_converts_to_an_address(
    cluster: str, source: Source, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is of the extra 'remote'")
    monkeypatch.setattr("lmdali.tools.conversion._MIN_SHARD_SOURCES", 8)  # five shards, as `begin` plans them
    place, scratch = f"memory://dask{tmp_path}", tmp_path / "scratch"
    executor = DaskExecutor(scheduler=cluster)
    summary = convert_to_address(source, place, CONFIG, scratch=scratch, executor=executor, quiet=True)
    assert summary.num_shards == 5 and list(scratch.iterdir()) == []
    filesystem, root = fsspec.core.url_to_fs(place)
    assert {name.removeprefix(f"{root}/"): filesystem.cat_file(name) for name in filesystem.find(root)} == expected


@pytest.mark.parametrize("is_slow", [False, True], ids=["ends", "takes too long to end"])
def test_a_run_that_is_interrupted_on_its_own_cluster_is_finished_here(
    source: Source, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, is_slow: bool
) -> None:
    """A cluster that had not ended within 2 s made a TimeoutError of whatever its run had come to."""
    writer, close = begin(source, tmp_path / "out"), distributed.LocalCluster.close

    def slow_close(cluster: object, **options: object) -> None:
        close(cluster, **options)
        raise TimeoutError("timed out")

    if is_slow:
        monkeypatch.setattr(distributed.LocalCluster, "close", slow_close)

    def interrupt(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    with writer.hold(resume=False, overwrite=False), pytest.raises(KeyboardInterrupt):
        DaskExecutor(1).run(shard_jobs(source, CONFIG, writer), interrupt)
    assert 1 <= len(writer.unfinished()) <= 4
    assert not list((tmp_path / "out/shards").glob(".*"))
    with writer.hold(resume=True, overwrite=False):
        for job in shard_jobs(source, CONFIG, writer):
            make_shard(job)
        writer.publish()
    assert files(tmp_path / "out") == expected


def test_what_goes_wrong_in_a_task_is_raised_here(cluster: str, source: Source, tmp_path: Path) -> None:
    writer = begin(source, tmp_path / "out")
    with writer.hold(resume=False, overwrite=False):
        jobs = list(shard_jobs(source, CONFIG, writer))
        burning = [jobs[0], replace(jobs[1], reader=FullDiskReader())]
        with pytest.raises(StorageError, match="the disk is on fire"):
            DaskExecutor(scheduler=cluster).run(iter(burning), lambda done: None)
        killing = KillingReader(source.reader, jobs[3].entries[0].path)
        hint = "shard 00003: 2 Dask workers died of it: finish with `--executor local --resume`"
        with pytest.raises(LmdaliError, match=hint):
            DaskExecutor(scheduler=cluster).run(iter([jobs[2], replace(jobs[3], reader=killing)]), lambda done: None)
        assert "00003" in [name for name, _, _ in writer.unfinished()]
        assert not list((tmp_path / "out/shards").glob(".*"))


def test_no_jobs_need_no_cluster() -> None:
    seen: list[int] = []
    DaskExecutor(scheduler="tcp://127.0.0.1:1").run(iter(()), seen.append)
    assert seen == [0]


def test_a_scheduler_that_does_not_answer_is_the_machines_fault(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmdali.tools.dask_executor._CONNECT_SECONDS", 0.2)
    writer = begin(source, tmp_path / "out")
    with (
        writer.hold(resume=False, overwrite=False),
        pytest.raises(MachineError, match=r"answers at tcp://127.0.0.1:1 "),
    ):
        DaskExecutor(scheduler="tcp://127.0.0.1:1").run(shard_jobs(source, CONFIG, writer), lambda done: None)


# What each task looks at before it begins.


@pytest.fixture
def job(source: Source, tmp_path: Path) -> Iterator[ShardJob]:
    writer = begin(source, tmp_path / "out")
    with writer.hold(resume=False, overwrite=False):
        yield next(shard_jobs(source, CONFIG, writer))


def test_a_worker_that_sees_the_same_may_begin(job: ShardJob) -> None:
    Surroundings.seen_from_here(job).check(job)


def test_a_worker_that_does_not_see_the_output_is_an_error(job: ShardJob, tmp_path: Path) -> None:
    elsewhere = Surroundings.seen_from_here(job)
    elsewhere = replace(elsewhere, writer=DatasetWriter(tmp_path / "elsewhere", job.writer.plan))
    with pytest.raises(InputError, match=r"does not see the output .*elsewhere.*: put it on a file system"):
        elsewhere.check(job)


def test_a_worker_that_sees_other_sources_is_an_error_and_not_a_reject_per_image(job: ShardJob, tmp_path: Path) -> None:
    here = Surroundings.seen_from_here(job)
    there = replace(job, reader=type(job.reader)(str(tmp_path)))  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"does not see the source .*vanished.*: put the source on a file system"):
        here.check(there)
    with pytest.raises(InputError, match="as it is here"):
        replace(here, sha256="0" * 64).check(job)


def test_other_versions_on_a_worker_are_refused_with_both_named(job: ShardJob, monkeypatch: pytest.MonkeyPatch) -> None:
    here = installed_versions()
    assert set(here) == {"lmdali", "opencv", "simplejpeg", "lmdb"} and all(here.values())
    refuse_other_versions("w1", here, here)
    with pytest.raises(MachineError, match=rf"worker w1 has opencv 4.1, here it is {here['opencv']}: install the same"):
        refuse_other_versions("w1", here | {"opencv": "4.1"}, here)
    expected = Surroundings.seen_from_here(job)
    monkeypatch.setattr(dask_shard, "installed_versions", lambda: here | {"simplejpeg": "0"})
    with pytest.raises(MachineError, match="has simplejpeg 0"):
        expected.check(job)


def test_without_dask_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"--executor dask needs .* pip install 'lmdali\[dask\]'"):
        DaskExecutor()
