"""What a loader must know of a dataset besides its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lmdali.pipeline.manifest import Manifest
from lmdali.pipeline.record_list import RecordList, Records


@dataclass(frozen=True)
class DatasetIdentity:
    """A dataset as its loader knows it.

    Attributes:
        num_records: records, whether they are delivered or not.
        image_size: side of the stored images, pixels.
        class_names: position is label.
        digest: manifest digest, or the name of a synthetic dataset.
        shard_sizes: records of each shard, in storage order.
        records: those that are delivered; None means all.
        source_kind: what it was converted from, such as "folder"; None where that is not known.
    """

    num_records: int
    image_size: int
    class_names: tuple[str, ...]
    digest: str
    shard_sizes: Sequence[int]
    records: RecordList | None = None
    source_kind: str | None = None

    @property
    def num_samples(self) -> int:
        """Records that an epoch delivers."""
        return self.num_records if self.records is None else len(self.records)

    def listing(self, records: Records | None) -> DatasetIdentity:
        """The same of which an epoch delivers these records; None means all.

        Raises:
            InputError: no list of this dataset's records.
            StorageError: its file cannot be read.
        """
        return self if records is None else replace(self, records=RecordList.of(records, self.num_records))

    @classmethod
    def of(cls, manifest: Manifest) -> DatasetIdentity:
        """Of a converted dataset."""
        sizes = tuple(shard.num_records for shard in manifest.shards)
        return cls(
            manifest.num_records,
            manifest.image_size,
            manifest.class_names,
            manifest.digest,
            sizes,
            source_kind=manifest.source.get("kind"),
        )
