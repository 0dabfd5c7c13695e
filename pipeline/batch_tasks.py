"""How many batches are worked on at once, and how they are cut into tasks for threads.

A task costs Python some 0.1 ms, whatever its size, and all threads take turns at Python's lock. With two threads nobody
notices; with sixteen, tasks of 16 samples kept it busy enough that the threads decoded half of the time, and that a
consumer who sends batches to a GPU spent 4 ms a batch on getting it back (docs/performance.md).
"""

from __future__ import annotations

_MIN_SAMPLES, _GOOD_SAMPLES, _MAX_SAMPLES = 16, 32, 64
"""Of a task: the fewest, so many that Python is no burden, and so many that more would gain nothing."""

_MIN_PREFETCH, _MAX_PREFETCH = 3, 7


def default_prefetch(batch_size: int, num_threads: int) -> int:
    """Batches worked on ahead of the consumer: 3, or up to 7 where threads are many and batches small."""
    in_flight = 2 * _GOOD_SAMPLES * num_threads
    return min(max(-(-in_flight // batch_size) - 1, _MIN_PREFETCH), _MAX_PREFETCH)


def samples_per_task(batch_size: int, num_threads: int, prefetch: int) -> int:
    """Samples of a batch that one task takes, where `prefetch` + 1 batches are in flight.

    Each thread should have two tasks among these, one that it works on and one that waits for it; but one of 32 samples
    is better than two of 16.
    """
    of_thread = batch_size * (prefetch + 1) // num_threads
    size = max(of_thread // 2, min(of_thread, _GOOD_SAMPLES))
    return min(max(size, _MIN_SAMPLES), _MAX_SAMPLES)
