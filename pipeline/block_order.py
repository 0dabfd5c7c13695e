"""Orders by name, and the one for shards that must be read one after the other: shuffled in blocks of whole shards.

A full permutation asks for records from everywhere at once, which a disk, a network or a cache smaller than the dataset
may not be able to give. The block order visits shards in an order of their own each epoch, opens a few at a time, and
permutes the samples of those fully. Within a block every shard is read to its end, and never again in that epoch.

With several machines, `NodeOrder` gives each a part of the records, in a block order of its own.

How much worse such an order mixes than a full permutation is measured by `lmdali.pipeline.shuffle_quality`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.record_list import ListedOrder, RecordList
from lmdali.pipeline.sampler import EpochOrder, SampleOrder, epoch_positions, permute, require_positions, round_keys

OrderName = Literal["shuffled", "shuffled_once", "sequential", "block"]
ORDERS: tuple[OrderName, ...] = get_args(OrderName)
DEFAULT_BLOCK_SHARDS = 8
"""Shards of 256 MB: 2 GB in flight."""

_BLOCK_KEYS = 1 << 63
"""Far from all epochs: no permutation in here has the keys of an `EpochOrder`, not even with seed 0."""


class _Layout(NamedTuple):
    """An epoch's shards in the order of their visit.

    Attributes:
        stored: (shards,) int64, number of the first sample of each.
        visited: (shards,) int64, position in the epoch where each begins.
        blocks: (blocks + 1,) int64, position where each block begins, and N.
    """

    stored: NDArray[np.int64]
    visited: NDArray[np.int64]
    blocks: NDArray[np.int64]


@dataclass(frozen=True)
class BlockOrder:
    """The order of one epoch in blocks of whole shards.

    Attributes:
        shard_sizes: samples of each shard, in storage order; a shard may be empty.
        seed: 0 to 2**64 - 1.
        epoch: each epoch visits shards, and the samples of a block, in an order of its own.
        block_shards: shards in a block; the last block has what is left.
        stream: orders of one epoch with different numbers have nothing to do with each other.
    """

    shard_sizes: Sequence[int]
    seed: int
    epoch: int
    block_shards: int
    stream: int = 0

    def __post_init__(self) -> None:
        if self.block_shards < 1:
            raise ConfigError(f"block_shards must be at least 1, found {self.block_shards}")
        if min(self.shard_sizes, default=0) < 0:
            raise ConfigError(f"a shard has {min(self.shard_sizes)} samples, expected 0 or more")

    @cached_property
    def num_samples(self) -> int:
        """N, the samples of all shards."""
        return sum(self.shard_sizes)

    @cached_property
    def _layout(self) -> _Layout:
        sizes = np.asarray(self.shard_sizes, np.int64).reshape(-1)
        visit = permute(np.arange(len(sizes), dtype=np.uint64), len(sizes), self._keys(0)).astype(np.int64)
        ends = np.cumsum(sizes[visit])
        visited = ends - sizes[visit]
        return _Layout(
            (np.cumsum(sizes) - sizes)[visit],
            visited,
            np.append(visited[:: self.block_shards], self.num_samples),
        )

    def _keys(self, use: int) -> NDArray[np.uint64]:
        """Keys for the visit of shards (0) or for the inside of block use - 1."""
        words = (self.seed, self.epoch, _BLOCK_KEYS + use)
        return round_keys(*words, self.stream) if self.stream else round_keys(*words)

    @property
    def block_bounds(self) -> NDArray[np.int64]:
        """(blocks + 1,) int64, position where each block begins, and N."""
        return self._layout.blocks

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sample numbers at positions start..stop-1 of the epoch, as `SampleOrder` says."""
        return self.at(epoch_positions(start, stop, self.num_samples))

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample numbers at any ascending positions of the epoch, as `SampleOrder` says."""
        require_positions(positions, self.num_samples)
        layout, visited = self._layout, positions.copy()
        # "right" passes over blocks of empty shards, which begin where the next one does.
        blocks = np.searchsorted(layout.blocks, positions, side="right") - 1
        for block in np.unique(blocks).tolist():
            begin, end = int(layout.blocks[block]), int(layout.blocks[block + 1])
            part = slice(*np.searchsorted(blocks, [block, block + 1]))
            inside = (positions[part] - begin).astype(np.uint64)
            visited[part] = permute(inside, end - begin, self._keys(block + 1)).astype(np.int64) + begin
        # Of shards that begin at one position all but the last are empty, and "right" finds the last.
        shards = np.searchsorted(layout.visited, visited, side="right") - 1
        return np.asarray(layout.stored[shards] + visited - layout.visited[shards], np.int64)


@dataclass(frozen=True)
class NodeOrder:
    """The order of one epoch for machines that each read their own part of the records, in blocks of whole shards.

    Node k of K has a K-th of the records, one stretch of them in storage order, in every epoch the same: a machine
    needs the same shards again and again, and no other machine needs them, but for one at each end of a stretch. Within
    its stretch a node has a block order of its own. The epoch takes turns: position p is node p mod K's. So each global
    batch has equally many samples of each node, and K, not the number of machines, decides the order.

    Attributes:
        shard_sizes: samples of each shard, in storage order; a shard may be empty.
        seed: 0 to 2**64 - 1.
        epoch: each epoch has other blocks, and other orders in them.
        block_shards: shards in a block of one node.
        nodes: K.
    """

    shard_sizes: Sequence[int]
    seed: int
    epoch: int
    block_shards: int
    nodes: int

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ConfigError(f"block_nodes must be at least 1, found {self.nodes}")

    @cached_property
    def num_samples(self) -> int:
        """N, the samples of all shards."""
        return sum(self.shard_sizes)

    @cached_property
    def first_records(self) -> NDArray[np.int64]:
        """(K + 1,) int64, number of the first record of each node, and N."""
        counts = -(-(self.num_samples - np.arange(self.nodes, dtype=np.int64)) // self.nodes)
        return np.append(0, np.cumsum(np.maximum(0, counts)))

    @cached_property
    def streams(self) -> tuple[BlockOrder, ...]:
        """Each node's own order, of records counted from its first one."""
        ends = np.cumsum(np.asarray(self.shard_sizes, np.int64).reshape(-1))
        bounds = np.append(0, ends)
        streams = []
        for node, (low, high) in enumerate(zip(self.first_records[:-1], self.first_records[1:], strict=True)):
            sizes = np.diff(np.clip(bounds, low, high))
            pieces = tuple(sizes[sizes > 0].tolist())
            streams.append(BlockOrder(pieces, self.seed, self.epoch, self.block_shards, stream=node + 1))
        return tuple(streams)

    def bounds(self, nodes: Sequence[int]) -> NDArray[np.int64]:
        """Positions in the epoch where a block of any of some nodes begins, ascending, and N."""
        turns = [self.streams[node].block_bounds[:-1] * self.nodes + node for node in nodes]
        return np.unique(np.concatenate([*turns, [self.num_samples]]))

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sample numbers at positions start..stop-1 of the epoch, as `SampleOrder` says."""
        return self.at(epoch_positions(start, stop, self.num_samples))

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample numbers at any ascending positions of the epoch, as `SampleOrder` says."""
        require_positions(positions, self.num_samples)
        turns, nodes = np.divmod(positions, self.nodes)
        found = np.empty(len(positions), np.int64)
        for node in np.unique(nodes).tolist():
            mine = nodes == node
            found[mine] = self.first_records[node] + self.streams[node].at(turns[mine])
        return found


def drops_last(drop_last: bool | None, order: OrderName) -> bool:
    """`drop_last` with its default filled in: yes, unless the order is sequential, which is for evaluation."""
    return order != "sequential" if drop_last is None else drop_last


def order_nodes(order: OrderName, block_nodes: int) -> int:
    """Nodes that take turns in an order: those asked for in the block order, one in any other."""
    return block_nodes if order == "block" else 1


def order_name(order: OrderName, block_shards: int, block_nodes: int, records: RecordList | None = None) -> str:
    """An order with its parameters, where it has any, as states and people are told it: block:SHARDS[:NODES], or
    ORDER:records:DIGEST of a list of records."""
    if order != "block":
        return order if records is None else f"{order}:records:{records.digest}"
    return f"block:{block_shards}" + (f":{block_nodes}" if block_nodes > 1 else "")


def require_listable(order: OrderName, records: object) -> None:
    """Refuse a list of records, where there is one, in the block order.

    Raises:
        ConfigError: it would leave holes in shards that are read as a whole.
    """
    if order == "block" and records is not None:
        raise ConfigError('the block order goes through whole shards: with records use order "shuffled"')


def create_order(
    name: OrderName,
    *,
    num_samples: int,
    seed: int,
    epoch: int,
    shard_sizes: Sequence[int] = (),
    block_shards: int = DEFAULT_BLOCK_SHARDS,
    block_nodes: int = 1,
    records: RecordList | None = None,
) -> SampleOrder:
    """The order of one epoch.

    Args:
        name: "shuffled" is a full permutation, "shuffled_once" that of epoch 0 in every epoch, "sequential" storage
            order, "block" a `BlockOrder`, or with several nodes a `NodeOrder`.
        num_samples: N, of the records that are delivered.
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.
        shard_sizes: samples of each shard, in storage order; only the block order asks.
        block_shards: shards in a block; only the block order asks.
        block_nodes: machines that have shards of their own; only the block order asks.
        records: those that are delivered, in another order than "block"; None means all.

    Raises:
        ConfigError: an unknown name, a list of records in the block order, or shards that do not hold `num_samples`.
    """
    if name not in ORDERS:
        raise ConfigError(f"order must be one of {', '.join(ORDERS)}; found {name!r}")
    if name != "block":
        order_of_all = EpochOrder(num_samples, seed, epoch, name != "sequential", once=name == "shuffled_once")
        return order_of_all if records is None else ListedOrder(order_of_all, records)
    require_listable(name, records)
    order: BlockOrder | NodeOrder = BlockOrder(shard_sizes, seed, epoch, block_shards)
    if block_nodes != 1:
        order = NodeOrder(shard_sizes, seed, epoch, block_shards, block_nodes)
    if order.num_samples != num_samples:
        raise ConfigError(f"{len(shard_sizes)} shards hold {order.num_samples} samples, the dataset {num_samples}")
    return order
