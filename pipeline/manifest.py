"""`manifest.json`: what a dataset is. Written last and atomically; whoever finds one may trust every file it names."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from operator import ge
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import InputError, IntegrityError, ManifestError
from lmdali.pipeline.files import canonical_digest, parse_json, read_json, seal, write_json
from lmdali.pipeline.path_kind import is_dir, is_file

MANIFEST_FILE = "manifest.json"
SHARDS_DIRECTORY = "shards"
RECORDS_FILE = "records.parquet"
REJECTS_FILE = "rejects.parquet"
FORMAT = "lmdali"
FORMAT_VERSION = (1, 0)
"""(major, minor): a reader refuses a newer major and ignores what a newer minor added."""

MAX_IMAGE_SIZE = 65_535
"""The largest side a JPEG can have."""

_AGAIN = "restore it or convert again"
_RESTORE = f"the file was edited or damaged; {_AGAIN}"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TABLE = re.compile(r"\w[\w-]*\.parquet", re.ASCII)
"""Hashes and names of tables become paths wherever a dataset is copied to: a stranger's must not lead elsewhere."""


@dataclass(frozen=True)
class ShardInfo:
    """One shard.

    Attributes:
        name: directory below `shards/`; also the shard's number, five digits.
        num_records: records stored in it.
        first_position: number of its first source in the plan; a source's number is the `%08d` of its key.
        num_sources: sources planned for it, stored or rejected.
        rejected: positions of those that were not stored, ascending.
        file_bytes: size of `data.mdb`.
        payload_bytes: image bytes inside, without any overhead.
        sha256: hash of `data.mdb`.
    """

    name: str
    num_records: int
    first_position: int
    num_sources: int
    rejected: tuple[int, ...]
    file_bytes: int
    payload_bytes: int
    sha256: str

    def position(self, row: int) -> int:
        """Plan position of the shard's `row`-th stored record."""
        position = self.first_position + row
        for rejected in self.rejected:
            if rejected > position:
                break
            position += 1
        return position


@dataclass(frozen=True)
class Manifest:
    """The contract between whoever wrote a dataset and whoever reads it.

    Attributes:
        image_size: side of the square stored images, pixels.
        encoding: "jpeg" or "raw" (binary PPM).
        class_names: position is label.
        class_counts: stored records of each class.
        num_records: stored records; record numbers are 0..num_records - 1, in shard order.
        num_rejected: sources that were not stored.
        shards: in record order.
        recipe: how pixels were made: sizes, filters, quality, orientation policy, decoder versions.
        source: kind and fingerprint of what was converted.
        tables: sha256 of the record and reject tables.
        digest: sha256 over everything else.
    """

    image_size: int
    encoding: str
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    num_records: int
    num_rejected: int
    shards: tuple[ShardInfo, ...]
    recipe: dict[str, Any]
    source: dict[str, Any]
    tables: dict[str, str]
    digest: str = ""

    @property
    def payload_bytes(self) -> int:
        """Stored image bytes of all shards."""
        return sum(shard.payload_bytes for shard in self.shards)

    @property
    def mean_record_bytes(self) -> float:
        """Stored image bytes of a record, in the mean."""
        return self.payload_bytes / self.num_records

    @property
    def file_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.file_bytes for shard in self.shards)

    def with_digest(self) -> Manifest:
        """The same manifest with its digest worked out."""
        return replace(self, digest=canonical_digest(self._document()))

    def save(self, directory: Path) -> Manifest:
        """Publish the dataset: write `manifest.json` with its digest, and return the manifest that has it."""
        document = seal(self._document())
        write_json(directory / MANIFEST_FILE, document)
        return replace(self, digest=document["digest"])

    def _document(self) -> dict[str, Any]:
        # Not `asdict`: it copies every rejected number, of which there may be millions.
        content = {**self.__dict__, "shards": [shard.__dict__ for shard in self.shards]}
        del content["digest"]
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "channel_order": "RGB", **content}


def load_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of a dataset directory.

    Raises:
        InputError: the directory is not a (finished) dataset.
        ManifestError: the manifest is damaged, was edited, or was written by a newer major version.
    """
    path = directory / MANIFEST_FILE
    if not is_file(path):
        raise InputError(_not_a_dataset(directory))
    try:
        document = read_json(path)
    except IntegrityError as error:
        raise ManifestError(f"{error}; {_AGAIN}") from error
    return _from_json(document, path)


def parse_manifest(payload: bytes, place: str) -> Manifest:
    """Check the bytes of a manifest that came from elsewhere; errors name its place.

    Raises:
        ManifestError: as `load_manifest`.
    """
    try:
        document = parse_json(payload, place)
    except IntegrityError as error:
        raise ManifestError(f"{error}; {_AGAIN}") from error
    return _from_json(document, place)


def _from_json(document: dict[str, Any], path: Path | str) -> Manifest:
    if document.get("format") != FORMAT:
        raise ManifestError(
            f"{path}: format is {document.get('format')!r}, expected {FORMAT!r}: give what `lmdali convert` made"
        )
    version = document.get("format_version")
    if not (isinstance(version, list) and len(version) == 2 and all(type(part) is int for part in version)):
        raise ManifestError(f"{path}: format_version is {version!r}, expected two integers: {_RESTORE}")
    if version[0] > FORMAT_VERSION[0]:
        raise ManifestError(
            f"{path}: written by format {version[0]}.{version[1]}, this version reads up to {FORMAT_VERSION[0]}.x: "
            "upgrade lmdali"
        )
    claimed = document.pop("digest", None)
    try:
        found = canonical_digest(document)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: holds what no manifest has ({error}): {_RESTORE}") from error
    if claimed != found:
        raise ManifestError(
            f"{path}: its digest is {str(claimed)[:12]}..., its content gives {found[:12]}...: {_RESTORE}"
        )
    try:
        manifest = Manifest(**_parse(Manifest, document), digest=found)
    except (KeyError, TypeError) as error:
        raise ManifestError(f"{path}: field {error} is missing or of the wrong kind: {_RESTORE}") from error
    try:
        _check(manifest, path)
        if document.get("channel_order") != "RGB":
            raise ManifestError(f"{path}: channel_order is {document.get('channel_order')!r}, only 'RGB' can be read")
    except ManifestError as error:
        raise ManifestError(f"{error}: {_RESTORE}") from None
    return manifest


_KINDS = {"int": int, "str": str, "dict[str, Any]": dict, "dict[str, str]": dict}
_LISTS = {"tuple[int, ...]": int, "tuple[str, ...]": str, "tuple[ShardInfo, ...]": dict}
_FIELDS = {
    kind: [(field.name, str(field.type)) for field in fields(kind) if field.name != "digest"]
    for kind in (Manifest, ShardInfo)
}


def _parse(kind: type[Manifest] | type[ShardInfo], document: dict[str, Any]) -> dict[str, Any]:
    """The fields of `kind` from JSON, each of exactly its type: JSON's true and 3.0 are no integers here."""
    parsed: dict[str, Any] = {}
    for name, type_name in _FIELDS[kind]:
        value = document[name]
        item_kind = _LISTS.get(type_name)
        if item_kind is None:
            if type(value) is not _KINDS[type_name]:
                raise TypeError(repr(name))
        elif type(value) is not list or not {item_kind}.issuperset(map(type, value)):
            raise TypeError(repr(name))
        elif item_kind is dict:
            value = tuple(ShardInfo(**_parse(ShardInfo, item)) for item in value)
        else:
            value = tuple(value)
        parsed[name] = value
    return parsed


def _check(manifest: Manifest, path: Path | str) -> None:
    """Cross checks that a right digest cannot replace: whoever edits a manifest can also recompute its digest."""
    for name, sha256 in manifest.tables.items():
        if not _TABLE.fullmatch(name) or type(sha256) is not str or not _SHA256.fullmatch(sha256):
            raise ManifestError(f"{path}: tables: {name!r} is no name of a table, or {sha256!r} no sha256")
    position = 0
    for shard in manifest.shards:
        if not (len(shard.name) == 5 and shard.name.isascii() and shard.name.isdigit()):
            raise ManifestError(f"{path}: shard name {shard.name!r} is not five digits")
        if not _SHA256.fullmatch(shard.sha256) or not 0 <= shard.file_bytes < 2**63:
            raise ManifestError(f"{path}: shard {shard.name}: no size or no sha256")
        if shard.num_records < 0 or shard.num_records + len(shard.rejected) != shard.num_sources:
            raise ManifestError(f"{path}: shard {shard.name}: records and rejects do not add up to its sources")
        if shard.first_position != position:
            raise ManifestError(f"{path}: shard {shard.name} starts at source {shard.first_position}, not {position}")
        position += shard.num_sources
        bounds = (shard.first_position - 1, *shard.rejected, position)
        if any(map(ge, bounds, bounds[1:])):
            raise ManifestError(f"{path}: shard {shard.name}: its rejects are not ascending numbers of its sources")
    if len({shard.name for shard in manifest.shards}) != len(manifest.shards):
        raise ManifestError(f"{path}: two shards have the same name")
    total = sum(shard.num_records for shard in manifest.shards)
    if (
        total != manifest.num_records
        or total != sum(manifest.class_counts)
        or min(manifest.class_counts, default=0) < 0
    ):
        raise ManifestError(
            f"{path}: num_records is {manifest.num_records}, shards hold {total}, classes {sum(manifest.class_counts)}"
        )
    if sum(len(shard.rejected) for shard in manifest.shards) != manifest.num_rejected:
        raise ManifestError(f"{path}: num_rejected is {manifest.num_rejected}, the shards name another number")
    if len(manifest.class_names) != len(manifest.class_counts):
        raise ManifestError(f"{path}: {len(manifest.class_names)} class names, {len(manifest.class_counts)} counts")
    if manifest.encoding not in ("jpeg", "raw"):
        raise ManifestError(f"{path}: encoding {manifest.encoding!r} is neither 'jpeg' nor 'raw'")
    if not 1 <= manifest.image_size <= MAX_IMAGE_SIZE:
        raise ManifestError(f"{path}: image_size is {manifest.image_size}, expected 1 to {MAX_IMAGE_SIZE} pixels")


def _not_a_dataset(directory: Path) -> str:
    if is_file(directory):
        return f"{directory}: is a file: give the directory that `lmdali convert` made"
    if not is_dir(directory):
        return f"{directory}: no such directory: expected a dataset made by `lmdali convert`"
    if is_dir(directory / SHARDS_DIRECTORY):
        return (
            f"{directory}: has shards but no {MANIFEST_FILE}, so its conversion did not finish: "
            "run the same `lmdali convert` again with --resume; parts (--part) become one by `lmdali merge`"
        )
    return f"{directory}: no {MANIFEST_FILE} here: expected a dataset made by `lmdali convert`"


class RecordIndex:
    """Record number -> (shard, row), by the running counts of a manifest.

    Attributes:
        first_records: (number of shards + 1,) int64; shard s holds the records first_records[s] to
            first_records[s + 1] - 1.
        num_records: of all shards.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.first_records = np.cumsum([0, *(shard.num_records for shard in manifest.shards)], dtype=np.int64)
        self.num_records = int(self.first_records[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Shard number and row of record `index`.

        Raises:
            IndexError: `index` is not in 0..num_records - 1.
        """
        if not 0 <= index < self.num_records:
            raise IndexError(f"record {index} of {self.num_records}")
        shard = int(np.searchsorted(self.first_records, index, side="right")) - 1
        return shard, index - int(self.first_records[shard])

    def shards_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Shard number of each of (n,) int64 record numbers.

        Raises:
            IndexError: one of them is not in 0..num_records - 1.
        """
        if len(indices) and not (indices.min() >= 0 and indices.max() < self.num_records):
            raise IndexError(f"records {indices.min()} to {indices.max()} of {self.num_records}")
        return np.searchsorted(self.first_records, indices, side="right") - 1
