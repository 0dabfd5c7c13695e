"""Whether the files of one shard are what its manifest says, and the making again of those that follow from others."""

from __future__ import annotations

from pathlib import Path

from lmdali.pipeline.errors import ShardError, StorageError
from lmdali.pipeline.files import file_sha256
from lmdali.pipeline.manifest import ShardInfo
from lmdali.pipeline.path_kind import exists
from lmdali.pipeline.shard_header import DATA_FILE, check_size
from lmdali.pipeline.shard_index import OFFSETS_FILE, save_offsets
from lmdali.pipeline.shard_walk import kept_offsets_fit, lmdb_offsets
from lmdali.pipeline.system_error import system_says


def check_data_file(directory: Path, info: ShardInfo) -> None:
    """Size, header and hash of a shard's `data.mdb`. It is read, not mapped: a bad sector is an error, no SIGBUS.

    Raises:
        ShardError: it is missing, truncated or damaged.
        StorageError: it cannot be read.
    """
    path = directory / DATA_FILE
    try:
        check_size(path, expected_bytes=info.file_bytes, expected_entries=info.num_records)
        if file_sha256(path) != info.sha256:
            raise ShardError(f"{path}: sha256 differs from the one taken when it was made")
    except OSError as error:
        raise StorageError(f"{path}: {system_says(error)}") from error


def restore_offsets(directory: Path, info: ShardInfo) -> bool:
    """Write the `offsets.npy` of a sound shard again where it is missing or wrong; says whether it did.

    Raises:
        ShardError: `data.mdb` is damaged.
        StorageError: the disk refuses.
    """
    if exists(directory / OFFSETS_FILE) and kept_offsets_fit(directory, info):
        return False
    save_offsets(directory, lmdb_offsets(directory))
    return True
