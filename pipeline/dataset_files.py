"""Which files a dataset consists of, and what its manifest says of each: what a copy must have."""

from __future__ import annotations

from typing import NamedTuple

from lmdali.pipeline.eigenbasis import MEAN_FILE, STATISTICS_FILE
from lmdali.pipeline.manifest import SHARDS_DIRECTORY, Manifest, ShardInfo
from lmdali.pipeline.shard_figures import SHARD_FILE
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.shard_index import OFFSETS_FILE


class DatasetFile(NamedTuple):
    """One file of a dataset.

    Attributes:
        name: path below the dataset.
        num_bytes: its size, where the manifest has it.
        sha256: its hash, where the manifest has it.
        is_needed: False for one that a copy may lack.
    """

    name: str
    num_bytes: int | None = None
    sha256: str | None = None
    is_needed: bool = False


def shard_files(info: ShardInfo) -> list[DatasetFile]:
    """The files of one shard, the shard itself first."""
    folder = f"{SHARDS_DIRECTORY}/{info.name}"
    return [
        DatasetFile(f"{folder}/{DATA_FILE}", info.file_bytes, info.sha256, is_needed=True),
        DatasetFile(f"{folder}/{OFFSETS_FILE}"),
        DatasetFile(f"{folder}/{SHARD_FILE}"),
    ]


def side_files(manifest: Manifest) -> list[DatasetFile]:
    """The files beside the shards, but for the manifest, which comes last wherever a dataset is written."""
    tables = [DatasetFile(name, sha256=sha256, is_needed=True) for name, sha256 in manifest.tables.items()]
    return [*tables, DatasetFile(STATISTICS_FILE), DatasetFile(MEAN_FILE)]
