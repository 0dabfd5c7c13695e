"""The synthetic backend: the right shapes, order and timing marks, and no data. A model's own speed shows against it.

Labels are the sample number modulo the number of classes, and images are one fixed block of noise, so that nothing is
spent on them; the order, the draws and the loader's state are those of the other backends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.host_to_device import torch_dtype

PREFIX = "synthetic"
_SHARD_SAMPLES = 12_000
"""What a shard of 256 MB holds of ImageNet; the block order wants shards."""


@dataclass(frozen=True)
class SyntheticDataset:
    """A dataset that has numbers only.

    Attributes:
        num_samples: records it pretends to have.
        num_classes: classes it pretends to have.
        image_size: side of its images, pixels.
    """

    num_samples: int = 1_281_167
    num_classes: int = 1000
    image_size: int = 256

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Records of each shard it pretends to have."""
        whole, rest = divmod(self.num_samples, _SHARD_SAMPLES)
        return (_SHARD_SAMPLES,) * whole + ((rest,) if rest else ())

    @classmethod
    def parse(cls, text: str) -> SyntheticDataset:
        """`synthetic` (ImageNet's numbers) or `synthetic:SAMPLESxCLASSES`.

        Raises:
            ConfigError: anything else.
        """
        if text == PREFIX:
            return cls()
        samples, cross, classes = text.removeprefix(PREFIX + ":").partition("x")
        if not (text.startswith(PREFIX + ":") and cross and samples.isdecimal() and classes.isdecimal()):
            raise ConfigError(f"found dataset {text!r}, expected 'synthetic' or 'synthetic:SAMPLESxCLASSES'")
        if int(samples) < 1 or int(classes) < 1:
            raise ConfigError(f"found dataset {text!r}: it needs at least one sample and one class")
        return cls(int(samples), int(classes))


class SyntheticBackend:
    """Batches of fixed noise.

    Args:
        spec: form and place of the batches.
        num_classes: labels are below this.
    """

    def __init__(self, spec: OutputSpec, num_classes: int) -> None:
        self._spec, self._num_classes = spec, num_classes
        noise = np.random.Generator(np.random.Philox(key=0)).integers(
            0, 256, (spec.num_images, *spec.image_shape()), np.uint8
        )
        images = torch.from_numpy(noise)
        if not spec.holds_pixels:
            images = (images.to(torch.float32) - 128).to(torch_dtype(spec.dtype))
        self._images = images.to(spec.device)

    def start(self, plan: BatchPlan) -> BatchPlan:
        """Nothing to do ahead of time."""
        return plan

    def finish(self, pending: BatchPlan) -> Batch:
        """The first images of the block, and labels by number."""
        labels = torch.from_numpy(pending.indices % self._num_classes).to(self._spec.device)
        return Batch(self._images[: len(pending.params)], labels, torch.from_numpy(pending.indices))

    def is_ready(self, pending: BatchPlan) -> bool:
        """Always."""
        return True

    def cancel(self, pending: BatchPlan) -> None:
        """Nothing was begun."""

    def close(self) -> None:
        """Nothing to stop."""
