"""Windows of an epoch: which shards they need, and that nothing else is on the list."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lmdali.pipeline.batch_queue import Place
from lmdali.pipeline.block_order import NodeOrder, OrderName, create_order
from lmdali.pipeline.manifest import RecordIndex
from lmdali.pipeline.sampler import RankSlice, SampleOrder
from lmdali.pipeline.shard_windows import ShardHorizon, needed_bytes, shard_windows

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


def horizon_case(
    sizes: list[int], name: OrderName, block_shards: int, ranks: RankSlice, start: int, in_flight: int, steps: int
) -> tuple[list[list[int]], list[set[int]], list[int], int]:
    """What a horizon with just enough room kept at each batch, and what batches in flight had read, one by one."""
    files = [SimpleNamespace(num_records=size, file_bytes=100 * size + 1) for size in sizes]
    index = RecordIndex(SimpleNamespace(shards=files))  # type: ignore[arg-type]

    def order_of(epoch: int) -> SampleOrder:
        return create_order(
            name,
            num_samples=sum(sizes),
            seed=3,
            epoch=epoch,
            shard_sizes=sizes,
            block_shards=block_shards,
            block_nodes=ranks.nodes,
        )

    samples = (in_flight + 1) * ranks.global_batch_size
    room = needed_bytes(order_of(0), files, block_shards, samples, ranks.own_nodes)  # type: ignore[arg-type]
    room += sum(sorted(info.file_bytes for info in files)[-block_shards * len(ranks.own_nodes) :])  # see there
    told: list[list[int]] = []
    across = name != "sequential"
    horizon = ShardHorizon(
        order_of,
        index,
        ranks,
        file_bytes=[info.file_bytes for info in files],
        room_bytes=lambda: room,
        in_flight=in_flight,
        across_epochs=across,
        keep=told.append,
    )
    place, step, kept, read = Place(0, start), 0, [], []
    for _ in range(steps):
        if step >= ranks.num_steps(place.position):
            if not across:
                break
            place, step = Place(place.epoch + 1, 0), 0
        horizon.reach(place, step)
        kept.append(told[-1])
        first = place.position + step * ranks.global_batch_size
        positions = ranks.positions(step, place.position)
        if ranks.nodes > 1 and first + ranks.global_batch_size > sum(sizes):
            positions = positions[np.isin(positions % ranks.nodes, ranks.own_nodes)]
        read.append(set(index.shards_of(order_of(place.epoch).at(positions)).tolist()))
        step += 1
    return kept, read, [info.file_bytes for info in files], room


@given(
    sizes=st.lists(st.one_of(st.sampled_from([0, 1]), st.integers(0, 20)), min_size=1, max_size=14),
    name=st.sampled_from(["block", "block", "sequential", "shuffled", "shuffled_once"]),
    block_shards=st.integers(1, 5),
    nodes=st.integers(1, 4),
    ranks=st.integers(1, 4),
    batch_size=st.integers(1, 12),
    drop_last=st.booleans(),
    in_flight=st.integers(1, 9),
    data=st.data(),
)
def test_what_batches_in_flight_read_is_at_hand_with_the_room_that_is_asked_for(
    sizes: list[int],
    name: OrderName,
    block_shards: int,
    nodes: int,
    ranks: int,
    batch_size: int,
    drop_last: bool,
    in_flight: int,
    data: st.DataObject,
) -> None:
    total = sum(sizes)
    assume(total >= (ranks * batch_size if drop_last else 1))
    rank = data.draw(st.integers(0, ranks - 1))
    slice_ = RankSlice(total, batch_size, rank, ranks, drop_last, nodes if name == "block" else 1)
    start = data.draw(st.integers(0, total - 1))
    assume(slice_.num_steps(start))
    kept, read, file_bytes, room = horizon_case(sizes, name, block_shards, slice_, start, in_flight, 40)
    for number, shards in enumerate(kept):
        assert len(set(shards)) == len(shards) and sum(file_bytes[shard] for shard in shards) <= room
        for needed in read[max(0, number - in_flight) : number + 1]:
            assert needed <= set(shards)


def test_what_batches_in_flight_read_is_at_hand_however_many_windows_it_is() -> None:
    kept, read, *_ = horizon_case([1] * 400, "sequential", 1, RankSlice(400, 20, drop_last=False), 0, 9, 20)
    assert len(kept[9]) >= 200
    for number, shards in enumerate(kept):
        assert set().union(*read[max(0, number - 9) : number + 1]) <= set(shards)


def test_an_epoch_that_is_left_early_is_not_fetched_to_its_end() -> None:
    index = RecordIndex(SimpleNamespace(shards=shards()))  # type: ignore[arg-type]
    told: list[list[int]] = []

    def order_of(epoch: int) -> SampleOrder:
        return create_order("block", num_samples=42, seed=3, epoch=epoch, shard_sizes=SIZES, block_shards=1)

    horizon = ShardHorizon(
        order_of,
        index,
        RankSlice(42, 2),
        file_bytes=[info.file_bytes for info in shards()],
        room_bytes=lambda: 1300,
        in_flight=1,
        across_epochs=True,
        keep=told.append,
    )
    horizon.reach(Place(0, 0), 0)
    horizon.reach(Place(1, 0), 0)
    first = [index.shards_of(order_of(epoch).indices(0, 42)).tolist()[0] for epoch in (0, 1)]
    assert [shards[0] for shards in told] == first and first[0] != first[1]
