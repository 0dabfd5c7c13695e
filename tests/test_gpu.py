"""What only a GPU can show; every test here has a twin on the CPU in another file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.loader import BackendName, LoaderConfig, create_loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device here: run benchmarks/gpu_check.py on a GPU"
    ),
]


def batches(config: LoaderConfig, device: str) -> list[Batch]:
    with create_loader(config, device=device) as loader:
        return list(loader)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("dali", marks=pytest.mark.dali)])
@pytest.mark.parametrize(("kind", "tolerance"), [("raw", 1e-3), ("jpeg", 1.0)])
def test_batches_on_the_gpu_are_those_of_the_cpu(
    raw_dataset: Path, jpeg_dataset: Path, backend: BackendName, kind: str, tolerance: float
) -> None:
    dataset = raw_dataset if kind == "raw" else jpeg_dataset
    config = LoaderConfig(dataset=dataset, batch_size=16, augment=AugmentConfig.original2012(), backend="cpu")
    here, there = batches(config, "cpu"), batches(replace(config, backend=backend), "cuda:0")
    assert len(here) == len(there) > 0
    for expected, found in zip(here, there, strict=True):
        assert found.images.device == found.labels.device == torch.device("cuda", 0)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.labels.cpu(), expected.labels)
        # Decoders of JPEG may differ by a gray level here and there; raw pixels only by the order of float additions.
        difference = (found.images.cpu() - expected.images).abs()
        assert float(difference.mean() if kind == "jpeg" else difference.max()) < tolerance


def test_a_held_batch_is_not_overwritten_by_later_copies(raw_dataset: Path) -> None:
    config = LoaderConfig(
        dataset=raw_dataset, batch_size=8, augment=AugmentConfig.pixels(), dtype="uint8", backend="cpu"
    )
    with create_loader(config, device="cuda:0") as loader:
        copies = [batch.images.clone() for batch in loader]
        loader.set_epoch(0)
        held = [batch.images for batch in loader]
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(copies, held, strict=True))


def test_training_runs_on_the_gpu(jpeg_dataset: Path, tmp_path: Path) -> None:
    from lmdali.model.presets import PRESETS
    from lmdali.tools.train import TrainJob, train_dataset

    recipe = PRESETS["small"].changed(train={"epochs": 3}, batch_size=16)
    job = TrainJob(train=jpeg_dataset, val=jpeg_dataset, run_dir=tmp_path / "run", preset=recipe, device="cuda:0")
    report = train_dataset(job)
    assert report.result.epochs == 3
    assert report.device == "cuda:0"
