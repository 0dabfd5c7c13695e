"""Augmenting alone: the loader's pixels, made from decoded images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import DType, OutputSpec
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.augment_probe import DecodedImages, augment_probe
from lmdali.tools.ceilings import sample_records
from lmdali.tools.measurement import WindowPlan, measure

CENTRED = AugmentConfig(crop_size=24, crop="center", flip=False, lighting="none")


def spec_of(dtype: DType, device: str = "cpu") -> OutputSpec:
    return OutputSpec(8, 1, 24, dtype, "NCHW", torch.device(device))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_patches_are_those_of_the_loader(small_jpeg_dataset: Path, dtype: DType) -> None:
    count = load_manifest(small_jpeg_dataset).num_records
    config = LoaderConfig(
        dataset=small_jpeg_dataset, batch_size=count, order="sequential", augment=CENTRED, dtype=dtype, num_threads=1
    )
    with create_loader(config, rank=0, world_size=1) as loader:
        expected = {bytes(image.view(torch.uint8).numpy().tobytes()) for image in next(iter(loader)).images}
    images = DecodedImages(sample_records(small_jpeg_dataset), small_jpeg_dataset, CENTRED, spec_of(dtype), seed=0)
    kind = np.float32 if dtype == "float32" else np.uint16
    out = np.zeros((images.count, 3, 24, 24), kind)
    images.cut(0, images.count, out)
    assert {image.tobytes() for image in out} == expected


def test_for_a_gpu_threads_cut_pixels_only(small_jpeg_dataset: Path) -> None:
    sample = sample_records(small_jpeg_dataset)
    images = DecodedImages(sample, small_jpeg_dataset, CENTRED, spec_of("float32", "cuda"), seed=0)
    assert (images.spec.dtype, images.spec.layout) == ("uint8", "NHWC")
    out = np.zeros((1, 24, 24, 3), np.uint8)
    images.cut(0, 1, out)
    assert out.any()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_image_is_cut_again_and_again(
    small_jpeg_dataset: Path, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sample_records(small_jpeg_dataset)[:7]  # chunks of 16 go twice around and more
    images = DecodedImages(sample, small_jpeg_dataset, AugmentConfig(crop_size=24), spec_of("float32"), seed=0)
    cut: list[tuple[int, int, int]] = []
    whole = images.cut
    monkeypatch.setattr(
        images, "cut", lambda first, stop, out: (cut.append((first, stop, len(out))), whole(first, stop, out))
    )
    rate = measure([augment_probe(images, num_threads=num_threads)], WindowPlan(steps=4, windows=1))[0]
    assert rate.steps == 4 and rate.images_per_second > 0
    assert all(0 <= first < stop <= 7 and length == stop - first for first, stop, length in cut)
    assert sum(stop - first for first, stop, _ in cut) % 16 == 0
    assert {number for first, stop, _ in cut for number in range(first, stop)} == set(range(7))
