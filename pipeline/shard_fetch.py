"""Shards brought into the cache by threads: those that somebody waits for first, then those that will be needed.

A shard is in one of few states: on its way, ready (held in the cache, perhaps mapped), failed, or nobody's concern. It
stays ready while it is in use or on the list of those to keep, and not a moment longer: others need the room.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter

from lmdali.pipeline.cpu_budget import start_thread
from lmdali.pipeline.errors import MachineError, ShardError, StorageError
from lmdali.pipeline.fetch_counts import FetchCounters, FetchCounts
from lmdali.pipeline.manifest import ShardInfo
from lmdali.pipeline.remote_file import FetchStopped
from lmdali.pipeline.shard_cache import Claim, ShardCache

Fetch = Callable[[ShardInfo, Path, Callable[[], bool]], int]
"""Brings a shard to a file; asks again and again whether it is to stop; says how many bytes came."""

DEFAULT_FETCHES = 4
"""Shards fetched at once: one connection rarely fills a line."""

_NAP_SECONDS = 1.0
"""Between two looks whether the loader was dropped without being closed, which wakes nobody."""


class _State:
    """What is true between the first use and `close`; touched with `changed` held, but for `returned`, `is_dropped`."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        self.kept: list[int] = []
        self.is_paused = self.is_dropped = False
        self.num_running = self.times_given_up = 0
        self.waiting: Counter[int] = Counter()
        self.uses: Counter[int] = Counter()
        self.ready: set[int] = set()
        self.working: set[int] = set()
        self.failed: dict[int, Exception] = {}
        self.retry_at: dict[int, float] = {}
        self.full_since: dict[int, float] = {}
        self.returned: deque[list[int]] = deque()


class ShardFetcher:
    """The shards of one dataset that one reader has, and the threads that bring them. They start when one is missing.

    Args:
        shards: all of the dataset.
        cache: where they go.
        fetch: how they come.
        let_go: called with the number of a shard that may be removed from now on: nothing may look at it any more.
        num_threads: shards fetched at once.
        room_wait_seconds: how long somebody who needs a shard waits for others to make room, or to let go of it.
        poll_seconds: between two looks at what other processes do.
    """

    def __init__(
        self,
        shards: Sequence[ShardInfo],
        cache: ShardCache,
        fetch: Fetch,
        *,
        let_go: Callable[[int], None],
        num_threads: int = DEFAULT_FETCHES,
        room_wait_seconds: float = 300.0,
        poll_seconds: float = 0.05,
    ) -> None:
        self._shards, self._cache, self._fetch, self._let_go = shards, cache, fetch, let_go
        self._num_threads, self._room_wait, self._poll = num_threads, room_wait_seconds, poll_seconds
        self._state, self._counters = _State(), FetchCounters()

    @property
    def counts(self) -> FetchCounts:
        """What was fetched, found and waited for so far."""
        with self._state.changed:
            return self._counters.now()

    def is_ready(self, number: int) -> bool:
        """Whether a shard can be used without waiting, as things are now."""
        return number in self._state.ready

    def use(self, numbers: list[int]) -> Callable[[], None]:
        """Wait until these shards are ready. They stay until the function that is returned was called, by any thread.

        Raises:
            MachineError, RemoteError, StorageError, ShardError: one cannot be had.
            FetchStopped: the fetcher was stopped, or the wait was given up.
        """
        state = self._state
        with state.changed:
            self._take_back(state)
            state.uses.update(numbers)
            missing = [number for number in numbers if number not in state.ready]
            if missing:
                try:
                    self._wait_for(state, missing)
                except BaseException:
                    state.returned.append(numbers)
                    self._take_back(state)
                    raise
        # It only touches a deque: a garbage collector may call it, in a thread that holds our lock.
        return partial(state.returned.append, numbers)

    def keep(self, numbers: list[int]) -> None:
        """Fetch these ahead of their use, in this order, and keep them; let go of others that nobody uses."""
        state = self._state
        with state.changed:
            state.kept, state.is_paused = list(numbers), False
            self._try_again(state, numbers)
            self._take_back(state)
            for number in state.ready.difference(numbers):
                self._release_unless_needed(state, number)
            if not state.ready.issuperset(numbers):
                self._start(state)
            state.changed.notify_all()

    def pause(self) -> None:
        """Begin to fetch nothing that nobody waits for, until `keep` is called again."""
        self._state.is_paused = True

    def give_up_waiting(self) -> None:
        """Whoever waits for a shard now gets `FetchStopped`; fetching goes on."""
        state = self._state
        with state.changed:
            if state.waiting.total():
                state.times_given_up += 1
                state.changed.notify_all()

    def stop(self) -> None:
        """Whoever waits for a shard gets `FetchStopped`, and the threads end soon."""
        state = self._state
        with state.changed:
            state.stop.set()
            state.changed.notify_all()

    def drop(self) -> None:
        """Stop within a second or so, and let go of all shards. It takes no lock: a garbage collector may call it."""
        self._state.is_dropped = True

    def close(self) -> None:
        """Stop, join the threads and let go of all shards. A later use begins anew."""
        self.stop()
        for thread in self._state.threads:
            thread.join()
        self._cache.close()
        self._state = _State()

    def renew(self) -> None:
        """In a forked child: there are no threads, and the shards are the parent's."""
        self._state, self._counters = _State(), FetchCounters()

    @staticmethod
    def _try_again(state: _State, numbers: list[int]) -> None:
        """What could not be had ahead of its use, perhaps hours ago; nobody was told of it."""
        for number in numbers:
            if not state.waiting[number]:
                state.failed.pop(number, None)

    def _wait_for(self, state: _State, missing: list[int]) -> None:
        self._try_again(state, missing)
        self._start(state)
        state.waiting.update(missing)
        state.changed.notify_all()
        begin, times = perf_counter(), state.times_given_up
        try:
            while not state.ready.issuperset(missing):
                for number in missing:
                    if number in state.failed:
                        raise state.failed[number]
                if state.stop.is_set():
                    raise FetchStopped("the loader was closed")
                if state.times_given_up != times:
                    raise FetchStopped("the batch was given up")
                state.changed.wait()
        finally:
            self._counters.add(waits=1, wait_seconds=perf_counter() - begin)
            state.waiting.subtract(missing)
            for number in missing:
                if not state.waiting[number]:  # everybody has heard of it: the next one may try again
                    del state.waiting[number]
                    state.failed.pop(number, None)
                    state.full_since.pop(number, None)

    def _start(self, state: _State) -> None:
        while len(state.threads) < self._num_threads and not state.stop.is_set():
            try:
                thread = start_thread(f"lmdali-fetch-{len(state.threads)}", self._work, state)
            except MachineError:
                if not state.num_running:
                    raise
                return  # fewer will do
            state.threads.append(thread)
            state.num_running += 1

    def _work(self, state: _State) -> None:
        while (number := self._next(state)) is not None:
            claim, error = Claim.BUSY, None
            try:
                claim = self._bring(state, self._shards[number])
            except FetchStopped:
                pass
            except Exception as found:  # told to whoever needs the shard
                error = found
            with state.changed:
                try:
                    self._note(state, number, claim, error)
                except Exception as found:  # of the disk; a thread that ended would leave others waiting for ever
                    state.failed[number] = found
                state.changed.notify_all()
        with state.changed:
            state.num_running -= 1
            if state.is_dropped and not state.num_running:  # nobody will close it
                self._cache.close()

    def _next(self, state: _State) -> int | None:
        """The shard to look after now: the first that somebody waits for, else the first of those to keep."""
        with state.changed:
            while not state.stop.is_set():
                self._take_back(state)
                now, later = time.monotonic(), False
                for number in chain(state.waiting, () if state.is_paused else state.kept):
                    if number in state.ready or number in state.working or number in state.failed:
                        continue
                    if state.retry_at.get(number, now) <= now:
                        state.working.add(number)
                        return number
                    later = True
                state.changed.wait(self._poll if later else _NAP_SECONDS)
                if state.is_dropped:
                    state.stop.set()
                    state.changed.notify_all()
            return None

    def _bring(self, state: _State, info: ShardInfo) -> Claim:
        claim = self._cache.claim(info)
        if claim is not Claim.MINE:
            with state.changed:
                self._counters.add(hits=int(claim is Claim.READY))
            return claim
        with state.changed:
            self._counters.begin_fetch()
        try:
            num_bytes = self._fetch(
                info, self._cache.partial_file(info), lambda: state.stop.is_set() or state.is_dropped
            )
            self._cache.publish(info)
            with state.changed:
                self._counters.add(misses=1, fetched_bytes=num_bytes)
        except BaseException:
            self._cache.abandon(info)
            raise
        finally:
            with state.changed:
                self._counters.end_fetch()
        return Claim.READY

    def _note(self, state: _State, number: int, claim: Claim, error: Exception | None) -> None:
        state.working.discard(number)
        state.retry_at.pop(number, None)
        if error is not None:
            state.failed[number] = error
        elif claim is Claim.READY:
            state.full_since.pop(number, None)
            state.ready.add(number)
            self._release_unless_needed(state, number)
        else:
            state.retry_at[number] = time.monotonic() + self._poll
            if claim is Claim.BUSY:
                state.full_since.pop(number, None)
            elif claim is Claim.FULL and state.waiting[number]:
                self._find_room(state, number)
            elif state.waiting[number] and self._is_too_long(state, number):
                state.failed[number] = ShardError(
                    f"{self._cache.shard_directory(self._shards[number])}: was damaged and is removed, and another "
                    "process still reads what was there: stop that one"
                )

    def _is_too_long(self, state: _State, number: int) -> bool:
        return time.monotonic() - state.full_since.setdefault(number, time.monotonic()) > self._room_wait

    def _find_room(self, state: _State, number: int) -> None:
        """Somebody waits for a shard that has no room: do without the one of ours that is needed last."""
        for other in reversed(state.kept):
            if other in state.ready and not state.uses[other]:
                state.kept.remove(other)
                self._release_unless_needed(state, other)
                state.retry_at.pop(number, None)
                return
        if self._is_too_long(state, number):
            info = self._shards[number]
            state.failed[number] = StorageError(
                f"{self._cache.directory}: no room for shard {info.name} of {info.file_bytes} bytes: the limit is "
                f"{self._cache.limit_bytes} bytes, and all {self._cache.used_bytes()} of them are in use: give the "
                "cache more (LMDALI_CACHE_BYTES), or open fewer shards at once (block_shards)"
            )

    def _take_back(self, state: _State) -> None:
        while state.returned:
            numbers = state.returned.popleft()
            state.uses.subtract(numbers)
            for number in numbers:
                self._release_unless_needed(state, number)

    def _release_unless_needed(self, state: _State, number: int) -> None:
        if number in state.ready and not (state.uses[number] or state.waiting[number] or number in state.kept):
            self._let_go(number)
            self._cache.release(self._shards[number])
            state.ready.discard(number)
