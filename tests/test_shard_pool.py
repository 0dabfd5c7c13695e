"""Worker processes: what comes back from them, and what they leave. Each test costs the start of a process."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import LmdaliError, StorageError
from lmdali.pipeline.manifest import REJECTS_FILE, ShardInfo, load_manifest
from lmdali.pipeline.rejection import Rejection, SourceRejected
from lmdali.pipeline.shard_output import ShardContent, ShardOutput
from lmdali.pipeline.shard_writer import ShardWriter
from lmdali.pipeline.table_reader import read_rows
from lmdali.tools.conversion import ConvertConfig, ShardJob, make_plan, shard_jobs
from lmdali.tools.shard_making import make_shard
from lmdali.tools.shard_pool import ShardPool
from lmdali.tools.source_entries import SourceEntry
from lmdali.tools.sources import SourceReader, open_source
from lmdali.tools.worker_limits import WorkerLimits


@dataclass(frozen=True)
class FailingReader:
    """Sends an error of ours or a foreign one."""

    how: str

    def read(self, entry: SourceEntry) -> bytes:
        if self.how == "ours":
            raise StorageError("/data: the disk is on fire")
        raise ZeroDivisionError("a bug")


class KillingBytes(bytes):
    """Bytes that can be hashed, but end the process that looks whether they are an image."""

    def __getitem__(self, index: Any) -> Any:
        os.kill(os.getpid(), signal.SIGABRT)


def hang() -> None:
    """One C call that holds the interpreter: no thread and no handler runs. It waits for what it has itself."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(256)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)


@dataclass(frozen=True)
class DangerousReader:
    """Does to the process what a broken decoder would, at some paths."""

    inner: SourceReader
    danger: dict[str, str]

    def read(self, entry: SourceEntry) -> bytes:
        data = self.inner.read(entry)
        match self.danger.get(entry.path):
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                hang()
            case "bloat":
                hoard = []
                while True:
                    hoard.append(bytearray(10_000_000))
            case "abort while decoding":
                return KillingBytes(data)
        return data


@dataclass(frozen=True)
class RefusingReader:
    """Rejects what `DangerousReader` dies of."""

    inner: SourceReader
    refused: dict[str, SourceRejected]

    def read(self, entry: SourceEntry) -> bytes:
        if entry.path in self.refused:
            raise self.refused[entry.path]
        return self.inner.read(entry)


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
    ("how", "kind", "message"), [("ours", StorageError, "the disk is on fire"), ("foreign", ZeroDivisionError, "a bug")]
)
def test_what_goes_wrong_in_a_worker_is_raised_here(
    jobs: list[ShardJob], how: str, kind: type[Exception], message: str
) -> None:
    jobs[1] = replace(jobs[1], reader=FailingReader(how))
    with pytest.raises(kind, match=message) as caught:
        ShardPool(1).run(iter(jobs), lambda done: None)
    assert "00001" in [name for name, _, _ in jobs[0].writer.unfinished()]
    assert ("Traceback" in "".join(getattr(caught.value, "__notes__", []))) == (how == "foreign")


DANGERS = {
    "a/000.jpg": ("crash", Rejection.DECODER_CRASHED, "the decoder ended its process: SIGSEGV"),
    "a/001.jpg": ("hang", Rejection.TIMED_OUT, "was not converted within 3 s"),
    "a/004.jpg": ("bloat", Rejection.OUT_OF_MEMORY, "needs more than the 300 MB that a worker may take"),
    "b/010.jpg": ("abort while decoding", Rejection.DECODER_CRASHED, "the decoder ended its process: SIGABRT"),
    "b/013.jpg": ("kill", Rejection.DECODER_CRASHED, "the decoder ended its process: SIGKILL"),
}


def test_images_that_kill_workers_are_rejects_and_nothing_else_is_lost(
    jobs: list[ShardJob], small_source: Path, tmp_path: Path
) -> None:
    reader = DangerousReader(jobs[0].reader, {path: danger for path, (danger, _, _) in DANGERS.items()})
    seen: list[int] = []
    pool = ShardPool(2, WorkerLimits(seconds=3, memory_mb=300))
    pool.run((replace(job, reader=reader) for job in jobs), seen.append)
    assert seen == sorted(seen) and seen[-1] == 40
    writer = jobs[0].writer
    writer.publish()
    rows = {row["source"]: row for row in read_rows(writer.directory / REJECTS_FILE)}
    assert len(rows) == len(DANGERS) + 3  # three sources of the fixture are broken
    for path, (_, reason, detail) in DANGERS.items():
        assert (rows[path]["reason"], rows[path]["detail"]) == (reason, detail)
    data = (small_source / "b/010.jpg").read_bytes()
    known = rows["b/010.jpg"]["source_bytes"], rows["b/010.jpg"]["source_sha256"]
    assert known == (len(data), hashlib.sha256(data).hexdigest()), "it was read before its decoder died"

    # Byte for byte what a run gives that rejects them from the start. What was read is known there for none of them.
    refused = {path: SourceRejected(reason, detail) for path, (_, reason, detail) in DANGERS.items()}
    expected = DatasetWriter(tmp_path / "expected", writer.plan)
    with expected.hold(resume=False, overwrite=False):
        for job in jobs:
            make_shard(replace(job, writer=expected, reader=RefusingReader(jobs[0].reader, refused)))
        expected.publish()
    for path in sorted(expected.directory.rglob("*")):
        if path.is_file() and path.name not in (REJECTS_FILE, "manifest.json", "statistics.json"):
            assert path.read_bytes() == (writer.directory / path.relative_to(expected.directory)).read_bytes(), path
    assert load_manifest(expected.directory).shards == load_manifest(writer.directory).shards


class DyingOutput(ShardOutput):
    """Its process dies, once, while a shard is finished: of an image of the next shard, or by itself."""

    dies_alone = False

    def finish_shard(self, name: str, shard: ShardWriter, content: ShardContent) -> ShardInfo:
        begun = self.staging / "begun"
        if name == ("00003" if self.dies_alone else "00000") and not begun.exists():
            begun.touch()
            if self.dies_alone:
                os.kill(os.getpid(), signal.SIGKILL)
            sleep(60)
        return super().finish_shard(name, shard, content)


@dataclass(frozen=True)
class KillingOnceReader:
    """Ends the process that reads one path, once, when a shard is being finished."""

    inner: SourceReader
    path: str
    staging: Path

    def read(self, entry: SourceEntry) -> bytes:
        if entry.path == self.path and not (self.staging / "killed").exists():
            while not (self.staging / "begun").exists():
                sleep(0.01)
            (self.staging / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.read(entry)


@pytest.mark.parametrize("alone", [False, True])
def test_a_shard_whose_finishing_died_is_made_again(jobs: list[ShardJob], tmp_path: Path, alone: bool) -> None:
    writer = jobs[0].writer
    output = DyingOutput(writer.directory, writer.image_size, writer.plan_fingerprint)
    output.dies_alone = alone
    killing = KillingOnceReader(jobs[1].reader, jobs[1].entries[4].path, writer.staging)
    readers = [job.reader if alone or job.name != "00001" else killing for job in jobs]
    dying = [replace(job, writer=output, reader=reader) for job, reader in zip(jobs, readers, strict=True)]
    seen: list[int] = []
    ShardPool(1).run(iter(dying), seen.append)
    assert seen == sorted(seen) and seen[-1] == 40
    assert (writer.staging / "begun").exists() and (writer.staging / "killed").exists() == (not alone)
    expected = DatasetWriter(tmp_path / "expected", writer.plan)
    with expected.hold(resume=False, overwrite=False):
        for job in jobs:
            make_shard(replace(job, writer=expected))
        for path in sorted((expected.directory / "shards").rglob("*")):
            if path.is_file():
                assert path.read_bytes() == (writer.directory / path.relative_to(expected.directory)).read_bytes()
        for job in jobs:
            assert [path.read_bytes() for path in writer.staged_files(job.name)] == [
                path.read_bytes() for path in expected.staged_files(job.name)
            ]


class ToldOutput(ShardOutput):
    """Writes down when it has come to a process, and when the first picture of a shard is about to be converted."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tell("came")

    def open_shard(self, name: str, first_position: int, num_sources: int) -> ShardWriter:
        self._tell("prepared")
        return super().open_shard(name, first_position, num_sources)

    def _tell(self, what: str) -> None:
        with (self.directory / "told").open("a") as file:
            file.write(f"{what} {os.getpid()}\n")


def test_one_worker_compiles_before_the_others_begin(jobs: list[ShardJob]) -> None:
    writer = jobs[0].writer
    output = ToldOutput(writer.directory, writer.image_size, writer.plan_fingerprint)
    seen: list[int] = []
    ShardPool(3).run((replace(job, writer=output, pays_compiling=True) for job in jobs), seen.append)
    assert seen == sorted(seen) and seen[-1] == 40 and writer.unfinished() == []
    told = [line.split() for line in (writer.directory / "told").read_text().splitlines()]
    assert len({pid for _, pid in told}) == 3
    assert [what for what, _ in told[:2]] == ["came", "prepared"]
    assert told[0][1] == told[1][1], "another one began meanwhile"
    (writer.directory / "told").unlink()


def test_a_worker_that_hangs_is_killed_when_the_run_is_stopped(
    jobs: list[ShardJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmdali.tools.shard_pool._GRACE_SECONDS", 0.1)
    reader = DangerousReader(jobs[0].reader, {jobs[0].entries[3].path: "hang"})

    def interrupt_at_3(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ShardPool(1).run(iter([replace(jobs[0], reader=reader)]), interrupt_at_3)
    assert len(jobs[0].writer.unfinished()) == 4


def test_processes_that_cannot_begin_are_an_error(jobs: list[ShardJob], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdali.tools.shard_pool.serve", os._exit)  # with three arguments: a TypeError in the child
    with pytest.raises(LmdaliError, match=r"end before they begin \(exit code 1\)"):
        ShardPool(1).run(iter(jobs), lambda done: None)


def test_no_jobs_are_no_work() -> None:
    seen: list[int] = []
    ShardPool(1).run(iter(()), seen.append)
    assert set(seen) == {0}


def test_the_default_is_every_usable_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdali.tools.shard_pool.usable_cpus", lambda: 7)
    assert ShardPool().workers == 7
    assert ShardPool(3).workers == 3
