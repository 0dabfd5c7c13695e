from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from memory_loader import MemoryLoader

from lmdali.model.pixel_order import order_by_pixels
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.errors import InputError, IntegrityError


class GivenPictures(MemoryLoader):
    """Delivers given pictures, two at a time, the last first."""

    def __init__(self, pictures: np.ndarray, *, missing: int = 0) -> None:
        super().__init__(num_samples=len(pictures))
        self._pictures, self._missing = torch.from_numpy(pictures), missing

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(len(self._pictures)).flip(0)[self._missing :]
        for indices in order.split(2):
            yield Batch(self._pictures[indices], torch.zeros_like(indices), indices)


def gray(*levels: int) -> np.ndarray:
    """Pictures of 4 x 4 pixels, each of one gray level."""
    return np.array(levels, np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)


def test_five_images_by_hand() -> None:
    pictures = gray(100, 110, 90, 255, 0)
    order = order_by_pixels(GivenPictures(pictures), gray(100), np.array([[3, 1, 2, 4, 0]]), np.array([-1]))
    # Nearest first: 0, then 1 and 2 alike, then 4 (100 away), then 3 (155 away); percentiles of the four others.
    assert order.percentiles.tolist() == [[100.0, 25.0, 25.0, 75.0, 0.0]]
    assert order.distances[0].tolist() == [np.sqrt(48.0 * away**2) for away in (155, 10, 10, 100, 0)]


def test_a_query_from_the_dataset_does_not_count() -> None:
    pictures = gray(100, 110, 90, 255, 0)
    order = order_by_pixels(GivenPictures(pictures), pictures[:1], np.array([[1, 4, 3]]), np.array([0]))
    assert order.percentiles.tolist() == [[0.0, 200 / 3, 100.0]]


def test_distances_are_exact_for_whole_pictures() -> None:
    random = np.random.default_rng(0)
    pictures = random.choice(np.array([0, 255], np.uint8), size=(3, 224, 224, 3))
    order = order_by_pixels(GivenPictures(pictures), pictures[:1], np.array([[1, 2]]), np.array([0]))
    wanted = np.sqrt(((pictures[1:].astype(np.int64) - pictures[0]) ** 2).sum(axis=(1, 2, 3)).astype(np.float64))
    assert (order.distances[0] == wanted).all()


def test_other_sizes_and_missing_images_are_found() -> None:
    with pytest.raises(InputError, match="one image size"):
        order_by_pixels(GivenPictures(gray(1, 2)), np.zeros((1, 5, 5, 3), np.uint8), np.array([[0]]), np.array([-1]))
    with pytest.raises(IntegrityError, match="1 of 3 images"):
        order_by_pixels(GivenPictures(gray(1, 2, 3), missing=1), gray(1), np.array([[0]]), np.array([-1]))
