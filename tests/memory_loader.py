"""A loader over pictures made on the spot: the `Loader` contract in sixty lines, for tests of what consumes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Self

import torch

from lmdali.pipeline.batch import Batch


@lru_cache(maxsize=128)
def picture(index: int, label: int, size: int) -> torch.Tensor:
    """`(3, size, size)` float32 around 0."""
    rows = torch.arange(size, dtype=torch.float32)[:, None]
    along = rows if label % 2 else rows.T
    stripes = torch.sin(along * (0.1 + 0.15 * label)) * 60 + torch.zeros(size, size)
    return stripes + torch.randn(3, size, size, generator=torch.Generator().manual_seed(index)) * 20


class MemoryLoader:
    """Shuffled by (seed, epoch), with pictures that are a function of the sample number.

    Args:
        num_samples: sample i has label `i % num_classes`.
        before_batch: called with (epoch, position) before a batch is delivered; raise or signal there.
    """

    def __init__(
        self,
        num_samples: int = 24,
        *,
        num_classes: int = 4,
        batch_size: int = 8,
        shuffle: bool = True,
        num_views: int = 1,
        size: int = 224,
        before_batch: Callable[[int, int], None] = lambda epoch, position: None,
        manifest_digest: str = "d" * 64,
    ) -> None:
        self.num_samples = self.num_records = num_samples
        self.num_views, self.manifest_digest = num_views, manifest_digest
        self.class_names = tuple(f"class {label}" for label in range(num_classes))
        self.before_batch = before_batch
        self._batch_size, self._shuffle, self._size = batch_size, shuffle, size
        self._epoch, self._position, self._start = 0, 0, 0
        self._digest = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def epoch_digest(self) -> int:
        return self._digest

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self._batch_size)
        return whole + (rest > 0 and not self._shuffle)

    def _begin(self) -> tuple[int, int, torch.Tensor]:
        """Epoch, position and order of an iteration that begins."""
        epoch, start, self._start = self._epoch, self._start, 0
        self._digest = self._digest if start else 0
        order = torch.arange(self.num_samples)
        if self._shuffle:
            order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(epoch))
        return epoch, start, order

    def __iter__(self) -> Iterator[Batch]:
        epoch, start, order = self._begin()
        end = len(self) * self._batch_size
        for position in range(start, end, self._batch_size):
            self.before_batch(epoch, position)
            indices = order[position : position + self._batch_size]
            self._position = position + self._batch_size
            self._digest += sum((position + place) * (index + 1) for place, index in enumerate(indices.tolist(), 1))
            if self._position >= end:
                self._epoch, self._position = epoch + 1, 0
            yield Batch(self._images(indices), indices % len(self.class_names), indices)

    def _images(self, indices: torch.Tensor) -> torch.Tensor:
        """Stripes whose direction and width say the class, and noise that says the sample, once per view."""
        pictures = [picture(index, index % len(self.class_names), self._size) for index in indices.tolist()]
        return torch.stack([image for image in pictures for _ in range(self.num_views)])

    def set_epoch(self, epoch: int) -> None:
        self._epoch, self._position, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "position": self._position, "digest": self._digest if self._position else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch, self._position = state["epoch"], state["position"]
        self._start, self._digest = self._position, state["digest"]

    def stage_seconds(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
