"""Several networks as one: the mean of their probabilities (paper section 6: "averaging the predictions")."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import ConfigError, InputError

_ROWS_AT_ONCE = 4096
"""So many samples are averaged in float64 at a time: of 1,000 classes, 33 MB."""


def ensemble_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The weight of each network; they add up to 1.

    Args:
        weights: not negative, of any sum; None for equal ones.
        count: of networks.

    Raises:
        ConfigError: another number of weights, a negative one, or nothing but zeros.
    """
    if weights is None:
        return (1.0 / count,) * count
    if len(weights) != count:
        raise ConfigError(f"{len(weights)} weights for {count} networks: give one for each, in their order")
    if not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
        shown = ",".join(f"{weight:g}" for weight in weights)
        raise ConfigError(f"weights {shown}: they and their sum must be finite, not negative, and not all zero")
    return tuple(weight / sum(weights) for weight in weights)


def average_probabilities(members: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """The weighted mean of what several networks say of the same samples.

    The sum is taken in float64, in an order that depends on the members' content only: to the bit the same in whatever
    order they are given. The mean of equal members is that member, to the bit.

    Args:
        members: each `(N, C)` float32 probabilities.
        weights: one for each, adding up to 1.

    Returns:
        `(N, C)` float32.

    Raises:
        InputError: the members are of different shapes.
    """
    shapes = {member.shape for member in members}
    if len(shapes) != 1:
        raise InputError(f"probabilities of different shapes cannot be averaged: {sorted(shapes)}")
    if all(np.array_equal(member, members[0]) for member in members[1:]):
        return members[0].copy()
    order = sorted(range(len(members)), key=lambda place: (weights[place], _digest(members[place])))
    mean = np.empty_like(members[0])
    for start in range(0, len(mean), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        total = np.zeros(mean[rows].shape, np.float64)
        for place in order:
            total += weights[place] * members[place][rows].astype(np.float64)
        mean[rows] = total
    return mean


def _digest(member: NDArray[np.float32]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(member).data).digest()
