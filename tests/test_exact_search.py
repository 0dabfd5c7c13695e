from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmdali.model.exact_search import Neighbours, direct_distances, search_exact
from lmdali.pipeline.errors import ConfigError, InputError


def full_sort(rows: np.ndarray[Any, Any], queries: np.ndarray[Any, Any], k: int) -> Neighbours:
    """The definition: every distance in float64, sorted, ties by row number."""
    distances = np.stack([np.sqrt(((rows.astype(np.float64) - query) ** 2).sum(axis=1)) for query in queries])
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return Neighbours(order, np.take_along_axis(distances, order, axis=1))


def check(rows: np.ndarray[Any, Any], queries: np.ndarray[Any, Any], k: int, *, block: int, shortlist: int) -> None:
    blocks = [rows[start : start + block] for start in range(0, len(rows), block)]
    found, wanted = (
        search_exact(blocks, queries.astype(np.float64), k, shortlist=shortlist),
        full_sort(rows, queries, k),
    )
    assert (found.indices == wanted.indices).all()
    assert (found.distances == wanted.distances).all()


def test_by_hand() -> None:
    rows = np.array([[0, 0], [3, 4], [0, 1], [3, 4]], np.float32)
    found = search_exact([rows[:3], rows[3:]], np.array([[3.0, 4.0], [0.0, 0.0]]), 3)
    assert found.indices.tolist() == [[1, 3, 2], [0, 2, 1]]
    assert found.distances.tolist() == [[0.0, 0.0, np.sqrt(18.0)], [0.0, 1.0, 5.0]]


_SMALL = st.sampled_from([0.0, 1.0, -1.0, 1.0000001, 2.0, 1e-30, 1e-20, 3e4])


@given(
    rows=st.integers(1, 40).flatmap(lambda n: arrays(np.float32, (n, 3), elements=_SMALL)),
    queries=arrays(np.float32, (2, 3), elements=_SMALL),
    k=st.integers(1, 12),
    block=st.integers(1, 40),
    shortlist=st.integers(1, 8),
)
def test_it_equals_a_full_sort_whatever_is_equal_or_nearly_so(
    rows: Any, queries: Any, k: int, block: int, shortlist: int
) -> None:
    check(rows, queries, k, block=block, shortlist=shortlist)


@given(seed=st.integers(0, 2**32 - 1), far=st.sampled_from([0.0, 10.0, 1e4]), wide=st.sampled_from([1e-4, 1.0]))
def test_it_equals_a_full_sort_where_float32_cancels(seed: int, far: float, wide: float) -> None:
    """A cloud far from the origin: |a|^2 - 2ab + |b|^2 in float32 is then noise."""
    random = np.random.default_rng(seed)
    rows = (far + wide * random.normal(size=(300, 16))).astype(np.float32)
    rows[100:110] = rows[7]
    check(rows, rows[[7, 250]] + np.float32(wide / 3), 9, block=128, shortlist=5)


def test_float16_rows_in_the_papers_dimensions() -> None:
    random = np.random.default_rng(1)
    rows = np.maximum(random.normal(size=(400, 4096)), 0).astype(np.float16)
    check(rows, rows[:3], 6, block=100, shortlist=64)


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e25, 3e38])
def test_what_float32_cannot_square_is_measured_in_float64(scale: float) -> None:
    random = np.random.default_rng(2)
    rows = (random.uniform(-1, 1, size=(200, 5)) * scale).astype(np.float32)
    check(rows, rows[:4], 5, block=64, shortlist=8)


def test_a_query_that_is_among_the_rows_is_at_distance_zero_and_halving_changes_no_list() -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(500, 32)).astype(np.float32)
    found = search_exact([rows], rows[[44]].astype(np.float64), 6)
    assert (found.indices[0, 0], found.distances[0, 0]) == (44, 0.0)
    halves = search_exact([rows / 2], rows[[44]].astype(np.float64) / 2, 6)
    assert (halves.indices == found.indices).all()


def test_few_rows_give_few_neighbours() -> None:
    assert search_exact([np.ones((2, 3), np.float32)], np.zeros((1, 3)), 6).indices.tolist() == [[0, 1]]


def test_own_rows_are_left_out() -> None:
    found = Neighbours(np.array([[4, 2, 9], [1, 2, 3]]), np.array([[0.0, 1.0, 2.0], [0.0, 3.0, 4.0]]))
    rest = found.without(np.array([2, -1]), 2)
    assert rest.indices.tolist() == [[4, 9], [1, 2]]
    assert rest.distances.tolist() == [[0.0, 2.0], [0.0, 3.0]]


@pytest.mark.parametrize("k", [3, 4, 9])
def test_where_there_are_no_more_rows_a_query_that_is_none_of_them_has_one_neighbour_more(k: int) -> None:
    rows = np.array([[0.0], [1.0], [3.0]], np.float32)
    found = search_exact([rows], np.array([[1.0], [2.9]]), k + 1).without(np.array([1, -1]), k)
    assert found.indices.tolist() == [[0, 2, -1], [2, 1, 0]]
    assert found.distances[0].tolist() == [1.0, 2.0, -1.0]
    assert found.in_all().indices.tolist() == [[0, 2], [2, 1]]
    alone = search_exact([rows], np.array([[1.0]]), k + 1).without(np.array([1]), k)
    assert alone.indices.tolist() == alone.in_all().indices.tolist() == [[0, 2]]
    assert search_exact([rows[:1]], np.array([[1.0]]), 2).without(np.array([0]), 1).indices.shape == (1, 0)


def test_distances_are_differences_first() -> None:
    assert direct_distances(np.array([1e8, 1.0]), np.array([[1e8, 4.0]], np.float32)).tolist() == [3.0]


def test_nothing_to_search_for_and_wrong_lengths_are_refused() -> None:
    rows = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="no query"):
        search_exact([rows], np.empty((0, 3)), 1)
    with pytest.raises(InputError, match="4 dimensions for features of 3"):
        search_exact([rows], np.zeros((1, 4)), 1)
    with pytest.raises(ConfigError, match="at least 1"):
        search_exact([rows], np.zeros((1, 3)), 0)


def test_what_is_not_finite_is_named() -> None:
    rows = np.ones((9, 3), np.float32)
    rows[7, 1] = np.nan
    with pytest.raises(InputError, match="record 7: its features are not finite"):
        search_exact([rows[:5], rows[5:]], np.zeros((1, 3)), 2)
    with pytest.raises(InputError, match="query 1: its features are not finite"):
        search_exact([rows[:5]], np.array([[0.0, 0, 0], [0, np.inf, 0]]), 2)
    rows[7, 1] = np.inf  # too far to be near, whatever it was
    assert search_exact([rows], np.zeros((1, 3)), 2).indices.tolist() == [[0, 1]]


@given(
    seed=st.integers(0, 2**32 - 1),
    apart=st.sampled_from([1e-9, 1e-7, 1e-5, 1e-3]),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e15]),
    kind=st.sampled_from([np.float16, np.float32]),
)
def test_it_equals_a_full_sort_where_all_rows_are_nearly_equally_far(
    seed: int, apart: float, scale: float, kind: Any
) -> None:
    """A sphere around the query, its radius blurred by less and by more than what float32 can tell apart."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(120, 300))
    rows *= scale * (1 + apart * random.normal(size=(120, 1))) / np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.clip(rows, -6e4, 6e4).astype(kind) if kind is np.float16 else rows.astype(kind)
    rows[50:60] = rows[3]
    check(rows, np.zeros((1, 300)) + random.normal(size=(5, 300)) * scale * 1e-9, 7, block=50, shortlist=8)
