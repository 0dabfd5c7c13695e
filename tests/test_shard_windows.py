"""Windows of an epoch: which shards they need, and that nothing else is on the list."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lmdali.pipeline.block_order import NodeOrder, OrderName, create_order
from lmdali.pipeline.manifest import RecordIndex
from lmdali.pipeline.shard_windows import needed_bytes, shard_windows

SIZES = [7, 0, 12, 5, 9, 1, 8]


def shards() -> Any:
    return [SimpleNamespace(num_records=size, file_bytes=100 * size + 1) for size in SIZES]


@pytest.mark.parametrize("name", ["shuffled", "block", "sequential"])
@pytest.mark.parametrize("start", range(0, 42, 3))
def test_windows_name_exactly_the_shards_that_are_read_in_the_order_of_need(name: OrderName, start: int) -> None:
    index = RecordIndex(SimpleNamespace(shards=shards()))  # type: ignore[arg-type]
    order = create_order(name, num_samples=42, seed=3, epoch=1, shard_sizes=SIZES, block_shards=2)
    begin = start
    for window in shard_windows(order, index, start, 40):
        read = index.shards_of(order.indices(begin, window.stop)).tolist()
        assert window.shards == tuple(dict.fromkeys(read))
        begin = window.stop
    assert begin == max(start, 40) or start >= 40


@pytest.mark.parametrize("nodes", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("start", range(0, 42, 5))
def test_windows_of_nodes_name_the_shards_of_these_nodes_only(nodes: tuple[int, ...], start: int) -> None:
    index = RecordIndex(SimpleNamespace(shards=shards()))  # type: ignore[arg-type]
    order = NodeOrder(SIZES, 3, 1, 1, 3)
    begin = start
    for window in shard_windows(order, index, start, 42, nodes):
        positions = np.arange(begin, window.stop)
        read = index.shards_of(order.at(positions[np.isin(positions % 3, nodes)])).tolist()
        assert window.shards == tuple(dict.fromkeys(read))
        assert len(window.shards) <= len(nodes), "a window ends where a block of any node does"
        begin = window.stop
    assert begin == 42


def test_a_node_needs_room_for_its_own_blocks() -> None:
    order = NodeOrder(SIZES, 0, 0, 1, 2)  # records 0 to 20 are of shards 0, 2 and 3, those after them of 3, 4, 5 and 6
    assert needed_bytes(order, shards(), 1, 1, (0,)) == 1201
    assert needed_bytes(order, shards(), 1, 1, (1,)) == 901
    assert needed_bytes(order, shards(), 1, 1, (0, 1)) == 1201 + 901
    assert needed_bytes(order, shards(), 1, 1000, (1,)) == 501 + 901 + 101 + 801
    assert needed_bytes(order, shards(), 1, 1000, (0, 1)) == 4200 + len(SIZES), "never more than there is"


def test_the_room_that_orders_need() -> None:
    def needed(name: OrderName, in_flight: int, block_shards: int = 2) -> int:
        order = create_order(name, num_samples=42, seed=0, epoch=0, shard_sizes=SIZES, block_shards=block_shards)
        return needed_bytes(order, shards(), block_shards, in_flight)

    whole = 4200 + len(SIZES)
    assert needed("shuffled", 1) == whole
    assert needed("block", 1) == 1201 + 901, "one batch of one sample is in one window"
    assert needed("block", 4) == 1201 + 901 + 801 + 701, "the smallest block has six samples"
    assert needed("block", 1000) == whole
    assert needed("sequential", 2) == 1201 + 901
    assert np.all([needed("block", n) <= needed("block", n + 1) for n in range(1, 60)])
