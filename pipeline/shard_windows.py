"""When an epoch needs which shards: windows of its order, and the list of shards to have at hand at each batch.

A window is a stretch of positions whose samples come from anywhere in its shards: a block of the block order, a shard
of the sequential order, the whole epoch of a full permutation. Where an order gives machines shards of their own, it
is about the samples of some of its nodes only. What lies behind the place where an epoch is resumed is looked at sample
by sample, so that no shard is fetched of which nothing is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.batch_queue import Place
from lmdali.pipeline.block_order import BlockOrder, NodeOrder
from lmdali.pipeline.manifest import RecordIndex, ShardInfo
from lmdali.pipeline.record_list import ListedOrder
from lmdali.pipeline.sampler import EpochOrder, RankSlice, SampleOrder

_POSITIONS_AT_ONCE = 65_536
_MAX_WINDOWS_AHEAD = 64


class ShardWindow(NamedTuple):
    """A stretch of an epoch.

    Attributes:
        stop: the position behind it.
        shards: numbers of those it needs, in the order of their first use.
    """

    stop: int
    shards: tuple[int, ...]


def shard_windows(
    order: SampleOrder, index: RecordIndex, start: int, stop: int, nodes: Sequence[int] = (0,)
) -> Iterator[ShardWindow]:
    """The windows of positions start..stop-1 of an epoch; of a `NodeOrder`, those of the samples of some nodes."""
    bounds = _bounds(order, index, nodes)
    inside = bounds[(bounds > start) & (bounds < stop)].tolist()
    for begin, end in zip([start, *inside], [*inside, stop], strict=True):
        if begin < end:
            yield ShardWindow(end, _shards_between(order, index, begin, end, nodes))


def needed_bytes(
    order: SampleOrder,
    shards: Sequence[ShardInfo],
    block_shards: int,
    samples_in_flight: int,
    nodes: Sequence[int] = (0,),
) -> int:
    """Room that an order needs: that of all windows of an epoch which the batches in flight may reach into at once.

    Where one epoch ends and the next begins it may be one window more: the last one of an epoch may be a small one, and
    with `drop_last` of one sample. With less room than that, a few batches there wait for shards.

    Args:
        order: of any epoch.
        shards: of the dataset.
        block_shards: in a block of the block order.
        samples_in_flight: of all ranks.
        nodes: of a `NodeOrder`, those whose samples are wanted.
    """
    if isinstance(order, ListedOrder):
        listed = np.searchsorted(np.cumsum([info.num_records for info in shards]), order.records.numbers, "right")
        numbers, counts = np.unique(listed, return_counts=True)
        pieces = [
            (count, shards[number].file_bytes) for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
        ]
        return _window_bytes(pieces, 1 if _is_in_turn(order, listed) else len(pieces), samples_in_flight)
    if isinstance(order, EpochOrder) and order.shuffle:
        return sum(info.file_bytes for info in shards)
    window_shards = 1 if isinstance(order, EpochOrder) else block_shards
    if not isinstance(order, NodeOrder):
        pieces = [(info.num_records, info.file_bytes) for info in shards]
        return _window_bytes(pieces, window_shards, samples_in_flight)
    ends = np.cumsum([info.num_records for info in shards])
    # A block counts until the turn of the next one comes, up to nodes - 1 positions behind its last sample.
    in_turn = -(-(samples_in_flight + order.nodes - 1) // order.nodes)
    total = 0
    for node in nodes:
        cut = np.diff(np.clip(np.append(0, ends), order.first_records[node], order.first_records[node + 1])).tolist()
        pieces = [(count, info.file_bytes) for count, info in zip(cut, shards, strict=True) if count]
        total += _window_bytes(pieces, window_shards, in_turn)
    return min(total, sum(info.file_bytes for info in shards))


def _window_bytes(pieces: Sequence[tuple[int, int]], window_shards: int, samples_in_flight: int) -> int:
    """The largest bytes of as many windows as so many samples may lie in; of each shard its samples and bytes."""
    # Only the last window of an epoch may have fewer shards, and none of the same epoch comes behind it.
    smallest = np.cumsum(sorted(count for count, _ in pieces if count))
    ahead = int(np.searchsorted(smallest, samples_in_flight - 1)) + 1 if samples_in_flight > 1 else 0
    num_windows = 1 + -(-ahead // window_shards)
    return sum(sorted((size for _, size in pieces), reverse=True)[: num_windows * window_shards])


def _bounds(order: SampleOrder, index: RecordIndex, nodes: Sequence[int]) -> NDArray[np.int64]:
    if isinstance(order, BlockOrder):
        return order.block_bounds
    if isinstance(order, NodeOrder):
        return order.bounds(nodes)
    if isinstance(order, EpochOrder) and not order.shuffle:
        return np.unique(index.first_records)
    if isinstance(order, ListedOrder) and _is_in_turn(order, shards := index.shards_of(order.records.numbers)):
        return np.flatnonzero(np.diff(shards)) + 1
    return np.array([0, order.num_samples])


def _is_in_turn(order: ListedOrder, shards: NDArray[np.int64]) -> bool:
    """Whether a list, whose records are in these shards, goes through one after the other and never back to one."""
    return not order.order.shuffle and bool((np.diff(shards) >= 0).all())


def _shards_between(
    order: SampleOrder, index: RecordIndex, begin: int, end: int, nodes: Sequence[int]
) -> tuple[int, ...]:
    found: dict[int, None] = {}
    num_shards = int((np.diff(index.first_records) > 0).sum())
    for first in range(begin, end, _POSITIONS_AT_ONCE):
        positions = np.arange(first, min(first + _POSITIONS_AT_ONCE, end), dtype=np.int64)
        if isinstance(order, NodeOrder):
            positions = positions[np.isin(positions % order.nodes, nodes)]
        shards = index.shards_of(order.at(positions))
        numbers, uses = np.unique(shards, return_index=True)
        found.update(dict.fromkeys(numbers[np.argsort(uses)].tolist()))
        if len(found) == num_shards:
            break
    return tuple(found)


class ShardHorizon:
    """Tells which shards to have at hand, as the loader goes from batch to batch.

    Those of all ranks: one cache serves every rank of a machine, and a window's samples are dealt out to all of them.
    With a `NodeOrder` those of the rank's own nodes, which are those of the other ranks of its machine too.

    Args:
        order_of: epoch to its order.
        index: of the dataset.
        rank_slice: how positions become batches.
        file_bytes: size of each shard.
        room_bytes: how much of them may be at hand; asked anew each time.
        in_flight: batches behind the one that is planned which may not be finished.
        across_epochs: the next epoch follows.
        keep: told the shards, in the order of their need, whenever they change.
    """

    def __init__(
        self,
        order_of: Callable[[int], SampleOrder],
        index: RecordIndex,
        rank_slice: RankSlice,
        *,
        file_bytes: list[int],
        room_bytes: Callable[[], int],
        in_flight: int,
        across_epochs: bool,
        keep: Callable[[list[int]], None],
    ) -> None:
        self._order_of, self._index, self._slice = order_of, index, rank_slice
        self._file_bytes, self._room_bytes, self._keep = file_bytes, room_bytes, keep
        self._across = across_epochs
        self._recent: deque[tuple[int, int]] = deque(maxlen=in_flight + 1)
        self._expected: tuple[int, int] | None = None
        self._windows: deque[tuple[int, ShardWindow]] = deque()
        self._more: Iterator[tuple[int, ShardWindow]] = iter(())

    def reach(self, place: Place, step: int) -> None:
        """The loader plans this batch. One that does not follow the last one starts anew."""
        size = self._slice.global_batch_size
        at = (place.epoch, place.position + step * size)
        begins = at != self._expected
        if begins:
            self._recent.clear()
            self._windows.clear()
            self._more = self._walk(*at)
        turns = begins or at[0] != self._recent[-1][0]
        self._recent.append(at)
        self._expected = (at[0], at[1] + size) if self._slice.num_steps(at[1] + size) > 0 else (at[0] + 1, 0)
        while self._windows and (self._windows[0][0], self._windows[0][1].stop - 1) < self._recent[0]:
            self._windows.popleft()
            turns = True
        # With small windows the first batches in flight may reach behind all that were listed.
        end = (at[0], self._slice.position_after(0, at[1]))
        listed = self._windows and (self._windows[-1][0], self._windows[-1][1].stop) >= end
        if turns or not listed:
            self._keep(self._at_hand())

    def _at_hand(self) -> list[int]:
        """The shards of the windows from here on, as many as there is room for."""
        found: dict[int, None] = {}
        room, used = self._room_bytes(), 0
        newest, ahead = self._recent[-1], 0
        for number in count():
            if number and (self._windows[number - 1][0], self._windows[number - 1][1].stop) > newest:
                ahead += 1  # windows that batches in flight reach into do not count, however many they are
                if ahead == _MAX_WINDOWS_AHEAD:
                    break
            if number == len(self._windows):
                following = next(self._more, None)
                if following is None:
                    break
                self._windows.append(following)
            epoch, window = self._windows[number]
            if epoch > newest[0] + 1:
                break
            for shard in window.shards:
                if shard not in found:
                    used += self._file_bytes[shard]
                    if used > room and number > 0:
                        return list(found)
                    found[shard] = None
        return list(found)

    def _walk(self, epoch: int, position: int) -> Iterator[tuple[int, ShardWindow]]:
        while True:
            steps = self._slice.num_steps(position)
            end = self._slice.position_after(steps - 1, position) if steps else position
            for window in shard_windows(self._order_of(epoch), self._index, position, end, self._slice.own_nodes):
                yield epoch, window
            if not self._across:
                return
            epoch, position = epoch + 1, 0
