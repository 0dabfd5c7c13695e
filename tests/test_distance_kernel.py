"""The first look at distances: its error stays within the bound that its docstring proves."""

from __future__ import annotations

from fractions import Fraction
from math import fsum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmdali.model import distance_kernel, features_file
from lmdali.model.distance_kernel import RELATIVE_ERROR, squared_distances


def exact(row: np.ndarray[Any, Any], query: np.ndarray[Any, Any]) -> Fraction:
    """Without any rounding."""
    pairs = zip(row.tolist(), query.tolist(), strict=True)
    return sum(((Fraction(b) - Fraction(q)) ** 2 for b, q in pairs), Fraction(0))


def check(rows: np.ndarray[Any, Any], queries: np.ndarray[Any, Any]) -> None:
    found = squared_distances(rows, queries)
    assert found.shape == (len(queries), len(rows))
    largest = Fraction(float(np.finfo(np.float32).max))
    for query, squares in zip(queries, found.tolist(), strict=True):
        for row, square in zip(rows, squares, strict=True):
            true = exact(row, query)
            allowed = true * Fraction(RELATIVE_ERROR) + rows.shape[1] * Fraction(2) ** -125
            if np.isinf(square):
                assert true >= largest * (1 - Fraction(RELATIVE_ERROR))
            else:
                assert abs(Fraction(square) - true) <= allowed


_ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
_NASTY = st.sampled_from([0.0, 1.0, -1.0, np.float32(1) + np.float32(2**-23), 2.0**-149, 2.0**-126, -(2.0**-75), 3e38])


@given(
    rows=arrays(np.float32, (2, 5), elements=_ANY | _NASTY), queries=arrays(np.float32, (5, 5), elements=_ANY | _NASTY)
)
def test_any_floats_stay_within_the_bound(rows: Any, queries: Any) -> None:
    check(rows, queries)


_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def test_every_half_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """All finite float16, denormal ones too, one to a row; on processors that cannot read them, NumPy does."""
    rows = _HALVES[np.isfinite(_HALVES)][:, None]
    zero = np.zeros((1, 1), np.float32)
    wanted = np.square(rows[:, 0].astype(np.float32)).astype(np.float64)
    assert np.array_equal(squared_distances(rows, zero)[0], wanted)
    monkeypatch.setattr(distance_kernel, "HAS_HALVES", False)
    monkeypatch.setattr(features_file, "HAS_HALVES", False)
    assert np.array_equal(squared_distances(rows, zero)[0], wanted)


@pytest.mark.parametrize("dims", [255, 256, 257, 4096])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_long_rows_far_from_the_origin(dims: int, kind: Any) -> None:
    """Where norms are 1e4 times the distances, and for each way of grouping queries: 1 to 5, 4 at a time."""
    random = np.random.default_rng(dims)
    rows = (1000 + random.normal(size=(5, dims)) / 10).astype(kind)
    queries = (1000 + random.normal(size=(5, dims)) / 10).astype(np.float32)
    together = squared_distances(rows, queries)
    for query, squares in zip(queries.astype(np.float64), together, strict=True):
        for row, square in zip(rows.astype(np.float64), squares, strict=True):
            assert square == pytest.approx(fsum(np.square(row - query)), rel=RELATIVE_ERROR)
    for count in (1, 2, 3, 4):
        assert np.allclose(squared_distances(rows, queries[:count]), together[:count], rtol=2 * RELATIVE_ERROR)


def test_what_is_not_finite_stays_so() -> None:
    rows = np.array([[np.nan, 0], [np.inf, 0], [1, 0]], np.float32)
    found = squared_distances(rows, np.zeros((1, 2), np.float32))[0]
    assert np.isnan(found[0]) and found[1] == np.inf and found[2] == 1.0


def test_no_rows_and_no_dimensions_are_no_error() -> None:
    assert squared_distances(np.empty((0, 3), np.float16), np.ones((2, 3), np.float32)).shape == (2, 0)
    assert squared_distances(np.empty((2, 0), np.float32), np.ones((1, 0), np.float32)).tolist() == [[0.0, 0.0]]
