"""The whole data path in one test: files on a disk -> dataset -> batches, against a second computation by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from lmdali.pipeline import AugmentConfig, LoaderConfig, create_loader
from lmdali.pipeline.augment import draw_params
from lmdali.pipeline.table_reader import read_rows


def test_a_batch_is_what_opencv_and_numpy_make_of_the_files(photo_folder: Path, raw_dataset: Path) -> None:
    """Nothing of the pipeline is used on the way but the draws and the table that says which file is which record."""
    sources = [row["source"] for row in read_rows(raw_dataset / "records.parquet")]
    images = []
    for name in sources:
        bgr = cv2.imread(str(photo_folder / name), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        assert bgr is not None
        pixels = bgr[:, :, ::-1]
        height, width = pixels.shape[:2]
        scale = 256 / min(height, width)
        sides = (int(scale * width + 0.5), int(scale * height + 0.5))
        filter_ = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = cv2.resize(np.ascontiguousarray(pixels), sides, interpolation=filter_)
        top, left = (resized.shape[0] - 256) // 2, (resized.shape[1] - 256) // 2
        images.append(resized[top : top + 256, left : left + 256])
    stored = np.stack(images).astype(np.float64)

    covariance = np.cov(stored.reshape(-1, 3).T, bias=True) / 255**2
    eigenvalues, vectors = np.linalg.eigh(covariance)
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
    mean = stored.mean(axis=0)

    config = LoaderConfig(dataset=raw_dataset, batch_size=16, seed=3, augment=AugmentConfig.paper())
    seen: list[int] = []
    with create_loader(config) as loader:
        loader.set_epoch(2)
        for batch in loader:
            indices = batch.indices.numpy()
            seen += indices.tolist()
            params = draw_params(config.augment, seed=3, epoch=2, indices=indices, positions=indices, image_size=256)
            for n, index in enumerate(indices):
                (y, x), alphas = params.crop_yx[n], params.alphas[n].astype(np.float64)
                shift = 255 * (vectors * eigenvalues[None, :]) @ alphas[::-1]
                expected = (stored[index] - mean)[y : y + 224, x : x + 224] + shift
                expected = expected[:, ::-1] if params.flip[n] else expected
                found = batch.images[n].permute(1, 2, 0).numpy()
                assert np.abs(found - expected).max() < 1e-3
                assert ("apple", "fig", "pear", "quince")[int(batch.labels[n])] == sources[index].split("/")[0]
    assert len(seen) == len(set(seen)) == 48


def test_jpeg_and_raw_records_of_one_source_differ_by_the_compression_only(
    jpeg_dataset: Path, raw_dataset: Path
) -> None:
    loaders = [
        create_loader(LoaderConfig(dataset=d, batch_size=60, augment=AugmentConfig.pixels(), dtype="uint8"))
        for d in (jpeg_dataset, raw_dataset)
    ]
    (jpeg,), (raw,) = loaders
    assert torch.equal(jpeg.indices, raw.indices) and torch.equal(jpeg.labels, raw.labels)
    difference = (jpeg.images.to(torch.int16) - raw.images.to(torch.int16)).abs().to(torch.float32)
    assert 0 < difference.mean() < 6
    for loader in loaders:
        loader.close()
