"""What is wanted of a dataset's shards and what is here of them: who waits, who uses, what is kept, what failed.

A shard is in one of few states: on its way, ready (held in the cache, perhaps mapped), failed, or nobody's concern. It
stays ready while it is in use or on the list of those to keep, and not a moment longer: others need the room.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from lmdali.pipeline.errors import ShardError, StorageError
from lmdali.pipeline.manifest import ShardInfo
from lmdali.pipeline.shard_cache import Claim, ShardCache


class ShardDemand:
    """The shards of one dataset, as one reader wants and has them. Its owner holds a lock while it calls.

    Args:
        shards: all of the dataset.
        cache: where they are.
        let_go: called with the number of a shard that may be removed from now on.
        room_wait_seconds: how long somebody who needs a shard waits for others to make room, or to let go of it.
        poll_seconds: between two looks at what other processes do.

    Attributes:
        kept: to be fetched ahead of their use, in this order, and kept.
        is_paused: whether nothing is fetched that nobody waits for; may be set without the lock.
        waiting: how many wait for each.
        ready: those that can be used; may be looked at without the lock.
        failed: what was wrong with those that could not be had.
        returned: uses that are over; a garbage collector appends to it, in a thread that has the lock.
    """

    def __init__(
        self,
        shards: Sequence[ShardInfo],
        cache: ShardCache,
        let_go: Callable[[int], None],
        *,
        room_wait_seconds: float,
        poll_seconds: float,
    ) -> None:
        self._shards, self._cache, self._let_go = shards, cache, let_go
        self._room_wait, self._poll = room_wait_seconds, poll_seconds
        self.kept: list[int] = []
        self.is_paused = False
        self.waiting: Counter[int] = Counter()
        self.ready: set[int] = set()
        self.failed: dict[int, Exception] = {}
        self.returned: deque[list[int]] = deque()
        self._uses: Counter[int] = Counter()
        self._working: set[int] = set()
        self._retry_at: dict[int, float] = {}
        self._full_since: dict[int, float] = {}

    def use(self, numbers: list[int]) -> list[int]:
        """Somebody uses these until they are among `returned`; those of them that are not ready."""
        self.take_back()
        self._uses.update(numbers)
        return [number for number in numbers if number not in self.ready]

    def keep(self, numbers: list[int]) -> None:
        """These are to be kept; others that nobody uses are let go of."""
        self.kept, self.is_paused = list(numbers), False
        self.try_again(numbers)
        self.take_back()
        for number in self.ready.difference(numbers):
            self._release_unless_needed(number)

    def try_again(self, numbers: list[int]) -> None:
        """What could not be had ahead of its use, perhaps hours ago; nobody was told of it."""
        for number in numbers:
            if not self.waiting[number]:
                self.failed.pop(number, None)

    def wait_no_more(self, numbers: list[int]) -> None:
        """One less waits for each of these."""
        self.waiting.subtract(numbers)
        for number in numbers:
            if not self.waiting[number]:  # everybody has heard of it: the next one may try again
                del self.waiting[number]
                self.failed.pop(number, None)
                self._full_since.pop(number, None)

    def take_back(self) -> None:
        """Look what nobody uses any more."""
        while self.returned:
            numbers = self.returned.popleft()
            self._uses.subtract(numbers)
            for number in numbers:
                self._release_unless_needed(number)

    def take_next(self) -> int | None:
        """The shard to look after now: the first that somebody waits for, else the first of those to keep."""
        self.take_back()
        now = time.monotonic()
        for number in self._wanted():
            if self._retry_at.get(number, now) <= now:
                self._working.add(number)
                return number
        return None

    def is_due_soon(self) -> bool:
        """Whether there will be one to look after, even if nothing changes."""
        return next(self._wanted(), None) is not None

    def note(self, number: int, claim: Claim, error: Exception | None) -> None:
        """What came of looking after a shard."""
        self._working.discard(number)
        self._retry_at.pop(number, None)
        if error is not None:
            self.failed[number] = error
        elif claim is Claim.READY:
            self._full_since.pop(number, None)
            self.ready.add(number)
            self._release_unless_needed(number)
        else:
            self._retry_at[number] = time.monotonic() + self._poll
            if claim is Claim.BUSY:
                self._full_since.pop(number, None)
            elif claim is Claim.FULL and self.waiting[number]:
                self._find_room(number)
            elif self.waiting[number] and self._is_too_long(number):
                self.failed[number] = ShardError(
                    f"{self._cache.shard_directory(self._shards[number])}: was damaged and is removed, and another "
                    "process still reads what was there: stop that one"
                )

    def _wanted(self) -> Iterator[int]:
        """Those that somebody ought to look after, now or later."""
        for number in chain(self.waiting, () if self.is_paused else self.kept):
            if not (number in self.ready or number in self._working or number in self.failed):
                yield number

    def _is_too_long(self, number: int) -> bool:
        return time.monotonic() - self._full_since.setdefault(number, time.monotonic()) > self._room_wait

    def _find_room(self, number: int) -> None:
        """Somebody waits for a shard that has no room: do without the one of ours that is needed last."""
        for other in reversed(self.kept):
            if other in self.ready and not self._uses[other]:
                self.kept.remove(other)
                self._release_unless_needed(other)
                self._retry_at.pop(number, None)
                return
        if self._is_too_long(number):
            info = self._shards[number]
            self.failed[number] = StorageError(
                f"{self._cache.directory}: no room for shard {info.name} of {info.file_bytes} bytes: the limit is "
                f"{self._cache.limit_bytes} bytes, and all {self._cache.used_bytes()} of them are in use: give the "
                "cache more (LMDALI_CACHE_BYTES), or open fewer shards at once (block_shards)"
            )

    def _release_unless_needed(self, number: int) -> None:
        if number in self.ready and not (self._uses[number] or self.waiting[number] or number in self.kept):
            self._let_go(number)
            self._cache.release(self._shards[number])
            self.ready.discard(number)
