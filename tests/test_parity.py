"""Backends beside each other: what is measured, and what may differ."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmdali.pipeline import parity
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.errors import IntegrityError
from lmdali.pipeline.parity import (
    ARITHMETIC_LIMIT,
    LIBJPEG_LIMIT,
    LIBJPEG_MEAN_LIMIT,
    NVJPEG_MEAN_LIMIT,
    RESIZE_LIMIT,
    RESIZE_MEAN_LIMIT,
    ParityRow,
    compare_backends,
)
from lmdali.pipeline.release import has_dali

HAS_DALI = has_dali()
NEEDS_DALI = pytest.mark.skipif(not HAS_DALI, reason="no nvidia-dali wheel here")


def row(**fields: Any) -> ParityRow:
    defaults: dict[str, Any] = {
        "form": "stored images", "backend": "dali on cpu", "num_images": 1, "largest": 0.0, "mean": 0.0,
        "bias": 0.0, "largest_limit": 1.0, "mean_limit": 0.5,
    }  # fmt: skip
    return ParityRow(**defaults | fields)


def test_both_limits_count() -> None:
    assert row(largest=1.0, mean=0.5).passed
    assert not row(largest=1.01).passed
    assert not row(mean=0.51).passed
    assert row(largest=200.0, largest_limit=math.inf).passed


@pytest.mark.parametrize(
    ("raw", "backend", "dtype", "on_gpu", "limits"),
    [
        (True, "dali", "uint8", True, (0.0, 0.0)),
        (True, "dali", "float32", True, (ARITHMETIC_LIMIT, ARITHMETIC_LIMIT)),
        (False, "cpu", "uint8", True, (0.0, 0.0)),
        (False, "dali", "uint8", False, (LIBJPEG_LIMIT, LIBJPEG_MEAN_LIMIT)),
        (False, "dali", "uint8", True, (math.inf, NVJPEG_MEAN_LIMIT)),
    ],
)
def test_only_decoders_of_jpeg_may_differ_in_pixels(
    raw: bool, backend: str, dtype: Any, on_gpu: bool, limits: tuple[float, float]
) -> None:
    assert parity._limits(raw, backend, dtype, on_gpu=on_gpu, resized=False) == limits


def test_only_dalis_filter_may_differ_in_windows_that_are_resized() -> None:
    assert parity._limits(False, "cpu", "uint8", on_gpu=True, resized=True) == (0.0, 0.0)
    assert parity._limits(True, "dali", "uint8", on_gpu=True, resized=True) == (RESIZE_LIMIT, RESIZE_MEAN_LIMIT)
    both = RESIZE_LIMIT + LIBJPEG_LIMIT, RESIZE_MEAN_LIMIT + LIBJPEG_MEAN_LIMIT
    assert parity._limits(False, "dali", "uint8", on_gpu=False, resized=True) == both
    assert both == (3, pytest.approx(0.15)), "a level more everywhere is no rounding"


class FakeLoader:
    """Two batches with images of one value each, as a loader and as its own context."""

    def __init__(self, values: list[float], first_index: int = 0) -> None:
        self.values, self.first_index = values, first_index

    def __enter__(self) -> FakeLoader:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Any:
        for number, value in enumerate(self.values):
            indices = torch.tensor([self.first_index + number])
            yield Batch(torch.full((1, 2, 2, 3), value), torch.tensor([0]), indices)


def compared(monkeypatch: pytest.MonkeyPatch, dataset: Path, reference: FakeLoader, other: FakeLoader) -> ParityRow:
    loaders = iter([reference, other])
    monkeypatch.setattr(parity, "create_loader", lambda *_, **__: next(loaders))
    return next(compare_backends(dataset))


def test_differences_are_the_largest_and_the_mean_over_all_batches(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compared(monkeypatch, small_jpeg_dataset, FakeLoader([10.0, 20.0]), FakeLoader([10.5, 17.0]))
    assert (found.num_images, found.largest, found.mean, found.bias) == (2, 3.0, 1.75, 1.25)
    assert not found.passed


def test_other_samples_are_an_error_and_not_a_difference(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IntegrityError, match="dali on cpu delivers other samples"):
        compared(monkeypatch, small_jpeg_dataset, FakeLoader([1.0]), FakeLoader([1.0], first_index=5))


def test_a_backend_equals_itself(small_jpeg_dataset: Path) -> None:
    rows = list(compare_backends(small_jpeg_dataset, backends=("cpu",), num_batches=1, num_threads=1))
    assert [(found.form, found.largest, found.num_images) for found in rows] == [
        ("stored images", 0.0, 32), ("crops and flips", 0.0, 32), ("resized windows", 0.0, 32),
        ("mean and lighting", 0.0, 32), ("central mean", 0.0, 32), ("channel means", 0.0, 32),
    ]  # fmt: skip


@NEEDS_DALI
@pytest.mark.dali
def test_windows_that_get_much_smaller_pass_by_dali(
    photo_folder: Path, make_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a patch's border DALI's filter repeats the last pixel."""
    dataset = make_dataset(photo_folder, tmp_path / "large", shard_sources=100, size=128)
    small = replace(AugmentConfig.pixels(), crop="resized", crop_size=32)
    monkeypatch.setattr(parity, "_forms", lambda size: iter([("resized windows", "uint8", small)]))
    (found,) = compare_backends(dataset, backends=("dali",), num_batches=2, num_threads=1)
    assert found.passed and found.largest <= 2 and found.mean <= 0.02, found


def test_what_lies_inside_counts(small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = torch.zeros((1, 4, 5, 3)), torch.zeros((1, 4, 5, 3))
    one[0, 0] = one[0, :, 4] = 9.0
    other[0, 1, 1, 0] = 1.0

    class Loader(FakeLoader):
        def __iter__(self) -> Any:
            yield Batch(self.values, torch.tensor([0]), torch.tensor([0]))

    loaders = iter([Loader(one), Loader(other)])  # type: ignore[arg-type]
    monkeypatch.setattr(parity, "create_loader", lambda *_, **__: next(loaders))
    resized = replace(AugmentConfig.pixels(), crop="resized", crop_size=4)
    monkeypatch.setattr(parity, "_forms", lambda size: iter([("resized windows", "uint8", resized)]))
    (found,) = compare_backends(small_jpeg_dataset, backends=("dali",))
    assert (found.largest, found.mean, found.bias) == (1.0, 1 / 18, 1 / 6), "one channel of three has all of it"
