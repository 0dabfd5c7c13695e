"""Where JPEG is decoded for a GPU: what each combination of options means, and what measured rates decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.block_order import NodeOrder
from lmdali.pipeline.decode_choice import (
    GPU_ADVANTAGE,
    MARGIN,
    Choice,
    Way,
    choose_way,
    first_records,
    fixed_choice,
    measure_rate,
    measured_choice,
    sample_plan,
)
from lmdali.pipeline.errors import ConfigError, RecordError
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.pixel_transform import pixel_transform
from lmdali.pipeline.rate_memory import RateKey, RateMemory
from lmdali.pipeline.sampler import EpochOrder, RankSlice

KEY = RateKey(
    gpu="a GPU", cpu="a CPU", num_cpus=16, num_threads=16, prefetch=7, batch_size=128, dtype="float32",
    layout="NCHW", crop_size=224, num_views=1, resized=False, image_size=256, encoding="jpeg", mean_record_bytes=22_000,
    versions=("lmdali 1",),
)  # fmt: skip
NOTHING = RateMemory(None)


def fixed(backend: str, decode: str, device: str = "cuda:0", *, raw: bool = False, has_dali: bool = True) -> Any:
    return fixed_choice(backend, decode, device=device, raw=raw, has_dali=has_dali)  # type: ignore[arg-type]


class Meter:
    """Gives fixed rates, or raises them, and remembers what it was asked for."""

    def __init__(self, **rates: float | Exception) -> None:
        self.rates, self.asked = rates, list[Way]()

    def __call__(self, way: Way) -> float:
        self.asked.append(way)
        rate = self.rates[way]
        if isinstance(rate, Exception):
            raise rate
        return rate


# What needs no measurement.


@pytest.mark.parametrize("backend", ["cpu", "dali", "synthetic"])
def test_a_backend_that_was_asked_for_is_taken(backend: str) -> None:
    assert fixed(backend, "auto") == (backend, "asked for")
    assert fixed(backend, "auto", "cpu") == (backend, "asked for")


def test_on_a_cpu_auto_is_the_cpu_backend() -> None:
    assert fixed("auto", "auto", "cpu") == fixed("auto", "cpu", "cpu") == ("cpu", "the device is the CPU")


def test_the_place_that_was_asked_for_decides_the_backend_on_a_gpu() -> None:
    assert fixed("auto", "cpu") == ("cpu", 'decode="cpu" was asked for')
    assert fixed("auto", "gpu") == ("dali", 'decode="gpu" was asked for')
    assert fixed("dali", "gpu").backend == "dali"
    assert fixed("cpu", "cpu").backend == "cpu"


@pytest.mark.parametrize(
    ("backend", "decode", "device", "message"),
    [
        ("auto", "gpu", "cpu", "needs a GPU"),
        ("dali", "gpu", "cpu", "needs a GPU"),
        ("cpu", "gpu", "cuda:0", 'take backend "auto" or "dali"'),
        ("dali", "cpu", "cuda:0", 'take backend "auto" or "cpu"'),
    ],
)
def test_contradictions_are_refused_with_the_next_step(backend: str, decode: str, device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fixed(backend, decode, device)


def test_raw_records_have_nothing_to_decode() -> None:
    assert fixed("auto", "auto", raw=True).backend == "cpu"
    assert fixed("dali", "cpu", raw=True) == ("dali", "asked for")


def test_without_dali_the_reason_names_the_line_that_installs_it() -> None:
    backend, reason = fixed("auto", "auto", "cuda:1", has_dali=False)
    assert backend == "cpu" and "cuda:1" in reason and "pip install 'lmdali[dali-cuda13]'" in reason


def test_jpeg_on_a_gpu_with_dali_must_be_measured() -> None:
    assert fixed("auto", "auto") is None


# What rates decide.


@pytest.mark.parametrize(
    ("cpu", "gpu", "backend", "word"),
    [
        (10_000.0, 12_000.0, "dali", "the faster way"),
        (12_000.0, 10_000.0, "cpu", "the faster way"),
        (10_000.0, 10_000.0 * GPU_ADVANTAGE, "cpu", "nearly as fast"),
        (10_000.0, 10_001.0 * GPU_ADVANTAGE, "dali", "the faster way"),
    ],
)
def test_the_faster_way_is_taken_and_a_tie_leaves_the_gpu_alone(
    cpu: float, gpu: float, backend: str, word: str
) -> None:
    meter = Meter(cpu=cpu, gpu=gpu)
    taken, reason = choose_way(KEY, NOTHING, meter)
    assert taken == backend and word in reason
    assert meter.asked == ["cpu", "gpu"]
    assert f"{cpu:,.0f} images/s on CPU threads, {gpu:,.0f} images/s on the GPU, measured now" in reason


def test_a_required_rate_that_cpu_threads_deliver_is_not_measured_further() -> None:
    meter = Meter(cpu=12_000.0)
    taken, reason = choose_way(KEY, NOTHING, meter, required=12_000.0 / MARGIN)
    assert (taken, meter.asked) == ("cpu", ["cpu"])
    assert "enough for the 10,000 images/s required" in reason and "12,000" in reason


def test_a_required_rate_that_is_missed_takes_the_faster_way() -> None:
    meter = Meter(cpu=12_000.0, gpu=15_000.0)
    assert choose_way(KEY, NOTHING, meter, required=12_000.0).backend == "dali"
    assert meter.asked == ["cpu", "gpu"]


@pytest.mark.parametrize("error", [RuntimeError("nvJPEG says no\nat length"), RecordError("does not decode")])
def test_a_way_that_fails_leaves_the_other_and_is_named(error: Exception) -> None:
    taken, reason = choose_way(KEY, NOTHING, Meter(cpu=5.0, gpu=error))
    assert taken == "cpu" and f"on the GPU it failed ({str(error).partition(chr(10))[0]})" in reason
    taken, reason = choose_way(KEY, NOTHING, Meter(cpu=error, gpu=5.0))
    assert taken == "dali" and "on CPU threads it failed" in reason
    taken, reason = choose_way(KEY, NOTHING, Meter(cpu=error, gpu=error))
    assert taken == "cpu" and "neither way could be measured" in reason


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        choose_way(KEY, NOTHING, Meter(cpu=ZeroDivisionError()))


# What is remembered.


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    memory = RateMemory(tmp_path / "cache" / "decode.json")
    first = choose_way(KEY, memory, Meter(cpu=10.0, gpu=20.0))
    meter = Meter()
    second = choose_way(KEY, RateMemory(tmp_path / "cache" / "decode.json"), meter)
    assert meter.asked == []
    assert second == Choice("dali", first.reason.replace("measured now", "measured before"))


def test_only_the_missing_way_is_measured_when_more_is_required(tmp_path: Path) -> None:
    memory = RateMemory(tmp_path / "decode.json")
    choose_way(KEY, memory, Meter(cpu=100.0), required=10.0)
    meter = Meter(gpu=300.0)
    assert choose_way(KEY, memory, meter, required=1000.0).backend == "dali"
    assert meter.asked == ["gpu"]
    assert memory.load(KEY) == {"cpu": 100.0, "gpu": 300.0}


def test_failures_are_tried_again_next_time(tmp_path: Path) -> None:
    memory = RateMemory(tmp_path / "decode.json")
    choose_way(KEY, memory, Meter(cpu=10.0, gpu=RuntimeError("busy")))
    meter = Meter(gpu=20.0)
    assert choose_way(KEY, memory, meter).backend == "dali"
    assert meter.asked == ["gpu"]


# How a rate is measured.


class CountingBackend:
    """Each batch takes a quarter of a second of a clock that nothing else moves."""

    def __init__(self) -> None:
        self.now, self.started, self.open, self.closed = 0.0, list[BatchPlan](), 0, False

    def start(self, plan: BatchPlan) -> BatchPlan:
        self.started.append(plan)
        self.open += 1
        return plan

    def finish(self, pending: BatchPlan) -> Batch:
        self.open -= 1
        self.now += 0.25
        labels = torch.zeros(len(pending.indices), dtype=torch.int64)
        return Batch(torch.zeros(len(labels), 1), labels, torch.from_numpy(pending.indices))

    def cancel(self, pending: BatchPlan) -> None:
        self.open -= 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def plan(small_jpeg_dataset: Path) -> Callable[[int], BatchPlan]:
    manifest, augment = (
        load_manifest(small_jpeg_dataset),
        AugmentConfig(crop_size=40, normalize="none", lighting="none"),
    )
    transform, count = pixel_transform(augment, None, manifest.image_size), manifest.num_records
    return sample_plan(augment, transform, np.arange(count), batch_size=10, image_size=manifest.image_size)


def test_a_rate_is_what_the_clock_says_and_nothing_stays_in_flight(plan: Callable[[int], BatchPlan]) -> None:
    backend, waited = CountingBackend(), []
    rate = measure_rate(
        backend, plan, prefetch=3, wait=waited.append, seconds=1.0, warmup_batches=2, clock=lambda: backend.now
    )
    assert rate == pytest.approx(40.0)
    assert backend.open == 0
    assert len(waited) == 2, "once before the clock starts and once before it stops"
    assert len(backend.started) == 2 + 4 + 3


def test_slow_batches_are_measured_twice_at_least(plan: Callable[[int], BatchPlan]) -> None:
    backend = CountingBackend()
    measure_rate(backend, plan, prefetch=1, wait=lambda batch: None, seconds=1e-9, clock=lambda: backend.now)
    assert backend.now >= (8 + 2) * 0.25


def test_an_error_leaves_nothing_in_flight(plan: Callable[[int], BatchPlan]) -> None:
    backend = CountingBackend()

    def stop(batch: Batch) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        measure_rate(backend, plan, prefetch=3, wait=stop, seconds=1.0)
    assert backend.open == 0


def test_the_sample_goes_round_a_small_dataset(plan: Callable[[int], BatchPlan]) -> None:
    first_round = np.concatenate([plan(step).indices for step in range(4)])
    assert first_round[:37].tolist() == list(range(37)) and first_round[37:].tolist() == [0, 1, 2]
    assert len(plan(0).params) == 10


@pytest.mark.parametrize("rank", [0, 1])
def test_the_sample_needs_no_shard_that_the_rank_does_not_begin_with(rank: int) -> None:
    """Of a dataset at an address all shards would be fetched before the first batch, with room for a few of them."""
    order, own = NodeOrder((1000,) * 80, 3, 0, block_shards=4, nodes=2), RankSlice(80_000, 128, rank, 2, nodes=2)
    records = first_records(order, own)
    shards = np.unique(records // 1000)
    assert len(shards) == 4 and set((shards // 40).tolist()) == {rank}, "a block of those that are the rank's own"
    assert records.tolist() == order.at(np.concatenate([own.positions(step) for step in range(4)])).tolist()


def test_a_rank_without_samples_measures_all_the_same() -> None:
    own = RankSlice(2, 10, 3, 4, drop_last=False)
    assert first_records(EpochOrder(2, 0, 0, shuffle=False), own).tolist() == [0]


def test_real_backends_can_be_measured(small_jpeg_dataset: Path, plan: Callable[[int], BatchPlan]) -> None:
    from lmdali.pipeline import LoaderConfig, create_loader

    augment = AugmentConfig(crop_size=40, normalize="none", lighting="none")
    with create_loader(LoaderConfig(dataset=small_jpeg_dataset, batch_size=10, augment=augment)) as loader:
        rate = measure_rate(loader._backend, plan, prefetch=2, wait=lambda batch: batch.labels.cpu(), seconds=0.05)
    assert rate > 10


def test_both_ways_are_opened_measured_closed_and_remembered(
    small_jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    manifest = load_manifest(small_jpeg_dataset)
    augment = AugmentConfig(crop_size=40, normalize="none", lighting="none")
    transform = pixel_transform(augment, None, manifest.image_size)
    spec = OutputSpec(10, 1, 40, "uint8", "NCHW", torch.device("cpu"))
    opened: list[tuple[str, CountingBackend]] = []

    def make(name: str) -> CountingBackend:
        opened.append((name, CountingBackend()))
        return opened[-1][1]

    def choose(required: float | None = None, form: OutputSpec = spec) -> Choice:
        return measured_choice(
            make, augment, transform, form, manifest, records=np.arange(manifest.num_records), gpu="a GPU",
            num_threads=2, prefetch=2, required=required, seconds=0.01,
        )  # fmt: skip

    first = choose()
    assert [name for name, _ in opened] == ["cpu", "dali"]
    assert all(backend.closed and backend.open == 0 for _, backend in opened)
    assert choose() == Choice(first.backend, first.reason.replace("measured now", "measured before"))
    assert choose(required=1e-3).backend == "cpu"
    assert len(opened) == 2, "remembered"
    choose(form=replace(spec, resized=True))
    assert len(opened) == 4, "windows that are resized have rates of their own"
