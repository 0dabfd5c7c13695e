"""How many batches are worked on at once, and how they are cut into tasks for threads.

A task costs Python some 0.1 ms, whatever its size, and all threads take turns at Python's lock. With two threads nobody
notices; with sixteen, tasks of 16 samples kept it busy enough that the threads decoded half of the time, and that a
consumer who sends batches to a GPU spent 4 ms a batch on getting it back (docs/performance.md).
"""

from __future__ import annotations

_MIN_SAMPLES, _MAX_SAMPLES = 16, 64
"""Of a task."""

_GOOD_SAMPLES = 32
"""Of a task, where memory allows that many in flight."""

_TASKS_PER_THREAD = 2
"""Among the batches in flight: one that a thread works on, and one that waits for it."""

_MIN_PREFETCH, _MAX_PREFETCH = 3, 7


def default_prefetch(batch_size: int, num_threads: int) -> int:
    """Batches worked on ahead of the consumer: 3, or up to 7 where threads are many and batches small."""
    in_flight = _TASKS_PER_THREAD * _GOOD_SAMPLES * num_threads
    return min(max(-(-in_flight // batch_size) - 1, _MIN_PREFETCH), _MAX_PREFETCH)


def samples_per_task(batch_size: int, num_threads: int, prefetch: int) -> int:
    """Samples of a batch that one task takes, where `prefetch` + 1 batches are in flight."""
    share = batch_size * (prefetch + 1) // (_TASKS_PER_THREAD * num_threads)
    return min(max(share, _MIN_SAMPLES), _MAX_SAMPLES)
