"""What every backend owes to whoever consumes its batches: one suite over cpu, dali (on the CPU) and synthetic."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_files import open_descriptors, our_threads

from lmdali.pipeline import AugmentConfig, DatasetLoader, LoaderConfig, create_loader, load_eigenbasis, load_manifest
from lmdali.pipeline.augment import draw_params
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.batch import Batch, Loader
from lmdali.pipeline.block_order import create_order
from lmdali.pipeline.errors import ConfigError, InputError, RecordError
from lmdali.pipeline.order_digest import batch_digest
from lmdali.pipeline.pixel_transform import pixel_transform
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.sampler import EpochOrder
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.timing import STAGES

NUM_SAMPLES, SIZE, CROP = 37, 48, 40
PIXELS = AugmentConfig(crop_size=CROP, normalize="none", lighting="none")
PAPER = AugmentConfig(crop_size=CROP)
ORIGINAL = replace(AugmentConfig.original2012(), crop_size=CROP, lighting_epochs=1)
CENTER = AugmentConfig(crop_size=CROP, crop="center", flip=False, lighting="none")
TEN = AugmentConfig(crop_size=CROP, crop="ten", flip=False, lighting="none")

Make = Callable[..., DatasetLoader]


def _dali_param() -> Any:
    return pytest.param("dali", marks=pytest.mark.dali)


@pytest.fixture(params=["cpu", _dali_param(), "synthetic"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="no nvidia-dali wheel here")
    return str(request.param)


@pytest.fixture(params=["cpu", _dali_param()])
def real_backend(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="no nvidia-dali wheel here")
    return str(request.param)


@pytest.fixture
def make(backend: str, small_jpeg_dataset: Path) -> Iterator[Make]:
    """Loaders over the small JPEG dataset, closed at the end of the test."""
    yield from _maker(backend, small_jpeg_dataset)


@pytest.fixture
def make_real(real_backend: str, small_jpeg_dataset: Path) -> Iterator[Make]:
    yield from _maker(real_backend, small_jpeg_dataset)


def _maker(backend: str, dataset: Path) -> Iterator[Make]:
    made: list[DatasetLoader] = []

    def build(rank: int = 0, world_size: int = 1, **fields: Any) -> DatasetLoader:
        defaults: dict[str, Any] = {
            "dataset": dataset,
            "batch_size": 5,
            "augment": PIXELS,
            "dtype": "uint8" if not fields.get("augment", PIXELS).needs_basis else "float32",
            "layout": "NHWC",
            "backend": backend,
            "num_threads": 2,
            "prefetch": 2,
        }
        loader = create_loader(LoaderConfig(**defaults | fields), rank=rank, world_size=world_size)
        made.append(loader)
        return loader

    yield build
    for loader in made:
        loader.close()


Seen = list[tuple[list[int], list[int], bytes]]


def seen(batches: Any) -> Seen:
    """Indices, labels and pixels of batches, copied while each is the current one."""
    return [(b.indices.tolist(), b.labels.tolist(), b.images.contiguous().numpy().tobytes()) for b in batches]


def indices(batches: Any) -> list[int]:
    return [index for batch in batches for index in batch.indices.tolist()]


def order(epoch: int = 0, seed: int = 0) -> list[int]:
    return EpochOrder(NUM_SAMPLES, seed, epoch, True).indices(0, NUM_SAMPLES).tolist()


def stored(dataset: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """All pixels and labels of a dataset, by the reader alone."""
    reader = ShardReader(dataset, load_manifest(dataset))
    size = reader.manifest.image_size
    rows = [reader.read(i, lambda r: (decode_stored(r.data, size).copy(), r.label)) for i in range(NUM_SAMPLES)]
    reader.close()
    return np.stack([pixels for pixels, _ in rows]), [label for _, label in rows]


# Order, labels, lengths.


def test_batches_follow_the_order_of_the_epoch_exactly(make: Make, backend: str, small_jpeg_dataset: Path) -> None:
    loader = make(drop_last=False)
    batches = list(loader)
    assert [len(batch.indices) for batch in batches] == [5] * 7 + [2]
    assert indices(batches) == order()
    if backend != "synthetic":
        labels = stored(small_jpeg_dataset)[1]
        assert [label for b in batches for label in b.labels.tolist()] == [labels[i] for i in order()]


def test_the_loader_knows_its_dataset(make: Make, small_jpeg_dataset: Path) -> None:
    loader, manifest = make(), load_manifest(small_jpeg_dataset)
    assert isinstance(loader, Loader)
    assert (loader.num_samples, loader.num_views, loader.class_names) == (NUM_SAMPLES, 1, ("a", "b"))
    assert loader.manifest_digest == manifest.digest
    assert loader.global_batch_size == 5
    assert loader.backend_reason == "asked for"


@pytest.mark.parametrize("batch_size", [1, 4, 36, 37])
def test_len_is_what_an_epoch_delivers(make: Make, batch_size: int) -> None:
    for drop_last in (False, True):
        loader = make(batch_size=batch_size, drop_last=drop_last)
        assert len(loader) == len(list(loader)) == (37 // batch_size if drop_last else -(-37 // batch_size))


def test_a_set_smaller_than_a_batch(make: Make) -> None:
    assert [len(b.indices) for b in make(batch_size=100, drop_last=False)] == [37]
    with pytest.raises(ConfigError, match="fewer than one global batch"):
        make(batch_size=38)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_batches_have_the_form_that_was_asked_for(make: Make, dtype: Any, layout: Any) -> None:
    batch = next(iter(make(dtype=dtype, layout=layout)))
    shape = (5, 3, CROP, CROP) if layout == "NCHW" else (5, CROP, CROP, 3)
    assert isinstance(batch, Batch)
    assert batch.images.shape == shape
    assert batch.images.dtype == getattr(torch, dtype)
    assert batch.images.is_contiguous()
    assert batch.labels.shape == batch.indices.shape == (5,)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    images, labels = batch
    assert images is batch.images and labels is batch.labels


def test_sequential_is_storage_order(make: Make) -> None:
    assert indices(make(order="sequential")) == list(range(37))


def test_the_block_order_opens_a_few_shards_at_a_time(make: Make, small_jpeg_dataset: Path) -> None:
    sizes = [shard.num_records for shard in load_manifest(small_jpeg_dataset).shards]
    assert len(sizes) == 5
    loader = make(order="block", block_shards=2, drop_last=False)
    for epoch in range(2):
        expected = create_order(
            "block", num_samples=NUM_SAMPLES, seed=0, epoch=epoch, shard_sizes=sizes, block_shards=2
        ).indices(0, NUM_SAMPLES)
        delivered = indices(loader)
        assert delivered == expected.tolist() != order(epoch)
        assert sorted(delivered) == list(range(NUM_SAMPLES))
        shards = np.searchsorted(np.cumsum(sizes), delivered, side="right")
        assert len(set(shards[: sum(sorted(sizes)[:2])].tolist())) <= 2


def test_views_of_ten_crops_are_adjacent(make: Make) -> None:
    loader = make(augment=TEN, drop_last=False)
    batches = list(loader)
    assert loader.num_views == 10
    assert [b.images.shape[0] for b in batches] == [50] * 7 + [20]
    assert [len(b.labels) for b in batches] == [5] * 7 + [2]


# Epochs.


def test_each_iteration_is_the_next_epoch(make: Make) -> None:
    loader = make(drop_last=False)
    for epoch in range(3):
        assert loader.epoch == epoch
        assert indices(loader) == order(epoch)
    loader.set_epoch(1)
    assert loader.epoch == 1
    assert indices(loader) == order(1)
    assert loader.epoch == 2


def test_the_epoch_is_the_one_being_delivered_until_its_end(make: Make) -> None:
    loader = make()
    assert [loader.epoch for _ in loader] == [0] * 7
    assert loader.epoch == 1


def test_seeds_have_orders_of_their_own(make: Make) -> None:
    assert indices(make(seed=2**64 - 1, drop_last=False)) == order(0, 2**64 - 1)


def test_after_break_the_epoch_starts_again(make: Make) -> None:
    loader = make()
    for number, _ in enumerate(loader):
        if number == 3:
            break
    whole = seen(loader)
    assert whole == seen(make())
    assert loader.epoch == 1


def test_an_exception_in_the_loop_leaves_a_usable_loader(make: Make) -> None:
    loader = make(drop_last=False)
    with pytest.raises(KeyError):
        for _ in loader:
            raise KeyError
    assert indices(loader) == order()


def test_a_second_iteration_ends_the_first(make: Make) -> None:
    loader = make(drop_last=False)
    first = iter(loader)
    next(first)
    second = iter(loader)
    assert indices([next(second)]) == order()[:5]
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"ended by another one of the same loader.*make two loaders"):
            next(first)
    assert indices(second) == order()[5:]


def test_an_iteration_that_was_through_or_closed_is_ended_by_no_other(make: Make) -> None:
    loader = make(drop_last=False)
    through = iter(loader)
    assert list(through)
    last = iter(loader)
    for _ in range(len(loader)):
        next(last)  # and not asked whether it is through
    closed = iter(loader)
    next(closed)
    closed.close()  # type: ignore[attr-defined]
    assert list(loader)
    assert list(through) == list(last) == list(closed) == []


def test_two_iterations_at_a_time_are_no_short_epoch(make: Make) -> None:
    loader = make(drop_last=False)
    with pytest.raises(ConfigError, match="make two loaders"):
        list(zip(loader, loader, strict=False))


def test_set_epoch_within_an_epoch_is_not_forgotten(make: Make) -> None:
    loader = make(drop_last=False)
    for number, _ in enumerate(loader):
        if number == 2:
            loader.set_epoch(5)
    assert loader.epoch == 5
    assert loader.state_dict()["epoch"] == 5
    assert indices(loader) == order(5)


def test_taking_as_many_batches_as_len_says_is_a_whole_epoch(make: Make) -> None:
    loader = make(drop_last=False)
    for epoch in range(2):
        assert indices(batch for _, batch in zip(range(len(loader)), loader, strict=False)) == order(epoch)


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_batch_larger_than_the_set_takes_memory_for_the_set_only(make: Make, world_size: int) -> None:
    ranks = [make(batch_size=2**40, drop_last=False, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(index for loader in ranks for index in indices(loader)) == list(range(NUM_SAMPLES))


@pytest.mark.parametrize(
    ("epoch", "message"),
    [
        (-1, r"epoch must be in 0\.\.4294967295, found -1"),
        (2**32, "epoch must be in 0"),
        ("3", "epoch must be a whole number, found '3'"),
    ],
)
def test_epochs_that_are_none_are_refused(make: Make, epoch: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make().set_epoch(epoch)


def test_numbers_of_numpy_are_as_good_as_pythons_also_in_a_state(make: Make) -> None:
    loader = make(
        batch_size=np.int64(5), seed=np.uint64(3), num_threads=np.int32(1), rank=np.int64(0), world_size=np.int64(2)
    )
    loader.set_epoch(np.int64(1))
    next(iter(loader))
    state = json.loads(json.dumps(loader.state_dict()))
    loader.load_state_dict(loader.state_dict())
    assert loader.state_dict() == state


# Across epochs.


class Spy:
    """Counts what a loader's backend has in its hands."""

    def __init__(self, loader: DatasetLoader, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = self.ended = self.most = 0
        backend: Any = loader._backend
        start, finish, cancel = backend.start, backend.finish, backend.cancel

        def counted_start(plan: Any) -> Any:
            self.started += 1
            self.most = max(self.most, self.started - self.ended)
            return start(plan)

        def counted_finish(pending: Any) -> Any:
            self.ended += 1
            return finish(pending)

        def counted_cancel(pending: Any) -> None:
            self.ended += 1
            cancel(pending)

        monkeypatch.setattr(loader._queue, "_backend", _Counting(counted_start, counted_finish, counted_cancel))

    @property
    def in_flight(self) -> int:
        return self.started - self.ended


class _Counting:
    def __init__(self, start: Any, finish: Any, cancel: Any) -> None:
        self.start, self.finish, self.cancel = start, finish, cancel


def test_the_next_epoch_is_in_flight_when_this_one_ends(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make(augment=PAPER, prefetch=3)
    spy = Spy(loader, monkeypatch)
    expected = [seen(_at_epoch(make(augment=PAPER), epoch)) for epoch in range(3)]
    for epoch in range(3):
        if epoch == 2:
            loader.set_epoch(epoch)  # as training loops do: to where the loader is anyway
        assert seen(loader) == expected[epoch]
        assert (spy.started, spy.in_flight) == (7 * (epoch + 1) + 3, 3), "nothing was begun twice"
    assert spy.most == 4
    loader.close()
    assert spy.in_flight == 0


def test_an_iterator_left_after_its_last_batch_hands_over_what_it_began(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make(prefetch=3, drop_last=False)
    spy = Spy(loader, monkeypatch)
    for epoch in range(3):
        assert indices(batch for _, batch in zip(range(len(loader)), loader, strict=False)) == order(epoch)
        assert (spy.started, spy.in_flight) == (8 * (epoch + 1) + 3, 3)


def test_evaluation_does_not_work_ahead_of_its_epoch(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make(augment=CENTER, order="sequential", prefetch=3)
    spy = Spy(loader, monkeypatch)
    for run in range(1, 3):
        loader.set_epoch(0)
        assert indices(loader) == list(range(NUM_SAMPLES))
        assert (spy.started, spy.in_flight) == (8 * run, 0)


@pytest.mark.parametrize("how", ["set_epoch", "load_state_dict", "close"])
def test_what_was_begun_for_another_epoch_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    loader = make(augment=PAPER, prefetch=3)
    state = make(augment=PAPER).state_dict() | {"epoch": 4, "sample_in_epoch": 20}
    spy = Spy(loader, monkeypatch)
    list(loader)
    assert spy.in_flight == 3
    if how == "close":
        loader.close()
    elif how == "set_epoch":
        loader.set_epoch(4)
    else:
        loader.load_state_dict(state)
    assert spy.in_flight == 0
    if how != "close":
        whole = seen(_at_epoch(make(augment=PAPER), 4))
        assert seen(loader) == (whole if how == "set_epoch" else whole[4:])


def test_an_iterator_that_is_closed_leaves_nothing_running(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make(prefetch=3)
    spy = Spy(loader, monkeypatch)
    for count in (2, 7):
        iterator: Any = iter(loader)
        for _ in range(count):
            next(iterator)
        assert spy.in_flight == 3
        iterator.close()
        assert spy.in_flight == 0
    assert indices(loader) == order(1)[:35]


# State.


def test_resuming_after_any_batch_equals_never_having_stopped(make: Make) -> None:
    augment = PAPER
    whole = seen(make(augment=augment)) + seen(_at_epoch(make(augment=augment), 1))
    for step in range(14):
        first = make(augment=augment)
        taken, iterator = 0, iter(first)
        while taken < step:
            for batch in iterator:
                assert batch is not None
                taken += 1
                if taken == step:
                    break
            iterator = iter(first) if taken < step else iterator
        state = json.loads(json.dumps(first.state_dict()))
        first.close()
        second = make(augment=augment)
        second.load_state_dict(state)
        rest = seen(second)
        if second.epoch == 1:
            rest += seen(second)
        assert rest == whole[step:], f"differs after {step} batches"
        second.close()


def _at_epoch(loader: DatasetLoader, epoch: int) -> DatasetLoader:
    loader.set_epoch(epoch)
    return loader


def test_the_state_is_ten_plain_values(make: Make, small_jpeg_dataset: Path) -> None:
    loader = make(seed=9)
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    assert state == {
        "state_version": 2,
        "epoch": 0,
        "sample_in_epoch": 10,
        "seed": 9,
        "num_samples": NUM_SAMPLES,
        "manifest_digest": load_manifest(small_jpeg_dataset).digest,
        "order": "shuffled",
        "rank": 0,
        "world_size": 1,
        "epoch_digest": f"{expected_digest(PIXELS, 10, seed=9):016x}",
    }
    assert json.loads(json.dumps(state)) == state


def test_prefetched_batches_do_not_count_as_delivered(make: Make) -> None:
    loader = make(prefetch=6)
    assert loader.state_dict()["sample_in_epoch"] == 0
    iterator = iter(loader)
    assert loader.state_dict()["sample_in_epoch"] == 0
    next(iterator)
    assert loader.state_dict()["sample_in_epoch"] == 5


def test_after_the_last_batch_the_state_is_the_next_epoch(make: Make) -> None:
    loader = make()
    iterator = iter(loader)
    for _ in range(7):
        next(iterator)
    assert (loader.state_dict()["epoch"], loader.state_dict()["sample_in_epoch"]) == (1, 0)
    assert list(iterator) == []
    assert (loader.state_dict()["epoch"], loader.state_dict()["sample_in_epoch"]) == (1, 0)


@pytest.mark.parametrize(("batch_size", "world_size"), [(5, 1), (2, 2), (3, 3), (1, 4), (40, 1)])
def test_another_world_and_batch_size_sees_each_remaining_sample_once(
    make: Make, batch_size: int, world_size: int
) -> None:
    first = make(batch_size=3, world_size=2, drop_last=False)
    iterator = iter(first)
    next(iterator), next(iterator)
    state = first.state_dict()
    assert state["sample_in_epoch"] == 12
    ranks = [make(rank, world_size, batch_size=batch_size, drop_last=False) for rank in range(world_size)]
    for loader in ranks:
        loader.load_state_dict(state)
    steps = list(zip(*ranks, strict=True))
    assert [i for step in steps for batch in step for i in batch.indices.tolist()] == order()[12:]
    assert {loader.epoch for loader in ranks} == {1}


def test_resuming_twice_is_resuming_once(make: Make) -> None:
    whole = seen(make(augment=PAPER))
    state, got = None, []
    for count in (2, 1, 3, 100):
        loader = make(augment=PAPER)
        if state is not None:
            loader.load_state_dict(state)
        for batch in loader:
            got += seen([batch])
            if len(got) in (2, 3, 6) and count < 100:
                break
        state = loader.state_dict()
        loader.close()
    assert got == whole


def test_loading_a_state_within_an_epoch_goes_there_next(make: Make) -> None:
    loader = make(drop_last=False)
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    next(iterator)
    loader.load_state_dict(state)
    assert len(list(iterator)) == 5, "the iteration that runs is not cut short"
    assert loader.state_dict() == state
    assert indices(loader) == order()[10:]
    assert loader.epoch == 1


def test_a_state_is_used_once(make: Make) -> None:
    loader = make(drop_last=False)
    loader.load_state_dict(loader.state_dict() | {"sample_in_epoch": 30})
    assert indices(loader) == order()[30:]
    assert indices(loader) == order(1)


def test_a_state_near_the_end_with_nothing_left_is_the_next_epoch(make: Make) -> None:
    loader = make(batch_size=5)
    loader.load_state_dict(loader.state_dict() | {"sample_in_epoch": 33})
    assert loader.epoch == 1
    assert indices(loader) == order(1)[:35]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 1 there, 0 here"),
        ({"manifest_digest": "x"}, "manifest_digest"),
        ({"num_samples": 38}, "num_samples 38 there, 37 here"),
        ({"state_version": 3}, "version 3"),
        ({"order": "block:8"}, "order 'block:8' there, 'shuffled' here"),
        ({"epoch_digest": "x"}, "epoch_digest 'x'"),
        ({"sample_in_epoch": 38}, "sample 38 of 37"),
        ({"sample_in_epoch": -1}, "sample -1"),
        ({"epoch": -1}, "epoch -1"),
        ({"epoch": "soon"}, "epoch"),
        ({"state_version": None}, "version"),
    ],
)
def test_states_of_other_runs_are_refused(make: Make, change: dict[str, Any], message: str) -> None:
    loader = make()
    with pytest.raises(InputError, match=message):
        loader.load_state_dict(loader.state_dict() | change)
    incomplete = loader.state_dict()
    del incomplete["epoch"]
    with pytest.raises(InputError, match="lacks epoch"):
        loader.load_state_dict(incomplete)


def test_a_state_of_another_seed_can_be_forced(make: Make) -> None:
    loader = make(seed=4, drop_last=False)
    loader.load_state_dict(make(seed=3).state_dict() | {"sample_in_epoch": 30}, strict=False)
    assert indices(loader) == order(0, 4)[30:]


# Digest.


def expected_digest(augment: AugmentConfig, count: int, epoch: int = 0, seed: int = 0) -> int:
    chosen = np.array(order(epoch, seed)[:count])
    places = np.arange(count)
    params = draw_params(augment, seed=seed, epoch=epoch, indices=chosen, positions=places, image_size=SIZE)
    return batch_digest(places, chosen, params)


@pytest.mark.parametrize("augment", [PIXELS, PAPER, ORIGINAL, TEN], ids=["pixels", "paper", "2012", "ten"])
def test_digests_are_of_samples_and_draws_and_of_nothing_else(make: Make, augment: AugmentConfig) -> None:
    for fields in ({}, {"batch_size": 37}, {"num_threads": 1, "prefetch": 1}, {"num_threads": 5, "prefetch": 9}):
        loader = make(augment=augment, drop_last=False, **fields)
        for epoch in range(2):
            list(loader)
            assert loader.epoch_digest == expected_digest(augment, NUM_SAMPLES, epoch)


# Ranks.


def test_ranks_together_are_one_process(make: Make, backend: str) -> None:
    whole = seen(make(batch_size=6, augment=PAPER, drop_last=False))
    ranks = [make(rank, 3, batch_size=2, augment=PAPER, drop_last=False) for rank in range(3)]
    for (index, label, pixels), parts in zip(whole, zip(*ranks, strict=True), strict=True):
        split = seen(parts)
        assert [i for part in split for i in part[0]] == index
        assert [i for part in split for i in part[1]] == label
        assert backend == "synthetic" or b"".join(part[2] for part in split) == pixels


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_covers_each_sample_once_for_any_world(make: Make, world_size: int) -> None:
    for batch_size in (1, 4, 6, 12, 13, 36, 37):
        fields: dict[str, Any] = {"batch_size": batch_size, "augment": CENTER, "order": "sequential"}
        ranks = [make(rank, world_size, **fields) for rank in range(world_size)]
        steps = list(zip(*ranks, strict=True))
        assert len(steps) == len(ranks[0])
        assert indices(batch for step in steps for batch in step) == list(range(37))
        for loader in ranks:
            loader.close()


def test_a_rank_without_samples_in_the_last_step_gets_an_empty_batch(make: Make) -> None:
    # 37 = 6 * 6 + 1: the second and third rank have nothing in the seventh step.
    ranks = [make(rank, 3, batch_size=2, augment=CENTER, order="sequential") for rank in range(3)]
    last = [list(loader)[-1] for loader in ranks]
    assert [len(batch.labels) for batch in last] == [1, 0, 0]
    assert last[1].images.shape == (0, CROP, CROP, 3)
    assert last[1].images.dtype == last[0].images.dtype


def test_more_ranks_than_samples_still_deliver_each_sample_once(make: Make) -> None:
    ranks = [make(rank, 40, batch_size=1, augment=CENTER, order="sequential", num_threads=1) for rank in range(40)]
    batches = [list(loader) for loader in ranks]
    assert [len(b) for b in batches] == [1] * 40
    assert [index for b in batches for index in indices(b)] == list(range(NUM_SAMPLES))


def test_rank_and_world_size_come_from_torchruns_environment(
    backend: str, small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = LoaderConfig(
        dataset=small_jpeg_dataset,
        batch_size=4,
        augment=PIXELS,
        dtype="uint8",
        backend=backend,
        drop_last=False,  # type: ignore[arg-type]
    )
    with create_loader(config) as loader:
        assert indices(loader)[:4] == order()[4:8]


# Pixels.


def reference(dataset: Path, augment: AugmentConfig, epoch: int = 0) -> torch.Tensor:
    """All views of the epoch in its order, by the plain NumPy arithmetic: NHWC float32."""
    pixels, _ = stored(dataset)
    chosen = np.array(order(epoch))
    places = np.arange(len(chosen))
    params = draw_params(augment, seed=0, epoch=epoch, indices=chosen, positions=places, image_size=SIZE)
    transform = pixel_transform(augment, load_eigenbasis(dataset) if augment.needs_basis else None, SIZE)
    return torch.from_numpy(apply_params(pixels[chosen], params, transform.at(epoch), augment.crop_size))


def images(loader: DatasetLoader) -> torch.Tensor:
    batches = [batch.images.clone() for batch in loader]
    return torch.cat(batches)


AUGMENTS = {
    "pixels": PIXELS,
    "paper": PAPER,
    "original2012": ORIGINAL,
    "odd_window": replace(ORIGINAL, crop_size=CROP - 1),
    "channel_mean_std": AugmentConfig(crop_size=CROP, normalize="channel_mean_std", lighting="roots"),
    "imagenet": AugmentConfig(crop_size=CROP, normalize="imagenet", lighting="none"),
    "center": CENTER,
    "ten": TEN,
    "ten_of_window": replace(TEN, mean_window="center"),
    "whole": AugmentConfig(crop_size=SIZE, crop="random"),
}


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_images_are_the_references(
    make_real: Make, real_backend: str, encoding: str, name: str, request: pytest.FixtureRequest
) -> None:
    dataset = request.getfixturevalue(f"small_{encoding}_dataset")
    augment = AUGMENTS[name]
    expected = reference(dataset, augment)
    found = images(make_real(dataset=dataset, augment=augment, dtype="float32", drop_last=False))
    planar = images(make_real(dataset=dataset, augment=augment, dtype="float32", layout="NCHW", drop_last=False))
    assert torch.equal(found.permute(0, 3, 1, 2), planar)
    if real_backend == "cpu" or augment.normalize == "none":
        assert torch.equal(found, expected)
    else:  # DALI subtracts the shift before it adds it up in another order: rounding of float32, no more
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lighting_and_its_rescaling_end_with_the_epoch_they_are_told(
    make_real: Make, real_backend: str, small_raw_dataset: Path, dtype: Any
) -> None:
    augment = replace(ORIGINAL, crop_chunk=4, lighting_epochs=2)
    expected = [reference(small_raw_dataset, augment, epoch) for epoch in range(4)]
    assert not torch.equal(expected[2], reference(small_raw_dataset, replace(augment, lighting_epochs=None), 2))

    def check(found: torch.Tensor, epoch: int, position: int = 0) -> None:
        exact = real_backend == "cpu"
        limit = 0 if exact else 1e-4 if dtype == "float32" else 1.0
        torch.testing.assert_close(found.float(), rounded(expected[epoch][position:]), rtol=0, atol=limit)

    def rounded(images_: torch.Tensor) -> torch.Tensor:
        return images_.to(getattr(torch, dtype)).float()

    fields: dict[str, Any] = {"dataset": small_raw_dataset, "augment": augment, "dtype": dtype, "drop_last": False}
    loader = make_real(prefetch=12, **fields)  # more than the 8 batches of an epoch: three epochs are in flight
    for epoch in range(4):
        check(images(loader), epoch)
    for epoch, position in ((1, 30), (2, 20), (3, 5)):
        resumed = make_real(batch_size=3, **fields)
        resumed.load_state_dict(loader.state_dict() | {"epoch": epoch, "sample_in_epoch": position})
        check(images(resumed), epoch, position)


def test_uint8_batches_hold_the_stored_pixels(make_real: Make, small_raw_dataset: Path) -> None:
    found = images(make_real(dataset=small_raw_dataset, drop_last=False))
    assert found.dtype == torch.uint8
    assert torch.equal(found.to(torch.float32), reference(small_raw_dataset, PIXELS))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_from_float32(make_real: Make, dtype: Any) -> None:
    single = images(make_real(augment=PAPER))
    half = images(make_real(augment=PAPER, dtype=dtype))
    assert torch.equal(half, single.to(getattr(torch, dtype)))


def test_pixels_do_not_depend_on_batch_size_threads_or_prefetch(make_real: Make) -> None:
    whole = images(make_real(augment=PAPER, drop_last=False))
    for fields in ({"batch_size": 37}, {"num_threads": 1, "prefetch": 1}, {"num_threads": 5, "prefetch": 9}):
        assert torch.equal(images(make_real(augment=PAPER, drop_last=False, **fields)), whole)


def test_validation_takes_the_statistics_of_its_training_set(
    make_real: Make, small_jpeg_dataset: Path, small_raw_dataset: Path
) -> None:
    augment = AugmentConfig(crop_size=CROP, crop="center", flip=False, lighting="none", normalize="channel_mean")
    own = images(make_real(augment=augment))
    foreign = images(make_real(augment=augment, basis=small_raw_dataset))
    shift = load_eigenbasis(small_jpeg_dataset).mean - load_eigenbasis(small_raw_dataset).mean
    assert np.abs(shift).max() > 1e-3
    torch.testing.assert_close((foreign - own).mean(dim=(0, 1, 2)), torch.from_numpy(shift).float(), atol=1e-3, rtol=0)


def test_lighting_of_an_image_is_one_shift_for_all_its_pixels(make_real: Make) -> None:
    lit = AugmentConfig(crop_size=CROP, normalize="none", lighting="roots")
    difference = images(make_real(augment=lit, dtype="float32")) - images(make_real(dtype="float32"))
    assert (difference.std(dim=(1, 2)) < 1e-4).all()
    assert difference.mean(dim=(1, 2)).std(dim=0).min() > 0.1


# Memory.


def test_batches_that_are_held_are_never_overwritten(make: Make) -> None:
    one_by_one = seen(make(augment=PAPER, drop_last=False))
    held = list(make(augment=PAPER, drop_last=False))
    assert seen(held) == one_by_one
    loader = make(augment=PAPER, drop_last=False)
    rows = [batch.images[-1] for batch in loader]
    for _ in range(2):
        list(loader)
    assert [row.numpy().tobytes() for row in rows] == [pixels[-len(pixels) // len(i) :] for i, _, pixels in one_by_one]


def test_writing_into_a_batch_changes_no_other(make_real: Make) -> None:
    loader = make_real(augment=PAPER)
    expected = seen(make_real(augment=PAPER))
    found = []
    for batch in loader:
        found += seen([batch])
        batch.images.fill_(-1)
    assert found == expected


def test_writing_into_record_numbers_and_labels_changes_no_later_batch(make: Make) -> None:
    loader = make(drop_last=False)
    batch = next(iter(loader))
    batch.indices.add_(10**9)
    batch.labels.fill_(-1)
    assert indices(loader) == order()


def test_buffers_are_used_again(small_jpeg_dataset: Path) -> None:
    config = LoaderConfig(
        dataset=small_jpeg_dataset, batch_size=5, augment=PAPER, backend="cpu", prefetch=2, num_threads=2
    )
    with create_loader(config) as loader:
        for _ in range(4):
            for batch in loader:
                del batch
        assert loader._backend._ring.num_allocated <= 5  # type: ignore[attr-defined]


def test_as_many_buffers_are_kept_as_are_in_flight_by_default(small_jpeg_dataset: Path) -> None:
    config = LoaderConfig(
        dataset=small_jpeg_dataset, batch_size=3, augment=PAPER, backend="cpu", order="sequential", num_threads=4
    )
    assert config.depth == 7
    with create_loader(config) as loader:
        for _ in range(8):
            for batch in loader:
                del batch
        assert loader._backend._ring.num_allocated <= 12  # type: ignore[attr-defined]


# Two at once.


def test_two_loaders_on_one_dataset_do_not_disturb_each_other(make: Make) -> None:
    alone = [seen(make(augment=PAPER, seed=seed)) for seed in (0, 5)]
    both = [make(augment=PAPER, seed=seed) for seed in (0, 5)]
    together: list[Seen] = [[], []]
    for step, pair in enumerate(zip(*both, strict=True), start=1):
        for found, batch in zip(together, pair, strict=True):
            found += seen([batch])
        assert [loader.state_dict()["sample_in_epoch"] for loader in both] == ([5 * step] * 2 if step < 7 else [0, 0])
    assert together == alone
    assert len({loader.epoch_digest for loader in both}) == 2


def test_closing_one_of_two_loaders_leaves_the_other_whole(make: Make) -> None:
    expected = seen(make(augment=PAPER))
    first, second = make(augment=PAPER), make(augment=PAPER)
    iterator = iter(first)
    found = seen([next(iterator)])
    next(iter(second))
    second.close()
    assert found + seen(iterator) == expected


# Ends.


def test_closing_twice_and_using_after_close(make: Make) -> None:
    with make() as loader:
        next(iter(loader))
    loader.close()
    loader.close()
    with pytest.raises(ConfigError, match="closed"):
        iter(loader)


def test_an_iterator_ends_when_its_loader_is_closed(make: Make) -> None:
    loader = make()
    iterator = iter(loader)
    batch = next(iterator)
    before = seen([batch])
    loader.close()
    assert list(iterator) == []
    assert seen([batch]) == before, "a batch that was delivered stays whole"


def test_stage_seconds_count_the_consumers_wait(make: Make, backend: str) -> None:
    loader = make()
    list(loader)
    seconds = loader.stage_seconds()
    assert set(seconds) == set(STAGES)
    assert seconds["plan"] > 0 and seconds["wait"] > 0
    assert (seconds["read"] > 0) == (backend != "synthetic")


def test_threads_and_descriptors_return_to_their_baseline(make: Make) -> None:
    def cycle(how: int) -> None:
        loader = make(augment=PAPER)
        iterator = iter(loader)
        next(iterator)
        if how % 3 == 0:
            del iterator
        elif how % 3 == 1:
            with pytest.raises(KeyError):
                for _ in loader:
                    raise KeyError
        loader.close()

    for how in range(3):  # whatever is loaded once and for all
        cycle(how)
    gc.collect()
    threads, descriptors = len(our_threads()), open_descriptors()
    for how in range(30):
        cycle(how)
    gc.collect()
    assert len(our_threads()) <= threads
    assert open_descriptors() < descriptors + 10  # or each way to end one leaves one each time


@pytest.mark.parametrize("batches", [1, 7])
def test_a_loader_that_is_dropped_unclosed_lets_its_threads_end(small_jpeg_dataset: Path, batches: int) -> None:
    before = our_threads()
    loader: DatasetLoader | None = create_loader(
        LoaderConfig(dataset=small_jpeg_dataset, batch_size=5, augment=PIXELS, dtype="uint8", backend="cpu")
    )
    assert loader is not None
    iterator: Any = iter(loader)
    for _ in range(batches):  # 7 is an epoch: what runs then is the next one's
        next(iterator)
    threads = our_threads() - before
    assert threads
    del iterator, loader
    for _ in range(1000):  # where another thread is collecting, this one does nothing
        gc.collect()
        if not any(thread.is_alive() for thread in threads):
            break
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in threads)


# Errors.


def damage(dataset: Path, copy: Path, victim: int) -> Path:
    """A copy with one flipped bit in the image of one record."""
    shutil.copytree(dataset, copy)
    reader = ShardReader(copy, load_manifest(copy))
    data = reader.read(victim, lambda record: bytes(record.data))
    path = reader.data_file(reader.manifest.shards[reader.index.locate(victim)[0]].name)
    reader.close()
    whole = bytearray(path.read_bytes())
    whole[whole.index(data) + len(data) // 2] ^= 4
    path.write_bytes(whole)
    return copy


@pytest.fixture
def damaged(small_jpeg_dataset: Path, tmp_path: Path) -> tuple[Path, int]:
    """A dataset with one damaged record, the third sample of the fourth batch, and the record's number."""
    victim = order()[17]
    return damage(small_jpeg_dataset, tmp_path / "copy", victim), victim


def test_damage_in_a_batch_of_the_next_epoch_surfaces_in_that_epoch(
    make_real: Make, small_jpeg_dataset: Path, tmp_path: Path
) -> None:
    # The last sample of epoch 0 is dropped there, and with this seed it comes early in epoch 1.
    seed = next(seed for seed in range(99) if order(0, seed)[-1] in order(1, seed)[5:10])
    victim = order(0, seed)[-1]
    dataset = damage(small_jpeg_dataset, tmp_path / "copy", victim)
    loader = make_real(dataset=dataset, seed=seed, prefetch=5)
    assert indices(loader) == order(0, seed)[:35]
    got: list[Batch] = []
    with pytest.raises(RecordError, match=rf"record {victim}\b"):
        for batch in loader:
            got.append(batch)
    assert indices(got) == order(1, seed)[:5]
    assert (loader.epoch, loader.state_dict()["sample_in_epoch"]) == (1, 5)


def test_a_damaged_record_surfaces_with_its_name_after_the_sound_batches(
    make_real: Make, damaged: tuple[Path, int]
) -> None:
    dataset, victim = damaged
    loader = make_real(dataset=dataset, prefetch=4)
    got: list[Batch] = []
    with pytest.raises(RecordError, match=rf"{DATA_FILE}: record {victim}, key \d+_.*lmdali verify"):
        for batch in loader:
            got.append(batch)
    assert indices(got) == order()[:15]
    assert loader.state_dict()["sample_in_epoch"] == 15


def test_after_an_error_the_loader_can_be_used_and_the_damage_is_not_passed_over(
    make_real: Make, damaged: tuple[Path, int]
) -> None:
    dataset, _ = damaged
    loader = make_real(dataset=dataset, prefetch=1)
    for _ in range(2):
        got = []
        with pytest.raises(RecordError):
            for batch in loader:
                got.append(batch)
        assert indices(got) == order()[:15]
    loader.load_state_dict(loader.state_dict() | {"sample_in_epoch": 20})
    assert indices(loader) == order()[20:35]


def test_without_verification_damage_is_delivered_as_asked(make_real: Make, damaged: tuple[Path, int]) -> None:
    assert indices(make_real(dataset=damaged[0], verify="never", drop_last=False)) == order()


def test_a_record_that_does_not_decode_is_named(make_real: Make, small_jpeg_dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(small_jpeg_dataset, tmp_path / "copy"))
    reader = ShardReader(copy, load_manifest(copy))
    victim = order()[17]
    data = reader.read(victim, lambda record: bytes(record.data))
    path = reader.data_file(reader.manifest.shards[reader.index.locate(victim)[0]].name)
    reader.close()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(data, bytes(len(data))))
    loader = make_real(dataset=copy, verify="never")
    got = []
    with pytest.raises(RecordError, match=rf"\b{victim}\b"):
        for batch in loader:
            got.append(batch)
    assert indices(got) == order()[:15]
    loader.close()
    loader.close()


def test_a_shard_that_vanishes_is_an_error_and_not_a_hang(
    make_real: Make, small_jpeg_dataset: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_jpeg_dataset, tmp_path / "copy"))
    loader = make_real(dataset=copy)
    shutil.rmtree(copy / "shards" / "00002")
    from lmdali.pipeline.errors import ShardError

    with pytest.raises(ShardError, match="00002"):
        list(loader)
