"""The loader itself: walks epochs, keeps batches in flight, and knows where its consumer is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from lmdali.pipeline.augment import AugmentConfig, PixelTransform, draw_params
from lmdali.pipeline.backend import Backend, BatchPlan
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.sampler import EpochOrder, RankSlice
from lmdali.pipeline.timing import StageTimers

STATE_VERSION = 1
_STATE_FIELDS = ("state_version", "epoch", "sample_in_epoch", "seed", "num_samples", "manifest_digest")


@dataclass(frozen=True)
class DatasetIdentity:
    """What a loader must know of a dataset besides its pixels.

    Attributes:
        num_samples: records.
        image_size: side of the stored images, pixels.
        class_names: position is label.
        digest: manifest digest, or the name of a synthetic dataset.
    """

    num_samples: int
    image_size: int
    class_names: tuple[str, ...]
    digest: str


class DatasetLoader:
    """One iteration is one epoch of this rank. See the `Loader` protocol for what a consumer may rely on.

    Made by `create_loader`.

    Attributes:
        backend_name: which backend delivers.
        backend_reason: why it was taken.
    """

    def __init__(
        self,
        backend: Backend,
        identity: DatasetIdentity,
        rank_slice: RankSlice,
        transform: PixelTransform,
        *,
        augment: AugmentConfig,
        seed: int,
        shuffle: bool,
        prefetch: int,
        timers: StageTimers,
        backend_name: str,
        backend_reason: str,
    ) -> None:
        self.backend_name, self.backend_reason = backend_name, backend_reason
        self._backend, self._identity, self._slice, self._transform = backend, identity, rank_slice, transform
        self._augment, self._seed, self._shuffle, self._prefetch = augment, seed, shuffle, prefetch
        self._timers = timers
        self._epoch = 0
        self._position = 0
        self._epoch_delivered = False
        self._walk_number = 0
        self._resume_at: int | None = None
        self._active: Iterator[Batch] | None = None
        self._closed = False

    @property
    def num_samples(self) -> int:
        """Records in the dataset, all ranks together."""
        return self._identity.num_samples

    @property
    def num_views(self) -> int:
        """Views per sample."""
        return self._augment.num_views

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names; the position is the label."""
        return self._identity.class_names

    @property
    def manifest_digest(self) -> str:
        """Identity of the dataset."""
        return self._identity.digest

    @property
    def epoch(self) -> int:
        """The epoch being delivered, or the next one."""
        return self._epoch

    @property
    def global_batch_size(self) -> int:
        """Samples per step over all ranks."""
        return self._slice.global_batch_size

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._slice.num_steps()

    def __iter__(self) -> Iterator[Batch]:
        """The current epoch from its start, or from where `load_state_dict` left it; ends any other iteration."""
        if self._closed:
            raise ConfigError("this loader was closed: make another with create_loader")
        if self._active is not None:
            self._active.close()  # type: ignore[attr-defined]
        if self._epoch_delivered:
            self._go_to(self._epoch + 1, 0)
        start = self._resume_at or 0
        self._go_to(self._epoch, start)
        self._active = self._walk(self._epoch, start, self._walk_number)
        return self._active

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of `epoch`; in the epoch just loaded, keep the place in it.

        Training loops call `set_epoch` at the top of every epoch, also of the one they resume.
        """
        if epoch < 0:
            raise ConfigError(f"epoch must be at least 0, found {epoch}")
        if self._resume_at is None or epoch != self._epoch:
            self._go_to(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is: after the last batch it was given. Prefetched batches do not count."""
        # Whoever saves a state after the last batch must find the next epoch in it, not an empty rest.
        place = (self._epoch + 1, 0) if self._epoch_delivered else (self._epoch, self._position)
        values = (STATE_VERSION, *place, self._seed, self.num_samples, self.manifest_digest)
        return dict(zip(_STATE_FIELDS, values, strict=True))

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Make the next iteration continue where `state` was taken, whatever world size or batch size that was.

        Args:
            state: from `state_dict`.
            strict: refuse the state of another dataset or seed.

        Raises:
            InputError: not such a state, or of another dataset or seed.
        """
        missing = [name for name in _STATE_FIELDS if name not in state]
        if missing:
            raise InputError(f"the loader state lacks {', '.join(missing)}: it was not made by state_dict()")
        numbers = ("state_version", "epoch", "sample_in_epoch")
        wrong = [name for name in numbers if type(state[name]) is not int]
        if wrong:
            raise InputError(f"the loader state has {wrong[0]} {state[wrong[0]]!r}, expected an integer")
        if state["state_version"] > STATE_VERSION:
            raise InputError(
                f"the loader state has version {state['state_version']}, this reads {STATE_VERSION}: upgrade"
            )
        mine = self.state_dict()
        different = [f"{n} {state[n]!r} there, {mine[n]!r} here" for n in _STATE_FIELDS[3:] if state[n] != mine[n]]
        if strict and different:
            raise InputError(
                f"the loader state is of another run ({'; '.join(different)}): pass strict=False to take it"
            )
        epoch, position = state["epoch"], state["sample_in_epoch"]
        if not 0 <= position <= self.num_samples or epoch < 0:
            raise InputError(f"the loader state says epoch {epoch}, sample {position} of {self.num_samples}")
        if self._slice.num_steps(position) == 0:  # nothing is left of that epoch
            epoch, position = epoch + 1, 0
        self._go_to(epoch, position)
        self._resume_at = position

    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent per stage so far, over all threads; `wait` is the consumer's."""
        return self._timers.seconds()

    def close(self) -> None:
        """Stop threads and release shards; may be called twice."""
        if self._active is not None:
            self._active.close()  # type: ignore[attr-defined]
            self._active = None
        if not self._closed:
            self._closed = True
            self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _go_to(self, epoch: int, position: int) -> None:
        """Be at a place; an iteration that still runs no longer says where the consumer is."""
        self._epoch, self._position, self._epoch_delivered, self._resume_at = epoch, position, False, None
        self._walk_number += 1

    def _walk(self, epoch: int, start: int, walk_number: int) -> Iterator[Batch]:
        steps = self._slice.num_steps(start)
        order = EpochOrder(self.num_samples, self._seed, epoch, self._shuffle)
        in_flight: deque[Any] = deque()
        planned = 0
        try:
            for step in range(steps):
                begin = perf_counter()
                while planned < steps and len(in_flight) <= self._prefetch:
                    in_flight.append(self._backend.start(self._plan(order, planned, start)))
                    planned += 1
                self._timers.add("plan", perf_counter() - begin)
                begin = perf_counter()
                batch = self._backend.finish(in_flight.popleft())
                self._timers.add("wait", perf_counter() - begin)
                if walk_number == self._walk_number:
                    self._position = self._slice.position_after(step, start)
                    self._epoch_delivered = step == steps - 1
                yield batch
            if walk_number == self._walk_number:
                self._go_to(epoch + 1, 0)
        finally:
            for pending in in_flight:
                self._backend.cancel(pending)

    def _plan(self, order: EpochOrder, step: int, start: int) -> BatchPlan:
        indices = order.indices(*self._slice.positions(step, start))
        params = draw_params(
            self._augment, seed=self._seed, epoch=order.epoch, indices=indices, image_size=self._identity.image_size
        )
        return BatchPlan(indices, params, self._transform.shifts(params))
