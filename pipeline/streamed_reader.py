"""Random access to the records of a remote dataset: a `ShardReader` whose shards come and go.

A shard is mapped when it is first needed after it came into the cache, and its place is given back when nobody uses it
and it is not on the list of those to keep. Who uses it: every `Located` that reaches into it, and every array that was
cut out of that one, for as long as it lives.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  # what it has to do at the end of a program comes behind ours: see below
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import StorageError
from lmdali.pipeline.manifest import Manifest, ShardInfo
from lmdali.pipeline.sampler import RankSlice, SampleOrder
from lmdali.pipeline.shard_cache import ShardCache
from lmdali.pipeline.shard_fetch import DEFAULT_FETCHES, Fetch, ShardFetcher
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.shard_reader import Located, ShardReader
from lmdali.pipeline.shard_windows import ShardHorizon


class StreamedReader(ShardReader):
    """Records by number, from shards that are fetched into a cache. Thread-safe.

    Args:
        directory: where the dataset's small files are.
        manifest: of the dataset.
        cache: where shards go.
        fetch: how they come.
        interrupt: ends what `fetch` waits for.
        num_threads: shards fetched at once.

    Attributes:
        cache: as given.
        fetcher: what holds the shards.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        cache: ShardCache,
        fetch: Fetch,
        *,
        interrupt: Callable[[], object],
        num_threads: int = DEFAULT_FETCHES,
    ) -> None:
        super().__init__(directory, manifest)
        self.cache = cache
        self._by_name = {info.name: info for info in manifest.shards}
        self.fetcher = ShardFetcher(
            manifest.shards, cache, fetch, interrupt=interrupt, let_go=self._unmap, num_threads=num_threads
        )
        _streams.add(self)

    def check_files(self) -> None:
        """Nothing: each shard is checked when it comes, and when it is mapped."""

    def data_file(self, name: str) -> Path:
        """Path of a shard's LMDB file in the cache, where it may not be."""
        return self.cache.shard_directory(self._by_name[name]) / DATA_FILE

    def locate(self, indices: NDArray[np.int64]) -> Located:
        """Where the values of (n,) records lie; waits until their shards are here.

        Raises:
            IndexError: there is no such record.
            RemoteError: a shard cannot be had.
            ShardError: a shard is damaged.
            StorageError: the disk refuses, or the cache has no room.
        """
        give_back = self.fetcher.use(np.unique(self.index.shards_of(indices)).tolist())
        try:
            located = super().locate(indices)
            # An array of its own: what is cut out of it holds it, and not the one of all of us.
            view = np.frombuffer(located.bytes.data, np.uint8)
        except BaseException:
            give_back()
            raise
        weakref.finalize(view, give_back).atexit = False
        return Located(view, located.starts, located.stops)

    def keep(self, indices: NDArray[np.int64]) -> None:
        """Have the shards of (n,) records at hand, and no others but those in use, until told otherwise."""
        self.fetcher.keep(np.unique(self.index.shards_of(indices)).tolist())

    def is_far(self, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) bool, the records whose shards are not here now."""
        shards = self.index.shards_of(indices)
        far = [number for number in np.unique(shards).tolist() if not self.fetcher.is_ready(number)]
        return np.isin(shards, far)

    def describe(self, index: int, problem: str) -> str:
        """An error message for a record that is damaged in the cache; its shard is removed, to be fetched anew."""
        text = super().describe(index, problem)
        info = self.manifest.shards[self.index.locate(index)[0]]
        try:
            self.cache.discard(info)
        except StorageError as error:
            return f"{text}, and remove the shard from the cache ({error})"
        return (
            f"{text.rpartition(';')[0]}; the shard was whole when it came and was damaged in the cache: it is removed, "
            "and the next run fetches it again"
        )

    def horizon(
        self,
        order_of: Callable[[int], SampleOrder],
        rank_slice: RankSlice,
        *,
        in_flight: int,
        across_epochs: bool,
    ) -> ShardHorizon:
        """What tells this reader which shards to have at hand; see there."""
        return ShardHorizon(
            order_of,
            self.index,
            rank_slice,
            file_bytes=[info.file_bytes for info in self.manifest.shards],
            room_bytes=lambda: self.cache.limit_bytes,
            in_flight=in_flight,
            across_epochs=across_epochs,
            keep=self.fetcher.keep,
        )

    def give_up_waiting(self) -> None:
        """Whoever waits for a shard now gets `FetchStopped`; it is fetched all the same."""
        self.fetcher.give_up_waiting()

    def close(self) -> None:
        """Let go of the shards, and end the threads; memory that somebody still looks at stays mapped."""
        self.fetcher.close()
        super().close()

    def _on_damage(self, info: ShardInfo) -> str:
        self.cache.discard(info)
        return "the shard was whole when it came: it is removed, and the next run fetches it again"

    def _unmap(self, number: int) -> None:
        with self._lock:
            mapping = self._mapping
            if mapping is not None and mapping.is_mapped[number]:
                mapping.is_mapped[number] = False
                mapping.files.unmap(number)

    def _renew_lock(self) -> None:
        super()._renew_lock()
        self._mapping = None
        self.cache.renew()
        self.fetcher.renew()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a reader of a remote dataset cannot be sent to another process: open the dataset there")


_streams: weakref.WeakSet[StreamedReader] = weakref.WeakSet()


def _stop_fetching() -> None:
    """The program ends, with a loader that nobody has closed: nobody in it shall wait for a shard any more."""
    for reader in list(_streams):
        reader.fetcher.stop()


# A pool's threads are joined before atexit's functions are called: those that wait for a server would be waited for.
# What the pools themselves use has no public name; its functions are called in reverse order.
getattr(threading, "_register_atexit", atexit.register)(_stop_fetching)
