"""What a loader must know of a dataset besides its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmdali.pipeline.manifest import Manifest


@dataclass(frozen=True)
class DatasetIdentity:
    """A dataset as its loader knows it.

    Attributes:
        num_samples: records.
        image_size: side of the stored images, pixels.
        class_names: position is label.
        digest: manifest digest, or the name of a synthetic dataset.
        shard_sizes: records of each shard, in storage order.
    """

    num_samples: int
    image_size: int
    class_names: tuple[str, ...]
    digest: str
    shard_sizes: Sequence[int]

    @classmethod
    def of(cls, manifest: Manifest) -> DatasetIdentity:
        """Of a converted dataset."""
        sizes = tuple(shard.num_records for shard in manifest.shards)
        return cls(manifest.num_records, manifest.image_size, manifest.class_names, manifest.digest, sizes)
