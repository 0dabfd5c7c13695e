from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.block_order import ORDERS, create_order
from lmdali.pipeline.counter_random import mix64, philox4x32, sample_words
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.sampler import EpochOrder, RankSlice, permute, round_keys

SEEDS = st.integers(0, 2**64 - 1)
EPOCHS = st.integers(0, 2**32 - 1)
GOLDEN = [
    [649, 365, 84, 837, 903, 126, 257, 851],
    [262, 608, 890, 709, 670, 843, 143, 413],
    [503188, 23416, 1114242, 60836, 242846, 43073, 637121, 264916],
    [99097069, 462810295, 774079928, 896079141, 372824664, 109516965, 535770751, 956852870],
]
"""Frozen on the day the order was first published: whoever resumes an old run must meet the same samples."""


def order(num_samples: int, seed: int = 0, epoch: int = 0, *, shuffle: bool = True) -> list[int]:
    return EpochOrder(num_samples, seed, epoch, shuffle).indices(0, num_samples).tolist()


@given(st.integers(1, 300), SEEDS, EPOCHS)
def test_shuffled_once_is_the_order_of_epoch_0_in_every_epoch(num_samples: int, seed: int, epoch: int) -> None:
    once = EpochOrder(num_samples, seed, epoch, True, once=True)
    assert once.indices(0, num_samples).tolist() == order(num_samples, seed, 0)
    assert once.epoch == epoch, "what is drawn goes by it"


# Philox.


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of the Random123 distribution, kat_vectors
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: tuple[int, ...], key: tuple[int, int], expected: str) -> None:
    words = tuple(np.array([word], np.uint64) for word in counter)
    assert len(words) == 4
    out = philox4x32(words, key[0] | key[1] << 32)
    assert " ".join(f"{int(word[0]):08x}" for word in out) == expected


def test_words_of_a_sample_do_not_depend_on_its_company() -> None:
    together = np.stack(sample_words(5, 3, np.array([9, 2, 10**12, 2]), 1))
    for column, sample in enumerate((9, 2, 10**12)):
        alone = np.stack(sample_words(5, 3, np.array([sample]), 1))
        assert (together[:, column] == alone[:, 0]).all()
    assert (together[:, 1] == together[:, 3]).all()


def test_words_differ_by_seed_epoch_sample_and_stream() -> None:
    base = (7, 3, 11, 1)
    variants = [base, (8, 3, 11, 1), (7 + 2**32, 3, 11, 1), (7, 4, 11, 1), (7, 3, 12, 1), (7, 3, 11 + 2**32, 1)]
    variants.append((7, 3, 11, 2))
    words = {
        tuple(int(w[0]) for w in sample_words(seed, epoch, np.array([sample]), stream))
        for seed, epoch, sample, stream in variants
    }
    assert len(words) == len(variants)


def test_mix64_is_splitmix64s_finaliser() -> None:
    # The first outputs of SplitMix64 seeded with 0: the generator adds the golden gamma, then finalises.
    states = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [f"{int(x):016x}" for x in mix64(states)] == ["e220a8397b1dcdaf", "6e789e6aa1b965f4", "06c45d188009454f"]


# The order.


def test_the_order_never_changes_between_versions() -> None:
    assert EpochOrder(1000, 0, 0, True).indices(0, 8).tolist() == GOLDEN[0]
    assert EpochOrder(1000, 0, 1, True).indices(0, 8).tolist() == GOLDEN[1]
    assert EpochOrder(1_281_167, 42, 89, True).indices(1_281_159, 1_281_167).tolist() == GOLDEN[2]
    assert EpochOrder(10**9, 2**64 - 1, 2**32 - 1, True).indices(5, 13).tolist() == GOLDEN[3]


def test_every_small_size_is_a_permutation() -> None:
    for num_samples in [*range(1, 130), 255, 256, 257, 1023, 1024, 1025, 4099]:
        assert sorted(order(num_samples, seed=num_samples)) == list(range(num_samples))


@given(st.integers(1, 3000), SEEDS, EPOCHS)
def test_any_seed_and_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    assert sorted(order(num_samples, seed, epoch)) == list(range(num_samples))


@given(st.integers(1, 500), st.data())
def test_any_part_of_the_order_can_be_asked_for_alone(num_samples: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, num_samples))
    stop = data.draw(st.integers(start, num_samples))
    part = EpochOrder(num_samples, 1, 2, True).indices(start, stop)
    assert part.dtype == np.int64
    assert part.tolist() == order(num_samples, 1, 2)[start:stop]


def test_a_billion_samples_cost_nothing() -> None:
    part = EpochOrder(10**9, 0, 0, True).indices(10**9 - 1000, 10**9)
    assert len(set(part.tolist())) == 1000
    assert part.min() >= 0 and part.max() < 10**9


def test_without_shuffle_the_order_is_storage_order() -> None:
    assert order(7, 3, 5, shuffle=False) == list(range(7))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(order(50, seed, epoch)) for seed in range(6) for epoch in range(6)}
    assert len(orders) == 36
    assert order(50, 2**32) != order(50, 0), "the upper half of the seed must count"
    assert order(50, 0, 1) != order(50, 1, 0)


@pytest.mark.parametrize("num_samples", [2, 3, 4])
def test_tiny_sets_meet_all_their_permutations_about_equally_often(num_samples: int) -> None:
    trials = 6000
    counts = Counter(tuple(order(num_samples, 9, epoch)) for epoch in range(trials))
    permutations = list(itertools.permutations(range(num_samples)))
    expected = trials / len(permutations)
    chi_squared = sum((counts[p] - expected) ** 2 / expected for p in permutations)
    freedom = len(permutations) - 1
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


def test_every_sample_is_about_equally_likely_at_every_position() -> None:
    num_samples, trials = 10, 4000
    table = np.zeros((num_samples, num_samples))
    for epoch in range(trials):
        table[np.arange(num_samples), order(num_samples, 4, epoch)] += 1
    expected = trials / num_samples
    chi_squared = ((table - expected) ** 2 / expected).sum()
    freedom = (num_samples - 1) ** 2
    assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_in_storage_do_not_stay_neighbours() -> None:
    shuffled = np.array(order(20_000, 3))
    gaps = np.abs(np.diff(shuffled))
    assert abs(gaps.mean() / (20_000 / 3) - 1) < 0.05  # the mean gap of two random numbers is a third
    assert abs(np.corrcoef(np.arange(20_000), shuffled)[0, 1]) < 0.03


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 11), (5, 4)])
def test_positions_outside_the_epoch_are_refused(start: int, stop: int) -> None:
    with pytest.raises(ConfigError, match="outside an epoch of 10"):
        EpochOrder(10, 0, 0, True).indices(start, stop)


def test_keys_of_a_permutation_depend_on_every_word_and_its_place() -> None:
    tuples = [(0,), (0, 1), (1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0), (2**64 - 1, 0), (2**32, 0), (0, 2**32)]
    keys = [tuple(round_keys(*words).tolist()) for words in tuples]
    assert len(set(keys)) == len(keys)
    assert all(len(set(key)) == len(key) == 8 for key in keys)


@given(st.integers(0, 400), SEEDS)
def test_a_set_of_any_size_is_permuted_onto_itself(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size, dtype=np.uint64), size, round_keys(key)).tolist()) == list(range(size))


# Ranks.


def test_two_ranks_of_three_samples_by_hand() -> None:
    ranks = [RankSlice(8, 3, rank, 2, drop_last=False) for rank in (0, 1)]
    assert [r.positions(0).tolist() for r in ranks] == [[0, 1, 2], [3, 4, 5]]
    assert [r.positions(1).tolist() for r in ranks] == [[6], [7]]
    assert [r.num_steps() for r in ranks] == [2, 2]
    assert RankSlice(8, 3, 0, 2, drop_last=True).num_steps() == 1


def walked(slices: list[RankSlice], start: int = 0) -> list[list[int]]:
    """Positions of each step, all ranks together in rank order."""
    steps = {s.num_steps(start) for s in slices}
    assert len(steps) == 1, "ranks differ in their number of steps"
    out = []
    for step in range(steps.pop()):
        parts = [s.positions(step, start).tolist() for s in slices]
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert all(part == sorted(part) for part in parts)
        out.append([p for part in parts for p in part])
        assert {s.position_after(step, start) for s in slices} == {max(out[-1]) + 1}
    return out


def test_ranks_are_disjoint_and_complete_for_every_small_case() -> None:
    for num_samples, batch_size, world_size in itertools.product(range(1, 26), range(1, 6), range(1, 5)):
        ranks = [RankSlice(num_samples, batch_size, r, world_size, drop_last=False) for r in range(world_size)]
        steps = walked(ranks)
        assert [p for step in steps for p in step] == list(range(num_samples))
        assert max(len(s.positions(0)) for s in ranks) <= batch_size
        global_batch = batch_size * world_size
        if num_samples < global_batch:
            with pytest.raises(ConfigError, match="fewer than one global batch"):
                RankSlice(num_samples, batch_size, 0, world_size, drop_last=True)
            continue
        ranks = [RankSlice(num_samples, batch_size, r, world_size, drop_last=True) for r in range(world_size)]
        steps = walked(ranks)
        whole = num_samples // global_batch * global_batch
        assert [p for step in steps for p in step] == list(range(whole))
        assert {len(step) for step in steps} == {global_batch}


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 8), st.data())
def test_from_any_start_each_remaining_position_comes_once(
    num_samples: int, batch_size: int, world_size: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, num_samples))
    ranks = [RankSlice(num_samples, batch_size, r, world_size, drop_last=False) for r in range(world_size)]
    assert [p for step in walked(ranks, start) for p in step] == list(range(start, num_samples))


def test_two_nodes_of_two_ranks_by_hand() -> None:
    ranks = [RankSlice(20, 3, rank, 4, drop_last=False, nodes=2) for rank in range(4)]
    assert [r.positions(0).tolist() for r in ranks] == [[0, 2, 4], [6, 8, 10], [1, 3, 5], [7, 9, 11]]
    assert [r.positions(1).tolist() for r in ranks] == [[12, 14], [16, 18], [13, 15], [17, 19]]
    assert [r.positions(0, start=1).tolist() for r in ranks] == [[2, 4, 6], [8, 10, 12], [1, 3, 5], [7, 9, 11]]
    assert [r.own_nodes for r in ranks] == [(0,), (0,), (1,), (1,)]


def test_ranks_that_nodes_do_not_divide_have_samples_of_several() -> None:
    assert [RankSlice(99, 4, rank, 2, nodes=4).own_nodes for rank in range(2)] == [(0, 1), (2, 3)]
    assert [RankSlice(99, 4, rank, 3, nodes=2).own_nodes for rank in range(3)] == [(0,), (0, 1), (1,)]
    assert [RankSlice(99, 1, rank, 3, nodes=2).own_nodes for rank in range(3)] == [(0, 1)] * 3
    assert RankSlice(99, 4).own_nodes == (0,)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 8), st.integers(2, 5), st.booleans(), st.data())
def test_each_position_comes_once_and_whole_batches_keep_to_the_nodes_of_a_rank(
    num_samples: int, batch_size: int, world_size: int, nodes: int, drop_last: bool, data: st.DataObject
) -> None:
    drop_last &= num_samples >= batch_size * world_size
    start = data.draw(st.integers(0, num_samples))
    ranks = [RankSlice(num_samples, batch_size, r, world_size, drop_last, nodes) for r in range(world_size)]
    steps = walked(ranks, start)
    assert [sorted(step) for step in steps] == [
        list(range(start + n * batch_size * world_size, start + n * batch_size * world_size + len(step)))
        for n, step in enumerate(steps)
    ]
    for slice_ in ranks:
        for step, positions in enumerate(steps):
            if len(positions) == slice_.global_batch_size:
                mine = slice_.positions(step, start)
                assert len(mine) == batch_size
                assert set((mine % nodes).tolist()) <= set(slice_.own_nodes)


def test_the_order_of_samples_does_not_depend_on_the_batch_size() -> None:
    seen = []
    for batch_size in (1, 3, 8, 100):
        slice_, epoch = RankSlice(100, batch_size, drop_last=False), EpochOrder(100, 5, 1, True)
        steps = range(slice_.num_steps())
        seen.append([i for step in steps for i in epoch.at(slice_.positions(step)).tolist()])
    assert seen[0] == seen[1] == seen[2] == seen[3]


def test_owners_by_hand() -> None:
    slice_ = RankSlice(8, 3, 0, 2, drop_last=False)
    assert [part.tolist() for part in slice_.owners(0, 8)] == [[0] * 6 + [1] * 2, [0, 0, 0, 1, 1, 1, 0, 1]]
    assert [part.tolist() for part in slice_.owners(5, 8, start=4)] == [[0] * 3, [0, 1, 1]]
    dropping = RankSlice(8, 3, 0, 2, drop_last=True)
    assert [part.tolist() for part in dropping.owners(4, 8)] == [[0, 0, 1, 1], [1, 1, -1, -1]]


@given(st.integers(1, 120), st.integers(1, 9), st.integers(1, 8), st.booleans(), st.integers(1, 5), st.data())
def test_owners_are_the_inverse_of_positions(
    num_samples: int, batch_size: int, world_size: int, drop_last: bool, nodes: int, data: st.DataObject
) -> None:
    drop_last &= num_samples >= batch_size * world_size
    ranks = [RankSlice(num_samples, batch_size, r, world_size, drop_last, nodes) for r in range(world_size)]
    start = data.draw(st.integers(0, num_samples))
    expected = {
        position: (step, slice_.rank)
        for slice_ in ranks
        for step in range(slice_.num_steps(start))
        for position in slice_.positions(step, start).tolist()
    }
    steps, owners = ranks[0].owners(start, num_samples, start)
    left_out = (ranks[0].num_steps(start), -1)
    found = [expected.get(position, left_out) for position in range(start, num_samples)]
    assert list(zip(steps.tolist(), owners.tolist(), strict=True)) == found
    first = data.draw(st.integers(start, num_samples))
    stop = data.draw(st.integers(first, num_samples))
    assert ranks[0].owners(first, stop, start)[1].tolist() == owners[first - start : stop - start].tolist()


def test_owners_outside_the_rest_of_the_epoch_are_refused() -> None:
    for first, stop, start in ((0, 11, 0), (2, 5, 3), (5, 4, 0), (-1, 2, -1)):
        with pytest.raises(ConfigError, match="are not within"):
            RankSlice(10, 2).owners(first, stop, start)


# A run that stops and goes on elsewhere.

SIZES = st.sampled_from([1, 2, 3, 4, 8])
LEGS = st.lists(st.tuples(SIZES, SIZES), min_size=3, max_size=3)


def delivered(name: str, shard_sizes: list[int], slices: list[RankSlice], start: int, steps: int) -> list[int]:
    """Samples that all ranks get in their first steps from `start`, each rank with an order of its own making."""
    orders = [
        create_order(name, num_samples=sum(shard_sizes), seed=6, epoch=2, shard_sizes=shard_sizes, block_shards=2)  # type: ignore[arg-type]
        for _ in slices
    ]
    return [
        sample
        for step in range(steps)
        for slice_, order in zip(slices, orders, strict=True)
        for sample in order.at(slice_.positions(step, start)).tolist()
    ]


@given(st.sampled_from(ORDERS), st.lists(st.integers(0, 40), min_size=1, max_size=6), st.booleans(), LEGS, st.data())
def test_two_resumes_with_other_ranks_and_batches_go_on_in_the_same_order(
    name: str, shard_sizes: list[int], drop_last: bool, legs: list[tuple[int, int]], data: st.DataObject
) -> None:
    num_samples = sum(shard_sizes)
    drop_last &= num_samples >= max(world_size * batch_size for world_size, batch_size in legs)
    position, seen = 0, []
    for number, (world_size, batch_size) in enumerate(legs):
        slices = [RankSlice(num_samples, batch_size, rank, world_size, drop_last) for rank in range(world_size)]
        steps = slices[0].num_steps(position)
        if number < 2:  # the run is stopped after any of its steps
            steps = data.draw(st.integers(0, steps))
        seen += delivered(name, shard_sizes, slices, position, steps)
        position = slices[-1].position_after(steps - 1, position)
    alone = delivered(name, shard_sizes, [RankSlice(num_samples, 1, drop_last=False)], 0, num_samples)
    assert seen == alone[: len(seen)]
    left = num_samples - len(seen)
    assert 0 <= left < legs[-1][0] * legs[-1][1] if drop_last else sorted(seen) == list(range(num_samples))
    assert position == len(seen)


def test_a_state_of_every_step_goes_on_with_every_other_split() -> None:
    shard_sizes = [11, 0, 9, 3]
    splits = [(w, b) for w in (1, 2, 3, 4, 8) for b in (1, 3)]
    for name, (w1, b1), (w2, b2) in itertools.product(ORDERS, splits, splits):
        before = [RankSlice(23, b1, rank, w1, drop_last=False) for rank in range(w1)]
        after = [RankSlice(23, b2, rank, w2, drop_last=False) for rank in range(w2)]
        for steps in range(0, before[0].num_steps() + 1, 3):
            position = before[0].position_after(steps - 1)
            seen = delivered(name, shard_sizes, before, 0, steps)
            seen += delivered(name, shard_sizes, after, position, after[0].num_steps(position))
            assert sorted(seen) == list(range(23))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank must be in 0..1"),
        ({"rank": -1}, "rank must be in 0..0"),
    ],
)
def test_impossible_slices_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RankSlice(**{"num_samples": 10, "batch_size": 2} | fields)  # type: ignore[arg-type]
