"""Shards brought into the cache by threads: those that somebody waits for first, then those that will be needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

from lmdali.pipeline.errors import MachineError
from lmdali.pipeline.fetch_counts import FetchCounters, FetchCounts
from lmdali.pipeline.manifest import ShardInfo
from lmdali.pipeline.remote_file import FetchStopped
from lmdali.pipeline.shard_cache import Claim, ShardCache
from lmdali.pipeline.shard_demand import ShardDemand
from lmdali.pipeline.thread_start import start_thread

Fetch = Callable[[ShardInfo, Path, Callable[[], bool]], int]
"""Brings a shard to a file; asks again and again whether it is to stop; says how many bytes came."""

DEFAULT_FETCHES = 4
"""Shards fetched at once: one connection rarely fills a line."""

_NAP_SECONDS = 1.0
"""Between two looks whether the loader was dropped without being closed, which wakes nobody."""


class _State:
    """What is true between the first use and `close`; touched with `changed` held, but for what says otherwise.

    Args:
        demand: what is wanted and what is here.
    """

    def __init__(self, demand: ShardDemand) -> None:
        self.demand = demand
        self.changed = threading.Condition()
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        self.is_dropped = False  # set without the lock
        self.num_running = self.times_given_up = 0


class ShardFetcher:
    """The shards of one dataset that one reader has, and the threads that bring them. They start when one is missing.

    Args:
        shards: all of the dataset.
        cache: where they go.
        fetch: how they come.
        interrupt: ends what `fetch` waits for.
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
        interrupt: Callable[[], object] = lambda: None,
        let_go: Callable[[int], None],
        num_threads: int = DEFAULT_FETCHES,
        room_wait_seconds: float = 300.0,
        poll_seconds: float = 0.05,
    ) -> None:
        self._shards, self._cache, self._fetch, self._interrupt = shards, cache, fetch, interrupt
        self._num_threads, self._poll = num_threads, poll_seconds
        self._new_demand = partial(
            ShardDemand, shards, cache, let_go, room_wait_seconds=room_wait_seconds, poll_seconds=poll_seconds
        )
        self._state, self._counters = _State(self._new_demand()), FetchCounters()

    @property
    def counts(self) -> FetchCounts:
        """What was fetched, found and waited for so far."""
        with self._state.changed:
            return self._counters.now()

    def is_ready(self, number: int) -> bool:
        """Whether a shard can be used without waiting, as things are now."""
        return number in self._state.demand.ready

    def use(self, numbers: list[int]) -> Callable[[], None]:
        """Wait until these shards are ready. They stay until the function that is returned was called, by any thread.

        Raises:
            MachineError, RemoteError, StorageError, ShardError: one cannot be had.
            FetchStopped: the fetcher was stopped, or the wait was given up.
        """
        state = self._state
        demand = state.demand
        with state.changed:
            if missing := demand.use(numbers):
                try:
                    self._wait_for(state, missing)
                except BaseException:
                    demand.returned.append(numbers)
                    demand.take_back()
                    raise
        # It only touches a deque: a garbage collector may call it, in a thread that holds our lock.
        return partial(demand.returned.append, numbers)

    def keep(self, numbers: list[int]) -> None:
        """Fetch these ahead of their use, in this order, and keep them; let go of others that nobody uses."""
        state = self._state
        with state.changed:
            state.demand.keep(numbers)
            if not state.demand.ready.issuperset(numbers):
                self._start(state)
            state.changed.notify_all()

    def pause(self) -> None:
        """Begin to fetch nothing that nobody waits for, until `keep` is called again."""
        self._state.demand.is_paused = True

    def give_up_waiting(self) -> None:
        """Whoever waits for a shard now gets `FetchStopped`; fetching goes on."""
        state = self._state
        with state.changed:
            if state.demand.waiting.total():
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
            while thread.is_alive():
                self._interrupt()  # again and again: it may have been about to ask for something
                thread.join(self._poll)
        self._cache.close()
        self._state = _State(self._new_demand())

    def renew(self) -> None:
        """In a forked child: there are no threads, and the shards are the parent's."""
        self._state, self._counters = _State(self._new_demand()), FetchCounters()

    def _wait_for(self, state: _State, missing: list[int]) -> None:
        demand = state.demand
        demand.try_again(missing)
        self._start(state)
        demand.waiting.update(missing)
        state.changed.notify_all()
        begin, times = perf_counter(), state.times_given_up
        try:
            while not demand.ready.issuperset(missing):
                for number in missing:
                    if number in demand.failed:
                        raise demand.failed[number]
                if state.stop.is_set():
                    raise FetchStopped("the loader was closed")
                if state.times_given_up != times:
                    raise FetchStopped("the batch was given up")
                state.changed.wait()
        finally:
            self._counters.add(waits=1, wait_seconds=perf_counter() - begin)
            demand.wait_no_more(missing)

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
                    state.demand.note(number, claim, error)
                except Exception as found:  # of the disk; a thread that ended would leave others waiting for ever
                    state.demand.failed[number] = found
                state.changed.notify_all()
        with state.changed:
            state.num_running -= 1
            if state.is_dropped and not state.num_running:  # nobody will close it
                self._cache.close()

    def _next(self, state: _State) -> int | None:
        """The shard to look after now; None once nobody wants any."""
        with state.changed:
            while not state.stop.is_set():
                number = state.demand.take_next()
                if number is not None:
                    return number
                state.changed.wait(self._poll if state.demand.is_due_soon() else _NAP_SECONDS)
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
