"""The loader itself: walks epochs, keeps batches in flight, and knows where its consumer is."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Self

from lmdali.pipeline.backend import Backend, BatchPlan
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.batch_iterator import BatchIterator
from lmdali.pipeline.batch_planner import BatchPlanner
from lmdali.pipeline.batch_queue import BatchQueue, Place
from lmdali.pipeline.block_order import order_name
from lmdali.pipeline.dataset_identity import DatasetIdentity
from lmdali.pipeline.decode_choice import Choice
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.fetch_counts import FetchCounts
from lmdali.pipeline.loader_config import LoaderConfig
from lmdali.pipeline.loader_state import LoaderState
from lmdali.pipeline.order_digest import combine
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.process_bound import ProcessBound
from lmdali.pipeline.readahead import Horizon, Readahead
from lmdali.pipeline.remote_file import FetchStopped
from lmdali.pipeline.sampler import MAX_EPOCH, RankSlice
from lmdali.pipeline.shard_windows import ShardHorizon
from lmdali.pipeline.streamed_reader import StreamedReader
from lmdali.pipeline.timing import StageTimers
from lmdali.pipeline.whole_number import whole_number


class DatasetLoader(ProcessBound):
    """One iteration is one epoch of this rank. See the `Loader` protocol for what a consumer may rely on.

    Made by `create_loader`.

    Attributes:
        backend_name: which backend delivers.
        backend_reason: why it was taken.
        order_text: the order of samples, with its parameters where it has any.
        prefetch: batches worked on ahead of the consumer.
        timers: where stages are counted, and recorded on demand.
        identity: what it knows of its dataset.
    """

    def __init__(
        self,
        config: LoaderConfig,
        backend: Backend,
        identity: DatasetIdentity,
        rank_slice: RankSlice,
        transform: PixelTransform,
        *,
        readahead: Readahead | None,
        stream: StreamedReader | None,
        timers: StageTimers,
        choice: Choice,
    ) -> None:
        super().__init__()
        self.backend_name, self.backend_reason = choice
        self.prefetch = prefetch = config.depth
        self._config, self._backend, self.identity, self._slice = config, backend, identity, rank_slice
        self.timers = timers
        self.order_text = order_name(config.order, config.block_shards, config.block_nodes, identity.records)
        # Evaluation goes back to epoch 0 each time: what it would load ahead is never asked for.
        across = config.order != "sequential" and len(self) > 0
        # Two of them: the epoch that is delivered, and the one that is begun.
        order_of = lru_cache(maxsize=2)(partial(config.order_of, identity))
        self._planner = planner = BatchPlanner(
            order_of,
            rank_slice,
            config.augment,
            transform,
            seed=config.seed,
            image_size=identity.image_size,
            across_epochs=across,
        )
        self._readahead, self._stream = readahead, stream
        ahead: list[Horizon | ShardHorizon] = []
        if stream is not None:
            weakref.finalize(self, stream.fetcher.drop).atexit = False
            ahead.append(stream.horizon(order_of, rank_slice, in_flight=prefetch + 1, across_epochs=across))
        if readahead is not None:
            ahead.append(Horizon(planner.indices, rank_slice.num_steps, across_epochs=across, readahead=readahead))

        def plan(place: Place, step: int) -> tuple[BatchPlan, int]:  # it knows no loader: that would be a circle
            for horizon in ahead:
                horizon.reach(place, step)
            return planner.plan(place, step)

        self._queue = BatchQueue(
            backend, plan, rank_slice.num_steps, prefetch=prefetch, across_epochs=across, timers=timers
        )
        self._epoch = self._position = 0
        self._epoch_delivered = False
        self._digest: int | None = 0
        self._walk_number = 0
        self._resume_at: int | None = None
        self._active: BatchIterator | None = None
        self._closed = False
        # Again and again by one thread: a signal handler may ask for the state while a batch is waited for.
        self._lock = threading.RLock()

    @property
    def num_samples(self) -> int:
        """Records that an epoch delivers, all ranks together."""
        return self.identity.num_samples

    @property
    def num_records(self) -> int:
        """Records in the dataset, whether they are delivered or not."""
        return self.identity.num_records

    @property
    def num_views(self) -> int:
        """Views per sample."""
        return self._config.augment.num_views

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names; the position is the label."""
        return self.identity.class_names

    @property
    def manifest_digest(self) -> str:
        """Identity of the dataset."""
        return self.identity.digest

    @property
    def epoch(self) -> int:
        """The epoch being delivered, or the next one."""
        return self._epoch

    @property
    def epoch_digest(self) -> int | None:
        """Digest of the batches given to this rank in the epoch that is being delivered, or was delivered last.

        0 to 2**64 - 1; see `order_digest`. The ranks' digests add up (`combine`) to that of the epoch, which
        `lmdali order --digest` prints. It begins again with the next iteration. After a resume it has the part before
        it, on rank 0 if that was of all ranks; it is None where the state does not say that part (a state of one rank
        that is loaded by more or fewer of them, see `merge_states`; a state of version 1). A state of another dataset
        or seed, taken with strict=False, counts for nothing: the digest is that of the batches since.
        """
        return self._digest

    @property
    def global_batch_size(self) -> int:
        """Samples per step over all ranks."""
        return self._slice.global_batch_size

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._slice.num_steps()

    def __iter__(self) -> Iterator[Batch]:
        """The current epoch, or what `load_state_dict` left of it, for any number of threads; no other goes on."""
        self._require_own_process()
        with self._alone():
            if self._closed:
                raise ConfigError("this loader was closed: make another with create_loader")
            before, self._active = self._active, None
            if before is not None:
                before.give_way()
            if self._epoch_delivered:
                self._go_to(self._epoch + 1, 0)
            place = Place(self._epoch, self._resume_at or 0)
            self._go_to(place.epoch, place.position)
            if place.position == 0:
                self._digest = 0
            self._queue.open(place)
            steps, walk = self._slice.num_steps(place.position), self._walk(place, self._walk_number)
            self._active = BatchIterator(steps, walk, self._alone, self._give_up, self._release_if_closed)
            return self._active

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of `epoch`; in the epoch just loaded, keep the place in it.

        Training loops call `set_epoch` at the top of every epoch, also of the one they resume.
        """
        epoch = whole_number("epoch", epoch)
        if not 0 <= epoch <= MAX_EPOCH:
            raise ConfigError(f"epoch must be in 0..{MAX_EPOCH}, found {epoch}")
        with self._alone():
            if self._resume_at is None or epoch != self._epoch:
                self._go_to(epoch, 0)
                self._queue.turn_to(Place(epoch, 0))

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is: after the last batch it was given. Prefetched batches do not count."""
        with self._alone():
            return self._state().to_json()

    def load_state_dict(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Make the next iteration continue where `state` was taken, whatever world size or batch size that was.

        Args:
            state: from `state_dict` of any rank, or of all ranks put together by `merge_states`.
            strict: refuse the state of another dataset, seed or order.

        Raises:
            InputError: not such a state, or of another dataset, seed or order.
        """
        given = LoaderState.parse(state)
        different = given.differences(self._state())
        if strict and different:
            raise InputError(
                f"the loader state is of another run ({'; '.join(different)}): go on with its settings, or take it "
                "with strict=False"
            )
        epoch, position = given.epoch, given.sample_in_epoch
        if position > self.num_samples:
            raise InputError(f"the loader state says sample {position} of {self.num_samples} in an epoch: damaged")
        if self._slice.num_steps(position) == 0:  # nothing is left of that epoch
            epoch, position = epoch + 1, 0
        with self._alone():
            self._go_to(epoch, position)
            self._resume_at = position
            self._digest = 0 if different else given.digest_for(self._slice.rank, self._slice.world_size)
            self._queue.turn_to(Place(epoch, position))

    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent per stage so far, over all threads; `wait` is the consumer's."""
        return self.timers.seconds()

    @property
    def fetch_counts(self) -> FetchCounts | None:
        """What this loader's shards cost so far; None for a dataset that is a directory."""
        return None if self._stream is None else self._stream.fetcher.counts

    def pause_fetching(self) -> None:
        """Fetch no shard ahead of its use until this is iterated again; nothing for a directory."""
        if self._stream is not None:
            self._stream.fetcher.pause()

    def close(self) -> None:
        """Stop threads and release shards: twice, by any thread or signal handler. A forked child has none to stop."""
        was_closed, self._closed = self._closed, True
        if was_closed or not self._is_own_process():
            return
        if self._stream is not None:  # or whoever waits for a shard would wait on
            self._stream.fetcher.stop()
        with self._alone():
            if self._active is None or not self._active.is_running:  # else a batch is interrupted: behind it
                self._release_if_closed()

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

    def _state(self) -> LoaderState:
        # Whoever saves a state after the last batch must find the next epoch in it, not an empty rest.
        epoch, position = (self._epoch + 1, 0) if self._epoch_delivered else (self._epoch, self._position)
        return LoaderState(
            epoch=epoch,
            sample_in_epoch=position,
            seed=self._config.seed,
            num_samples=self.num_samples,
            manifest_digest=self.manifest_digest,
            order=self.order_text,
            rank=self._slice.rank,
            world_size=self._slice.world_size,
            epoch_digest=self._digest if position else 0,
        )

    def _alone(self) -> AbstractContextManager[object]:
        """No other thread is at the queue or says where the consumer is; in a forked child there is no other."""
        return self._lock if self._is_own_process() else nullcontext()

    def _walk(self, place: Place, walk_number: int) -> Generator[Batch, None, None]:
        steps = self._slice.num_steps(place.position)
        try:
            for step in range(steps):
                self._require_own_process()
                batch, digest = self._queue.take()
                if walk_number == self._walk_number:
                    self._position = self._slice.position_after(step, place.position)
                    self._epoch_delivered = step == steps - 1
                    self._digest = None if self._digest is None else combine((self._digest, digest))
                yield batch
        except BaseException as error:
            if isinstance(error, FetchStopped) and self._closed:  # by another thread
                return
            # A garbage collector may end this in one of our threads, which must not wait for itself: see `_give_up`.
            if not isinstance(error, GeneratorExit) and self._is_own_process():
                self._queue.cancel()
            raise
        if walk_number == self._walk_number:
            self._go_to(place.epoch + 1, 0)

    def _release_if_closed(self) -> None:
        if self._closed and self._is_own_process():
            if self._active is not None:
                self._active.close()
                self._active = None
            self._queue.cancel()
            self._planner.close()
            if self._readahead is not None:  # first: it would map again what the backend lets go of
                self._readahead.close()
            self._backend.close()

    def _give_up(self, ended: BatchIterator) -> None:
        """Whoever closes an iterator wants nothing more to run; unless the next one takes what was started for it."""
        if self._active is ended and self._is_own_process():
            self._queue.cancel()
