"""Stopping and going on at the level of loaders: any place, any ranks, any batch size, any number of times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lmdali.pipeline import AugmentConfig, DatasetLoader, LoaderConfig, create_loader
from lmdali.pipeline.augment import draw_params
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.block_order import ORDERS, OrderName, create_order
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.loader_state import merge_states
from lmdali.pipeline.order_digest import batch_digest, combine

WORLDS = (1, 2, 3, 4, 8)
AUGMENT = AugmentConfig(crop_size=4, normalize="none", lighting="roots")
CHUNKS = replace(AUGMENT, crop_chunk=5, lighting_epochs=1)


@dataclass(frozen=True)
class Run:
    """What stays when ranks and batch size change."""

    num_samples: int = 40
    order: OrderName = "shuffled"
    drop_last: bool = False
    seed: int = 11
    augment: AugmentConfig = AUGMENT

    def loader(self, batch_size: int, rank: int = 0, world_size: int = 1, **fields: Any) -> DatasetLoader:
        defaults: dict[str, Any] = {"order": self.order, "seed": self.seed, "drop_last": self.drop_last}
        config = LoaderConfig(
            dataset=f"synthetic:{self.num_samples}x3",
            batch_size=batch_size,
            augment=self.augment,
            backend="synthetic",
            **defaults | fields,
        )
        return create_loader(config, rank=rank, world_size=world_size)

    @contextmanager
    def ranks(self, world_size: int, batch_size: int, state: dict[str, Any] | None) -> Iterator[list[DatasetLoader]]:
        """One loader per rank, at the place of a state."""
        with ExitStack() as stack:
            loaders = [
                stack.enter_context(closing(self.loader(batch_size, rank, world_size))) for rank in range(world_size)
            ]
            for loader in loaders:
                if state is not None:
                    loader.load_state_dict(state)
            yield loaders

    def indices(self, epoch: int = 0) -> list[int]:
        """Sample numbers of a whole epoch in its order."""
        order = create_order(
            self.order, num_samples=self.num_samples, seed=self.seed, epoch=epoch, shard_sizes=(self.num_samples,)
        )
        return order.indices(0, self.num_samples).tolist()

    def digest(self, count: int | None = None, epoch: int = 0) -> int:
        """Digest of the first samples of an epoch, computed in one go."""
        indices = np.array(self.indices(epoch)[: self.num_samples if count is None else count], np.int64)
        places = np.arange(len(indices))
        params = draw_params(
            self.augment, seed=self.seed, epoch=epoch, indices=indices, positions=places, image_size=256
        )
        return batch_digest(places, indices, params)


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    restored: dict[str, Any] = json.loads(json.dumps(state))
    return restored


def numbers(batches: Sequence[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.indices.tolist()]


def digest_of(loaders: Sequence[DatasetLoader]) -> int | None:
    parts = [loader.epoch_digest for loader in loaders]
    known = [part for part in parts if part is not None]
    return combine(known) if len(known) == len(parts) else None


def advance(loaders: Sequence[DatasetLoader], steps: int) -> list[int]:
    """Take so many steps on all ranks, or what is left of the epoch: sample numbers in the order of the epoch."""
    delivered: list[int] = []
    for _, batches in zip(range(steps), zip(*loaders, strict=True), strict=False):
        delivered += numbers(batches)
    return delivered


phases = st.lists(st.tuples(st.sampled_from(WORLDS), st.integers(1, 7), st.integers(0, 5)), min_size=1, max_size=3)


augments = st.sampled_from([AUGMENT, CHUNKS])


@given(num_samples=st.integers(1, 90), order=st.sampled_from(ORDERS), phases=phases, augment=augments)
@example(num_samples=1, order="shuffled", phases=[(8, 1, 0), (3, 2, 0)], augment=AUGMENT)
@example(num_samples=29, order="block", phases=[(8, 1, 1), (1, 7, 2), (4, 2, 1)], augment=CHUNKS)
@settings(max_examples=80)
def test_each_sample_comes_once_whatever_ranks_and_batch_sizes_go_on(
    num_samples: int, order: OrderName, phases: list[tuple[int, int, int]], augment: AugmentConfig
) -> None:
    run = Run(num_samples, order, augment=augment)
    state: dict[str, Any] | None = None
    delivered: list[int] = []
    for world_size, batch_size, steps in [*phases, (2, 3, num_samples)]:
        with run.ranks(world_size, batch_size, state) as loaders:
            delivered += advance(loaders, steps)
            assert delivered == run.indices()[: len(delivered)]
            assert digest_of(loaders) == run.digest(len(delivered))
            state = through_json(merge_states([loader.state_dict() for loader in loaders]))
            if len(delivered) == num_samples:
                break
            assert (state["epoch"], state["sample_in_epoch"]) == (0, len(delivered))
    assert delivered == run.indices()
    assert (state["epoch"], state["sample_in_epoch"], state["epoch_digest"]) == (1, 0, "0" * 16)


@given(num_samples=st.integers(1, 90), phases=phases, augment=augments)
@settings(max_examples=50)
def test_with_the_last_batch_dropped_each_sample_comes_at_most_once(
    num_samples: int, phases: list[tuple[int, int, int]], augment: AugmentConfig
) -> None:
    assume(all(world_size * batch_size <= num_samples for world_size, batch_size, _ in phases))
    run = Run(num_samples, drop_last=True, augment=augment)
    state: dict[str, Any] | None = None
    delivered: list[int] = []
    for world_size, batch_size, steps in phases:
        with run.ranks(world_size, batch_size, state) as loaders:
            left = (num_samples - len(delivered)) // (world_size * batch_size)
            assert {loader.epoch for loader in loaders} == {1 if left == 0 else 0}
            if left == 0:
                break
            delivered += advance(loaders, steps)
            assert delivered == run.indices()[: len(delivered)]
            assert digest_of(loaders) == run.digest(len(delivered))
            state = merge_states([loader.state_dict() for loader in loaders])
            if state["epoch"] == 1:
                assert num_samples - len(delivered) < world_size * batch_size
                break


@pytest.mark.parametrize("order", ORDERS)
def test_a_run_stopped_after_each_single_batch_is_the_run_that_never_was(order: OrderName) -> None:
    run = Run(order=order, drop_last=True)
    whole = run.loader(6)
    expected = [numbers([batch]) for _ in range(2) for batch in whole]
    found, state = [], None
    for _ in expected:
        with run.ranks(1, 6, state) as (loader,):
            found.append(numbers([next(iter(loader))]))
            state = through_json(loader.state_dict())
    assert found == expected
    assert (state or {})["epoch"] == 2


def test_minibatches_that_are_shuffled_once_keep_their_members_and_get_new_draws() -> None:
    run = Run(order="shuffled_once", augment=CHUNKS)
    loader = run.loader(6, prefetch=9)
    first = [numbers([batch]) for batch in loader]
    digest = loader.epoch_digest
    assert [numbers([batch]) for batch in loader] == first
    assert digest != loader.epoch_digest == run.digest(epoch=1)
    assert [number for batch in first for number in batch] == Run().indices(), "those of the first shuffled epoch"


@pytest.mark.parametrize("step", range(7))
def test_digests_are_those_of_a_run_that_was_never_stopped(step: int) -> None:
    run = Run(drop_last=True, augment=CHUNKS)
    first = run.loader(6)
    advance([first], step)
    second = run.loader(6)
    second.load_state_dict(through_json(first.state_dict()))
    epoch = second.epoch
    list(second)
    assert second.epoch_digest == run.digest(36, epoch=epoch)
    list(second)
    assert second.epoch_digest == run.digest(36, epoch=epoch + 1)


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("order", ORDERS)
def test_ranks_digests_add_up_to_that_of_one_process(world_size: int, order: OrderName) -> None:
    run = Run(49, order, augment=CHUNKS)
    with run.ranks(world_size, 3, None) as loaders:
        for epoch in range(2):
            advance(loaders, 49)
            assert digest_of(loaders) == run.digest(epoch=epoch)
            assert [loader.state_dict()["epoch_digest"] for loader in loaders] == ["0" * 16] * world_size


def test_the_digest_counts_what_was_given_and_not_what_was_prefetched() -> None:
    run = Run()
    loader = run.loader(4, prefetch=5)
    assert loader.epoch_digest == 0
    for number, _ in enumerate(loader, 1):
        assert loader.epoch_digest == run.digest(4 * number)
    assert loader.epoch == 1
    assert loader.epoch_digest == run.digest(), "the epoch just finished"
    batches = iter(loader)
    assert loader.epoch_digest == 0, "the next one has begun"
    next(batches)
    assert loader.epoch_digest == run.digest(4, epoch=1)


def test_an_epoch_that_is_begun_again_has_its_digest_begun_again() -> None:
    run = Run()
    loader = run.loader(4)
    advance([loader], 3)
    list(loader)
    assert loader.epoch_digest == run.digest()


def test_an_iteration_that_was_left_behind_no_longer_counts() -> None:
    run = Run()
    loader = run.loader(4)
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    loader.load_state_dict(state)
    list(batches)
    assert loader.state_dict() == state
    assert loader.epoch_digest == run.digest(8)
    list(loader)
    assert loader.epoch_digest == run.digest()


def test_the_digest_tells_seeds_epochs_orders_and_augmentations_apart() -> None:
    def digest(epoch: int = 0, **fields: Any) -> int | None:
        loader = Run().loader(4, **fields)
        loader.set_epoch(epoch)
        list(loader)
        return loader.epoch_digest

    centered = AugmentConfig(crop_size=4, crop="center", flip=False, normalize="none", lighting="none")
    config = partial(LoaderConfig, dataset="synthetic:40x3", batch_size=4, backend="synthetic", seed=11)
    other = create_loader(config(augment=centered, drop_last=False))
    list(other)
    found = {digest(), digest(epoch=1), digest(seed=12), digest(order="sequential"), other.epoch_digest}
    assert len(found) == 5
    assert digest(prefetch=7) == digest()


def test_the_state_of_one_of_several_ranks_has_the_place_and_no_digest_until_the_next_epoch() -> None:
    run = Run()
    with run.ranks(2, 3, None) as loaders:
        advance(loaders, 2)
        one_ranks = loaders[0].state_dict()
    loader = run.loader(5)
    loader.load_state_dict(one_ranks)
    assert numbers(list(loader)) == run.indices()[12:]
    assert loader.epoch_digest is None
    assert loader.state_dict()["epoch_digest"] == "0" * 16
    list(loader)
    assert loader.epoch_digest == run.digest(epoch=1)


def test_ranks_that_keep_their_own_states_keep_their_own_digests() -> None:
    run = Run()
    with run.ranks(4, 2, None) as loaders:
        advance(loaders, 3)
        states = [loader.state_dict() for loader in loaders]
    with run.ranks(4, 2, None) as loaders:
        for loader, state in zip(loaders, states, strict=True):
            loader.load_state_dict(state)
        advance(loaders, 99)
        assert digest_of(loaders) == run.digest()


def test_a_state_of_another_run_that_is_forced_begins_a_new_digest() -> None:
    other = Run(seed=5).loader(4)
    advance([other], 3)
    loader = Run().loader(4)
    loader.load_state_dict(other.state_dict(), strict=False)
    assert loader.epoch_digest == 0
    list(loader)
    whole, before = Run().digest(), Run().digest(12)
    assert loader.epoch_digest == (whole - before) % 2**64


def test_a_state_of_another_order_is_refused() -> None:
    state = Run(order="block").loader(4).state_dict()
    assert state["order"] == "block:8"
    with pytest.raises(InputError, match="order 'block:8' there, 'shuffled' here"):
        Run().loader(4).load_state_dict(state)
    with pytest.raises(InputError, match="order 'block:8' there, 'block:2' here"):
        Run(order="block").loader(4, block_shards=2).load_state_dict(state)


def test_resuming_plans_a_few_batches_from_the_place_on(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def counted(*args: Any, **fields: Any) -> Any:
        drawn.append(len(fields["indices"]))
        return draw_params(*args, **fields)

    run = Run(1_000_000_000)
    for position in (10, 999_999_000):
        loader = run.loader(128, prefetch=3)
        state = loader.state_dict() | {"epoch": 71, "sample_in_epoch": position}
        monkeypatch.setattr("lmdali.pipeline.batch_planner.draw_params", counted)
        loader.load_state_dict(state)
        assert drawn == []
        next(iter(loader))
        assert drawn == [min(2048, run.num_samples - position)]
        drawn.clear()


@pytest.mark.parametrize("world_size", [1, 3, 8, 13])
@pytest.mark.parametrize("num_samples", [1, 2, 5, 12, 13, 14])
def test_evaluation_counts_each_sample_once_also_with_more_ranks_than_samples(
    num_samples: int, world_size: int
) -> None:
    run = Run(num_samples, "sequential")
    with run.ranks(world_size, 2, None) as loaders:
        assert len({len(loader) for loader in loaders}) == 1
        for _ in range(2):
            for loader in loaders:
                loader.set_epoch(0)
            assert advance(loaders, 99) == list(range(num_samples))
            assert digest_of(loaders) == run.digest()


operations = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 9)),
        st.tuples(st.just("iterate"), st.just(0)),
        st.tuples(st.just("set_epoch"), st.integers(0, 3)),
        st.tuples(st.just("save"), st.just(0)),
        st.tuples(st.just("load"), st.just(0)),
        st.tuples(st.just("break"), st.just(0)),
    ),
    max_size=14,
)


@given(operations=operations, prefetch=st.integers(2, 9), batch_size=st.sampled_from([5, 9, 40]))
@settings(max_examples=60)
def test_working_ahead_across_epochs_changes_nothing_that_a_consumer_sees(
    operations: list[tuple[str, int]], prefetch: int, batch_size: int
) -> None:
    run = Run(drop_last=True)

    def story(loader: DatasetLoader) -> Iterator[Any]:
        batches, saved = iter(loader), loader.state_dict()
        for name, number in operations:
            if name == "take":
                for _ in range(number):
                    batch = next(batches, None)
                    yield None if batch is None else numbers([batch])
            elif name == "iterate":
                batches = iter(loader)
            elif name == "set_epoch":
                loader.set_epoch(number)
            elif name == "save":
                saved = loader.state_dict()
            elif name == "load":
                loader.load_state_dict(saved)
            else:
                batches.close()  # type: ignore[attr-defined]
            yield loader.epoch, loader.state_dict(), loader.epoch_digest

    ahead, plain = run.loader(batch_size, prefetch=prefetch), run.loader(batch_size, prefetch=1)
    plain._queue._across = False
    assert list(story(ahead)) == list(story(plain))
