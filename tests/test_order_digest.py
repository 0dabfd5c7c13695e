"""The digest: equal for equal deliveries however they were divided, and different for any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.pipeline.augment import AugmentConfig, AugmentParams, draw_params
from lmdali.pipeline.block_order import ORDERS, OrderName, create_order
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.order_digest import EpochDigest, batch_digest, combine, digest_text, epoch_digest
from lmdali.pipeline.sampler import EpochOrder, RankSlice

GOLDEN = "7ba307ec7eeba94c"
"""Of the first 100 of 1,000 samples in epoch 3 of seed 5, frozen: checkpoints compare digests over years."""

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(word: int) -> int:
    """The finaliser of SplitMix64 on Python's integers."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ word >> 27) * 0x94D049BB133111EB & MASK
    return word ^ word >> 31


def slow_digest(positions: list[int], indices: list[int], params: AugmentParams) -> int:
    """The definition, one view at a time."""
    total, views = 0, len(params) // len(indices)
    for number, (position, sample) in enumerate(zip(positions, indices, strict=True)):
        for view in range(views):
            at = number * views + view
            y, x = (int(value) for value in params.crop_yx[at])
            a0, a1, a2 = (round(float(alpha) * 65536) for alpha in params.alphas[at])
            first = (y << 48 | x << 32 | a0 % 2**32) + view * GAMMA & MASK
            second = (a1 % 2**31 << 1 | int(params.flip[at])) << 32 | a2 % 2**32
            head = mix((mix(position + GAMMA & MASK) + sample) & MASK)
            if params.sides is not None:
                height, width = (int(value) for value in params.sides[at])
                head = mix((head + (height << 16 | width)) & MASK)
            total += mix((mix((head + first) & MASK) + second) & MASK)
    return total & MASK


def drawn(indices: list[int], augment: AugmentConfig | None = None, **fields: int) -> AugmentParams:
    given_ = {"seed": 5, "epoch": 3, "image_size": 256} | fields
    samples = np.array(indices, np.int64)
    return draw_params(augment or AugmentConfig.paper(), indices=samples, positions=samples, **given_)


def digest(positions: list[int], indices: list[int], params: AugmentParams) -> int:
    return batch_digest(np.array(positions, np.int64), np.array(indices, np.int64), params)


def one(crop_y: int = 3, crop_x: int = 4, flip: bool = False, alphas: tuple[float, ...] = (0.5, -0.25, 0.125)) -> int:
    """Digest of sample 7 at position 9."""
    params = AugmentParams(np.array([[crop_y, crop_x]]), np.array([flip]), np.array([alphas], np.float32))
    return digest([9], [7], params)


def test_the_digest_never_changes_between_versions() -> None:
    samples = EpochOrder(1000, 5, 3, True).indices(0, 100)
    assert digest_text(batch_digest(np.arange(100), samples, drawn(samples.tolist()))) == GOLDEN


@pytest.mark.parametrize(
    "augment", [AugmentConfig.paper(), AugmentConfig.pixels(), AugmentConfig.resized(), AugmentConfig.ten_crop()]
)
def test_the_digest_is_that_of_its_definition(augment: AugmentConfig) -> None:
    positions, indices = [0, 5, 2**40, 6], [0, 2**47, 3, 1]
    params = drawn(indices, augment)
    assert digest(positions, indices, params) == slow_digest(positions, indices, params)


def test_extreme_draws_are_told_apart() -> None:
    alphas = [(a, b, c) for a in (-90.0, 0.0, 90.0) for b in (-90.0, 0.0, 90.0) for c in (-90.0, 0.0, 90.0)]
    corners = [(0, 0), (0, 65535), (65535, 0), (65535, 65535)]
    digests = {one(y, x, flip, alpha) for y, x in corners for flip in (False, True) for alpha in alphas}
    assert len(digests) == 4 * 2 * 27


def test_every_part_of_a_draw_counts() -> None:
    step = 2.0**-16
    others = [
        one(crop_y=4),
        one(crop_x=3),
        one(crop_y=4, crop_x=3),
        one(flip=True),
        one(alphas=(0.5 + step, -0.25, 0.125)),
        one(alphas=(0.5, -0.25 - step, 0.125)),
        one(alphas=(0.5, -0.25, 0.125 + step)),
        one(alphas=(-0.25, 0.5, 0.125)),
    ]
    assert len({one(), *others}) == len(others) + 1


def test_what_another_machine_may_round_otherwise_does_not_count() -> None:
    assert one(alphas=(0.5 + 1e-7, -0.25 - 1e-7, 0.125 + 1e-7)) == one()
    assert one(alphas=(-0.0, 0.0, -0.0)) == one(alphas=(0.0, 0.0, 0.0))


def test_positions_samples_and_views_count() -> None:
    params = drawn([7, 8])
    assert digest([0, 1], [7, 8], params) != digest([1, 0], [7, 8], params)
    assert digest([0, 1], [7, 8], params) != digest([0, 1], [8, 7], params)
    assert digest([0, 1], [7, 8], params) != digest([0, 2], [7, 8], params)
    ten = drawn([7], AugmentConfig.ten_crop())
    swapped = [1, 0, *range(2, 10)]
    assert digest([0], [7], ten) != digest([0], [7], AugmentParams(ten.crop_yx[swapped], ten.flip[swapped], ten.alphas))


def test_a_sample_of_zeros_counts() -> None:
    nothing = AugmentParams(np.zeros((1, 2), np.int64), np.zeros(1, np.bool_), np.zeros((1, 3), np.float32))
    assert digest([0], [0], nothing) != 0


@given(st.permutations(range(24)), st.lists(st.integers(0, 24), max_size=6))
def test_parts_add_up_in_any_order_and_division(shuffled: list[int], cuts: list[int]) -> None:
    indices = [(7 * position + 3) % 24 for position in range(24)]
    everything = digest(list(range(24)), indices, drawn(indices))
    parts = []
    for positions in np.split(np.array(shuffled), sorted(cuts)):
        chosen = [indices[position] for position in positions]
        parts.append(digest(positions.tolist(), chosen, drawn(chosen)))
    assert combine(parts) == combine(reversed(parts)) == everything


def test_nothing_delivered_adds_nothing() -> None:
    assert digest([], [], drawn([])) == 0
    assert combine([]) == 0


def test_a_digest_has_64_bits_and_16_digits() -> None:
    assert combine([MASK, 2]) == 1
    assert digest_text(combine([2**63, 2**63])) == "0" * 16
    assert digest_text(0xABC) == "0000000000000abc"


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="found 1 positions, 2 samples, 2 views"):
        digest([0], [7, 8], drawn([7, 8]))
    with pytest.raises(ConfigError, match="found 2 positions, 2 samples, 3 views"):
        digest([0, 1], [7, 8], drawn([7, 8, 9]))
    with pytest.raises(ConfigError, match="found 0 positions, 0 samples, 1 views"):
        digest([], [], drawn([7]))


# Whole epochs.

AUGMENT = AugmentConfig.paper()
Count = Callable[..., EpochDigest]


@pytest.fixture(params=ORDERS)
def count(request: pytest.FixtureRequest) -> Count:
    """Digest of an epoch of 50 samples for some batch size and ranks."""
    name: OrderName = request.param

    def epoch(
        batch_size: int, rank: int = 0, world_size: int = 1, drop_last: bool = False, **fields: int
    ) -> EpochDigest:
        order = create_order(name, num_samples=50, seed=5, epoch=3, shard_sizes=(20, 0, 18, 12), block_shards=2)
        slice_ = RankSlice(50, batch_size, rank, world_size, drop_last)
        return epoch_digest(order, slice_, AUGMENT, seed=5, image_size=256, **fields)

    return epoch


def test_an_epoch_is_the_sum_of_its_batches() -> None:
    order, slice_ = EpochOrder(50, 5, 3, True), RankSlice(50, 8)
    parts = []
    for step in range(slice_.num_steps()):
        positions = slice_.positions(step)
        samples = order.at(positions)
        parts.append(batch_digest(positions, samples, drawn(samples.tolist())))
    assert epoch_digest(order, slice_, AUGMENT, seed=5, image_size=256) == (48, combine(parts))


def test_batch_size_and_ranks_leave_no_trace(count: Count) -> None:
    whole = count(50)
    assert whole.num_samples == 50
    for world_size in (1, 2, 3, 4, 8):
        for batch_size in (1, 3, 8):
            assert count(batch_size, world_size=world_size) == whole
            ranks = [count(batch_size, rank, world_size, all_ranks=False) for rank in range(world_size)]
            assert combine(rank.digest for rank in ranks) == whole.digest
            assert sum(rank.num_samples for rank in ranks) == 50


def test_what_is_dropped_does_not_count(count: Count) -> None:
    kept = count(4, world_size=3, drop_last=True)
    assert kept.num_samples == 48
    assert combine([kept.digest, count(1, start=48).digest]) == count(1).digest


def test_an_epoch_in_two_parts_is_the_epoch(count: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count(1)
    monkeypatch.setattr("lmdali.pipeline.order_digest._CHUNK", 7)
    assert count(1) == whole
    first = count(5).digest - count(5, start=15).digest
    assert combine([first, count(4, world_size=2, start=15).digest]) == whole.digest
    assert count(5, start=50) == (0, 0)


def test_orders_seeds_and_epochs_have_digests_of_their_own() -> None:
    digests = set()
    for name in ORDERS:
        for seed, epoch in ((5, 3), (6, 3), (5, 4)):
            order = create_order(name, num_samples=50, seed=seed, epoch=epoch, shard_sizes=(30, 20), block_shards=1)
            digests.add(epoch_digest(order, RankSlice(50, 5), AUGMENT, seed=seed, image_size=256).digest)
    assert len(digests) == 3 * len(ORDERS)
    order = EpochOrder(50, 5, 3, False)
    crops = [replace(AUGMENT, crop_size=size) for size in (224, 225)]
    assert len({epoch_digest(order, RankSlice(50, 5), crop, seed=5, image_size=256) for crop in crops}) == 2
