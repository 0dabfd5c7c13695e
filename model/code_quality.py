"""How good a way to search is: its neighbours beside the exact ones, by class too, and what a query costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.model.codes_file import Codes
from lmdali.model.exact_search import SEARCH_RECORDS, Neighbours, search_exact
from lmdali.model.faiss_search import search_faiss
from lmdali.model.features_file import Features
from lmdali.model.hamming import search_hamming

_TIMED_QUERIES = 5


@dataclass(frozen=True, kw_only=True)
class SearchQuality:
    """One way to search.

    Attributes:
        name: of it.
        source: "features" or "pixels": what the codes were made from.
        bits: length of a code; None for a search of features.
        precision: part of the k neighbours that is among the k exact ones; 1 for the exact search.
        label_precision: part of the k neighbours that has the query's label.
        class_precision: the same of the queries of each label, in the order of labels; None where there is no query.
        ms_per_query: median over single queries, milliseconds.
        bytes_per_record: read for a query.
    """

    name: str
    source: str
    bits: int | None
    precision: float
    label_precision: float
    class_precision: tuple[float | None, ...]
    ms_per_query: float
    bytes_per_record: float

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def precision_at_k(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    """Mean part of each row of `(Q, k)` wanted records that is in the same row of found ones, `(Q, k)` or fewer."""
    hits = (found[:, None, :] == wanted[:, :, None]).any(axis=2)
    return float(hits.mean())


def measure_exact(
    features: Features, queries: NDArray[np.int64], k: int, labels: NDArray[np.int64]
) -> tuple[Neighbours, SearchQuality]:
    """The exact neighbours of some records, themselves left out, and what they cost.

    Args:
        features: to search.
        queries: `(Q,)` record numbers.
        k: neighbours of each.
        labels: `(N,)` class of each record.
    """
    vectors = features.rows(queries).astype(np.float64)
    found = search_exact(features.blocks(SEARCH_RECORDS), vectors, k + 1).without(queries, k)

    def one(place: int) -> None:
        search_exact(features.blocks(SEARCH_RECORDS), vectors[place : place + 1], k + 1)

    quality = SearchQuality(
        name="exact search of features",
        source="features",
        bits=None,
        precision=1.0,
        **_of_labels(found.indices, queries, labels),
        ms_per_query=_median_ms(one, len(queries)),
        bytes_per_record=_stored_bytes(features),
    )
    return found, quality


def measure_faiss(
    features: Features, queries: NDArray[np.int64], exact: Neighbours, labels: NDArray[np.int64]
) -> SearchQuality:
    """`search_faiss` beside the exact neighbours; arguments as for `measure_codes`.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    vectors = features.rows(queries).astype(np.float64)
    k = exact.indices.shape[1]
    found = search_faiss(features, vectors, k + 1).without(queries, k)

    def one(place: int) -> None:
        search_faiss(features, vectors[place : place + 1], k + 1)

    return SearchQuality(
        name="faiss search of features",
        source="features",
        bits=None,
        precision=precision_at_k(found.indices, exact.indices),
        **_of_labels(found.indices, queries, labels),
        ms_per_query=_median_ms(one, len(queries)),
        bytes_per_record=_stored_bytes(features),
    )


def measure_codes(
    codes: Codes, queries: NDArray[np.int64], exact: Neighbours, labels: NDArray[np.int64], *, from_pixels: bool
) -> SearchQuality:
    """Codes beside the exact neighbours.

    Args:
        codes: of the same dataset.
        queries: `(Q,)` record numbers.
        exact: their exact neighbours, themselves left out.
        labels: `(N,)` class of each record.
        from_pixels: whether the codes were made from pixels.
    """
    words = np.asarray(codes.words)
    k = exact.indices.shape[1]
    found = search_hamming(words, words[:, queries], k + 1).without(queries, k)

    def one(place: int) -> None:
        search_hamming(words, words[:, queries[place : place + 1]], k + 1)

    source = "pixels" if from_pixels else "features"
    return SearchQuality(
        name=f"{codes.info.bits}-bit codes of {source}",
        source=source,
        bits=codes.info.bits,
        precision=precision_at_k(found.indices, exact.indices),
        **_of_labels(found.indices, queries, labels),
        ms_per_query=_median_ms(one, len(queries)),
        bytes_per_record=8.0 * len(words),
    )


def _of_labels(found: NDArray[np.int64], queries: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, Any]:
    """The fields of `SearchQuality` that labels decide."""
    own = labels[queries]
    hits = ((labels[found] == own[:, None]) & (found >= 0)).mean(axis=1)
    return {
        "label_precision": float(hits.mean()),
        "class_precision": tuple(
            float(hits[own == label].mean()) if (own == label).any() else None for label in range(labels.max() + 1)
        ),
    }


def _stored_bytes(features: Features) -> float:
    return float(features.plan.dims * np.dtype(features.plan.precision).itemsize)


def _median_ms(search: Callable[[int], None], count: int) -> float:
    seconds = []
    for place in range(min(_TIMED_QUERIES, count)):
        start = perf_counter()
        search(place)
        seconds.append(perf_counter() - start)
    return 1000 * median(seconds)
