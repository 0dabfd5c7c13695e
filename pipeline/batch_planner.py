"""Everything about a batch but its pixels: which samples, which draws, which digest; worked out many batches at a time.

NumPy takes a microsecond or more per call, whatever the number of samples, and order, draws and digest are some two
hundred calls. For a batch of 128 that is 0.3 to 0.5 ms, a fifth of the time in which two threads crop raw pixels; for
2,048 samples together it is hardly more. A thread of its own does that ahead of time: arrays of more than 500 numbers
let go of Python's lock at each call, and a consumer that feeds a GPU would have to get it back two hundred times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.augment import AugmentConfig, draw_params
from lmdali.pipeline.backend import BatchPlan
from lmdali.pipeline.batch_queue import Place
from lmdali.pipeline.order_digest import view_hashes
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.sampler import RankSlice, SampleOrder

SAMPLES_AT_ONCE = 2048
"""Planned together; their intermediate results fit a core's first-level cache."""


class _Chunk(NamedTuple):
    """Consecutive steps from one place."""

    place: Place
    first_step: int
    plans: list[tuple[BatchPlan, int]]

    def has(self, place: Place, step: int) -> bool:
        return self.place == place and 0 <= step - self.first_step < len(self.plans)


class _Begun(NamedTuple):
    """A chunk that the thread makes."""

    place: Place
    first_step: int
    made: Future[_Chunk]


class BatchPlanner:
    """Plans of one rank's batches. A plan is a pure function of its place; what is kept here only saves time.

    Args:
        order_of: epoch to its order.
        rank_slice: which positions are this rank's.
        augment: what is drawn.
        transform: turns alphas into shifts, and has each epoch's scale.
        seed: of the draws.
        image_size: side of the stored images, pixels.
        across_epochs: behind an epoch comes the beginning of the next one.
    """

    def __init__(
        self,
        order_of: Callable[[int], SampleOrder],
        rank_slice: RankSlice,
        augment: AugmentConfig,
        transform: PixelTransform,
        *,
        seed: int,
        image_size: int,
        across_epochs: bool = False,
    ) -> None:
        self._order_of, self._slice = order_of, rank_slice
        self._augment, self._transform, self._seed, self._image_size = augment, transform, seed, image_size
        self._steps_at_once = max(1, SAMPLES_AT_ONCE // rank_slice.batch_size)
        self._across = across_epochs
        self._chunks: deque[_Chunk] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._begun: _Begun | None = None

    def plan(self, place: Place, step: int) -> tuple[BatchPlan, int]:
        """A batch, and the digest of its samples and draws; what was planned before it is forgotten.

        Args:
            place: where the iteration begins.
            step: counted from there, before the end of the epoch.
        """
        chunk = self._find(place, step)
        while self._chunks[0] is not chunk:
            self._chunks.popleft()
        plan, digest = chunk.plans[step - chunk.first_step]
        # A consumer gets them with the batch and may write there; the same step may be planned again.
        return replace(plan, indices=plan.indices.copy()), digest

    def indices(self, place: Place, step: int) -> NDArray[np.int64]:
        """Record numbers of a batch, (B,) int64; nothing is forgotten."""
        chunk = self._find(place, step)
        return chunk.plans[step - chunk.first_step][0].indices

    def close(self) -> None:
        """Join the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _find(self, place: Place, step: int) -> _Chunk:
        chunk = next((chunk for chunk in self._chunks if chunk.has(place, step)), None)
        if chunk is None:
            chunk = self._take_begun(place, step) or self._make(place, step)
            self._chunks.append(chunk)
        if chunk is self._chunks[-1] and step - chunk.first_step >= 3 * len(chunk.plans) // 4:
            self._begin_behind(chunk)
        return chunk

    def _begin_behind(self, chunk: _Chunk) -> None:
        """Let the thread make what is asked for after this one, in all likelihood."""
        place, step = chunk.place, chunk.first_step + len(chunk.plans)
        if step == self._slice.num_steps(place.position):
            if not self._across:
                return
            place, step = Place(place.epoch + 1, 0), 0
        if self._begun is None or self._begun[:2] != (place, step):
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="lmdali-plan")
            try:
                self._begun = _Begun(place, step, self._thread.submit(self._make, place, step))
            except RuntimeError:  # the system refuses a thread, or the program ends: it is made when it is due
                self._thread = None

    def _take_begun(self, place: Place, step: int) -> _Chunk | None:
        begun = self._begun
        if begun is None or begun[:2] != (place, step):
            return None
        self._begun = None
        return begun.made.result()

    def _make(self, place: Place, first_step: int) -> _Chunk:
        stop_step = min(first_step + self._steps_at_once, self._slice.num_steps(place.position))
        spans = [self._slice.positions(step, place.position) for step in range(first_step, stop_step)]
        positions = np.concatenate(spans)
        indices = self._order_of(place.epoch).at(positions)
        params = draw_params(
            self._augment,
            seed=self._seed,
            epoch=place.epoch,
            indices=indices,
            positions=positions,
            image_size=self._image_size,
        )
        transform, hashes = self._transform.at(place.epoch), view_hashes(positions, indices, params)
        shifts = transform.shifts(params)
        plans, at, views = [], 0, self._augment.num_views
        for span in spans:
            end = at + len(span)
            part = slice(at * views, end * views)
            plan = BatchPlan(indices[at:end], params.part(part.start, part.stop), shifts[part], transform.scale)
            plans.append((plan, int(hashes[part].sum())))
            at = end
        return _Chunk(place, first_step, plans)
