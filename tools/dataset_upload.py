"""A finished dataset written below an address: shard by shard, what is there already left out, the manifest last."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from lmdali.pipeline.address_lock import hold_address
from lmdali.pipeline.dataset_files import DatasetFile, shard_files, side_files
from lmdali.pipeline.errors import InputError, StorageError
from lmdali.pipeline.file_store import FileStore
from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.manifest import MANIFEST_FILE, SHARDS_DIRECTORY, Manifest, load_manifest
from lmdali.pipeline.path_kind import is_file
from lmdali.pipeline.remote_retry import Attempts, RetryConfig
from lmdali.pipeline.remote_store import WritableStore
from lmdali.pipeline.remote_upload import FileUpload
from lmdali.pipeline.shard_header import DATA_FILE, check_size
from lmdali.pipeline.shard_publisher import STAGED_PLAN, read_remote
from lmdali.pipeline.stores import open_writable_store
from lmdali.tools.output_argument import refuse_overlap
from lmdali.tools.parallel_files import run_all, stoppable_clock
from lmdali.tools.progress import progress_bar

DEFAULT_UPLOADS = 4
"""Shards sent at once: one connection rarely fills a line."""


@dataclass(frozen=True)
class UploadSummary:
    """What an upload did.

    Attributes:
        address: where the dataset is, without credentials.
        num_shards: of the dataset.
        file_bytes: size of all its files.
        sent_files: files that were not there yet.
        sent_bytes: their size.
        manifest_digest: identity of the dataset.
        seconds: wall time.
    """

    address: str
    num_shards: int
    file_bytes: int
    sent_files: int
    sent_bytes: int
    manifest_digest: str
    seconds: float


def upload_dataset(
    directory: Path,
    address: str,
    *,
    uploads: int = DEFAULT_UPLOADS,
    verify: bool = False,
    replace: bool = False,
    quiet: bool = False,
    retry: RetryConfig | None = None,
) -> UploadSummary:
    """Write a finished dataset below an address; what an earlier run brought there is not sent again.

    Args:
        directory: the dataset.
        address: where to; anything but http(s).
        uploads: shards at once.
        verify: read everything back that is there or was sent.
        replace: let it take the place of another dataset.
        quiet: no progress.
        retry: patience.

    Raises:
        ConfigError: one of the two is within the other.
        InputError: another dataset is there, or an unfinished one.
        IntegrityError: a file differs from the manifest.
        LockedError: another run writes there.
        RemoteError: not there, not allowed, or out of reach for too long.
    """
    start, config = perf_counter(), retry or RetryConfig()
    manifest = load_manifest(directory)
    store = open_writable_store(address, config)
    if isinstance(store, FileStore):
        refuse_overlap(directory, store.folder)
    for info in manifest.shards:
        with storage_errors(directory):
            path = directory / SHARDS_DIRECTORY / info.name / DATA_FILE
            check_size(path, expected_bytes=info.file_bytes, expected_entries=info.num_records)
    with hold_address(store, config=config) as still_held:
        before = _manifest_at(store, config)
        _refuse(store, config, before, manifest, replace=replace)
        stop = threading.Event()
        upload = FileUpload(store, config, verify=verify, clock=stoppable_clock(stop))
        if before is not None and before.get("digest") != manifest.digest:
            upload.remove(MANIFEST_FILE)  # half of another dataset must not look like it
        sending = _Sending(directory, manifest, upload)
        sending.send_all(uploads, stop, quiet=quiet)
        still_held()
        sending.send([DatasetFile(MANIFEST_FILE, is_needed=True)])
        for name in sorted(_old_files(before) - set(sending.names)):
            upload.remove(name)
    return UploadSummary(
        address=store.shown,
        num_shards=len(manifest.shards),
        file_bytes=sending.done_bytes,
        sent_files=sending.sent_files,
        sent_bytes=sending.sent_bytes,
        manifest_digest=manifest.digest,
        seconds=perf_counter() - start,
    )


def _manifest_at(store: WritableStore, config: RetryConfig) -> dict[str, Any] | None:
    """The manifest below an address, unchecked; empty where it cannot be read as one, None where there is none."""
    payload = read_remote(store, MANIFEST_FILE, config)
    if payload is None:
        return None
    try:
        document = json.loads(payload)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _refuse(
    store: WritableStore, config: RetryConfig, before: dict[str, Any] | None, now: Manifest, *, replace: bool
) -> None:
    if replace:
        return
    if before is not None and before.get("digest") != now.digest:
        raise InputError(
            f"{store.shown}: holds another dataset (digest {str(before.get('digest'))[:12]}..., this one has "
            f"{now.digest[:12]}...): add --replace, or choose another address"
        )
    if Attempts(store.shown, config).run(lambda: store.stat(STAGED_PLAN)) is not None:
        raise InputError(
            f"{store.shown}: holds an unfinished conversion: finish it with `lmdali convert --resume`, add --replace, "
            "or choose another address"
        )


def _old_files(before: dict[str, Any] | None) -> set[str]:
    """Names of the shards' files in a manifest that nobody checked."""
    try:
        names = [str(shard["name"]) for shard in (before or {}).get("shards", [])]
    except (TypeError, KeyError):
        return set()
    plain = [name for name in names if name.isascii() and name.isdigit()]
    return {f"{SHARDS_DIRECTORY}/{name}/{file}" for name in plain for file in ("data.mdb", "offsets.npy", "shard.json")}


class _Sending:
    """The files of one dataset on their way."""

    def __init__(self, directory: Path, manifest: Manifest, upload: FileUpload) -> None:
        self._directory, self._manifest, self._upload = directory, manifest, upload
        self._lock = threading.Lock()
        self.names: list[str] = []
        self.done_bytes = self.sent_files = self.sent_bytes = 0

    def send_all(self, threads: int, stop: threading.Event, *, quiet: bool) -> None:
        """Everything but the manifest."""
        groups = [*map(shard_files, self._manifest.shards), side_files(self._manifest)]
        total = round(self._manifest.file_bytes / 1e6)
        with progress_bar("upload", total, unit="MB", quiet=quiet) as progress:
            run_all(
                [lambda group=group: self.send(group) for group in groups],  # type: ignore[misc]
                threads=threads,
                stop=stop,
                look=lambda: progress(min(total, round(self.done_bytes / 1e6))),
            )

    def send(self, files: Sequence[DatasetFile]) -> None:
        """Some files, one after the other."""
        for name, _, sha256, is_needed in files:
            path = self._directory / name
            if not is_file(path):
                if is_needed:
                    raise StorageError(f"{path}: missing: run `lmdali verify`, then `lmdali repair`")
                continue
            was_sent = self._upload.bring(name, path, sha256)
            size = path.stat().st_size
            with self._lock:
                self.names.append(name)
                self.done_bytes += size
                self.sent_files += was_sent
                self.sent_bytes += size if was_sent else 0
