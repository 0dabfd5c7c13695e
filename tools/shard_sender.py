"""Threads that send finished shards to an address while others are made, and hold those up if they fall behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from lmdali.pipeline.address_lock import StillHeld
from lmdali.pipeline.errors import MachineError
from lmdali.pipeline.remote_file import FetchStopped
from lmdali.pipeline.shard_publisher import ShardPublisher
from lmdali.pipeline.thread_start import start_thread
from lmdali.tools.conversion import ShardJob

SENDERS = 4
"""Shards sent at once, and finished ones that may wait for it: as many are on the disk, and those being made."""

_LOOK_SECONDS = 0.1


class ShardSender:
    """The threads of one run, for as long as a `with` block.

    Args:
        publisher: the way there.
        still_held: asked before every shard.
        stop: ends them; they look at it in the middle of a shard, too.
    """

    def __init__(self, publisher: ShardPublisher, still_held: StillHeld, stop: threading.Event) -> None:
        self._publisher, self._still_held, self._stop = publisher, still_held, stop
        self._lock = threading.Lock()
        self._watched: list[str] = []
        self._busy: set[str] = set()
        self._is_last = False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> ShardSender:
        for number in range(SENDERS):
            try:
                self._threads.append(start_thread(f"lmdali-send-{number}", self._work))
            except MachineError:
                if not self._threads:
                    raise
                break  # fewer will do
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def watch(self, names: Sequence[str]) -> None:
        """Send these shards as soon as they are finished."""
        with self._lock:
            self._watched += names

    def paced(self, jobs: Iterator[ShardJob]) -> Iterator[ShardJob]:
        """The jobs, none handed out while too many finished shards wait: the disk may be small."""
        for job in jobs:
            while len(self._publisher.unsent(self._names())) > SENDERS:
                self._wait()
            self._raise()
            self.watch([job.name])
            yield job

    def finish(self) -> None:
        """Wait until all is sent."""
        self._is_last = True
        while any(thread.is_alive() for thread in self._threads):
            self._wait()
        self._raise()

    def _wait(self) -> None:
        self._raise()
        self._stop.wait(_LOOK_SECONDS)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _names(self) -> list[str]:
        with self._lock:
            return list(self._watched)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                is_last = self._is_last  # before the look: what is finished later is looked for again
                name = self._next()
                if name is not None:
                    self._still_held()
                    self._publisher.send_shard(name)
                    with self._lock:
                        self._watched.remove(name)
                        self._busy.remove(name)
                elif is_last:
                    return
                else:
                    self._stop.wait(_LOOK_SECONDS)
        except FetchStopped:
            return
        except BaseException as error:  # raised where shards are handed out
            self._error = error

    def _next(self) -> str | None:
        unsent = self._publisher.unsent(self._names())
        with self._lock:
            for name in unsent:
                if name in self._watched and name not in self._busy:
                    self._busy.add(name)
                    return name
        return None
