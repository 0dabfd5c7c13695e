"""The order of a source's entries in a plan: each once, and blocks from beginning to end."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.sampler import EpochOrder
from lmdali.tools.source_entries import EntryTable, Ignored, Scan
from lmdali.tools.source_order import BlockwiseOrder, plan_order

block_sizes = st.lists(st.integers(0, 7), min_size=1, max_size=12)


@given(block_sizes, st.integers(0, 2**64 - 1))
def test_blocks_are_visited_once_each_and_read_in_their_own_order(blocks: list[int], seed: int) -> None:
    total = sum(blocks)
    order = BlockwiseOrder(blocks, seed).indices(0, total)
    assert sorted(order.tolist()) == list(range(total))
    owner = np.repeat(np.arange(len(blocks)), blocks)[order]
    runs = [owner[0], *owner[1:][owner[1:] != owner[:-1]]] if total else []
    assert len(runs) == len(set(runs)) == sum(size > 0 for size in blocks)
    same = owner[1:] == owner[:-1]
    assert (np.diff(order)[same] == 1).all()


@given(block_sizes, st.integers(0, 1000), st.data())
def test_any_part_of_an_order_is_that_part_of_the_whole(blocks: list[int], seed: int, data: st.DataObject) -> None:
    total = sum(blocks)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    order = BlockwiseOrder(blocks, seed)
    assert order.indices(start, stop).tolist() == order.indices(0, total)[start:stop].tolist()


def test_entries_that_can_be_read_at_once_are_fully_permuted_and_seeds_differ() -> None:
    entries = EntryTable()
    for number in range(50):
        entries.append(f"{number}.jpg", 0)
    scan = Scan(("a",), entries, Ignored())
    assert plan_order(scan, 3).indices(0, 50).tolist() == EpochOrder(50, 3, 0, True).indices(0, 50).tolist()
    in_blocks = Scan(("a",), entries, Ignored(), blocks=(10,) * 5)
    orders = {tuple(plan_order(in_blocks, seed).indices(0, 50).tolist()) for seed in range(20)}
    assert len(orders) > 10
