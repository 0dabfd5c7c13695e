"""Measures of an order: known answers, exact expectations, and what the orders of the project reach."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.pipeline.block_order import BlockOrder
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.sampler import EpochOrder, SampleOrder
from lmdali.pipeline.shuffle_quality import ShuffleQuality, ideal_quality, shuffle_quality


@dataclass(frozen=True)
class ListedOrder:
    """An order that is written down."""

    samples: Sequence[int]
    epoch: int = 0

    @property
    def num_samples(self) -> int:
        return len(self.samples)

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.array(self.samples[start:stop], np.int64)


def measured(samples: Sequence[int], sizes: Sequence[int], window: int) -> ShuffleQuality:
    return shuffle_quality(ListedOrder(samples), sizes, window)


def test_four_samples_by_hand() -> None:
    # Distances 2, 1, 1, 2; their squares add up to 10; the shards are met as 1, 0, 1, 0.
    assert measured([2, 0, 3, 1], [2, 2], 2) == ShuffleQuality(6 / 16, 1 - 60 / 60, 0.0, 2.0)
    # Distances 1, 1, 1, 1; squares 4; shards 0, 0, 1, 1.
    assert measured([1, 0, 3, 2], [2, 2], 2) == ShuffleQuality(4 / 16, 1 - 24 / 60, 2 / 3, 1.0)


def test_storage_order_is_not_mixed_at_all() -> None:
    quality = shuffle_quality(EpochOrder(12, 0, 0, False), [4, 0, 5, 3], 4)
    assert quality == ShuffleQuality(0.0, 1.0, 9 / 11, (1 + 1 + 2) / 3)
    assert measured(range(11, -1, -1), [4, 0, 5, 3], 4).rank_correlation == pytest.approx(-1)


def test_windows_follow_each_other_and_an_incomplete_one_is_left_out() -> None:
    assert measured([0, 2, 1, 3, 4], [2, 3], 2).shards_per_window == (2 + 2) / 2
    assert measured([0, 2, 1, 3, 4], [2, 3], 3).shards_per_window == 2
    assert measured([0, 2, 1, 3, 4], [2, 3], 99).shards_per_window == 2, "all there is counts as one window"


@pytest.mark.parametrize("sizes", [[3, 2, 0, 1], [6], [1] * 6, [4, 2], [1, 1]])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 6, 9])
def test_the_ideal_is_the_mean_over_all_permutations(sizes: list[int], window: int) -> None:
    all_orders = itertools.permutations(range(sum(sizes)))
    mean = np.mean([astuple(measured(samples, sizes, window)) for samples in all_orders], axis=0)
    assert mean == pytest.approx(astuple(ideal_quality(sizes, window)), abs=1e-12)


def test_the_ideal_of_many_samples_is_what_random_permutations_show() -> None:
    sizes, random, window = [700, 0, 50, 1, 249, 1000], np.random.default_rng(1), 64
    trials = np.array([astuple(measured(random.permutation(2000), sizes, window)) for _ in range(60)])
    error = trials.std(axis=0, ddof=1) / 60**0.5
    assert (np.abs(trials.mean(axis=0) - astuple(ideal_quality(sizes, window))) < 4 * error).all()


def test_the_ideal_of_a_large_dataset_keeps_its_digits() -> None:
    # With a shard a thousand times the window, drawing with and without replacement are nearly the same.
    with_replacement = 1000 * (1 - (1 - 1 / 1000) ** 256)
    found = ideal_quality([10**6] * 1000, 256).shards_per_window
    assert found == pytest.approx(with_replacement, rel=1e-6)
    assert found > with_replacement


@pytest.mark.parametrize("block_shards", [None, 20])
def test_a_full_permutation_reaches_the_ideal(block_shards: int | None) -> None:
    sizes, window = [100] * 20, 64
    orders: list[SampleOrder] = [
        EpochOrder(2000, 3, epoch, True) if block_shards is None else BlockOrder(sizes, 3, epoch, block_shards)
        for epoch in range(60)
    ]
    trials = np.array([astuple(shuffle_quality(order, sizes, window)) for order in orders])
    error = trials.std(axis=0, ddof=1) / 60**0.5
    assert (np.abs(trials.mean(axis=0) - astuple(ideal_quality(sizes, window))) < 4 * error).all()


def test_a_block_order_gets_better_with_its_blocks() -> None:
    sizes, window = [100] * 32, 64
    reached = [shuffle_quality(BlockOrder(sizes, 3, 0, shards), sizes, window) for shards in (1, 4, 16, 32)]
    pairs = [quality.same_shard_pairs for quality in reached]
    distinct = [quality.shards_per_window for quality in reached]
    assert pairs == sorted(pairs, reverse=True) and distinct == sorted(distinct)
    assert pairs[0] == pytest.approx(99 * 32 / 3199), "one shard at a time"


def test_a_block_mixes_its_shards_as_a_full_permutation_of_them_would() -> None:
    sizes = [100] * 32
    inside = ideal_quality([100] * 4, 64).same_shard_pairs
    pairs = np.array([shuffle_quality(BlockOrder(sizes, 3, e, 4), sizes, 64).same_shard_pairs for e in range(60)])
    expected = inside * 8 * 399 / 3199  # the pairs between two blocks are never of one shard
    assert abs(pairs.mean() - expected) < 4 * pairs.std(ddof=1) / 60**0.5


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any), st.integers(1, 30), st.integers(1, 40))
def test_how_an_epoch_is_cut_for_measuring_leaves_no_trace(sizes: list[int], window: int, chunk: int) -> None:
    order = EpochOrder(sum(sizes), 1, 1, True)
    expected = shuffle_quality(order, sizes, window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmdali.pipeline.shuffle_quality._CHUNK", chunk)
        assert astuple(shuffle_quality(order, sizes, window)) == pytest.approx(astuple(expected), abs=1e-12)


def test_one_sample_has_no_pairs() -> None:
    assert measured([0], [1], 5) == ideal_quality([1], 5) == ShuffleQuality(0.0, 0.0, 0.0, 1.0)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="there are no samples"):
        ideal_quality([0, 0], 4)
    with pytest.raises(ConfigError, match="at least 1 sample, found 0"):
        measured([0, 1], [2], 0)
    with pytest.raises(ConfigError, match="1 shards hold 3 samples, the order 2"):
        measured([0, 1], [3], 1)
