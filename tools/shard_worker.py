"""What runs in a worker process of a conversion: shards, and trials of single images that may have killed another one.

Nothing here is shared with another worker. A lock, a queue or an event that a process dies in would hang all others, so
each worker has a pipe and a few numbers in shared memory for itself, written by one side and read by the other.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import cv2

from lmdali.pipeline.decode import native_messages_silenced
from lmdali.pipeline.errors import LmdaliError
from lmdali.pipeline.rejection import SourceRejected
from lmdali.pipeline.tables import use_plain_allocator
from lmdali.tools.conversion import ShardJob, convert_image
from lmdali.tools.shard_making import FilledShard, fill_shard
from lmdali.tools.worker_limits import EXIT_OUT_OF_MEMORY, WorkerLimits

NO_POSITION = -1

_PR_SET_PDEATHSIG = 1

Message = tuple[str, Any]
"""From a worker: ("ready", None); ("read", (bytes, sha256)) of an image on trial; ("tried", None); ("failed", error);
("filled", None), after which it takes another step, then ("finished", None) before any other shard is "filled"."""


class WorkerState(ctypes.Structure):
    """What a worker and the pool tell each other without a message.

    Attributes:
        position: plan position of the image being converted, or NO_POSITION; outlives the worker.
        done: images of the current step that are behind it.
        stop: set by the pool: drop everything and leave.
    """

    _fields_ = [("position", ctypes.c_longlong), ("done", ctypes.c_longlong), ("stop", ctypes.c_byte)]
    position: int
    done: int
    stop: int


@dataclass(frozen=True)
class Step:
    """One thing for a worker to do.

    Attributes:
        job: the shard, or some of its entries in a row.
        is_trial: convert the entries and throw the result away, to see whether they can be.
    """

    job: ShardJob
    is_trial: bool = False


class Stopped(BaseException):
    """Raised inside a worker whose run was told to stop; its shard is dropped."""


class ImageGuard:
    """The time limit around each image, and where the worker is; 2 microseconds an image."""

    def __init__(self, state: WorkerState, seconds: float) -> None:
        self._state, self._seconds = state, seconds

    def __call__(self, position: int) -> ImageGuard:
        """For a `with` statement around one image."""
        if self._state.stop:
            raise Stopped
        self._state.position = position
        return self

    def __enter__(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if kind is None or not issubclass(kind, MemoryError):  # that one will end the process: it is the suspect
            self._state.position = NO_POSITION
            self._state.done += 1


def serve(connection: Connection, state: WorkerState, limits: WorkerLimits) -> None:
    """The whole life of a worker: steps in, messages out, until the pool closes its end or asks to stop."""
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when a filter imports it
    use_plain_allocator()
    _end_with_parent()
    limits.apply()
    guard, outbox = ImageGuard(state, limits.seconds), _Outbox(connection)
    finishing = _Finishing(outbox.send)
    try:
        outbox.send(("ready", None))
        while True:
            step = connection.recv()
            state.done = 0
            _do(step, guard, outbox.send, finishing)
    except (Stopped, EOFError, BrokenPipeError, ConnectionResetError):
        return
    except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)


def _do(step: Step, guard: ImageGuard, send: Callable[[Message], None], finishing: _Finishing) -> None:
    try:
        # Every bad file has a row in rejects.parquet; what libpng prints about it would bury the progress bar.
        with native_messages_silenced():
            if step.is_trial:
                _try_entries(step.job, guard, send)
            else:
                filled = fill_shard(step.job, guard)
    except (Stopped, MemoryError):
        raise
    except BaseException as error:
        send(("failed", _sendable(error)))
        return
    if step.is_trial:
        send(("tried", None))
    else:
        finishing.begin(filled)


class _Outbox:
    """The worker's end of the pipe, for two threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, message: Message) -> None:
        with self._lock:
            self._connection.send(message)


class _Finishing:
    """Finishes one shard at a time in a thread: while it waits for the disk, the next one's pictures are converted."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._thread: threading.Thread | None = None

    def begin(self, filled: FilledShard) -> None:
        """Wait for the shard before, then finish this one, and say so."""
        if self._thread is not None:
            self._thread.join()
        self._send(("filled", None))
        # Not a daemon: a process that is told to stop leaves when its last shard is whole.
        self._thread = threading.Thread(target=self._finish, args=(filled,))
        self._thread.start()

    def _finish(self, filled: FilledShard) -> None:
        message: Message = "finished", None
        try:
            filled.finish()
        except MemoryError:
            os._exit(EXIT_OUT_OF_MEMORY)
        except BaseException as error:
            message = "failed", _sendable(error)
        with suppress(OSError):  # nobody listens any more
            self._send(message)


def _try_entries(job: ShardJob, guard: ImageGuard, send: Callable[[Message], None]) -> None:
    """Do to each entry what would be done for the shard, but for those already set aside; rejections wait for it."""
    for offset, entry in enumerate(job.entries):
        if (position := job.first_position + offset) in job.set_aside:
            continue
        try:
            with guard(position):
                data = job.reader.read(entry)
                if len(job.entries) == 1:
                    send(("read", (len(data), hashlib.sha256(data).hexdigest())))
                convert_image(data, entry.path, job.config)
        except SourceRejected:
            continue


def _sendable(error: BaseException) -> BaseException:
    """An exception that survives the pipe, with the worker's traceback if it is none of ours."""
    if not isinstance(error, LmdaliError):
        error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return LmdaliError(f"a worker failed with {type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    """A parent that was killed outright cannot stop its workers: they notice by themselves."""
    if sys.platform == "linux":
        # The kernel ends even one that is stuck in a decoder. The thread below is for one whose parent is gone already.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_wait_for_end_of_parent, daemon=True).start()


def _wait_for_end_of_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
