"""An index of faiss for feature files that are too large to read for every query: built once, kept beside them.

Vectors are rotated to their 256 most telling directions, put into lists by their nearest centre, and stored as one byte
for every 4 of the 256 numbers: 72 MB for a million, and 67 for the directions of 4096 dimensions. What the index finds
is only a shortlist: `faiss_search` measures it again from the features themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from lmdali.model.features_file import INDEX_FILE, Features, require_finite
from lmdali.pipeline.errors import IntegrityError
from lmdali.pipeline.files import storage_errors, write_atomic
from lmdali.pipeline.output_file import check_output_file
from lmdali.pipeline.path_kind import is_file

_FORMAT, _VERSION = "lmdali-faiss-index", 1
_DIRECTIONS, _NUMBERS_PER_BYTE = 256, 4
_POINTS_PER_CENTRE = 40  # faiss warns below 39
_BYTE_CENTRES = 256
_LISTS_PER_PROBE = 8  # 0.994 of the ten nearest of a million clustered vectors; 16 found 0.967 in half the time
_BLOCK_RECORDS = 8192


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """What kind of index a feature file gets.

    Attributes:
        recipe: as `faiss.index_factory` takes it.
        training_records: at even distances, that directions and centres are learned from.
        probes: lists that a query looks into.
    """

    recipe: str
    training_records: int
    probes: int

    @classmethod
    def of(cls, num_records: int, dims: int) -> IndexPlan:
        """For so many vectors of so many dimensions, at least 4: about as many lists as each has vectors."""
        directions = min(dims, _DIRECTIONS) // _NUMBERS_PER_BYTE * _NUMBERS_PER_BYTE
        lists = 1 << (isqrt(num_records).bit_length() - 1)
        return cls(
            # np: no search for an order of centres that would let codes be compared by their bits, 2.5 s for each byte.
            recipe=f"PCAR{directions},IVF{lists},PQ{directions // _NUMBERS_PER_BYTE}np",
            training_records=min(num_records, _POINTS_PER_CENTRE * max(lists, _BYTE_CENTRES)),
            probes=max(1, lists // _LISTS_PER_PROBE),
        )


def open_index(faiss: Any, features: Features, on_progress: Callable[[int], None] = lambda done: None) -> Any:
    """The index of a feature file, built and written beside it if there is none yet.

    Args:
        faiss: the module.
        features: what is indexed.
        on_progress: told the number of records in a new index.

    Raises:
        InputError: a feature is not finite.
        IntegrityError: the file of the index is damaged.
        StorageError: it cannot be written; said before it is built, but for a disk that fills up.
    """
    path = features.directory / INDEX_FILE
    plan = IndexPlan.of(len(features), features.plan.dims)
    about = {"format": _FORMAT, "version": _VERSION, "features": features.digest, **dataclasses.asdict(plan)}
    index = _load(faiss, path, about)
    if index is None:
        check_output_file(path)  # before minutes of work
        index = build_index(faiss, features, plan, on_progress)
        content = faiss.serialize_index(index).tobytes()
        head = json.dumps(about | {"sha256": hashlib.sha256(content).hexdigest()})
        with storage_errors(path):
            write_atomic(path, head.encode() + b"\n" + content)
    faiss.ParameterSpace().set_index_parameter(index, "nprobe", plan.probes)
    return index


def build_index(faiss: Any, features: Features, plan: IndexPlan, on_progress: Callable[[int], None]) -> Any:
    """Train on some records, then add all of them, block by block: the features are never in memory at once."""
    index = faiss.index_factory(features.plan.dims, plan.recipe)
    some = np.linspace(0, len(features) - 1, plan.training_records).astype(np.int64)
    sample = features.rows(some)
    require_finite(sample, some)
    index.train(sample)
    del sample
    for rows in features.finite_blocks(_BLOCK_RECORDS):
        index.add(rows)
        on_progress(int(index.ntotal))
    return index


def _load(faiss: Any, path: Path, about: dict[str, Any]) -> Any:
    """The index if it is there and of these features, else None."""
    if not is_file(path):
        return None
    with storage_errors(path), path.open("rb") as file:
        head, content = file.readline(), file.read()
    try:
        known = json.loads(head)
        sha256 = known.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError):
        known, sha256 = {}, None
    if sha256 != hashlib.sha256(content).hexdigest():
        raise IntegrityError(f"{path}: damaged: remove it, and the next search makes it again")
    return faiss.deserialize_index(np.frombuffer(content, np.uint8)) if known == about else None
