"""Batches of resized windows: every backend, form and way to the pixels, beside the reference."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from lmdali.pipeline import AugmentConfig, LoaderConfig, create_loader, load_eigenbasis, load_manifest
from lmdali.pipeline.augment import draw_params
from lmdali.pipeline.augment_reference import apply_params
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.order_digest import batch_digest, digest_text
from lmdali.pipeline.pixel_transform import pixel_transform
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.release import has_dali
from lmdali.pipeline.resized_crop import _axis_weights, resize_table
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.tools.cli import cli

RESIZED = replace(AugmentConfig.resized(), crop_size=40)
LIT = replace(RESIZED, normalize="channel_mean", lighting="eigenvalues", min_area=0.3, max_aspect=2.0)
PIXELS = replace(RESIZED, normalize="none")

HAS_DALI = has_dali()
NEEDS_DALI = pytest.mark.skipif(not HAS_DALI, reason="no nvidia-dali wheel here")


def batches(dataset: Path, augment: AugmentConfig, **options: Any) -> list[Batch]:
    config = LoaderConfig(dataset=dataset, batch_size=10, augment=augment, drop_last=False, num_threads=2, **options)
    with create_loader(config) as loader:
        return list(loader)


def expected(dataset: Path, augment: AugmentConfig, batch: Batch, first: int) -> NDArray[np.float32]:
    """(B, S, S, 3) of the reference."""
    manifest = load_manifest(dataset)
    reader = ShardReader(dataset, manifest)
    indices = batch.indices.numpy()
    size = manifest.image_size
    pixels = np.stack([reader.read(int(index), lambda record: decode_stored(record.data, size)) for index in indices])
    reader.close()
    params = draw_params(
        augment,
        seed=0,
        epoch=0,
        indices=indices,
        positions=np.arange(first, first + len(indices)),
        image_size=size,
    )
    basis = load_eigenbasis(dataset) if augment.needs_basis else None
    return apply_params(pixels, params, pixel_transform(augment, basis, size).at(0), augment.crop_size)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("augment", [RESIZED, LIT], ids=["std", "lit"])
@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_batches_are_those_of_the_reference(
    small_jpeg_dataset: Path, small_raw_dataset: Path, kind: str, augment: AugmentConfig, layout: str
) -> None:
    dataset = small_jpeg_dataset if kind == "jpeg" else small_raw_dataset
    first = 0
    for batch in batches(dataset, augment, layout=layout):
        images = batch.images.numpy()
        images = images.transpose(0, 2, 3, 1) if layout == "NCHW" else images
        assert (images == expected(dataset, augment, batch, first)).all()
        first += len(images)
    assert first == 37


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pixels_and_halves(small_jpeg_dataset: Path, layout: str) -> None:
    whole = batches(small_jpeg_dataset, PIXELS, layout=layout)
    for batch, pixels in zip(whole, batches(small_jpeg_dataset, PIXELS, layout=layout, dtype="uint8"), strict=True):
        assert torch.equal(pixels.images.float(), batch.images)
    exact = batches(small_jpeg_dataset, RESIZED, layout=layout)
    for dtype in ("float16", "bfloat16"):
        for batch, half in zip(exact, batches(small_jpeg_dataset, RESIZED, layout=layout, dtype=dtype), strict=True):
            assert torch.equal(half.images, batch.images.to(getattr(torch, dtype)))


def test_decoded_images_in_memory_give_the_same_windows(small_jpeg_dataset: Path) -> None:
    config = LoaderConfig(dataset=small_jpeg_dataset, batch_size=10, augment=RESIZED, drop_last=False)
    epochs = []
    for cached in (0, 20 * 48 * 48 * 3):  # room for some of them
        with create_loader(replace(config, decoded_cache_bytes=cached)) as loader:
            epochs.append([batch.images for _ in range(3) for batch in loader])
    assert len(epochs[0]) == 12
    assert all(map(torch.equal, *epochs))


def test_weights_are_made_once_for_all_threads(small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads begin at the same time; the table for images of 4,096 pixels is 143 MB."""
    made: list[int] = []

    def slow_weights(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        made.append(length)
        time.sleep(0.001)  # lets other threads run
        return _axis_weights(length, size)

    monkeypatch.setattr("lmdali.pipeline.resized_crop._axis_weights", slow_weights)
    resize_table.cache_clear()
    batches(small_jpeg_dataset, replace(RESIZED, crop_size=39))
    assert sorted(made) == list(range(1, 49))


def test_what_libjpeg_decodes_is_resized_as_well(small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of another encoder: none is taken by the compiled decoder."""
    usual = batches(small_jpeg_dataset, RESIZED)
    monkeypatch.setattr(
        "lmdali.pipeline.patches.JpegDecoder.decode", lambda self, data, starts, *_: np.zeros(len(starts), np.bool_)
    )
    for one, other in zip(usual, batches(small_jpeg_dataset, RESIZED), strict=True):
        assert torch.equal(one.images, other.images)


@NEEDS_DALI
@pytest.mark.dali
@pytest.mark.parametrize("kind", ["jpeg", "raw"])
@pytest.mark.parametrize("augment", [PIXELS, LIT], ids=["pixels", "lit"])
def test_dali_has_the_same_windows(
    small_jpeg_dataset: Path, small_raw_dataset: Path, kind: str, augment: AugmentConfig
) -> None:
    """Its filter has weights of its own: a gray level or two, here and there."""
    dataset = small_jpeg_dataset if kind == "jpeg" else small_raw_dataset
    both = (batches(dataset, augment), batches(dataset, augment, backend="dali"))
    for one, other in zip(*both, strict=True):
        assert torch.equal(one.indices, other.indices) and torch.equal(one.labels, other.labels)
        difference = (one.images - other.images).abs()
        assert difference.max() <= 2.001 and difference.mean() < 0.02


def test_an_epoch_goes_on_with_the_same_windows(small_jpeg_dataset: Path) -> None:
    config = LoaderConfig(dataset=small_jpeg_dataset, batch_size=6, augment=RESIZED)
    with create_loader(config) as loader:
        whole = [batch.images for batch in loader]
        loader.set_epoch(0)
        list(islice(loader, 2))
        state = loader.state_dict()
    with create_loader(config) as loader:
        loader.load_state_dict(state)
        rest = [batch.images for batch in loader]
    assert len(rest) == len(whole) - 2 and all(map(torch.equal, rest, whole[2:]))


def test_windows_count_in_digests_and_are_listed(small_jpeg_dataset: Path) -> None:
    indices = np.arange(5)
    params = draw_params(RESIZED, seed=0, epoch=0, indices=indices, positions=indices, image_size=48)
    assert params.sides is not None
    other = replace(params, sides=params.sides[:, ::-1].copy())
    assert batch_digest(indices, indices, params) != batch_digest(indices, indices, other)
    assert batch_digest(indices, indices, params) != batch_digest(indices, indices, replace(params, sides=None))

    asked = ["order", str(small_jpeg_dataset), "--augment", "resized", "--crop-size", "40", "-b", "6", "--json"]
    with create_loader(LoaderConfig(dataset=small_jpeg_dataset, batch_size=6, augment=RESIZED)) as loader:
        list(loader)
        digest = loader.epoch_digest
    assert digest is not None
    printed = json.loads(CliRunner().invoke(cli, [*asked, "--digest"]).stdout)
    assert printed["digest"]["digest"] == digest_text(digest)
    (view,) = json.loads(CliRunner().invoke(cli, [*asked, "--limit", "1"]).stdout)["rows"][0]["views"]
    assert 1 <= view["height"] <= 48 - view["crop_y"] and 1 <= view["width"] <= 48 - view["crop_x"]
    shown = CliRunner().invoke(cli, [word for word in asked if word != "--json"]).stdout
    assert f"{view['height']} x {view['width']}" in shown


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"min_area": 0.3}, ("--min-area", 0.3)),
        ({"max_aspect": 3.0}, ("--max-aspect", 3)),
        # As presets light it: its kind does not say which alphas are drawn.
        ({"lighting": "eigenvalues", "min_area": 0.5}, ("--lighting-std", 0.1, "--min-area", 0.5)),
    ],
)
def test_order_tells_the_digest_of_every_run(
    small_jpeg_dataset: Path, fields: dict[str, Any], options: tuple[object, ...]
) -> None:
    augment = replace(RESIZED, **fields)
    with create_loader(LoaderConfig(dataset=small_jpeg_dataset, batch_size=6, augment=augment)) as loader:
        list(loader)
        digest = loader.epoch_digest
    assert digest is not None
    asked = ["order", small_jpeg_dataset, "--augment", "resized", "--crop-size", 40, "-b", 6, "--digest", "--json"]
    printed = json.loads(CliRunner().invoke(cli, [str(word) for word in (*asked, *options)]).stdout)
    assert printed["digest"]["digest"] == digest_text(digest)
    assert (printed["augment"]["min_area"], printed["augment"]["max_aspect"]) == (augment.min_area, augment.max_aspect)


def test_order_has_no_windows_without_them(small_jpeg_dataset: Path) -> None:
    asked = ["order", str(small_jpeg_dataset), "--crop-size", "40", "-b", "6"]
    refused = CliRunner().invoke(cli, [*asked, "--min-area", "0.3"])
    assert refused.exit_code == 2 and "take --augment resized" in refused.output
    assert "min_area" not in json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)["augment"]


def test_a_sheet_shows_the_windows(raw_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = CliRunner().invoke(cli, ["preview", str(raw_dataset), "--augment", "resized", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert cv2.imread(str(out)) is not None


def test_a_training_takes_them_and_is_evaluated_on_the_centre(small_jpeg_dataset: Path, tmp_path: Path) -> None:
    val = tmp_path / "val"
    shutil.copytree(small_jpeg_dataset, val)
    command = ["train", str(small_jpeg_dataset), str(val), "--run-dir", str(tmp_path / "run"), "--preset", "small"]
    command += ["--print-config", "--json", "--crop", "resized", "--normalize", "channel_mean", "--min-area", "0.25"]
    recipe = json.loads(CliRunner().invoke(cli, command).stdout)
    assert recipe["augment"]["crop"] == "resized" and recipe["augment"]["min_area"] == 0.25
