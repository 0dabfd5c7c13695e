"""Faults of known size, planted in a real loader or a model: the profile names each of them.

Every one sleeps, in a time in which nothing else takes long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slow_model import SlowModel
from torch import Tensor
from virtual_time import VirtualTime

from lmdali.pipeline import patches
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.cpu import CpuBackend
from lmdali.pipeline.jpeg_decoder import JpegDecoder
from lmdali.pipeline.record_threads import RecordThreads
from lmdali.pipeline.shard_reader import Located, ShardReader
from lmdali.tools.profiler import ProfileConfig, profile_dataset
from lmdali.tools.throughput import ThroughputReport

AUGMENT = AugmentConfig(crop_size=24)
QUICK = ProfileConfig(batch_size=8, num_threads=1, steps=10, device="cpu", readahead_bytes=0)
BATCH_SECONDS = 0.03
Plant = Callable[[pytest.MonkeyPatch, VirtualTime], None]


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


def once_a_batch(monkeypatch: pytest.MonkeyPatch, time: VirtualTime, owner: type, name: str) -> None:
    """Sleep before a method."""
    method = getattr(owner, name)

    def delayed(self: Any, *arguments: Any) -> Any:
        time.sleep(BATCH_SECONDS)
        return method(self, *arguments)

    monkeypatch.setattr(owner, name, delayed)


def slow(owner: type, name: str) -> Plant:
    return partial(once_a_batch, owner=owner, name=name)


def throttled_disk(monkeypatch: pytest.MonkeyPatch, time: VirtualTime) -> None:
    """So many bytes a second, whoever asks."""
    locate = ShardReader.locate

    def throttled(self: ShardReader, indices: Any) -> Located:
        located = locate(self, indices)
        time.sleep(float(np.sum(located.stops - located.starts)) / 300_000)
        return located

    monkeypatch.setattr(ShardReader, "locate", throttled)


def slow_copy(monkeypatch: pytest.MonkeyPatch, time: VirtualTime) -> None:
    """A device that takes its time, in place of the one that is not here."""

    class Transfer:
        def send(self, images: Tensor, labels: Any, plan: Any) -> tuple[Tensor, Tensor]:
            time.sleep(BATCH_SECONDS)
            return images, torch.from_numpy(labels)

        def close(self) -> None:
            pass

    make = CpuBackend.__init__

    def with_transfer(self: CpuBackend, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        self._transfer = Transfer()  # type: ignore[assignment]

    monkeypatch.setattr(CpuBackend, "__init__", with_transfer)


SLOW_DECODE = slow(JpegDecoder, "decode")


def profile(dataset: Path, config: ProfileConfig = QUICK, *, model: float = 0.0, **options: Any) -> ThroughputReport:
    return profile_dataset(dataset, config, model=SlowModel(model), augment=AUGMENT, quiet=True, **options)


@pytest.mark.parametrize(
    ("plant", "verify", "word"),
    [
        (slow(ShardReader, "locate"), "first", "INPUT-BOUND (read)"),
        (throttled_disk, "first", "INPUT-BOUND (read)"),
        (slow(RecordThreads, "_compare"), "always", "INPUT-BOUND (verify)"),
        (SLOW_DECODE, "first", "INPUT-BOUND (decode)"),
        (slow(patches.PatchCutter, "_form"), "first", "INPUT-BOUND (augment)"),
        (slow(CpuBackend, "_collate"), "first", "INPUT-BOUND (collate)"),
        (slow_copy, "first", "COPY-BOUND"),
    ],
)
def test_a_slowed_stage_is_found_by_its_name(
    small_jpeg_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    time: VirtualTime,
    plant: Plant,
    verify: Any,
    word: str,
) -> None:
    plant(monkeypatch, time)
    report = profile(small_jpeg_dataset, replace(QUICK, verify=verify))
    assert report.verdict.word == word
    assert report.to_json()["verdict"]["word"] == word
    assert report.data_stall is not None and report.data_stall > 0.99


@pytest.mark.usefixtures("time")
def test_a_slowed_model_is_found(small_jpeg_dataset: Path) -> None:
    report = profile(small_jpeg_dataset, model=4 * BATCH_SECONDS)
    assert report.verdict.word == "COMPUTE-BOUND"
    assert report.data_stall is not None and report.data_stall < 0.01


def test_what_is_slow_alone_is_told_from_what_the_loader_makes_slow(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch, time: VirtualTime
) -> None:
    # The throttled disk is as slow without a loader, the slow decoder is ours: libjpeg-turbo alone is not slowed.
    with monkeypatch.context() as planted:
        throttled_disk(planted, time)
        share = profile(small_jpeg_dataset).shares()["loader"]
    assert share == pytest.approx(1, rel=0.01)
    SLOW_DECODE(monkeypatch, time)
    share = profile(small_jpeg_dataset).shares()["loader"]
    assert share is not None and share < 0.01


def test_the_suggestion_is_a_setting_with_a_rate_and_can_be_tried(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch, time: VirtualTime
) -> None:
    # Four CPUs, one thread that sleeps: 4 threads sleep side by side. Nothing else could help as much.
    monkeypatch.setattr("lmdali.pipeline.cpu_budget.usable_cpus", lambda: 4)
    monkeypatch.setattr("lmdali.tools.suggestion.CACHE_SHARE", 0.0)
    SLOW_DECODE(monkeypatch, time)
    # Windows of four steps: four batches come at a time.
    found = profile(small_jpeg_dataset, replace(QUICK, steps=20), try_suggestion=True).suggestion
    assert found is not None
    assert (found.option, found.changes) == ("--num-threads 4", {"num_threads": 4})
    assert found.predicted_images_per_second == pytest.approx(4 * found.baseline_images_per_second, rel=0.01)
    assert found.measured_images_per_second == pytest.approx(found.predicted_images_per_second, rel=0.01)


def test_what_is_not_tried_has_no_measured_rate(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch, time: VirtualTime
) -> None:
    SLOW_DECODE(monkeypatch, time)
    found = profile(small_jpeg_dataset).suggestion
    assert found is not None and found.measured_images_per_second is None
