"""Plans made many at a time are the plans made one by one."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline import batch_planner
from lmdali.pipeline.augment import AugmentConfig, AugmentParams, draw_params
from lmdali.pipeline.batch_planner import BatchPlanner
from lmdali.pipeline.batch_queue import Place
from lmdali.pipeline.block_order import ORDERS, OrderName, create_order
from lmdali.pipeline.order_digest import batch_digest
from lmdali.pipeline.pixel_transform import PixelTransform
from lmdali.pipeline.sampler import RankSlice, SampleOrder

SEED, SIZE = 5, 40
PAPER = AugmentConfig(crop_size=30, normalize="none", lighting="roots")
CHUNKS = replace(PAPER, crop_chunk=7)
TEN = AugmentConfig(crop_size=30, crop="ten", flip=False, normalize="none", lighting="none")
TRANSFORM = PixelTransform(
    np.zeros((SIZE, SIZE, 3), np.float32), np.ones(3, np.float32), np.arange(9, dtype=np.float32).reshape(3, 3)
)


def orders(name: OrderName, num_samples: int) -> partial[SampleOrder]:
    sizes = [num_samples // 3, 0, num_samples - num_samples // 3]
    return partial(create_order, name, num_samples=num_samples, seed=SEED, shard_sizes=sizes, block_shards=1)


def planner(name: OrderName, rank_slice: RankSlice, augment: AugmentConfig = PAPER) -> BatchPlanner:
    order = orders(name, rank_slice.num_samples)
    return BatchPlanner(lambda epoch: order(epoch=epoch), rank_slice, augment, TRANSFORM, seed=SEED, image_size=SIZE)


@given(
    name=st.sampled_from(ORDERS),
    num_samples=st.integers(1, 120),
    batch_size=st.integers(1, 9),
    ranks=st.sampled_from([(0, 1), (1, 3), (7, 8)]),
    start=st.integers(0, 119),
    at_once=st.sampled_from([1, 8, 64, 2048]),
    augment=st.sampled_from([PAPER, CHUNKS, TEN]),
)
def test_plans_made_together_are_those_made_one_by_one(
    name: OrderName,
    num_samples: int,
    batch_size: int,
    ranks: tuple[int, int],
    start: int,
    at_once: int,
    augment: AugmentConfig,
) -> None:
    rank_slice = RankSlice(num_samples, batch_size, *ranks, drop_last=False)
    place = Place(3, start % num_samples)
    order = orders(name, num_samples)(epoch=3)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch_planner, "SAMPLES_AT_ONCE", at_once)
        planned = planner(name, rank_slice, augment)
    for step in range(rank_slice.num_steps(place.position)):
        positions = rank_slice.positions(step, place.position)
        indices = order.at(positions)
        params = draw_params(augment, seed=SEED, epoch=3, indices=indices, positions=positions, image_size=SIZE)
        assert planned.indices(place, step).tolist() == indices.tolist()
        plan, digest = planned.plan(place, step)
        assert plan.indices.tolist() == indices.tolist()
        assert plan.params.crop_yx.tolist() == params.crop_yx.tolist()
        assert plan.params.flip.tolist() == params.flip.tolist()
        assert plan.params.alphas.tolist() == params.alphas.tolist()
        assert plan.shifts.tolist() == TRANSFORM.shifts(params).tolist()
        assert plan.scale.tolist() == [1, 1, 1]
        assert digest == batch_digest(positions, indices, params)


def test_steps_and_places_may_be_asked_for_in_any_order() -> None:
    planned = planner("shuffled", RankSlice(10_000, 100))
    expected = {
        (epoch, step): orders("shuffled", 10_000)(epoch=epoch).indices(100 * step, 100 * step + 100).tolist()
        for epoch in (0, 1)
        for step in range(100)
    }
    for epoch, step in [(0, 0), (0, 19), (0, 20), (0, 99), (1, 0), (0, 5), (0, 6), (1, 50), (1, 49)]:
        assert planned.plan(Place(epoch, 0), step)[0].indices.tolist() == expected[epoch, step]
    assert planned.plan(Place(0, 300), 2)[0].indices.tolist() == expected[0, 5]


def test_the_scale_is_that_of_the_epoch_from_the_first_batch_on() -> None:
    dim = np.full(3, 0.5, np.float32)
    transform = replace(TRANSFORM, scale=dim, unlit=(2, np.ones(3, np.float32)))
    order = orders("shuffled", 50)
    lit = replace(PAPER, lighting_epochs=2)
    planned = BatchPlanner(
        lambda epoch: order(epoch=epoch), RankSlice(50, 10), lit, transform, seed=SEED, image_size=SIZE
    )
    for epoch, position in [(0, 0), (1, 0), (1, 40), (2, 0), (2, 30), (3, 0), (1, 20)]:
        plan, _ = planned.plan(Place(epoch, position), 0)
        assert plan.scale.tolist() == ([0.5] * 3 if epoch < 2 else [1] * 3)
        assert plan.params.alphas.any() == plan.shifts.any() == (epoch < 2)


def test_looking_ahead_is_remembered_and_what_is_past_is_forgotten() -> None:
    made: list[int] = []
    order = orders("shuffled", 100_000)(epoch=0)

    def order_of(epoch: int) -> SampleOrder:
        made.append(epoch)
        return order

    planned = BatchPlanner(order_of, RankSlice(100_000, 128), PAPER, TRANSFORM, seed=SEED, image_size=SIZE)
    place = Place(0, 0)
    for step in range(40):
        planned.indices(place, step)
    for step in range(700):
        planned.indices(place, step + 40)
        planned.plan(place, step)
        assert len(planned._chunks) <= 4  # 16 batches each
    assert len(made) == -(-740 // 16)


class Draws:
    """`draw_params`, which notes who called it and with how many samples; fails where it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, int, int]] = []
        self.fails = False

    def __call__(self, *arguments: Any, **fields: Any) -> AugmentParams:
        elsewhere = threading.current_thread().name.startswith("lmdali-plan")
        self.calls.append((elsewhere, fields["epoch"], len(fields["indices"])))
        if self.fails:
            raise MemoryError("no room for draws")
        return draw_params(*arguments, **fields)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    draws = Draws()
    monkeypatch.setattr(batch_planner, "draw_params", draws)
    return draws


def ahead(rank_slice: RankSlice, *, across_epochs: bool) -> BatchPlanner:
    order = orders("shuffled", rank_slice.num_samples)
    return BatchPlanner(
        lambda epoch: order(epoch=epoch),
        rank_slice,
        PAPER,
        TRANSFORM,
        seed=SEED,
        image_size=SIZE,
        across_epochs=across_epochs,
    )


@pytest.mark.parametrize("across_epochs", [False, True])
def test_a_thread_makes_what_comes_next_and_nobody_asks_for_in_vain(draws: Draws, across_epochs: bool) -> None:
    planned = ahead(RankSlice(4096 + 1024, 128), across_epochs=across_epochs)
    for epoch in range(3):
        for step in range(40):
            planned.plan(Place(epoch, 0), step)
    planned.close()
    first = [(epoch > 0 and across_epochs, epoch, 2048) for epoch in range(3)]
    expected = [call for begin in first for call in (begin, (True, begin[1], 2048), (True, begin[1], 1024))]
    # Of the epoch that nobody asks for its beginning, or not even that, if the thread was told to end before it began.
    assert draws.calls in (expected, expected + [(True, 3, 2048)] * across_epochs)


def test_nothing_is_made_ahead_of_a_few_batches(draws: Draws) -> None:
    planned = ahead(RankSlice(100_000, 128), across_epochs=True)
    for step in range(12):
        planned.plan(Place(0, 0), step)
    planned.close()
    assert draws.calls == [(False, 0, 2048)]


def test_what_goes_wrong_ahead_is_told_when_it_is_due_and_tried_again_then(draws: Draws) -> None:
    planned = ahead(RankSlice(100_000, 1024), across_epochs=False)
    planned.plan(Place(0, 0), 0)
    draws.fails = True
    planned.plan(Place(0, 0), 1)
    with pytest.raises(MemoryError):
        planned.plan(Place(0, 0), 2)
    draws.fails = False
    positions = np.arange(2048, 3072)
    expected = orders("shuffled", 100_000)(epoch=0).at(positions)
    assert planned.plan(Place(0, 0), 2)[0].indices.tolist() == expected.tolist()
    planned.close()


@given(name=st.sampled_from(ORDERS), num_samples=st.integers(1, 90), data=st.data())
def test_an_order_at_some_positions_is_what_it_has_there(
    name: OrderName, num_samples: int, data: st.DataObject
) -> None:
    order = orders(name, num_samples)(epoch=1)
    chosen = sorted(data.draw(st.sets(st.integers(0, num_samples - 1))))
    everything = order.indices(0, num_samples)
    assert order.at(np.array(chosen, np.int64)).tolist() == everything[chosen].tolist()
