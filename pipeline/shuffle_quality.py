"""How well an order mixes what was stored together, beside what a uniformly random permutation does on average.

Four measures, each with an exact expectation. Displacement and rank correlation say whether samples leave their place
in storage; the other two, whether neighbours in storage (which share a shard, and were perhaps collected together) meet
in a batch. A block order does well by the first two and shows what it costs in the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.sampler import SampleOrder

_CHUNK = 8192
"""Positions evaluated together: their intermediate results fit a core's cache."""


@dataclass(frozen=True)
class ShuffleQuality:
    """Measures of one order, or their expectations.

    Attributes:
        displacement: mean distance between a sample's position in the epoch and in storage, as a share of N. 0 where
            nothing moved, 1/3 ideally.
        rank_correlation: Spearman's, of position in the epoch and in storage. 1 where nothing moved, 0 ideally.
        same_shard_pairs: share of the pairs at adjacent positions whose samples lie in one shard.
        shards_per_window: mean number of distinct shards among the samples of a window, such as a batch.
    """

    displacement: float
    rank_correlation: float
    same_shard_pairs: float
    shards_per_window: float


MEASURES = tuple(field.name for field in fields(ShuffleQuality))


def shuffle_quality(order: SampleOrder, shard_sizes: Sequence[int], window: int) -> ShuffleQuality:
    """Measure an epoch, every position of it.

    Args:
        order: of the epoch.
        shard_sizes: samples of each shard, in storage order.
        window: samples that are seen together, usually the global batch. Windows follow each other from the start of
            the epoch; what is left at its end counts only where it is all there is.

    Raises:
        ConfigError: no samples, a window of less than one, or shards that do not hold the order's samples.
    """
    sizes = _checked(shard_sizes, order.num_samples, window)
    count = order.num_samples
    window = min(window, count)
    ends = np.cumsum(sizes)
    moved, squares, same, distinct = 0, 0.0, 0, 0
    last_shard = -1
    for start, samples in _chunks(order, window):
        shards = np.searchsorted(ends, samples, side="right")
        gaps = samples - np.arange(start, start + len(samples))
        moved += int(np.abs(gaps).sum())
        squares += float(np.square(gaps, dtype=np.float64).sum())
        same += int((shards[1:] == shards[:-1]).sum()) + int(shards[0] == last_shard)
        last_shard = int(shards[-1])
        windows = np.sort(shards[: len(shards) // window * window].reshape(-1, window), axis=1)
        distinct += len(windows) + int((windows[:, 1:] != windows[:, :-1]).sum())
    return ShuffleQuality(
        displacement=moved / count**2,
        rank_correlation=1 - 6 * squares / (count * (count**2 - 1)) if count > 1 else 0.0,
        same_shard_pairs=same / (count - 1) if count > 1 else 0.0,
        shards_per_window=distinct / (count // window),
    )


def ideal_quality(shard_sizes: Sequence[int], window: int) -> ShuffleQuality:
    """Exact expectations for a permutation drawn uniformly from all.

    A sample's two positions are independent then, so their mean distance is (N**2 - 1) / 3N and their correlation 0; a
    pair of positions holds any pair of samples; and a window is a draw without replacement, which misses a shard of n
    samples with the probability C(N - n, W) / C(N, W).

    Raises:
        ConfigError: no samples, or a window of less than one.
    """
    sizes = _checked(shard_sizes, sum(shard_sizes), window)
    count = int(sizes.sum())
    window = min(window, count)
    pairs = sum(size * (size - 1) for size in sizes.tolist())
    return ShuffleQuality(
        displacement=(count**2 - 1) / (3 * count**2),
        rank_correlation=0.0,
        same_shard_pairs=pairs / (count * (count - 1)) if count > 1 else 0.0,
        shards_per_window=_expected_distinct(sizes, count, window),
    )


def _expected_distinct(sizes: NDArray[np.int64], count: int, window: int) -> float:
    """Mean number of shards in a draw of `window` of `count` samples."""
    distinct, times = np.unique(sizes, return_counts=True)
    met = [1.0 - _missing(count, size, window) for size in distinct.tolist()]
    return float(times @ np.array(met))


def _missing(count: int, size: int, window: int) -> float:
    """C(count - size, window) / C(count, window), as a product of as few factors as possible."""
    if window > count - size:
        return 0.0
    fewer, more = sorted((size, window))
    return float(np.exp(np.log1p(-more / (count - np.arange(fewer, dtype=np.float64))).sum()))


def _chunks(order: SampleOrder, window: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The whole epoch, cut between windows: start and samples of each piece."""
    step = max(1, _CHUNK // window) * window
    for start in range(0, order.num_samples, step):
        yield start, order.indices(start, min(start + step, order.num_samples))


def _checked(shard_sizes: Sequence[int], num_samples: int, window: int) -> NDArray[np.int64]:
    sizes = np.asarray(shard_sizes, np.int64).reshape(-1)
    if num_samples < 1:
        raise ConfigError("there are no samples whose order could be measured")
    if window < 1:
        raise ConfigError(f"the window must be at least 1 sample, found {window}")
    if int(sizes.sum()) != num_samples:
        raise ConfigError(f"{len(sizes)} shards hold {int(sizes.sum())} samples, the order {num_samples}")
    return sizes
