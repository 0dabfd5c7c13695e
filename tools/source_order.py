"""In which order the images of a source go into the shards: spread over them, so that no shard is one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.sampler import EpochOrder
from lmdali.tools.source_entries import Scan


class PlanOrder(Protocol):
    """A permutation of the entries of a source."""

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """(stop - start,) int64: entry numbers at positions start..stop-1 of the plan."""
        ...


@dataclass(frozen=True)
class BlockwiseOrder:
    """Blocks in a permuted order, each read from its beginning to its end.

    A row group of a Parquet file has to be decompressed from its start for any of its rows, so a full permutation would
    read each group once for every image in it. Shards hold whole groups from everywhere instead.

    Attributes:
        blocks: entries of each block, in the source's order; a block may be empty.
        seed: of the permutation.
    """

    blocks: Sequence[int]
    seed: int

    @cached_property
    def _layout(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each block in the order of the plan: its first entry, and the plan position where it begins."""
        sizes = np.asarray(self.blocks, np.int64)
        visited = EpochOrder(len(sizes), self.seed, 0, shuffle=True).indices(0, len(sizes))
        return (np.cumsum(sizes) - sizes)[visited], np.cumsum(sizes[visited]) - sizes[visited]

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """(stop - start,) int64: entry numbers at positions start..stop-1 of the plan."""
        firsts, begins = self._layout
        positions = np.arange(start, stop, dtype=np.int64)
        # Of blocks that begin at one position all but the last are empty, and "right" finds the last.
        block = np.searchsorted(begins, positions, side="right") - 1
        return np.asarray(firsts[block] + positions - begins[block], np.int64)


def plan_order(scan: Scan, seed: int) -> PlanOrder:
    """The order of a source's entries in the plan of its conversion; part of the format (docs/format.md)."""
    if scan.blocks is None:
        return EpochOrder(len(scan.entries), seed, 0, shuffle=True)
    return BlockwiseOrder(scan.blocks, seed)
