"""Feature files: one vector for each record of a dataset, in order, in `.npy` shards that are mapped, never read whole.

OUT/
  features.json          what it is, written last: dataset, what the features come from, dimensions, shards
  shards/00000.npy       (records, dimensions) float16 or float32, plain NumPy files
  index.faiss            only where a search with faiss made one (`faiss_index`)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError
from lmdali.pipeline.files import canonical_digest, read_sealed, seal, write_json
from lmdali.pipeline.half_kernel import from_float16
from lmdali.pipeline.path_kind import is_file
from lmdali.pipeline.word_access import HAS_HALVES

FEATURES_FILE, INDEX_FILE = "features.json", "index.faiss"
SHARDS_DIRECTORY = "shards"
_FORMAT, _VERSION = "lmdali-features", 1
_SHARD_RECORDS = 8192  # 64 MB of the paper's 4096 dimensions in float16: little to lose to a kill, few files

Precision = Literal["float16", "float32"]
Rows = NDArray[Any]
"""`(n, dims)` float16 or float32."""


@dataclass(frozen=True, kw_only=True)
class FeaturesPlan:
    """What a feature file is to hold, decided before the first record is read.

    Attributes:
        dataset: directory of the dataset, as it was given.
        dataset_digest: its identity.
        source: what computes the features: a checkpoint's path, or "pixels".
        source_digest: identity of that; two files with equal ones can be compared.
        num_records: records of the dataset.
        dims: length of a vector.
        precision: type of its numbers.
        image_size: side of the dataset's images, pixels.
        batch_size: records that are computed together, on which the last bits depend.
        device: kind of device that computes, "cpu" or "cuda", for the same reason.
    """

    dataset: str
    dataset_digest: str
    source: str
    source_digest: str
    num_records: int
    dims: int
    precision: Precision
    image_size: int
    batch_size: int
    device: str

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision must be float16 or float32, found {self.precision!r}")
        if min(self.num_records, self.dims, self.batch_size) < 1:
            raise ConfigError("features need at least one record, one dimension and one record in a batch")

    @property
    def shard_records(self) -> int:
        """Records of a shard: whole batches, so that a run that goes on computes the same batches."""
        return max(1, _SHARD_RECORDS // self.batch_size) * self.batch_size

    def shards(self) -> list[tuple[str, int]]:
        """Name and number of records of each shard."""
        starts = range(0, self.num_records, self.shard_records)
        return [
            (f"{number:05d}.npy", min(self.shard_records, self.num_records - start))
            for number, start in enumerate(starts)
        ]

    def differences(self, other: FeaturesPlan) -> list[str]:
        """In words, where two plans would give other bytes; where files lie is no difference."""
        paths = ("dataset", "source")
        fields = [field.name for field in dataclasses.fields(self) if field.name not in paths]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in fields]
        return [f"{name} {_short(ours)} instead of {_short(theirs)}" for name, ours, theirs in pairs if ours != theirs]

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)


class Features:
    """A finished feature file. Rows are read from mapped files when they are asked for.

    Attributes:
        directory: where it is.
        plan: what it holds.
        digest: identity of its content.
    """

    def __init__(self, directory: Path, plan: FeaturesPlan, shard_hashes: Sequence[str]) -> None:
        self.directory, self.plan = directory, plan
        self.digest = canonical_digest({"source": plan.source_digest, "shards": list(shard_hashes)})
        self._shards = [open_shard(directory, plan, name, count) for name, count in plan.shards()]

    def __len__(self) -> int:
        return self.plan.num_records

    def blocks(self, block_records: int = 512) -> Iterator[Rows]:
        """All rows in order, at most `block_records` at a time; views of mapped files."""
        for shard in self._shards:
            for start in range(0, len(shard), block_records):
                yield shard[start : start + block_records]

    def finite_blocks(self, block_records: int) -> Iterator[NDArray[np.float32]]:
        """The same as float32 copies.

        Raises:
            InputError: a feature is not finite; it names the record.
        """
        first = 0
        for block in self.blocks(block_records):
            rows = as_float32(block)
            require_finite(rows, range(first, first + len(rows)))
            yield rows
            first += len(rows)

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """`(n, dims)` float32 copies of some rows, in the order asked for."""
        found = np.empty((len(indices), self.plan.dims), np.float32)
        shard_of, row_of = np.divmod(indices, self.plan.shard_records)
        for number in np.unique(shard_of):
            here = shard_of == number
            found[here] = as_float32(self._shards[number][row_of[here]])
        return found

    def require_same_source(self, other: FeaturesPlan, where: Path) -> None:
        """Refuse features of another network: distances between the two mean nothing.

        Raises:
            InputError: naming both.
        """
        if (other.source_digest, other.dims) != (self.plan.source_digest, self.plan.dims):
            raise InputError(
                f"{where}: made by {other.source} ({other.source_digest[:12]}, {other.dims} dimensions), and "
                f"{self.directory} by {self.plan.source} ({self.plan.source_digest[:12]}, {self.plan.dims}): "
                "both must come from one checkpoint"
            )


def as_float32(rows: Rows) -> NDArray[np.float32]:
    """`(n, dims)` float32 copies of rows as they are stored.

    In the calling thread: torch's copy starts a team of threads that then waits for more, at the cost of whoever
    computes next (a search took 12 ms for each block instead of 0.3 for that reason).
    """
    target = np.empty(rows.shape, np.float32)
    if HAS_HALVES and rows.dtype == np.float16:
        from_float16(rows.view(np.uint16), target)
    else:
        np.copyto(target, rows)
    return target


def require_finite(rows: NDArray[np.float32], records: Sequence[int] | NDArray[np.int64]) -> None:
    """Refuse rows that nothing can be compared with.

    Args:
        rows: `(n, D)`.
        records: their numbers.

    Raises:
        InputError: naming the first of them.
    """
    if rows.size and not (np.isfinite(rows.min()) and np.isfinite(rows.max())):  # NaN is in both
        place = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise not_finite(int(records[place]))


def not_finite(record: int) -> InputError:
    """What to say of such a record."""
    return InputError(f"record {record}: its features are not finite: make them again")


def load_features(directory: Path) -> Features:
    """Open a finished feature file.

    Raises:
        InputError: there is none, or it is unfinished or of a newer format.
        IntegrityError: it is damaged.
    """
    path = directory / FEATURES_FILE
    if not is_file(path):
        raise InputError(
            f"{directory}: no {FEATURES_FILE} here: expected what `lmdali features` makes, and finishes with --resume"
        )
    document = read_sealed(path)
    if (document.get("format"), document.get("version")) != (_FORMAT, _VERSION):
        raise InputError(f"{path}: not a feature file of version {_VERSION}: upgrade lmdali or make it again")
    try:
        plan = FeaturesPlan(**document["plan"])
        hashes = [str(shard["sha256"]) for shard in document["shards"]]
    except (KeyError, TypeError, ConfigError) as error:
        raise IntegrityError(f"{path}: a field is missing or of another kind ({error}): make it again") from error
    return Features(directory, plan, hashes)


def save_features_file(directory: Path, plan: FeaturesPlan, shard_hashes: Sequence[str]) -> None:
    """Publish: write `features.json`, in one step."""
    shards = [
        {"name": name, "num_records": count, "sha256": sha256}
        for (name, count), sha256 in zip(plan.shards(), shard_hashes, strict=True)
    ]
    document = {"format": _FORMAT, "version": _VERSION, "plan": plan.to_json(), "shards": shards}
    write_json(directory / FEATURES_FILE, seal(document))


def open_shard(directory: Path, plan: FeaturesPlan, name: str, num_records: int) -> Rows:
    """Map one shard, once its header and size are what the plan says.

    Raises:
        IntegrityError: it is missing, cut off, or holds something else.
    """
    path = directory / SHARDS_DIRECTORY / name
    try:
        # Copy-on-write, and never written to: kernels are compiled for memory that can be.
        rows: Rows = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IntegrityError(f"{path}: cannot be mapped ({error}): make the features again") from error
    if rows.shape != (num_records, plan.dims) or rows.dtype != plan.precision:
        raise IntegrityError(
            f"{path}: holds {rows.shape} {rows.dtype}, expected {(num_records, plan.dims)} {plan.precision}: "
            "make the features again"
        )
    return rows
