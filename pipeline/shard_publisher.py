"""A conversion whose shards live below an address: each is sent as it is finished, and then removed here.

The remote `.staging/` keeps what the local one does: the plan, and for each shard its table rows and sums, the file of
their hashes last. So it says by itself which shards are done, and any machine can go on or publish. Here a finished
shard is reduced to its `shard.json` and what is staged for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lmdali.pipeline.dataset_files import shard_files, side_files
from lmdali.pipeline.dataset_plan import DatasetPlan, differences, other_options
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import InputError, IntegrityError, RemoteError
from lmdali.pipeline.files import MAX_JSON_BYTES, storage_errors, sync_directory, write_atomic
from lmdali.pipeline.manifest import MANIFEST_FILE, SHARDS_DIRECTORY, Manifest, parse_manifest
from lmdali.pipeline.output_lock import STAGING_DIRECTORY
from lmdali.pipeline.path_kind import exists
from lmdali.pipeline.remote_file import fetch_small
from lmdali.pipeline.remote_retry import RetryConfig
from lmdali.pipeline.remote_store import WritableStore
from lmdali.pipeline.remote_upload import FileUpload
from lmdali.pipeline.shard_figures import SHARD_FILE
from lmdali.pipeline.shard_header import DATA_FILE
from lmdali.pipeline.shard_index import OFFSETS_FILE
from lmdali.pipeline.shard_output import HASHES_SUFFIX, PLAN_FILE, STAGED_SUFFIXES

STAGED_PLAN = f"{STAGING_DIRECTORY}/{PLAN_FILE}"
_CALLS = 8


def read_remote(store: WritableStore, name: str, config: RetryConfig) -> bytes | None:
    """A small file below an address; None where there is none."""
    try:
        return fetch_small(store, name, max_bytes=MAX_JSON_BYTES, config=config)
    except RemoteError as error:
        if error.is_missing:
            return None
        raise


def refuse_content_at(
    store: WritableStore, config: RetryConfig, *, is_part: bool, resume: bool, overwrite: bool
) -> None:
    """Raises InputError if there is anything below an address that this run must not touch.

    A part goes on beside others without being asked to; what is finished is for `published` to judge on a resume.
    """
    if resume or overwrite:
        return
    state = ""
    if read_remote(store, MANIFEST_FILE, config) is not None:
        state = "a finished dataset"
    elif not is_part and read_remote(store, STAGED_PLAN, config) is not None:
        state = "an unfinished conversion"
    if state:
        raise InputError(
            f"{store.shown}: already holds {state}: add --resume or --overwrite, or choose another address"
        )


def _each(names: list[str], call: Callable[[str], object]) -> None:
    """Call it for all names, some at once: most of such a call is waiting."""
    with ThreadPoolExecutor(_CALLS) as pool:
        for _ in pool.map(call, names):
            pass


class ShardPublisher:
    """One conversion to one address.

    Args:
        writer: the local side: a directory of this conversion alone.
        store: the address.
        upload: the way there.
        config: patience.
    """

    def __init__(self, writer: DatasetWriter, store: WritableStore, upload: FileUpload, config: RetryConfig) -> None:
        self._writer, self._store, self._upload, self._config = writer, store, upload, config

    def manifest_there(self) -> Manifest | None:
        """The manifest that is there; None where there is none.

        Raises:
            ManifestError: it is damaged.
        """
        payload = read_remote(self._store, MANIFEST_FILE, self._config)
        return None if payload is None else parse_manifest(payload, f"{self._store.shown}/{MANIFEST_FILE}")

    def published(self) -> Manifest | None:
        """The manifest that is there, if this very plan was published before; None where there is none.

        Raises:
            InputError: another dataset was.
        """
        manifest = self.manifest_there()
        plan = self._writer.plan
        if manifest is None or manifest.source.get("plan") == plan.fingerprint:
            return manifest
        raise other_options(self._store.shown, manifest, plan)

    def begin(self, *, resume: bool, overwrite: bool) -> bool:
        """Take the address for this plan; says whether shards of it may be there already.

        Raises:
            InputError: something is there, and neither flag is given, or it was begun with other options.
        """
        plan = self._writer.plan
        found = read_remote(self._store, STAGED_PLAN, self._config)
        is_part = self._writer.part is not None
        refuse_content_at(self._store, self._config, is_part=is_part, resume=resume, overwrite=overwrite)
        if overwrite:
            self._clear(found)
        elif found is not None:
            self._check_plan(found)
            return True
        elif read_remote(self._store, MANIFEST_FILE, self._config) is not None:
            raise InputError(f"{self._store.shown}: was published meanwhile: nothing is left to do")
        self._upload.put(STAGED_PLAN, json.dumps(plan.to_json()).encode("utf-8", "backslashreplace"))
        # Parts that begin at once may both have written one.
        self._check_plan(read_remote(self._store, STAGED_PLAN, self._config) or b"{}")
        return False

    def refuse_other_plan(self) -> None:
        """Raises InputError where what is begun there is no longer this plan: whole runs do not wait for parts."""
        found = read_remote(self._store, STAGED_PLAN, self._config)
        if found is None:
            raise InputError(
                f"{self._store.shown}: another run has published it, or cleared it away, meanwhile: run again"
            )
        self._check_plan(found)

    def restore(self) -> None:
        """Make the local side know the shards that are there, and forget those that are not. For the holder of both."""
        _each([name for name, _, _ in self._writer.shards()], self._restore)

    def send_shard(self, name: str) -> None:
        """Bring a finished shard there, all it consists of, and remove its data here."""
        info = self._writer.figures(name).info
        directory = self._writer.directory
        for file, _, sha256, _ in shard_files(info):
            self._upload.bring(file, directory / file, sha256)
        for suffix in STAGED_SUFFIXES:
            path = self._writer.staged(name, suffix)
            self._upload.bring(f"{STAGING_DIRECTORY}/{path.name}", path)
        folder = self._writer.shard_directory(name)
        with storage_errors(folder):
            (folder / DATA_FILE).unlink()  # first: as long as it is here, the shard is to be sent, with all its files
            (folder / OFFSETS_FILE).unlink(missing_ok=True)

    def unsent(self, names: list[str]) -> list[str]:
        """Those of some shards that are finished here, and not sent yet."""
        return [
            name for name in names if exists(self._writer.shard_directory(name) / DATA_FILE) and self._writer.has(name)
        ]

    def finish(self, manifest: Manifest) -> None:
        """Bring what is beside the shards there, the manifest last, and remove what was staged."""
        directory: Path = self._writer.directory
        for name, _, sha256, _ in side_files(manifest):
            self._upload.bring(name, directory / name, sha256)
        self._upload.bring(MANIFEST_FILE, directory / MANIFEST_FILE)
        self.tidy()

    def tidy(self) -> None:
        """Remove what was staged there, the plan last, once the dataset is complete."""
        if read_remote(self._store, STAGED_PLAN, self._config) is not None:
            self._remove_staged([name for name, _, _ in self._writer.plan.shards()])

    def _check_plan(self, found: bytes) -> None:
        try:
            before = json.loads(found)
            different = differences(before, self._writer.plan.to_json())
        except (ValueError, AttributeError) as error:
            raise IntegrityError(
                f"{self._store.shown}/{STAGED_PLAN}: {error!r}: the file is damaged: use --overwrite"
            ) from error
        if different:
            raise InputError(
                f"{self._store.shown}: was begun with other options ({different}): repeat those, use --overwrite, or "
                "choose another address"
            )

    def _clear(self, plan: bytes | None) -> None:
        """Remove what is there of ours: the manifest first, and the plan last, which names the rest."""
        names: set[str] = set()
        with suppress(IntegrityError):
            manifest = self.manifest_there()
            names.update(info.name for info in (manifest.shards if manifest is not None else ()))
        with suppress(ValueError, KeyError, TypeError):
            names.update(name for name, _, _ in DatasetPlan.from_json(json.loads(plan or b"{}")).shards())
        self._upload.remove(MANIFEST_FILE)
        files = (DATA_FILE, OFFSETS_FILE, SHARD_FILE)
        _each([f"{SHARDS_DIRECTORY}/{name}/{file}" for name in sorted(names) for file in files], self._upload.remove)
        self._remove_staged(sorted(names))

    def _remove_staged(self, names: list[str]) -> None:
        # What says that the others are there goes before them.
        for suffix in reversed(STAGED_SUFFIXES):
            _each([f"{STAGING_DIRECTORY}/{name}.{suffix}" for name in names], self._upload.remove)
        self._upload.remove(STAGED_PLAN)

    def _restore(self, name: str) -> None:
        if self._writer.has(name):
            if not exists(self._writer.shard_directory(name) / DATA_FILE) and not self._is_there(name):
                self._writer.discard([name], finished=True)
        elif read_remote(self._store, f"{STAGING_DIRECTORY}/{name}.{HASHES_SUFFIX}", self._config) is not None:
            self._bring_back(name)

    def _is_there(self, name: str) -> bool:
        """Whether the shard's own file is there, as its figures say."""
        info = self._writer.figures(name).info
        return self._upload.seems_to_have(f"{SHARDS_DIRECTORY}/{name}/{DATA_FILE}", info.file_bytes, info.sha256)

    def _bring_back(self, name: str) -> None:
        """Bring here what is kept of a shard that another machine, or a lost disk, has sent."""
        folder = self._writer.shard_directory(name)
        figures = read_remote(self._store, f"{SHARDS_DIRECTORY}/{name}/{SHARD_FILE}", self._config)
        staged = {
            suffix: read_remote(self._store, f"{STAGING_DIRECTORY}/{name}.{suffix}", self._config)
            for suffix in STAGED_SUFFIXES
        }
        if figures is None or None in staged.values():
            return
        for suffix, payload in staged.items():
            assert payload is not None
            write_atomic(self._writer.staged(name, suffix), payload)
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        write_atomic(folder / SHARD_FILE, figures)
        with storage_errors(folder):
            sync_directory(folder.parent)
        try:
            self._writer.staged_files(name)
            is_sound = self._is_there(name)
        except IntegrityError:
            is_sound = False
        if not is_sound:  # it is made again
            self._writer.discard([name], finished=True)
