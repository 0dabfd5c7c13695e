"""Nearest neighbours by Euclidean distance, exact: what a full sort of float64 distances gives, in one pass.

`|a|^2 - 2ab + |b|^2` in float32 is fast and loses what the two have in common, so it only says which rows cannot be
near: its rounding error has a bound, and a row is left out where even the bound does not bring it among the best. All
others are measured by differences in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.model.features_file import as_float32
from lmdali.pipeline.errors import ConfigError, InputError

SHORTLIST = 64
_UNIT_ROUNDOFF = 2.0**-24  # of float32
_SMALLEST = 2.0**-125  # products below that are lost, or flushed to zero


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Rows nearest to each query, the nearest first, equal distances by row number.

    Attributes:
        indices: `(Q, k)` int64 row numbers.
        distances: `(Q, k)`; Euclidean float64, or whole numbers for codes.
    """

    indices: NDArray[np.int64]
    distances: NDArray[Any]

    def without(self, own: NDArray[np.int64]) -> Neighbours:
        """One column less: without row `own[i]` in the list of query i, or else without its last.

        Args:
            own: `(Q,)` int64 row numbers, -1 for none.
        """
        keep = self.indices != own[:, None]
        keep[keep.all(axis=1), -1] = False
        shape = (len(keep), keep.shape[1] - 1)
        return Neighbours(self.indices[keep].reshape(shape), self.distances[keep].reshape(shape))


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
        InputError: no query, or queries of another length than the rows.
    """
    if k < 1:
        raise ConfigError(f"the number of neighbours must be at least 1, found {k}")
    check_queries(queries)
    best = [_Best(query, k) for query in queries]
    single = queries.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is measured in float64
        norms = _norms(single)
        first, buffer = 0, np.empty((0, queries.shape[1]), np.float32)
        for block in blocks:
            if block.shape[1] != queries.shape[1]:
                raise InputError(f"queries of {queries.shape[1]} dimensions for features of {block.shape[1]}")
            rows = as_float32(block, buffer)
            buffer = rows if len(rows) > len(buffer) else buffer
            bounds = _lower_bounds(single, norms, rows)
            for query, bound in zip(best, bounds, strict=True):
                query.consider(block, bound, first, shortlist)
            first += len(block)
    return Neighbours(np.stack([query.indices for query in best]), np.stack([query.distances for query in best]))


def check_queries(queries: NDArray[Any]) -> None:
    """Refuse to search for nothing.

    Raises:
        InputError: there is no query.
    """
    if queries.ndim != 2 or not len(queries):
        raise InputError("no query: give at least one vector, record number or picture")


def direct_distances(query: NDArray[np.float64], rows: NDArray[Any]) -> NDArray[np.float64]:
    """`(n,)` float64 Euclidean distances of `(n, D)` rows from one query, by differences: nothing cancels."""
    squares = np.square(rows.astype(np.float64) - query)
    distances: NDArray[np.float64] = np.sqrt(squares.sum(axis=1))
    return distances


def _lower_bounds(
    queries: NDArray[np.float32], norms: NDArray[np.float32], rows: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`(Q, n)` float32: no squared distance is below these.

    A sum of D products in float32, in any order, is off by at most g = Du/(1 - Du) times the sum of their sizes
    (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), so by g|a||b| at most; three such sums by
    g(|a| + |b|)^2. A few more roundings are in the 32.
    """
    row_norms = _norms(rows)
    terms = (rows.shape[1] + 32) * _UNIT_ROUNDOFF
    slack = np.square(norms[:, None] + row_norms) * np.float32(terms / (1 - terms)) + np.float32(
        (rows.shape[1] + 32) * _SMALLEST
    )
    bounds: NDArray[np.float32] = queries @ rows.T
    bounds *= -2
    bounds += np.square(norms)[:, None] + np.square(row_norms)
    bounds -= slack
    return bounds


def _norms(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(n,)` float32 Euclidean norms."""
    norms: NDArray[np.float32] = torch.linalg.vector_norm(torch.from_numpy(rows), dim=1).numpy()
    return norms


class _Best:
    """The nearest rows that one query has met so far."""

    def __init__(self, query: NDArray[np.float64], k: int) -> None:
        self._query, self._k = query, k
        self.indices = np.empty(0, np.int64)
        self.distances = np.empty(0, np.float64)
        self._limit = np.inf

    def consider(self, block: NDArray[Any], bounds: NDArray[np.float32], first: int, shortlist: int) -> None:
        """Measure whichever rows of a block may be among the best."""
        left = self._possible(np.arange(len(block)), bounds)
        if len(left) > shortlist:
            nearest = np.argpartition(bounds[left], shortlist - 1)[:shortlist]
            self._measure(block, left[nearest], first)
            left = self._possible(np.delete(left, nearest), bounds)
        while len(left):
            self._measure(block, left[:shortlist], first)
            left = self._possible(left[shortlist:], bounds)

    def _possible(self, rows: NDArray[np.int64], bounds: NDArray[np.float32]) -> NDArray[np.int64]:
        return rows[~(bounds[rows] > self._limit)]  # NaN is possible, too

    def _measure(self, block: NDArray[Any], rows: NDArray[np.int64], first: int) -> None:
        rows = np.sort(rows)
        distances = np.concatenate([self.distances, direct_distances(self._query, block[rows])])
        indices = np.concatenate([self.indices, first + rows])
        order = np.lexsort((indices, distances))[: self._k]
        self.indices, self.distances = indices[order], distances[order]
        if len(order) == self._k:
            self._limit = float(self.distances[-1] * self.distances[-1])
