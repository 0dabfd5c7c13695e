"""Faults of known size, planted in a real loader or a model: the profile names each of them.

Every one sleeps for many times what anything else takes, so that a busy machine turns no verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from slow_model import SlowModel
from torch import Tensor

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
Plant = Callable[[pytest.MonkeyPatch], None]


def before(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, wait: Callable[..., None]) -> None:
    """Call `wait` with a method's arguments before the method."""
    method = getattr(owner, name)

    def delayed(self: Any, *arguments: Any) -> Any:
        wait(*arguments)
        return method(self, *arguments)

    monkeypatch.setattr(owner, name, delayed)


def once_a_batch(*_: Any) -> None:
    sleep(BATCH_SECONDS)


def slow_read(monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, ShardReader, "locate", once_a_batch)


def throttled_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many bytes a second, whoever asks."""
    locate = ShardReader.locate

    def throttled(self: ShardReader, indices: Any) -> Located:
        located = locate(self, indices)
        sleep(float(np.sum(located.stops - located.starts)) / 300_000)
        return located

    monkeypatch.setattr(ShardReader, "locate", throttled)


def slow_crc(monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, RecordThreads, "_compare", once_a_batch)


def slow_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, JpegDecoder, "decode", once_a_batch)


def slow_augment(monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, patches.PatchCutter, "_form", once_a_batch)


def slow_collate(monkeypatch: pytest.MonkeyPatch) -> None:
    before(monkeypatch, CpuBackend, "_collate", once_a_batch)


def slow_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that takes its time, in place of the one that is not here."""

    class Transfer:
        def send(self, images: Tensor, labels: Any, plan: Any) -> tuple[Tensor, Tensor]:
            sleep(BATCH_SECONDS)
            return images, torch.from_numpy(labels)

        def close(self) -> None:
            pass

    make = CpuBackend.__init__

    def with_transfer(self: CpuBackend, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        self._transfer = Transfer()  # type: ignore[assignment]

    monkeypatch.setattr(CpuBackend, "__init__", with_transfer)


def profile(dataset: Path, config: ProfileConfig = QUICK, *, model: float = 0.0, **options: Any) -> ThroughputReport:
    return profile_dataset(dataset, config, model=SlowModel(model), augment=AUGMENT, quiet=True, **options)


@pytest.mark.parametrize(
    ("plant", "verify", "word"),
    [
        (slow_read, "first", "INPUT-BOUND (read)"),
        (throttled_disk, "first", "INPUT-BOUND (read)"),
        (slow_crc, "always", "INPUT-BOUND (verify)"),
        (slow_decode, "first", "INPUT-BOUND (decode)"),
        (slow_augment, "first", "INPUT-BOUND (augment)"),
        (slow_collate, "first", "INPUT-BOUND (collate)"),
        (slow_copy, "first", "COPY-BOUND"),
    ],
)
def test_a_slowed_stage_is_found_by_its_name(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant, verify: Any, word: str
) -> None:
    plant(monkeypatch)
    report = profile(small_jpeg_dataset, replace(QUICK, verify=verify))
    assert report.verdict.word == word
    assert report.to_json()["verdict"]["word"] == word
    assert report.data_stall is not None and report.data_stall > 0.5


def test_a_slowed_model_is_found(small_jpeg_dataset: Path) -> None:
    report = profile(small_jpeg_dataset, model=4 * BATCH_SECONDS)
    assert report.verdict.word == "COMPUTE-BOUND"
    assert report.data_stall is not None and report.data_stall < 0.3


def test_what_is_slow_alone_is_told_from_what_the_loader_makes_slow(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The throttled disk is as slow without a loader, the slow decoder is ours: libjpeg-turbo alone is not slowed.
    with monkeypatch.context() as planted:
        throttled_disk(planted)
        share = profile(small_jpeg_dataset).shares()["loader"]
    assert share is not None and share > 0.5
    slow_decode(monkeypatch)
    share = profile(small_jpeg_dataset).shares()["loader"]
    assert share is not None and share < 0.5


def test_the_suggestion_is_a_setting_with_a_rate_and_can_be_tried(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four CPUs, one thread that sleeps: 4 threads sleep side by side. Nothing else could help as much.
    monkeypatch.setattr("lmdali.model.torchrun.usable_cpus", lambda: 4)
    monkeypatch.setattr("lmdali.tools.suggestion.CACHE_SHARE", 0.0)
    slow_decode(monkeypatch)
    found = profile(small_jpeg_dataset, try_suggestion=True).suggestion
    assert found is not None
    assert (found.option, found.changes) == ("--num-threads 4", {"num_threads": 4})
    assert found.predicted_images_per_second > 2.5 * found.baseline_images_per_second
    assert found.measured_images_per_second is not None
    # Nothing here measures the machine: it is sleeping beside each other that is measured.
    assert found.measured_images_per_second > 1.5 * found.baseline_images_per_second


def test_what_is_not_tried_has_no_measured_rate(small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_decode(monkeypatch)
    found = profile(small_jpeg_dataset).suggestion
    assert found is not None and found.measured_images_per_second is None
