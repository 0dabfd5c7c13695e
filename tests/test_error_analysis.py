"""Errors, classes, confusions and calibration, each against a value worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lmdali.model.error_analysis import NUM_BINS, analyse, confusion_pairs, worst_mistakes
from lmdali.model.metrics import top_k_error


def rows(*values: list[float]) -> NDArray[np.float32]:
    return np.array(values, np.float32)


@pytest.mark.parametrize("num_classes", [6, 10, 1000])
def test_equal_probabilities_share_the_blame(num_classes: int) -> None:
    labels = np.arange(6)
    found = analyse(np.full((6, num_classes), 1 / num_classes, np.float32), labels)
    assert found.top1_error == pytest.approx(1 - 1 / num_classes)
    assert found.top5_error == pytest.approx(1 - 5 / num_classes)
    assert found.loss == pytest.approx(math.log(num_classes), rel=1e-6)


def test_errors_are_those_of_the_evaluator() -> None:
    values = np.random.default_rng(1).dirichlet(np.ones(9), 50).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, 9, 50)
    found = analyse(values, labels)
    for k, error in ((1, found.top1_error), (5, found.top5_error)):
        assert error == pytest.approx(float(top_k_error(torch.from_numpy(values), torch.from_numpy(labels), k).mean()))
    assert found.loss == pytest.approx(-np.log(values[range(50), labels].astype(float)).mean())


def test_a_probability_that_was_rounded_to_zero_costs_a_finite_loss() -> None:
    found = analyse(rows([1, 0], [0, 1]), np.array([1, 1]))
    assert found.loss == pytest.approx(149 * math.log(2) / 2)


def test_each_class_by_itself() -> None:
    found = analyse(rows([0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]), np.array([0, 0, 1])).classes
    assert [entry.num_images for entry in found] == [2, 1, 0]
    assert [entry.top1_error for entry in found] == [0.5, 1.0, None]
    assert found[0].confidence == pytest.approx(0.5)
    assert found[2].confidence is None


def test_confusions_are_counted_and_ordered() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    predicted = np.array([1, 1, 0, 2, 1, 0, 1])
    found = [(p.label, p.predicted, p.num_images, p.share) for p in confusion_pairs(predicted, labels, 3)]
    assert found == [(0, 1, 2, 2 / 3), (1, 2, 1, 1 / 2), (2, 0, 1, 1 / 2), (2, 1, 1, 1 / 2)]
    assert confusion_pairs(labels, labels, 3) == ()


def test_calibration_by_hand() -> None:
    """Four images at 0.9, of which three are right, one at 0.5 that is wrong: (4 * 0.15 + 1 * 0.5) / 5."""
    sure = [[0.9, 0.05, 0.05]] * 4
    found = analyse(rows(*sure, [0.5, 0.3, 0.2]), np.array([0, 0, 0, 1, 2]))
    assert found.calibration_error == pytest.approx((4 * 0.15 + 0.5) / 5)
    filled = {place: entry for place, entry in enumerate(found.reliability) if entry.num_images}
    assert {place: entry.num_images for place, entry in filled.items()} == {7: 1, 13: 4}
    assert filled[13].accuracy == pytest.approx(0.75) and filled[13].confidence == pytest.approx(0.9)


def test_bins_hold_their_upper_end() -> None:
    found = analyse(rows([1.0, 0.0], [0.5, 0.5]), np.array([0, 0])).reliability
    assert len(found) == NUM_BINS and found[-1].num_images == 1
    assert sum(entry.num_images for entry in found) == 2


def test_certain_and_right_is_calibrated() -> None:
    assert analyse(np.eye(4, dtype=np.float32), np.arange(4)).calibration_error == 0


def test_the_worst_mistakes_come_first() -> None:
    values = rows([0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.9, 0.1])
    assert worst_mistakes(values, np.array([1, 1, 1, 1]), 5) == [1, 3, 0]
    assert worst_mistakes(values, np.array([1, 1, 1, 1]), 1) == [1]


def test_everything_is_json() -> None:
    document = analyse(rows([0.6, 0.4], [0.9, 0.1]), np.array([0, 1])).to_json()
    assert document["classes"][1]["top1_error"] == 1.0 and document["confusions"][0]["predicted"] == 0
