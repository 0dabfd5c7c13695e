"""Batches in flight: started ahead of the consumer, also across the end of an epoch, and finished in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmdali.pipeline.backend import Backend, BatchPlan
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.timing import StageTimers


@dataclass(frozen=True)
class Place:
    """Where an iteration begins.

    Attributes:
        epoch: from 0.
        position: samples of the epoch that all ranks together have behind them.
    """

    epoch: int
    position: int


@dataclass(frozen=True, eq=False)
class _Started:
    place: Place
    step: int
    digest: int
    pending: Any
    error: Exception | None = None


class BatchQueue:
    """At most `prefetch` + 1 started batches, from which one iteration after the other takes its own.

    When all batches of an epoch are started, those of the next one follow, so that threads are busy while the consumer
    validates, and the first batch of an epoch is there when it is asked for.

    Args:
        backend: makes the batches.
        plan: (place, step counted from there) to a batch's plan and its digest.
        num_steps: steps from a position to the end of its epoch.
        prefetch: batches worked on ahead of the consumer.
        across_epochs: go on into the next epoch; needs epochs of at least one step.
        timers: `plan` and `wait` are counted here.
    """

    def __init__(
        self,
        backend: Backend,
        plan: Callable[[Place, int], tuple[BatchPlan, int]],
        num_steps: Callable[[int], int],
        *,
        prefetch: int,
        across_epochs: bool,
        timers: StageTimers,
    ) -> None:
        self._backend, self._plan, self._num_steps = backend, plan, num_steps
        self._prefetch, self._across, self._timers = prefetch, across_epochs, timers
        self._started: deque[_Started] = deque()
        self._opened = self._planned_place = Place(0, 0)
        self._planned_step = 0
        self._ahead = across_epochs

    def open(self, place: Place) -> None:
        """Batches are those from `place` on. What was started for it is kept, anything else is given up."""
        if not self._begins_at(place):
            self.cancel()
            self._planned_place, self._planned_step = place, 0
        self._opened, self._ahead = place, self._across

    def turn_to(self, place: Place) -> None:
        """Say that the next iteration will begin at `place`; one that is running still gets its own batches."""
        if not self._started:
            self._ahead = False
        elif self._started[0].place == self._opened:
            # A backend finishes in order, so what is behind the running iteration is given up once that has ended.
            self._ahead = False
        elif not self._begins_at(place):
            self.cancel()

    def take(self) -> tuple[Batch, int]:
        """The next batch and its digest. Raises what went wrong with this batch, and only with this one."""
        with self._timers.measure("plan"):
            self._fill()
        with self._timers.measure("wait"):
            if self._timers.is_recording:
                ready = sum(each.error is None and self._backend.is_ready(each.pending) for each in self._started)
                self._timers.read_queue(ready, len(self._started))
            first = self._started.popleft()
            if first.error is not None:
                raise first.error
            return self._backend.finish(first.pending), first.digest

    def cancel(self) -> None:
        """Give up everything that was started, and start nothing before the next `open`."""
        while self._started:
            first = self._started.popleft()
            if first.error is None:
                self._backend.cancel(first.pending)

    def _begins_at(self, place: Place) -> bool:
        return bool(self._started) and (self._started[0].place, self._started[0].step) == (place, 0)

    def _fill(self) -> None:
        while len(self._started) <= self._prefetch:
            if self._planned_step == self._num_steps(self._planned_place.position):
                if not self._ahead:
                    return
                self._planned_place, self._planned_step = Place(self._planned_place.epoch + 1, 0), 0
            elif not self._ahead and self._planned_place != self._opened:
                return
            self._started.append(self._start(self._planned_place, self._planned_step))
            self._planned_step += 1

    def _start(self, place: Place, step: int) -> _Started:
        try:
            plan, digest = self._plan(place, step)
            return _Started(place, step, digest, self._backend.start(plan))
        except Exception as error:  # raised when this batch is due: those before it may be sound
            return _Started(place, step, 0, None, error)
