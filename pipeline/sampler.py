"""Which samples, in which order: a pure function of (seed, epoch) over the global batch, sliced by rank.

The order of an epoch is a permutation of 0..N-1 that can be evaluated at any position without a table: a Feistel
network over pairs of digits, walked again where it leaves 0..N-1 ("cycle walking", Black and Rogaway, CT-RSA 2002).
So nothing is stored, resuming costs nothing, and a billion samples cost what a thousand do.

A step takes one *global* batch: positions `start` to `start + batch_size * world_size` of the order, of which rank r
has the r-th contiguous part. World size, batch size and threads therefore decide who loads a sample, never whether or
when.

An order that gives machines shards of their own (`NodeOrder`) takes turns: with K nodes, position p is node p mod K's.
Then a global batch is dealt out node by node, and rank r has the r-th part of that: where K divides the number of
ranks, each rank's samples are all of one node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.counter_random import GOLDEN_GAMMA, Words, mix64
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.whole_number import check_fields

MAX_EPOCH = 2**32 - 1
"""Draws have one word of 32 bits for the epoch."""

_ROUNDS = 8
"""Four rounds make a Feistel network pseudo-random (Luby and Rackoff, 1988); small domains need more."""


class SampleOrder(Protocol):
    """The order of one epoch, whoever decides it: a pure function of its fields and a position."""

    @property
    def num_samples(self) -> int:
        """N, the number of records that come in an epoch, each once: all of them, or those of a list."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch this is the order of."""
        ...

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sample numbers at positions start..stop-1 of the epoch: (stop - start,) int64.

        Raises:
            ConfigError: positions outside 0..N.
        """
        ...

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample numbers at any ascending positions of the epoch: (n,) int64 for (n,) int64.

        Raises:
            ConfigError: positions outside 0..N-1.
        """
        ...


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch.

    Attributes:
        num_samples: N, the number of records.
        seed: 0 to 2**64 - 1.
        epoch: each epoch has an order of its own.
        shuffle: False gives 0, 1, ... N-1.
        once: all epochs have the order of epoch 0, as in the 2012 code: its files were shuffled when its minibatches
            were made, and these kept their members. The epoch still decides what is drawn for a sample.
    """

    num_samples: int
    seed: int
    epoch: int
    shuffle: bool
    once: bool = False

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sample numbers at positions start..stop-1 of the epoch, as `SampleOrder` says."""
        return self.at(epoch_positions(start, stop, self.num_samples))

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sample numbers at any positions of the epoch, as `SampleOrder` says."""
        require_positions(positions, self.num_samples)
        if not self.shuffle:
            return positions.copy()
        keys = round_keys(self.seed, 0 if self.once else self.epoch)
        return permute(positions.astype(np.uint64), self.num_samples, keys).astype(np.int64)


def epoch_positions(start: int, stop: int, num_samples: int) -> NDArray[np.int64]:
    """The numbers start..stop-1 as (stop - start,) int64.

    Raises:
        ConfigError: they are not positions of an epoch of `num_samples`.
    """
    if not 0 <= start <= stop <= num_samples:
        raise ConfigError(f"positions {start}..{stop} are outside an epoch of {num_samples} samples")
    return np.arange(start, stop, dtype=np.int64)


def require_positions(positions: NDArray[np.int64], num_samples: int) -> None:
    """Check that ascending numbers are positions of an epoch of `num_samples`.

    Raises:
        ConfigError: they are not.
    """
    if len(positions) and not 0 <= positions[0] <= positions[-1] < num_samples:
        raise ConfigError(
            f"positions {positions[0]}..{positions[-1]} are outside an epoch of {num_samples} samples, or do not ascend"
        )


def round_keys(*words: int) -> Words:
    """Keys of a permutation of its own for each tuple of 64-bit words, zeros in front apart: (8,) uint64."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = mix64(state + np.uint64(word))
    return mix64(np.arange(1, _ROUNDS + 1, dtype=np.uint64) * GOLDEN_GAMMA + state)


def permute(values: Words, size: int, keys: Words) -> Words:
    """Where a permutation of 0..size-1 sends some of these numbers.

    Args:
        values: (n,) uint64, each below `size`.
        size: of the permuted set.
        keys: from `round_keys`.
    """
    if size < 2:
        return values
    # Two digits in base ceil(sqrt(size)): the domain exceeds it by at most 2 sqrt(size), so few values walk again.
    base = np.uint64(math.isqrt(size - 1) + 1)
    out = _feistel(values, base, keys)
    while True:
        outside = np.flatnonzero(out >= np.uint64(size))
        if not len(outside):
            return out
        out[outside] = _feistel(out[outside], base, keys)


def _feistel(values: Words, base: np.uint64, keys: Words) -> Words:
    left, right = values // base, values % base
    for key in keys:
        left, right = right, (left + mix64(right ^ key) % base) % base
    return left * base + right


@dataclass(frozen=True)
class RankSlice:
    """How one rank walks an epoch: the step arithmetic, before any data is touched.

    Attributes:
        num_samples: N.
        batch_size: samples per rank and step.
        rank: 0 to world_size - 1.
        world_size: ranks that share each global batch.
        drop_last: leave out the last, smaller global batch (training); else it is divided as evenly as can be, and
            each of its samples is still delivered exactly once (evaluation).
        nodes: K, that of the order; 1 where it gives no machine shards of its own.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True
    nodes: int = 1

    def __post_init__(self) -> None:
        numbers = ("num_samples", "batch_size", "rank", "world_size", "nodes")
        check_fields(self, numbers=numbers, switches=("drop_last",))
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, found {self.batch_size}")
        if self.world_size < 1:
            raise ConfigError(f"world_size must be at least 1, found {self.world_size}")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank must be in 0..{self.world_size - 1} for world size {self.world_size}, found {self.rank}"
            )
        if self.drop_last and self.num_samples < self.global_batch_size:
            raise ConfigError(
                f"{self.num_samples} samples are fewer than one global batch of {self.batch_size} x {self.world_size} "
                "ranks: lower batch_size or set drop_last=False"
            )

    @property
    def global_batch_size(self) -> int:
        """Samples per step over all ranks."""
        return self.batch_size * self.world_size

    @property
    def largest_batch(self) -> int:
        """Samples that this rank has in a step at most: `batch_size`, or its share of a dataset that has fewer."""
        return max(1, min(self.batch_size, -(-self.num_samples // self.world_size)))

    def num_steps(self, start: int = 0) -> int:
        """Steps from position `start` to the end of the epoch; the same number on every rank."""
        left = self.num_samples - start
        return left // self.global_batch_size if self.drop_last else -(-left // self.global_batch_size)

    @property
    def own_nodes(self) -> tuple[int, ...]:
        """The nodes of the order whose samples this rank has, but for those of a last, smaller batch."""
        if self.global_batch_size % self.nodes:  # how many samples a node has in a batch differs from batch to batch
            return tuple(range(self.nodes))
        share = self.global_batch_size // self.nodes
        return tuple(range(self.rank * self.batch_size // share, -(-(self.rank + 1) * self.batch_size // share)))

    def positions(self, step: int, start: int = 0) -> NDArray[np.int64]:
        """This rank's positions in step `step` counted from position `start`: ascending int64, (B,) or fewer.

        There are none where a last, divided global batch has fewer samples than ranks.
        """
        first = start + step * self.global_batch_size
        size = min(self.global_batch_size, self.num_samples - first)
        share, extra = divmod(size, self.world_size)
        low = self.rank * share + min(self.rank, extra)
        dealt = np.arange(low, low + share + (self.rank < extra), dtype=np.int64)
        if self.nodes == 1:
            return first + dealt
        offsets, ends = _turns(np.array([first]), np.array([size]), self.nodes)
        nodes = np.searchsorted(ends[0], dealt, side="right")
        begins = np.append(0, ends[0, :-1])
        return np.sort(first + offsets[0, nodes] + self.nodes * (dealt - begins[nodes]))

    def position_after(self, step: int, start: int = 0) -> int:
        """Position in the epoch once all ranks have finished step `step`."""
        return min(self.num_samples, start + (step + 1) * self.global_batch_size)

    def owners(self, first: int, stop: int, start: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Who loads positions first..stop-1, and when: the inverse of `positions`, for all ranks at once.

        Args:
            first: at least `start`.
            stop: at most N.
            start: position that steps are counted from.

        Returns:
            (stop - first,) int64 steps and (stop - first,) int64 ranks. With `drop_last`, the samples that are left
            out have a step, the one after the last, and no rank: -1.

        Raises:
            ConfigError: positions outside start..N.
        """
        if not 0 <= start <= first <= stop <= self.num_samples:
            raise ConfigError(f"positions {first}..{stop} are not within {start}..{self.num_samples}")
        steps, places = np.divmod(np.arange(first - start, stop - start, dtype=np.int64), self.global_batch_size)
        if self.nodes > 1 and len(steps):
            places = self._dealt(steps, places, start)
        ranks = places // self.batch_size
        whole, left = divmod(self.num_samples - start, self.global_batch_size)
        if left:
            share, extra = divmod(left, self.world_size)
            larger = extra * (share + 1)  # samples of the first `extra` ranks, which have one more
            rest = np.where(places < larger, places // (share + 1), extra + (places - larger) // max(share, 1))
            ranks = np.where(steps < whole, ranks, -1 if self.drop_last else rest)
        return steps, ranks

    def _dealt(self, steps: NDArray[np.int64], places: NDArray[np.int64], start: int) -> NDArray[np.int64]:
        """Where samples stand in their global batches once those are dealt out node by node."""
        batches = np.arange(steps[0], steps[-1] + 1)
        firsts = start + batches * self.global_batch_size
        offsets, ends = _turns(firsts, np.minimum(self.global_batch_size, self.num_samples - firsts), self.nodes)
        rows = steps - steps[0]
        nodes = (firsts[rows] + places) % self.nodes
        begins = np.where(nodes > 0, ends[rows, nodes - 1], 0)
        return np.asarray(begins + (places - offsets[rows, nodes]) // self.nodes, np.int64)


def _turns(
    firsts: NDArray[np.int64], sizes: NDArray[np.int64], nodes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of global batches, how far into each a node's first turn comes, and how many samples it and those before have.

    Args:
        firsts: (batches,) position where each begins.
        sizes: (batches,) samples of each.
        nodes: K.

    Returns:
        Two of (batches, K) int64.
    """
    offsets = (np.arange(nodes, dtype=np.int64) - firsts[:, None]) % nodes
    counts = np.maximum(0, -(-(sizes[:, None] - offsets) // nodes))
    return offsets, np.cumsum(counts, axis=1)
