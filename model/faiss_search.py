"""The search with faiss: all rows with its kernels where they are few, an index of it where they are many: an extra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.model.exact_search import SHORTLIST, Neighbours, check_queries, direct_distances
from lmdali.model.faiss_index import open_index
from lmdali.model.features_file import Features
from lmdali.pipeline.errors import MissingExtraError

SCAN_RECORDS = 100_000
"""Up to so many records are all looked at: 0.8 GB of the paper's features in float16."""
_BLOCK_RECORDS = 8192
_INDEXED_DIMS = 4


def search_faiss(
    features: Features,
    queries: NDArray[np.float64],
    k: int,
    *,
    scan_records: int = SCAN_RECORDS,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Neighbours:
    """The k rows nearest to each query of those that faiss shortlists, measured again in float64.

    Up to `scan_records` the shortlist is the k + `SHORTLIST` nearest of all rows in float32: where more than it has
    room for are equally near to within float32, the last places may differ from those of `search_exact`. Of more rows
    an index gives as many, and neighbours may be missing. It is built by the first search, which takes
    minutes, and kept beside the features.

    Args:
        features: to search.
        queries: `(Q, D)` float64.
        k: rows wanted; fewer come back where there are fewer.
        scan_records: records up to which all are looked at.
        on_progress: told the number of records in a new index.

    Raises:
        ConfigError: k is below 1.
        InputError: no query, or a number that is not finite.
        IntegrityError: the file of the index is damaged.
        MissingExtraError: faiss is not installed.
        StorageError: the index cannot be written.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss", "faiss", "searching with faiss") from None
    check_queries(queries, k)
    if needs_index(features, scan_records):
        return search_index(features, open_index(faiss, features, on_progress), queries, k)
    single = np.ascontiguousarray(queries, np.float32)
    return _measured(features, queries, _scan(faiss, features, single, min(k + SHORTLIST, len(features))), k)


def search_index(features: Features, index: Any, queries: NDArray[np.float64], k: int) -> Neighbours:
    """As `search_faiss`, with an index of `open_index` that is at hand: for one query after the other.

    Args:
        features: that it is of.
        index: gives the shortlist.
        queries: `(Q, D)` float64.
        k: rows wanted; fewer come back where there are fewer.
    """
    single = np.ascontiguousarray(queries, np.float32)
    return _measured(features, queries, index.search(single, min(k + SHORTLIST, len(features)))[1], k)


def needs_index(features: Features, scan_records: int = SCAN_RECORDS) -> bool:
    """Whether there are so many records that they get an index."""
    return len(features) > scan_records and features.plan.dims >= _INDEXED_DIMS


def _scan(faiss: Any, features: Features, queries: NDArray[np.float32], width: int) -> NDArray[np.int64]:
    """`(Q, width)` rows that are nearest in float32."""
    indices = np.empty((len(queries), 0), np.int64)
    squares = np.empty((len(queries), 0), np.float32)
    first = 0
    for rows in features.finite_blocks(_BLOCK_RECORDS):
        found_squares, found = faiss.knn(queries, rows, min(width, len(rows)))
        indices = np.concatenate([indices, first + found.astype(np.int64)], axis=1)
        squares = np.concatenate([squares, found_squares], axis=1)
        nearest = np.argsort(squares, axis=1, kind="stable")[:, :width]
        indices, squares = np.take_along_axis(indices, nearest, 1), np.take_along_axis(squares, nearest, 1)
        first += len(rows)
    return indices


def _measured(features: Features, queries: NDArray[np.float64], shortlists: NDArray[np.int64], k: int) -> Neighbours:
    """The k nearest of `(Q, width)` rows; -1 stands for one that the lists did not have."""
    indices, distances = [], []
    for query, shortlist in zip(queries, shortlists, strict=True):
        rows = shortlist[shortlist >= 0]
        found = direct_distances(query, features.rows(rows))
        order = np.lexsort((rows, found))[:k]
        indices.append(rows[order])
        distances.append(found[order])
    width = min(map(len, indices))
    return Neighbours(np.stack([row[:width] for row in indices]), np.stack([row[:width] for row in distances]))
