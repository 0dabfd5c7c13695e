"""The block order: whole shards, a few at a time, each sample once."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.block_order import BlockOrder, NodeOrder, create_order, order_name
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.sampler import EpochOrder, RankSlice

SIZES = st.lists(st.one_of(st.sampled_from([0, 1]), st.integers(0, 60)), max_size=12)
BLOCKS = st.integers(1, 15)
SEEDS = st.integers(0, 2**64 - 1)
EPOCHS = st.integers(0, 2**32 - 1)
GOLDEN = [
    [9, 8, 5, 1, 4, 6, 2, 0, 3, 7],
    [663189, 663995, 663046, 330555, 663417, 663751, 331209, 331142],
]
GOLDEN_NODES = [1, 6, 3, 8, 4, 7, 2, 9, 0, 5]
"""Frozen on the day the order was first published: whoever resumes an old run must meet the same samples."""


def whole(sizes: list[int], block_shards: int, seed: int = 0, epoch: int = 0) -> list[int]:
    return BlockOrder(sizes, seed, epoch, block_shards).indices(0, sum(sizes)).tolist()


def shards_of(samples: list[int], sizes: list[int]) -> list[int]:
    return np.searchsorted(np.cumsum(sizes), samples, side="right").tolist()


def test_the_order_never_changes_between_versions() -> None:
    assert whole([3, 0, 4, 1, 2], 2, seed=7, epoch=1) == GOLDEN[0]
    imagenet = BlockOrder([1300] * 985 + [667], 42, 89, 8)
    assert imagenet.indices(1_281_159, 1_281_167).tolist() == GOLDEN[1]


def test_blocks_hold_whole_shards_and_shards_are_visited_once() -> None:
    sizes = [5, 9, 0, 7, 1, 8, 6, 4, 3, 2]
    for epoch in range(20):
        visits = shards_of(whole(sizes, 3, epoch=epoch), sizes)
        blocks = []  # the sets of shards that are read together, from where each was first and last met
        while visits:
            together, end = {visits[0]}, 0
            while (reach := max(i for i, s in enumerate(visits) if s in together) + 1) != end:
                end, together = reach, together | set(visits[:reach])
            blocks.append(together)
            assert sum(sizes[shard] for shard in together) == end
            visits = visits[end:]
        assert sorted(itertools.chain(*blocks)) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
        assert max(len(block) for block in blocks) <= 3


def test_with_one_shard_a_block_every_shard_is_shuffled_inside() -> None:
    sizes = [40, 30, 20]
    samples = whole(sizes, 1)
    assert [shard for shard, _ in itertools.groupby(shards_of(samples, sizes))] in [
        list(visit) for visit in itertools.permutations(range(3))
    ]
    for shard in range(3):
        inside = [sample for sample, of in zip(samples, shards_of(samples, sizes), strict=True) if of == shard]
        assert inside != sorted(inside)


def test_one_block_of_everything_mixes_all_shards() -> None:
    sizes = [100] * 8
    together = shards_of(whole(sizes, 8), sizes)
    assert together != sorted(together)
    assert min(Counter(together[:200]).values()) > 10
    assert whole(sizes, 8) == whole(sizes, 1000), "a block cannot hold more than all shards"


@given(SIZES, BLOCKS, SEEDS, EPOCHS)
def test_every_sample_comes_once_whatever_the_shards(
    sizes: list[int], block_shards: int, seed: int, epoch: int
) -> None:
    assert sorted(whole(sizes, block_shards, seed, epoch)) == list(range(sum(sizes)))


@given(SIZES, BLOCKS, st.data())
def test_any_part_of_the_order_can_be_asked_for_alone(sizes: list[int], block_shards: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, sum(sizes)))
    stop = data.draw(st.integers(start, sum(sizes)))
    part = BlockOrder(sizes, 3, 4, block_shards).indices(start, stop)
    assert part.dtype == np.int64
    assert part.tolist() == whole(sizes, block_shards, 3, 4)[start:stop]


def test_epochs_seeds_and_blocks_have_permutations_of_their_own() -> None:
    sizes = [6] * 12
    assert len({tuple(whole(sizes, 4, seed, epoch)) for seed in range(6) for epoch in range(6)}) == 36
    assert whole(sizes, 4, 2**32) != whole(sizes, 4, 0), "the upper half of the seed must count"
    samples = whole([50] * 20, 1)
    insides = {tuple(sample % 50 for sample in samples[block * 50 : block * 50 + 50]) for block in range(20)}
    assert len(insides) == 20


def test_shards_and_samples_are_about_equally_likely_everywhere() -> None:
    sizes, trials = [2, 3, 1, 2, 2], 2000
    table = np.zeros((10, 10))
    for epoch in range(trials):
        table[np.arange(10), whole(sizes, 2, seed=4, epoch=epoch)] += 1
    # A shard's share of a position depends on the sizes around it; that of a sample does not on its place in the shard.
    expected = np.concatenate([np.repeat(part.mean(1, keepdims=True), n, 1) for n, part in pieces(table, sizes)], 1)
    chi_squared = float(((table - expected) ** 2 / np.maximum(expected, 1)).sum())
    freedom = 9 * (10 - len(sizes))
    assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5
    firsts = Counter(shards_of([whole([1] * 5, 1, seed=5, epoch=epoch)[0] for epoch in range(trials)], [1] * 5))
    assert all(abs(firsts[shard] / trials - 0.2) < 0.04 for shard in range(5))


def pieces(table: np.ndarray, sizes: list[int]) -> list[tuple[int, np.ndarray]]:
    return list(zip(sizes, np.split(table, np.cumsum(sizes)[:-1], axis=1), strict=True))


def test_a_billion_samples_cost_what_their_shards_cost() -> None:
    order = BlockOrder([10**6 + 1] * 1000, 0, 0, 16)
    part = order.indices(order.num_samples - 1000, order.num_samples)
    assert len(set(part.tolist())) == 1000
    assert len(set((part // (10**6 + 1)).tolist())) == 1000 % 16  # all shards of the last, smaller block


def test_orders_have_names() -> None:
    def made(name: str, **fields: int) -> object:
        return create_order(name, num_samples=9, seed=3, epoch=2, shard_sizes=(4, 5), **fields)  # type: ignore[arg-type]

    assert made("shuffled") == EpochOrder(9, 3, 2, True)
    assert made("sequential") == EpochOrder(9, 3, 2, False)
    assert made("block", block_shards=1) == BlockOrder((4, 5), 3, 2, 1)
    assert made("block") == BlockOrder((4, 5), 3, 2, 8)
    assert made("shuffled_once") == EpochOrder(9, 3, 2, True, once=True)
    with pytest.raises(ConfigError, match="one of shuffled, shuffled_once, sequential, block; found 'random'"):
        made("random")
    with pytest.raises(ConfigError, match="block_shards must be at least 1, found 0"):
        made("block", block_shards=0)


def test_shards_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 shards hold 9 samples, the dataset 10"):
        create_order("block", num_samples=10, seed=0, epoch=0, shard_sizes=(4, 5))
    with pytest.raises(ConfigError, match="a shard has -1 samples"):
        BlockOrder((4, -1), 0, 0, 1)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 10), (5, 4)])
def test_positions_outside_the_epoch_are_refused(start: int, stop: int) -> None:
    with pytest.raises(ConfigError, match="outside an epoch of 9"):
        BlockOrder((4, 5), 0, 0, 1).indices(start, stop)


# Machines with shards of their own.

NODES = st.integers(1, 5)


def node_order(sizes: list[int], nodes: int, block_shards: int = 2, seed: int = 3, epoch: int = 1) -> NodeOrder:
    return NodeOrder(sizes, seed, epoch, block_shards, nodes)


def test_nodes_take_turns_with_a_stretch_of_storage_each() -> None:
    order = node_order([4] * 6, 3)
    samples = order.indices(0, 24)
    assert order.first_records.tolist() == [0, 8, 16, 24]
    assert [sorted(samples[node::3].tolist()) for node in range(3)] == [list(range(8 * n, 8 * n + 8)) for n in range(3)]
    assert samples[0::3].tolist() != (samples[1::3] - 8).tolist(), "each in an order of its own"
    assert (
        create_order("block", num_samples=24, seed=3, epoch=1, shard_sizes=[4] * 6, block_shards=2, block_nodes=3)
        == order
    )


def test_the_order_of_nodes_never_changes_between_versions() -> None:
    assert node_order([3, 5, 2], 2).indices(0, 10).tolist() == GOLDEN_NODES


@given(SIZES, NODES, BLOCKS, SEEDS, EPOCHS)
def test_every_sample_comes_once_whatever_the_nodes(
    sizes: list[int], nodes: int, block_shards: int, seed: int, epoch: int
) -> None:
    order = node_order(sizes, nodes, block_shards, seed, epoch)
    assert sorted(order.indices(0, sum(sizes)).tolist()) == list(range(sum(sizes)))
    counts = np.diff(order.first_records)
    assert counts.sum() == sum(sizes) and counts.max() - counts.min() <= 1


@given(SIZES, NODES, BLOCKS, st.data())
def test_any_part_of_the_order_of_nodes_can_be_asked_for_alone(
    sizes: list[int], nodes: int, block_shards: int, data: st.DataObject
) -> None:
    order = node_order(sizes, nodes, block_shards)
    positions = data.draw(st.lists(st.integers(0, max(0, sum(sizes) - 1)), unique=True)) if sum(sizes) else []
    asked = np.array(sorted(positions), np.int64)
    assert order.at(asked).tolist() == order.indices(0, sum(sizes))[asked].tolist()


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    NODES,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 90),
)
def test_a_machine_needs_only_the_shards_of_its_node(
    sizes: list[int], nodes: int, ranks_per_node: int, batch_size: int, start: int
) -> None:
    """In every epoch the same, and together hardly more than there are; whole batches, as in training."""
    num_samples, world_size = sum(sizes), nodes * ranks_per_node
    needed: dict[int, set[int]] = {node: set() for node in range(nodes)}
    for epoch in range(2):
        order = node_order(sizes, nodes, epoch=epoch)
        for rank in range(world_size):
            slice_ = RankSlice(num_samples, batch_size, rank, world_size, drop_last=False, nodes=nodes)
            steps = max(0, num_samples - start) // slice_.global_batch_size
            for step in range(steps):
                samples = order.at(slice_.positions(step, start))
                needed[rank // ranks_per_node] |= set(shards_of(samples.tolist(), sizes))
    ends = np.cumsum(sizes)
    for node, found in needed.items():
        first, last = order.first_records[node], order.first_records[node + 1] - 1
        low, high = np.searchsorted(ends, [first, last], side="right").tolist()
        assert found <= set(range(low, high + 1))
    assert sum(map(len, needed.values())) <= len(sizes) + nodes - 1


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=8),
    NODES,
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=2, max_size=3),
    st.data(),
)
def test_steps_hold_the_same_samples_whatever_the_ranks_and_through_resumes(
    sizes: list[int], nodes: int, legs: list[tuple[int, int]], data: st.DataObject
) -> None:
    order, num_samples, position = node_order(sizes, nodes), sum(sizes), 0
    for number, (world_size, batch_size) in enumerate(legs):
        ranks = [
            RankSlice(num_samples, batch_size, r, world_size, drop_last=False, nodes=nodes) for r in range(world_size)
        ]
        steps = ranks[0].num_steps(position)
        if number < len(legs) - 1:
            steps = data.draw(st.integers(0, steps))
        for step in range(steps):
            found = [sample for each in ranks for sample in order.at(each.positions(step, position)).tolist()]
            first = position + step * world_size * batch_size
            assert sorted(found) == sorted(order.indices(first, ranks[0].position_after(step, position)).tolist())
        position = ranks[0].position_after(steps - 1, position)
    assert position == num_samples


def test_the_parameters_of_an_order_are_in_its_name() -> None:
    assert order_name("shuffled", 8, 2) == "shuffled"
    assert order_name("block", 8, 1) == "block:8"
    assert order_name("block", 8, 2) == "block:8:2"
    with pytest.raises(ConfigError, match="block_nodes must be at least 1"):
        node_order([3], 0)
