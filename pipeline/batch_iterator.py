"""One iteration as several threads may share it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from inspect import GEN_CLOSED, GEN_RUNNING, getgeneratorstate
from typing import Self

from lmdali.pipeline.batch import Batch
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.process_bound import ProcessBound


class BatchIterator(ProcessBound):
    """Batches of a generator, to one thread at a time: the others wait for their turn, and each batch goes to one.

    A loader may be closed by another thread than the one that iterates: a generator alone would refuse that.

    Args:
        num_batches: of them.
        walk: the batches. The garbage collector may end it in any thread, so its end must wait for nothing.
        alone: makes a context in which nobody else is at them.
        given_up: called when this is closed before its end.
        asked: called each time a batch was asked for, whatever came of it, before anybody else is at them.
    """

    def __init__(
        self,
        num_batches: int,
        walk: Generator[Batch, None, None],
        alone: Callable[[], AbstractContextManager[object]],
        given_up: Callable[[BatchIterator], None],
        asked: Callable[[], None],
    ) -> None:
        super().__init__()
        self._walk, self._alone, self._given_up, self._asked = walk, alone, given_up, asked
        self._num_left, self._gave_way = num_batches, False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        with self._alone():
            if self._gave_way:
                raise ConfigError(
                    "this iteration was ended by another one of the same loader, before it was through: for two at a "
                    "time make two loaders"
                )
            try:
                batch = next(self._walk)
                self._num_left -= 1
                return batch
            finally:
                self._asked()

    @property
    def is_running(self) -> bool:
        """Whether a batch is being made; for whoever is alone, and so must be a signal handler amidst it."""
        return getgeneratorstate(self._walk) == GEN_RUNNING

    def give_way(self) -> None:
        """As `close`, for another iteration. Whoever asks for more must not take this for the end of an epoch."""
        with self._alone():
            self._gave_way |= self._num_left > 0 and getgeneratorstate(self._walk) != GEN_CLOSED
            self.close()

    def close(self) -> None:
        """End here: there are no more batches."""
        with self._alone():
            was_open = getgeneratorstate(self._walk) != GEN_CLOSED
            self._walk.close()
            if was_open:
                self._given_up(self)
