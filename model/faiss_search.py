"""The same search with faiss doing the first pass: an extra, for machines where its kernels are faster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmdali.model.exact_search import SHORTLIST, Neighbours, check_queries, direct_distances
from lmdali.model.features_file import Features, as_float32
from lmdali.pipeline.errors import ConfigError, MissingExtraError

_BLOCK_RECORDS = 8192


def search_faiss(features: Features, queries: NDArray[np.float64], k: int, *, shortlist: int = SHORTLIST) -> Neighbours:
    """The k rows nearest to each query, of the `shortlist` or k + `shortlist` that faiss finds nearest in float32.

    Where more rows than the shortlist has room for are equally near to within float32, the last places may differ from
    those of `search_exact`.

    Args:
        features: to search.
        queries: `(Q, D)` float64.
        k: rows wanted; fewer come back where there are fewer.
        shortlist: rows beyond k that are measured again in float64.

    Raises:
        ConfigError: k is below 1.
        InputError: no query.
        MissingExtraError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss", "faiss", "--index faiss") from None
    if k < 1:
        raise ConfigError(f"the number of neighbours must be at least 1, found {k}")
    check_queries(queries)
    single = np.ascontiguousarray(queries, np.float32)
    width = min(k + shortlist, len(features))
    indices = np.empty((len(queries), 0), np.int64)
    squares = np.empty((len(queries), 0), np.float32)
    first = 0
    for block in features.blocks(_BLOCK_RECORDS):
        rows = as_float32(block)
        found_squares, found = faiss.knn(single, rows, min(width, len(rows)))
        indices = np.concatenate([indices, first + found.astype(np.int64)], axis=1)
        squares = np.concatenate([squares, found_squares], axis=1)
        nearest = np.argsort(squares, axis=1, kind="stable")[:, :width]
        indices, squares = np.take_along_axis(indices, nearest, 1), np.take_along_axis(squares, nearest, 1)
        first += len(block)
    distances = np.stack([direct_distances(*pair) for pair in zip(queries, map(features.rows, indices), strict=True)])
    order = np.stack([np.lexsort(pair)[:k] for pair in zip(indices, distances, strict=True)])
    return Neighbours(np.take_along_axis(indices, order, 1), np.take_along_axis(distances, order, 1))
