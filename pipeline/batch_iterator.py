"""One iteration as several threads may share it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from inspect import GEN_CLOSED, GEN_RUNNING, getgeneratorstate
from typing import Self

from lmdali.pipeline.batch import Batch
from lmdali.pipeline.process_bound import ProcessBound


class BatchIterator(ProcessBound):
    """Batches of a generator, to one thread at a time: the others wait for their turn, and each batch goes to one.

    A loader may be closed by another thread than the one that iterates: a generator alone would refuse that.

    Args:
        walk: the batches. The garbage collector may end it in any thread, so its end must wait for nothing.
        alone: makes a context in which nobody else is at them.
        given_up: called when this is closed before its end.
        asked: called each time a batch was asked for, whatever came of it, before anybody else is at them.
    """

    def __init__(
        self,
        walk: Generator[Batch, None, None],
        alone: Callable[[], AbstractContextManager[object]],
        given_up: Callable[[BatchIterator], None],
        asked: Callable[[], None],
    ) -> None:
        super().__init__()
        self._walk, self._alone, self._given_up, self._asked = walk, alone, given_up, asked

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        with self._alone():
            try:
                return next(self._walk)
            finally:
                self._asked()

    @property
    def is_running(self) -> bool:
        """Whether a batch is being made; for whoever is alone, and so must be a signal handler amidst it."""
        return getgeneratorstate(self._walk) == GEN_RUNNING

    def close(self) -> None:
        """End here; asks for no more batches."""
        with self._alone():
            was_open = getgeneratorstate(self._walk) != GEN_CLOSED
            self._walk.close()
            if was_open:
                self._given_up(self)
