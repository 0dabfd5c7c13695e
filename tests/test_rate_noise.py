from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdali.tools.rate_noise import Interval, _arrangements, median_interval, quotient_interval

RATES = st.lists(st.floats(1.0, 1e6), min_size=1, max_size=9)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (3, 4), (5, 5), (2, 6)])
def test_the_distribution_of_u_is_that_of_all_orders(first: int, second: int) -> None:
    counts: Counter[int] = Counter()
    for places in combinations(range(first + second), first):
        others = set(range(first + second)) - set(places)
        counts[sum(place > other for place in places for other in others)] += 1
    assert [counts[wins] for wins in range(first * second + 1)] == [
        _arrangements(first, second, wins) for wins in range(first * second + 1)
    ]


def test_five_windows_give_min_to_max_and_fewer_give_no_interval() -> None:
    assert median_interval([5, 1, 4, 2, 3]) == Interval(3, 1, 5)
    assert median_interval([1, 2, 3, 4]) == Interval(2.5)
    assert median_interval([7.0]) == Interval(7.0)
    assert quotient_interval([7.0], [2.0]) == Interval(3.5)


def test_the_interval_of_a_quotient_leaves_out_as_many_pairs_as_the_table_of_u_says() -> None:
    # For 5 and 5 windows the published table of Mann and Whitney has 4 as the critical value at 10 %, both sides.
    a, b = [1.0, 2, 4, 8, 16], [32.0, 65, 131, 263, 527]
    pairs = sorted(above / below for above in b for below in a)
    found = quotient_interval(b, a)
    assert (found.low, found.high) == (pairs[4], pairs[20])


@given(RATES, RATES)
def test_the_value_lies_in_its_interval_and_turning_the_quotient_round_turns_the_interval(
    a: list[float], b: list[float]
) -> None:
    for found in (median_interval(a), quotient_interval(a, b)):
        assert found.low is None or found.contains(found.value)
    there, back = quotient_interval(a, b), quotient_interval(b, a)
    assert (there.low is None) == (back.low is None)
    if there.low is not None and back.high is not None:
        assert there.low == pytest.approx(1 / back.high)


def test_what_is_not_known_is_not_claimed() -> None:
    assert Interval(1.0).contains(1.0) is None
    assert Interval(1.0, 0.9, 1.1).contains(1.2) is False
