"""A file of per-image probabilities: what a network said of a dataset, for averages and tables without the network.

An `.npz` archive: `probabilities` (N, C) float32, row i for record i; `labels` (N,) int64; `about`, the rest as UTF-8
JSON, with the sha256 of both arrays and of the class list.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError
from lmdali.pipeline.files import canonical_digest, storage_errors
from lmdali.pipeline.output_file import write_output
from lmdali.pipeline.path_kind import is_file

PROBABILITIES_SUFFIX = ".npz"
_FORMAT, _VERSION = "lmdali probabilities", 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Probabilities:
    """What one network, or an average of several, says of every record of a dataset.

    Attributes:
        values: `(N, C)` float32, averaged over views; rows add up to 1.
        labels: `(N,)` int64, the truth.
        class_names: C names, in label order.
        dataset_digest: of the dataset's manifest.
        num_views: that were averaged, 1 or 10.
        source: what they are of, for people and JSON: checkpoint, its digest, epoch, step.
    """

    values: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    dataset_digest: str
    num_views: int
    source: dict[str, Any]

    @property
    def class_list_hash(self) -> str:
        """sha256 of the class names in label order: two that differ must not be averaged."""
        return class_list_hash(self.class_names)


def class_list_hash(class_names: Sequence[str]) -> str:
    """sha256 of class names in label order."""
    return canonical_digest({"class_names": list(class_names)})


def require_same_labels(ours: Sequence[str], theirs: Sequence[str], where: Path | str, reference: Path | str) -> None:
    """Refuse two class lists by which a label means different things.

    Args:
        ours: class names in label order, of `reference`.
        theirs: of `where`.
        where: what is refused.
        reference: what it does not go with.

    Raises:
        InputError: names both hashes, and the first label that differs.
    """
    if tuple(ours) == tuple(theirs):
        return
    hashes = f"class list {class_list_hash(theirs)[:12]}, not {class_list_hash(ours)[:12]} as {reference}"
    if sorted(ours) == sorted(theirs):
        label = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise InputError(
            f"{where}: {hashes}: the same classes in another order (label {label} is {theirs[label]!r}, not "
            f"{ours[label]!r}): convert both datasets with the same --classes"
        )
    raise InputError(
        f"{where}: {hashes}: its {len(theirs)} classes are not the {len(ours)} of {reference}: use what was made for "
        "the same classes"
    )


def check_probabilities_name(path: Path) -> None:
    """Refuse a name that would be taken for a checkpoint's when it is read.

    Raises:
        ConfigError: it does not end in `.npz`.
    """
    if path.suffix != PROBABILITIES_SUFFIX:
        raise ConfigError(f"{path}: the name of a file of probabilities ends in {PROBABILITIES_SUFFIX}")


def save_probabilities(path: Path, probabilities: Probabilities) -> None:
    """Write a file of probabilities.

    Raises:
        ConfigError: its name does not end in `.npz`.
        StorageError: it cannot be written.
    """
    check_probabilities_name(path)
    about = {
        "format": _FORMAT,
        "version": _VERSION,
        "arrays_sha256": _arrays_sha256(probabilities.values, probabilities.labels),
        "class_list_hash": probabilities.class_list_hash,
        "class_names": list(probabilities.class_names),
        "dataset_digest": probabilities.dataset_digest,
        "num_views": probabilities.num_views,
        "source": probabilities.source,
    }
    text = np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, probabilities=probabilities.values, labels=probabilities.labels, about=text)
    write_output(path, buffer.getvalue())


def load_probabilities(path: Path) -> Probabilities:
    """Read and verify a file of probabilities; nothing in it is executed.

    Raises:
        InputError: there is no such file, or it is another kind of file.
        IntegrityError: it is damaged.
        StorageError: it cannot be read.
    """
    if not is_file(path):
        raise InputError(f"{path}: no such file: give one of `lmdali eval --save-probabilities`")
    with storage_errors(path):
        payload = path.read_bytes()
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(arrays["about"].tobytes())
        known = about["format"] == _FORMAT
    except KeyError:
        raise InputError(
            f"{path}: an .npz file, but not of probabilities: give one of `lmdali eval --save-probabilities`"
        ) from None
    except Exception as error:  # NumPy lets what zlib, tokenize and ast raise out, and MemoryError, on damaged headers
        # Not in NumPy's words, which tell how to load what it takes for a pickle without protection.
        raise IntegrityError(
            f"{path}: not a readable file of probabilities ({type(error).__name__}), damaged or truncated: make it "
            "again with --save-probabilities"
        ) from error
    if not known or about.get("version") != _VERSION:
        raise InputError(
            f"{path}: {about['format']}, version {about.get('version')}: this lmdali reads {_FORMAT}, {_VERSION}: make "
            "it again"
        )
    try:
        return _checked(path, arrays, about)
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: a field is missing or of another kind ({error}): make it again") from error


def _checked(path: Path, arrays: dict[str, NDArray[Any]], about: dict[str, Any]) -> Probabilities:
    values, labels = arrays["probabilities"], arrays["labels"]
    found = Probabilities(
        values=values,
        labels=labels,
        class_names=tuple(about["class_names"]),
        dataset_digest=about["dataset_digest"],
        num_views=about["num_views"],
        source=about["source"],
    )
    if (
        not isinstance(found.source, dict)
        or (values.dtype, labels.dtype) != (np.dtype(np.float32), np.dtype(np.int64))
        or values.shape != (len(labels), len(found.class_names))
        or _arrays_sha256(values, labels) != about["arrays_sha256"]
        or found.class_list_hash != about["class_list_hash"]
    ):
        raise IntegrityError(f"{path}: its content is not what was written: damaged or edited, make it again")
    return found


def _arrays_sha256(values: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(values).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
