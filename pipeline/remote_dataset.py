"""A dataset at an address: its small files brought here and pinned by digest, its shards fetched one by one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lmdali.pipeline.cache_entries import ADDRESS_FILE, DATASETS
from lmdali.pipeline.eigenbasis import MEAN_FILE, STATISTICS_FILE
from lmdali.pipeline.errors import RemoteError
from lmdali.pipeline.files import MAX_JSON_BYTES, file_sha256, storage_errors, write_atomic
from lmdali.pipeline.manifest import MANIFEST_FILE, SHARDS_DIRECTORY, Manifest, ShardInfo, parse_manifest
from lmdali.pipeline.path_kind import is_file
from lmdali.pipeline.remote_file import FileFetch, fetch_small
from lmdali.pipeline.remote_retry import RetryConfig
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.stores import open_store

_MAX_TABLE_BYTES = 2_000_000_000
"""ImageNet's table of records takes 100 MB."""
_STATISTICS = (STATISTICS_FILE, MEAN_FILE)


class RemoteDataset:
    """What is known of a remote dataset.

    Args:
        address: of the dataset, with a scheme.
        cache_dir: directory of the cache.

    Attributes:
        store: where its files are.
        cache_dir: as given.
    """

    def __init__(self, address: str, cache_dir: Path) -> None:
        self._config = RetryConfig()
        self.store = open_store(address, self._config)
        self.cache_dir = cache_dir
        self._digest = ""

    def open(self) -> tuple[Path, Manifest]:
        """Bring its manifest and statistics here: the directory that has them, and the manifest.

        From now on the dataset is what this manifest says; every shard is compared with it.

        Raises:
            RemoteError: there is no dataset, or none that can be reached.
            ManifestError: its manifest is damaged.
            StorageError: the cache cannot be written.
        """
        payload = self._small(MANIFEST_FILE)
        manifest = parse_manifest(payload, f"{self.store.shown}/{MANIFEST_FILE}")
        directory = self.cache_dir / DATASETS / manifest.digest
        with storage_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # another user's, perhaps
            os.utime(directory)  # when it was opened
        _write_if_new(directory / MANIFEST_FILE, payload)
        _write_if_new(directory / ADDRESS_FILE, f"{self.store.shown}\n".encode("utf-8", "backslashreplace"))
        for name in _STATISTICS:
            try:
                _write_if_new(directory / name, self._small(name))
            except RemoteError as error:
                if not error.is_missing:  # a dataset may be without; whoever needs them says so
                    raise
        self._digest = manifest.digest
        return directory, manifest

    def fetch_tables(self, directory: Path, manifest: Manifest) -> None:
        """Bring the tables of records and rejects to `directory`, those that are not there.

        Raises:
            RemoteError: one cannot be had, or is another than the manifest says.
            StorageError: the disk refuses.
        """
        for name, sha256 in manifest.tables.items():
            path = directory / name
            if is_file(path) and file_sha256(path) == sha256:
                continue
            payload = fetch_small(self.store, name, max_bytes=_MAX_TABLE_BYTES, config=self._config)
            if hashlib.sha256(payload).hexdigest() != sha256:
                raise RemoteError(
                    f"{self.store.shown}/{name}: another file than {MANIFEST_FILE} says: the dataset changed, or was "
                    "damaged on the way: try again, or upload it again"
                )
            write_atomic(path, payload)

    def fetch_shard(self, info: ShardInfo, path: Path, stopped: Callable[[], bool] = lambda: False) -> int:
        """Bring a shard to a file, going on with what is there; how many bytes came.

        Raises:
            RemoteError: it cannot be had, or the dataset changed since it was opened.
            StorageError: the disk refuses.
            FetchStopped: `stopped` said so.
        """
        name = f"{SHARDS_DIRECTORY}/{info.name}/{DATA_FILE}"
        fetch = FileFetch(
            self.store,
            name,
            num_bytes=info.file_bytes,
            sha256=info.sha256,
            config=self._config,
            stopped=stopped,
        )
        try:
            fetch.into(path)
        except RemoteError as error:
            now = self._digest_now()
            if now not in (self._digest, ""):
                raise RemoteError(
                    f"{self.store.shown}: changed since it was opened: its manifest had the digest {self._digest}, and "
                    f"has {now}; shard {info.name} is no longer what it was: start again with the new dataset"
                ) from error
            raise
        return fetch.fetched_bytes

    def _small(self, name: str) -> bytes:
        return fetch_small(self.store, name, max_bytes=MAX_JSON_BYTES, config=self._config)

    def _digest_now(self) -> str:
        """The digest that the remote manifest has now; empty where it cannot be told."""
        once = replace(self._config, tries=1)
        try:
            payload = fetch_small(self.store, MANIFEST_FILE, max_bytes=MAX_JSON_BYTES, config=once)
            return str(json.loads(payload)["digest"])
        except (RemoteError, ValueError, KeyError, TypeError):
            return ""


def _write_if_new(path: Path, payload: bytes) -> None:
    """`write_atomic` where something else is there: every rank of every run comes here, and others are reading."""
    with suppress(OSError):
        if path.read_bytes() == payload:
            return
    write_atomic(path, payload)
