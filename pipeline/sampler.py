"""Which samples, in which order: a pure function of (seed, epoch) over the global batch, sliced by rank.

The order of an epoch is a permutation of 0..N-1 that can be evaluated at any position without a table: a Feistel
network over pairs of digits, walked again where it leaves 0..N-1 ("cycle walking", Black and Rogaway, CT-RSA 2002).
So nothing is stored, resuming costs nothing, and a billion samples cost what a thousand do.

A step takes one *global* batch: positions `start` to `start + batch_size * world_size` of the order, of which rank r
has the r-th contiguous part. World size, batch size and threads therefore decide who loads a sample, never whether or
when.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.counter_random import Words, mix64
from lmdali.pipeline.errors import ConfigError

_ROUNDS = 8
"""Four rounds make a Feistel network pseudo-random (Luby and Rackoff, 1988); small domains need more."""


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch.

    Attributes:
        num_samples: N, the number of records.
        seed: 0 to 2**64 - 1.
        epoch: each epoch has an order of its own.
        shuffle: False gives 0, 1, ... N-1.
    """

    num_samples: int
    seed: int
    epoch: int
    shuffle: bool

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sample numbers at positions start..stop-1 of the epoch: (stop - start,) int64."""
        if not 0 <= start <= stop <= self.num_samples:
            raise ConfigError(f"positions {start}..{stop} are outside an epoch of {self.num_samples} samples")
        positions = np.arange(start, stop, dtype=np.uint64)
        if self.shuffle and self.num_samples > 1:
            positions = self._permute(positions)
        return positions.astype(np.int64)

    def _permute(self, positions: Words) -> Words:
        # Two digits in base ceil(sqrt(N)): the domain exceeds N by at most 2 sqrt(N), so few positions walk again.
        base = np.uint64(math.isqrt(self.num_samples - 1) + 1)
        keys = mix64(
            np.arange(1, _ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            + mix64(mix64(np.array([self.seed], dtype=np.uint64)) + np.uint64(self.epoch))
        )
        out = _feistel(positions, base, keys)
        while True:
            outside = np.flatnonzero(out >= np.uint64(self.num_samples))
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
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, found {self.batch_size}")
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

    def num_steps(self, start: int = 0) -> int:
        """Steps from position `start` to the end of the epoch; the same number on every rank."""
        left = self.num_samples - start
        return left // self.global_batch_size if self.drop_last else -(-left // self.global_batch_size)

    def positions(self, step: int, start: int = 0) -> tuple[int, int]:
        """This rank's positions (first, past the last) in step `step` counted from position `start`.

        The range is empty where a last, divided global batch has fewer samples than ranks.
        """
        first = start + step * self.global_batch_size
        size = min(self.global_batch_size, self.num_samples - first)
        share, extra = divmod(size, self.world_size)
        low = first + self.rank * share + min(self.rank, extra)
        return low, low + share + (self.rank < extra)

    def position_after(self, step: int, start: int = 0) -> int:
        """Position in the epoch once all ranks have finished step `step`."""
        return min(self.num_samples, start + (step + 1) * self.global_batch_size)
