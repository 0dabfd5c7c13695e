"""How far measured rates can be trusted: intervals from the windows they were measured in, without a distribution.

A rate here is the median of a few windows on a machine that other people use: its errors are skewed, have outliers, and
no standard deviation describes them. Ranks do not care. The interval of one median is a pair of its order statistics
(the sign test), that of the quotient of two rates a pair of the sorted quotients of all windows (Hodges and Lehmann
1963, with the distribution of Mann and Whitney 1947). Both cover the true value at least `CONFIDENCE` of the time where
the windows are independent. They know nothing of what changes between two runs of a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from statistics import median

CONFIDENCE = 0.9
"""Lowest coverage of an interval. Five windows can say it, and hardly more: min to max of five covers 94 %."""


@dataclass(frozen=True)
class Interval:
    """A value and what it may be.

    Attributes:
        value: the estimate.
        low: lower end; None where there are too few windows for an interval.
        high: upper end, or None.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def contains(self, limit: float) -> bool | None:
        """Whether a limit is one of the values this may have; None where that is not known."""
        return None if self.low is None or self.high is None else self.low <= limit <= self.high


def median_interval(windows: Sequence[float]) -> Interval:
    """The median of windows, between two of their order statistics."""
    ordered = sorted(windows)
    count = len(ordered)
    outside, dropped = 0.0, 0  # windows left out at each end
    while (outside := outside + comb(count, dropped) / 2 ** (count - 1)) <= 1 - CONFIDENCE:
        dropped += 1
    if dropped == 0:
        return Interval(median(ordered))
    return Interval(median(ordered), ordered[dropped - 1], ordered[count - dropped])


def quotient_interval(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """The quotient of two medians, within the sorted quotients of all pairs of windows.

    Args:
        numerator: windows of one rate, at least one.
        denominator: those of the other, at least one, all above zero.
    """
    value = median(numerator) / median(denominator)
    sizes = len(numerator), len(denominator)
    pairs = sorted(above / below for above in numerator for below in denominator)
    total = comb(sum(sizes), sizes[0])
    outside, dropped = 0, 0
    while 2 * (outside := outside + _arrangements(*sizes, dropped)) <= (1 - CONFIDENCE) * total:
        dropped += 1
    if dropped == 0:
        return Interval(value)
    return Interval(value, min(value, pairs[dropped - 1]), max(value, pairs[len(pairs) - dropped]))


@cache
def _arrangements(first: int, second: int, wins: int) -> int:
    """In how many orders of two samples the first wins just so many of all comparisons (Mann and Whitney's U)."""
    if wins < 0 or (wins and not first * second):
        return 0
    if not first or not second:
        return 1
    # The largest of all is of the first sample and beats all of the second, or is of the second and beats nobody.
    return _arrangements(first - 1, second, wins - second) + _arrangements(first, second - 1, wins)
