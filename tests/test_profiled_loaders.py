"""The loaders of benchmarks/profiled_loaders.py: the batches of other people's kinds, of the same photographs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import profiled_loaders


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven pictures of two classes, each of one colour, by which they are told."""
    for number in range(7):
        folder = tmp_path / "photographs" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.jpg"), np.full((280, 300 + 40 * number, 3), 30 * number, np.uint8))
    monkeypatch.setenv("PROFILED_FOLDER", str(tmp_path / "photographs"))
    monkeypatch.setenv("PROFILED_BATCH", "3")
    monkeypatch.setenv("PROFILED_WORKERS", "1")
    return tmp_path / "photographs"


def check(batches: list[Any]) -> None:
    assert len(batches) == 2
    for images, labels in batches:
        assert images.shape == (3, 3, 224, 224) and images.dtype == torch.float32 and labels.dtype == torch.int64
        gray = images[:, 0, 100, 100] + profiled_loaders.MEAN[0]
        numbers = (gray / 30).round().long()
        assert torch.allclose(gray, 30.0 * numbers, atol=3)
        assert torch.equal(labels, numbers % 2)


@pytest.mark.usefixtures("photographs")
def test_the_torch_loader_decodes_resizes_and_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    loader: Any = profiled_loaders.torch_folder()
    assert len(loader) == 2 and loader.num_workers == 1
    dataset = loader.dataset
    check([torch.utils.data.default_collate([dataset[n] for n in numbers]) for numbers in ((0, 1, 2), (4, 5, 6))])
    assert profiled_loaders.photograph(next(Path(dataset._files[1][0].parent).glob("2.jpg"))).shape == (256, 347, 3)
    monkeypatch.delenv("PROFILED_FOLDER")
    with pytest.raises(SystemExit, match="set PROFILED_FOLDER"):
        profiled_loaders.torch_folder()


@pytest.mark.dali
@pytest.mark.usefixtures("photographs")
def test_dalis_reader_gives_the_same_form() -> None:
    pytest.importorskip("nvidia.dali", reason="no nvidia-dali wheel here")
    loader: Any = profiled_loaders.dali_folder()
    assert len(loader) == 2
    check(list(loader))


@pytest.mark.dali
def test_dali_reads_our_shards(jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali", reason="no nvidia-dali wheel here")
    monkeypatch.setenv("PROFILED_DATASET", str(jpeg_dataset))
    monkeypatch.setenv("PROFILED_BATCH", "16")
    loader: Any = profiled_loaders.dali_shards()
    images, labels = next(iter(loader))
    assert len(loader) == 60 // 16
    assert images.shape == (16, 3, 224, 224) and images.std() > 1
    assert 0 <= labels.min() <= labels.max() < 60
