"""What the shards of a remote dataset cost: how many came, how many were there, and how long somebody waited."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple


class FetchCounts(NamedTuple):
    """What one reader's shards cost since it was made.

    Attributes:
        hits: times that a shard was found in the cache, whoever had brought it.
        misses: shards that this reader brought.
        fetched_bytes: that came for these; what another process had begun is not counted.
        fetch_seconds: wall time in which at least one shard was on its way.
        waits: times that a thread needed a shard that was not ready.
        wait_seconds: of these, over all threads.
    """

    hits: int = 0
    misses: int = 0
    fetched_bytes: int = 0
    fetch_seconds: float = 0.0
    waits: int = 0
    wait_seconds: float = 0.0

    @property
    def bytes_per_second(self) -> float | None:
        """How fast shards came while any did; None where nothing came.

        Those that are on their way count with their time and not yet with their bytes: of few shards it is too low.
        """
        return self.fetched_bytes / self.fetch_seconds if self.fetched_bytes and self.fetch_seconds else None

    @property
    def hit_share(self) -> float | None:
        """Part of the shards that was there, 0..1; None where none was needed."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else None


class FetchCounters:
    """Adds up `FetchCounts`. Not thread-safe: whoever has one holds a lock."""

    def __init__(self) -> None:
        self._counts = FetchCounts()
        self._num_fetching = 0
        self._busy_since = 0.0

    def add(self, **more: float) -> None:
        """Add to fields of `FetchCounts`."""
        changed = {name: getattr(self._counts, name) + value for name, value in more.items()}
        self._counts = self._counts._replace(**changed)

    def begin_fetch(self) -> None:
        """A shard is on its way."""
        if not self._num_fetching:
            self._busy_since = perf_counter()
        self._num_fetching += 1

    def end_fetch(self) -> None:
        """It is no longer, whatever came of it."""
        self._num_fetching -= 1
        if not self._num_fetching:
            self.add(fetch_seconds=perf_counter() - self._busy_since)

    def now(self) -> FetchCounts:
        """All so far, shards that are on their way included in the time."""
        running = perf_counter() - self._busy_since if self._num_fetching else 0.0
        return self._counts._replace(fetch_seconds=self._counts.fetch_seconds + running)
