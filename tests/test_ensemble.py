"""The mean of several networks' probabilities."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmdali.model.ensemble import average_probabilities, ensemble_weights
from lmdali.model.error_analysis import analyse
from lmdali.pipeline.errors import ConfigError, InputError


def softmaxes(seed: int, count: int, rows: int = 5, classes: int = 7) -> list[NDArray[np.float32]]:
    logits = np.random.default_rng(seed).normal(0, 3, (count, rows, classes))
    values = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return list(values.astype(np.float32))


def test_one_network_five_times_is_itself_to_the_bit() -> None:
    (one,) = softmaxes(0, 1)
    assert np.array_equal(average_probabilities([one] * 5, ensemble_weights(None, 5)), one)
    assert np.array_equal(average_probabilities([one] * 3, ensemble_weights([5, 1, 1], 3)), one)


def test_two_certain_networks_that_disagree() -> None:
    """Labels 0 and 1; one network says 0, the other 1, of both images: each class gets a half."""
    zero, one = np.eye(4, dtype=np.float32)[[0, 0]], np.eye(4, dtype=np.float32)[[1, 1]]
    mean = average_probabilities([zero, one], ensemble_weights(None, 2))
    assert np.array_equal(mean, np.array([[0.5, 0.5, 0, 0]] * 2, np.float32))
    found = analyse(mean, np.array([0, 1]))
    assert (found.top1_error, found.top5_error) == (0.5, 0.0)  # a tie of two is shared
    assert found.loss == pytest.approx(np.log(2))
    decided = analyse(average_probabilities([zero, one], ensemble_weights([3, 1], 2)), np.array([0, 1]))
    assert decided.top1_error == 0.5 and decided.loss == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)


@given(st.integers(0, 1000), st.lists(st.floats(0.01, 10), min_size=3, max_size=3))
def test_the_order_of_networks_does_not_change_a_bit(seed: int, weights: list[float]) -> None:
    members = softmaxes(seed, 3)
    shares = ensemble_weights(weights, 3)
    means = [
        average_probabilities([members[i] for i in order], [shares[i] for i in order])
        for order in permutations(range(3))
    ]
    assert all(np.array_equal(mean, means[0]) for mean in means)


def test_it_is_the_explicit_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdali.model.ensemble._ROWS_AT_ONCE", 2)
    members, weights = softmaxes(4, 5), (0.1, 0.2, 0.3, 0.15, 0.25)
    want = np.zeros((5, 7))
    for row in range(5):
        for label in range(7):
            for member, weight in zip(members, weights, strict=True):
                want[row, label] += weight * float(member[row, label])
    np.testing.assert_allclose(average_probabilities(members, weights), want, rtol=1e-6)


def test_weights_are_shares() -> None:
    assert ensemble_weights(None, 4) == (0.25,) * 4
    assert ensemble_weights([2, 1, 1], 3) == (0.5, 0.25, 0.25)
    for wrong, message in (
        ([1], "1 weights for 2"),
        ([1, -1], "not negative"),
        ([0, 0], "not all zero"),
        ([1e308] * 2, "sum"),
    ):
        with pytest.raises(ConfigError, match=message):
            ensemble_weights(wrong, 2)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="different shapes"):
        average_probabilities([np.zeros((2, 3), np.float32), np.zeros((3, 3), np.float32)], (0.5, 0.5))
