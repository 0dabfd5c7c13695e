"""What is in flight when: across epochs, within bounds, in order, and given up when it is no longer wanted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.augment import AugmentParams
from lmdali.pipeline.backend import BatchPlan
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.batch_queue import BatchQueue, Place
from lmdali.pipeline.errors import RecordError
from lmdali.pipeline.timing import StageTimers

EPOCH_SAMPLES = 40
Step = tuple[int, int]


@dataclass
class FakeBackend:
    """Plans whose two indices are epoch and position; it remembers what happened to them."""

    broken_start: set[Step] = field(default_factory=set)
    broken_finish: set[Step] = field(default_factory=set)
    in_flight: list[Step] = field(default_factory=list)
    most_in_flight: int = 0
    started: list[Step] = field(default_factory=list)
    cancelled: list[Step] = field(default_factory=list)

    def start(self, plan: BatchPlan) -> Step:
        step = (int(plan.indices[0]), int(plan.indices[1]))
        if step in self.broken_start:
            raise RecordError(f"start of {step}")
        self.started.append(step)
        self.in_flight.append(step)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        return step

    def finish(self, pending: Step) -> Batch:
        assert self.in_flight.pop(0) == pending, "a backend finishes in the order of starting"
        if pending in self.broken_finish:
            raise RecordError(f"finish of {pending}")
        return Batch(torch.empty(0), torch.empty(0), torch.tensor(pending))

    def cancel(self, pending: Step) -> None:
        assert self.in_flight.pop(0) == pending, "the oldest first"
        self.cancelled.append(pending)

    def close(self) -> None:
        assert not self.in_flight


def plan(place: Place, step: int) -> tuple[BatchPlan, int]:
    nothing = AugmentParams(np.empty((0, 2), np.int64), np.empty(0, np.bool_), np.empty((0, 3), np.float32))
    position = place.position + 10 * step
    plan = BatchPlan(np.array([place.epoch, position]), nothing, np.empty((0, 3), np.float32), np.ones(3, np.float32))
    return plan, position


def num_steps(position: int) -> int:
    return (EPOCH_SAMPLES - position) // 10


def make(backend: FakeBackend, prefetch: int = 2, *, across: bool = True) -> BatchQueue:
    return BatchQueue(backend, plan, num_steps, prefetch=prefetch, across_epochs=across, timers=StageTimers())


def take(queue: BatchQueue, count: int) -> list[Step]:
    taken = []
    for _ in range(count):
        batch, digest = queue.take()
        assert digest == batch.indices[1], "the digest is that of this batch"
        taken.append((int(batch.indices[0]), int(batch.indices[1])))
    return taken


def test_the_next_epoch_is_started_before_this_one_ends() -> None:
    backend = FakeBackend()
    queue = make(backend)
    queue.open(Place(0, 0))
    assert take(queue, 2) == [(0, 0), (0, 10)]
    assert backend.in_flight == [(0, 20), (0, 30)]
    assert take(queue, 2) == [(0, 20), (0, 30)]
    assert backend.in_flight == [(1, 0), (1, 10)]
    queue.open(Place(1, 0))
    assert take(queue, 1) == [(1, 0)]
    assert backend.cancelled == []
    assert len(backend.started) == len(set(backend.started)) == 7


def test_without_leave_to_cross_nothing_is_started_that_was_not_opened() -> None:
    backend = FakeBackend()
    queue = make(backend, 9, across=False)
    queue.open(Place(0, 20))
    assert take(queue, 2) == [(0, 20), (0, 30)]
    assert backend.started == [(0, 20), (0, 30)]
    queue.open(Place(0, 0))
    assert take(queue, 4) == [(0, 0), (0, 10), (0, 20), (0, 30)]


def test_several_short_epochs_can_be_in_flight() -> None:
    backend = FakeBackend()
    queue = make(backend, 9)
    for epoch in range(5):
        queue.open(Place(epoch, 0))
        assert take(queue, 4) == [(epoch, position) for position in (0, 10, 20, 30)]
    assert (backend.cancelled, backend.most_in_flight) == ([], 10)


def test_opening_another_place_gives_up_what_was_started() -> None:
    backend = FakeBackend()
    queue = make(backend)
    queue.open(Place(0, 0))
    take(queue, 4)
    queue.open(Place(7, 20))
    assert backend.cancelled == [(1, 0), (1, 10)]
    assert take(queue, 2) == [(7, 20), (7, 30)]


def test_an_epoch_that_was_begun_is_not_taken_for_its_start() -> None:
    backend = FakeBackend()
    queue = make(backend)
    queue.open(Place(0, 0))
    take(queue, 1)
    queue.open(Place(0, 0))
    assert take(queue, 4) == [(0, 0), (0, 10), (0, 20), (0, 30)]


def test_turning_elsewhere_between_epochs_gives_up_at_once() -> None:
    backend = FakeBackend()
    queue = make(backend)
    queue.open(Place(0, 0))
    take(queue, 4)
    queue.turn_to(Place(1, 0))
    assert backend.in_flight == [(1, 0), (1, 10)], "this is where they belong"
    queue.turn_to(Place(3, 0))
    assert backend.in_flight == []


def test_turning_elsewhere_leaves_a_running_iteration_its_batches_and_starts_no_others() -> None:
    backend = FakeBackend()
    queue = make(backend)
    queue.open(Place(0, 0))
    take(queue, 1)
    queue.turn_to(Place(5, 10))
    assert take(queue, 3) == [(0, 10), (0, 20), (0, 30)]
    assert backend.started == [(0, position) for position in (0, 10, 20, 30)]
    queue.open(Place(5, 10))
    assert take(queue, 3) == [(5, 10), (5, 20), (5, 30)]
    assert backend.in_flight == [(6, 0), (6, 10)]


def test_turning_when_the_next_epoch_is_in_flight_already_keeps_the_order_of_finishing() -> None:
    backend = FakeBackend()
    queue = make(backend, 3)
    queue.open(Place(0, 0))
    take(queue, 3)
    assert backend.in_flight == [(0, 30), (1, 0), (1, 10)]
    queue.turn_to(Place(0, 0))
    assert take(queue, 1) == [(0, 30)]
    queue.open(Place(0, 0))
    assert backend.cancelled == [(1, 0), (1, 10)]


def test_an_error_surfaces_when_its_batch_is_due() -> None:
    backend = FakeBackend(broken_finish={(1, 10)}, broken_start={(1, 0)})
    queue = make(backend, 5)
    queue.open(Place(0, 0))
    assert take(queue, 4) == [(0, 0), (0, 10), (0, 20), (0, 30)]
    queue.open(Place(1, 0))
    with pytest.raises(RecordError, match=r"start of \(1, 0\)"):
        queue.take()
    with pytest.raises(RecordError, match=r"finish of \(1, 10\)"):
        queue.take()
    assert take(queue, 1) == [(1, 20)]


def test_batches_that_never_started_need_no_cancelling() -> None:
    backend = FakeBackend(broken_start={(0, 10)})
    queue = make(backend)
    queue.open(Place(0, 0))
    take(queue, 1)
    queue.cancel()
    assert backend.cancelled == [(0, 20)]
    assert backend.in_flight == []


@given(
    prefetch=st.integers(1, 12),
    visits=st.lists(
        st.tuples(
            st.sampled_from(["next", "again", "elsewhere"]),
            st.sampled_from([0, 10, 30]),
            st.integers(0, 4),
            st.booleans(),
        ),
        max_size=12,
    ),
)
def test_whatever_is_opened_is_delivered_from_its_start_and_never_too_much_is_in_flight(
    prefetch: int, visits: list[tuple[str, int, int, bool]]
) -> None:
    backend = FakeBackend()
    queue = make(backend, prefetch)
    epoch = 0
    for where, position, count, announced in visits:
        epoch, position = {"next": (epoch + 1, 0), "again": (epoch, position), "elsewhere": (epoch + 3, position)}[
            where
        ]
        if announced:
            queue.turn_to(Place(epoch, position))
        queue.open(Place(epoch, position))
        due = [(epoch, at) for at in range(position, EPOCH_SAMPLES, 10)][:count]
        assert take(queue, len(due)) == due
        assert len(backend.in_flight) <= prefetch
    assert backend.most_in_flight <= prefetch + 1
    queue.cancel()
    backend.close()
