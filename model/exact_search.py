"""Nearest neighbours by Euclidean distance, exact: what a full sort of float64 distances gives, in one pass.

The first look is in float32, and its error has a bound (`distance_kernel`): a row is left out where even the bound does
not bring it among the best. All others are measured by differences in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.model.distance_kernel import RELATIVE_ERROR, squared_distances
from lmdali.model.features_file import not_finite
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import ConfigError, InputError

SHORTLIST = 64
SEARCH_RECORDS = 8192
"""Records of a block that keep all processors busy: 64 MB of the paper's 4096 dimensions in float16."""
_THREAD_NUMBERS = 1 << 20  # fewer are not worth another thread
_FOUND_NUMBERS = 1 << 22  # 32 MB of distances at a time
_SINGLE_MAX = float(np.finfo(np.float32).max)
_UNDERFLOW = 2.0**-125


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Rows nearest to each query, the nearest first, equal distances by row number.

    Attributes:
        indices: `(Q, k)` int64 row numbers; -1 at the end of a list that is shorter than another.
        distances: `(Q, k)`; Euclidean float64, or whole numbers for codes; -1 where there is no row.
    """

    indices: NDArray[np.int64]
    distances: NDArray[Any]

    def without(self, own: NDArray[np.int64], k: int) -> Neighbours:
        """The first k of each list, row `own[i]` in that of query i not among them.

        Where all rows are fewer than k + 1, a query that is one of them has a list that is one shorter than the others.

        Args:
            own: `(Q,)` int64 row numbers, -1 for none.
            k: rows wanted; lists should have one more, where there is one.
        """
        keep = (self.indices != own[:, None]) & (self.indices >= 0)
        keep &= np.cumsum(keep, axis=1) <= k
        lengths = keep.sum(axis=1)
        filled = np.arange(lengths.max(initial=0)) < lengths[:, None]
        indices = np.full(filled.shape, -1, np.int64)
        distances = np.full(filled.shape, -1, self.distances.dtype)
        indices[filled], distances[filled] = self.indices[keep], self.distances[keep]
        return Neighbours(indices, distances)

    def in_all(self) -> Neighbours:
        """As many of each list as the shortest one has."""
        shortest = int((self.indices >= 0).sum(axis=1).min(initial=self.indices.shape[1]))
        return Neighbours(self.indices[:, :shortest], self.distances[:, :shortest])


def search_exact(
    blocks: Iterable[NDArray[Any]], queries: NDArray[np.float64], k: int, *, shortlist: int = SHORTLIST
) -> Neighbours:
    """The k rows nearest to each query.

    Args:
        blocks: `(n, D)` float16 or float32 each, all rows in order; only one is in memory at a time.
        queries: `(Q, D)` float64.
        k: rows wanted; fewer come back where there are fewer.
        shortlist: rows of a block that are measured before the limit for the others is set.

    Raises:
        ConfigError: k is below 1.
        InputError: no query, queries of another length than the rows, or a number that is not finite.
    """
    check_queries(queries, k)
    best = [_Best(query, k) for query in queries]
    with np.errstate(over="ignore"):  # what overflows is measured in float64
        single = queries.astype(np.float32)
    first = 0
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for block in blocks:
            if block.shape[1] != queries.shape[1]:
                raise InputError(
                    f"queries of {queries.shape[1]} dimensions for features of {block.shape[1]}: both must come from "
                    "one checkpoint"
                )
            step = max(1, _FOUND_NUMBERS // len(queries))
            for start in range(0, len(block), step):
                rows = block[start : start + step]
                for query, squares in zip(best, _all_squares(rows, single, pool), strict=True):
                    query.consider(rows, squares, first + start, shortlist)
            first += len(block)
    return Neighbours(np.stack([query.indices for query in best]), np.stack([query.distances for query in best]))


def check_queries(queries: NDArray[Any], k: int) -> None:
    """Refuse to search for nothing.

    Raises:
        ConfigError: k is below 1.
        InputError: there is no query, or one with a number that is not finite.
    """
    if k < 1:
        raise ConfigError(f"the number of neighbours must be at least 1, found {k}")
    if queries.ndim != 2 or not len(queries):
        raise InputError("no query: give at least one vector, record number or picture")
    if queries.dtype.kind == "f" and not np.isfinite(queries).all():
        place = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise InputError(f"query {place}: its features are not finite, so nothing is near to it: leave it out")


def direct_distances(query: NDArray[np.float64], rows: NDArray[Any]) -> NDArray[np.float64]:
    """`(n,)` float64 Euclidean distances of `(n, D)` rows from one query, by differences: nothing cancels."""
    squares = np.square(rows.astype(np.float64) - query)
    distances: NDArray[np.float64] = np.sqrt(squares.sum(axis=1))
    return distances


def _all_squares(rows: NDArray[Any], queries: NDArray[np.float32], pool: ThreadPoolExecutor) -> NDArray[np.float64]:
    """`squared_distances`, each thread with its own part of the rows."""
    threads = min(usable_cpus(), max(1, rows.size // _THREAD_NUMBERS))
    if threads == 1:
        return squared_distances(rows, queries)
    edges = [len(rows) * part // threads for part in range(threads + 1)]
    parts = pool.map(lambda ends: squared_distances(rows[ends[0] : ends[1]], queries), pairwise(edges))
    return np.concatenate(list(parts), axis=1)


class _Best:
    """The nearest rows that one query has met so far."""

    def __init__(self, query: NDArray[np.float64], k: int) -> None:
        self._query, self._k = query, k
        self.indices = np.empty(0, np.int64)
        self.distances = np.empty(0, np.float64)
        # The first look is from the query as float32. No distance from the one is further from that of the other.
        with np.errstate(over="ignore"):
            moved = query - query.astype(np.float32)
        self._moved = float(np.sqrt(np.square(moved).sum()))
        self._limit = np.inf

    def consider(self, block: NDArray[Any], squares: NDArray[np.float64], first: int, shortlist: int) -> None:
        """Measure whichever rows of a block may be among the best."""
        left = self._possible(np.arange(len(block)), squares)
        if len(left) > shortlist:
            nearest = np.argpartition(squares[left], shortlist - 1)[:shortlist]
            self._measure(block, left[nearest], first)
            left = self._possible(np.delete(left, nearest), squares)
        while len(left):
            self._measure(block, left[:shortlist], first)
            left = self._possible(left[shortlist:], squares)

    def _possible(self, rows: NDArray[np.int64], squares: NDArray[np.float64]) -> NDArray[np.int64]:
        return rows[~(squares[rows] > self._limit)]  # NaN is possible, too

    def _measure(self, block: NDArray[Any], rows: NDArray[np.int64], first: int) -> None:
        rows = np.sort(rows)
        found = direct_distances(self._query, block[rows])
        if np.isnan(found).any():
            raise not_finite(first + int(rows[np.isnan(found)][0]))
        distances = np.concatenate([self.distances, found])
        indices = np.concatenate([self.indices, first + rows])
        order = np.lexsort((indices, distances))[: self._k]
        self.indices, self.distances = indices[order], distances[order]
        if len(order) == self._k:
            self._limit = self._largest_square(float(self.distances[-1]))

    def _largest_square(self, distance: float) -> float:
        """What `squared_distances` finds at most for a row that is no further than `distance`.

        Half of RELATIVE_ERROR is for roundings in float64: of this line, and of distances that float64 sums up.
        """
        far = distance + self._moved
        square = (far * far + len(self._query) * _UNDERFLOW) * (1 + 2 * RELATIVE_ERROR)
        return square if square < _SINGLE_MAX * (1 - 2 * RELATIVE_ERROR) else np.inf
