"""What runs on a Dask worker: one shard, if this machine sees the same files and will make the same bytes of them."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from time import monotonic

import cv2
import simplejpeg

from lmdali.pipeline.decode import native_messages_silenced
from lmdali.pipeline.errors import InputError, LmdaliError, MachineError, StorageError
from lmdali.pipeline.rejection import SourceRejected
from lmdali.pipeline.release import lmdali_version
from lmdali.pipeline.shard_output import ShardOutput
from lmdali.tools.bicubic_filter import torch_version
from lmdali.tools.conversion import ShardJob
from lmdali.tools.shard_making import make_shard
from lmdali.tools.source_entries import SourceEntry

LOCAL_HINT = "finish with `--executor local --resume`, which sets single images aside"

_STOP_CHECK_SECONDS = 1.0
_MAX_PROBED = 100


class RunStopped(Exception):
    """The run was told to stop; the shard is dropped."""


def installed_versions() -> dict[str, str]:
    """Versions of what decides the bytes of a shard, in this process."""
    return {
        "lmdali": lmdali_version(),
        "opencv": cv2.__version__,
        "simplejpeg": simplejpeg.__version__,
        "lmdb": version("lmdb"),
    }


def versions_for(job: ShardJob) -> dict[str, str]:
    """What decides the bytes of this job's shards: torch as well, where its filter is used."""
    return installed_versions() | ({"torch": torch_version()} if job.config.filter == "bicubic" else {})


def refuse_other_versions(worker: str, there: dict[str, str], here: dict[str, str]) -> None:
    """The workers of a run must have what it was started with.

    Raises:
        MachineError: they differ; names both.
    """
    for name, wanted in here.items():
        if there.get(name) != wanted:
            raise MachineError(
                f"the Dask worker {worker} has {name} {there.get(name)}, here it is {wanted}: "
                "install the same everywhere, the bytes of the dataset depend on it"
            )


@dataclass(frozen=True)
class Surroundings:
    """What a worker must find around it to make the bytes that would be made where the run was started.

    Attributes:
        writer: the output, by its absolute path.
        entry: a source that could be read there; None where none of the first could.
        sha256: of its bytes.
        versions: of what decides the bytes of a shard.
    """

    writer: ShardOutput
    entry: SourceEntry | None
    sha256: str
    versions: dict[str, str]

    @classmethod
    def seen_from_here(cls, job: ShardJob) -> Surroundings:
        """What this process has, and sees of the output and of the first sources of a job."""
        for entry in job.entries[:_MAX_PROBED]:
            try:
                sha256 = hashlib.sha256(job.reader.read(entry)).hexdigest()
                return cls(job.writer, entry, sha256, versions_for(job))
            except SourceRejected:
                continue
        return cls(job.writer, None, "", versions_for(job))

    def check(self, job: ShardJob) -> None:
        """Compare with the process that this runs in.

        Raises:
            MachineError: it has other versions.
            InputError: it sees other files.
        """
        host = socket.gethostname()
        refuse_other_versions(host, versions_for(job), self.versions)
        if not self.writer.is_begun():
            raise InputError(
                f"the Dask worker on {host} does not see the output {str(self.writer.directory)!r}: "
                "put it on a file system that all workers share, under the same path (of an address: --scratch)"
            )
        if self.entry is None:
            return
        try:
            found = hashlib.sha256(job.reader.read(self.entry)).hexdigest()
        except SourceRejected as rejected:
            found = str(rejected)
        if found != self.sha256:
            raise InputError(
                f"the Dask worker on {host} does not see the source {self.entry.path!r} as it is here ({found}): "
                "put the source on a file system that all workers share, under the same path"
            )


def make_shard_on_worker(job: ShardJob, expected: Surroundings, stop_event: str, is_alone: bool) -> None:
    """One Dask task.

    Args:
        job: the shard; its writer has an absolute path.
        expected: what must be found here.
        stop_event: name of the `distributed.Event` that ends the run.
        is_alone: no other task runs in this process.

    Raises:
        RunStopped: the event was set.
        LmdaliError: as `make_shard`; or this worker's files or memory are not enough.
    """
    expected.check(job)
    if job.is_published:
        return  # by a worker that was lost right after it
    try:
        with native_messages_silenced() if is_alone else nullcontext():
            make_shard(job, _StopCheck(stop_event))
    except StorageError:
        if not job.is_published:  # else another worker was given the same shard, and was faster
            raise
    except MemoryError as error:
        message = f"shard {job.name}: an image needs more memory than a Dask worker has: {LOCAL_HINT}"
        raise LmdaliError(message) from error


def with_absolute_paths(job: ShardJob) -> ShardJob:
    """The same job for a process with another working directory."""
    return replace(
        job, writer=ShardOutput(job.writer.directory.absolute(), job.writer.image_size, job.writer.plan_fingerprint)
    )


class _StopCheck:
    """Asks the scheduler once a second, between two images, whether the run goes on."""

    def __init__(self, stop_event: str) -> None:
        from distributed import Event

        self._is_set: Callable[[], bool] = Event(stop_event).is_set
        self._next = monotonic()

    def __call__(self, position: int) -> AbstractContextManager[None]:
        if monotonic() >= self._next:
            if self._is_set():
                raise RunStopped
            self._next = monotonic() + _STOP_CHECK_SECONDS
        return nullcontext()
