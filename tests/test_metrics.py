"""Error rates with ties shared, and predictions averaged over views."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdali.model.metrics import average_log_probabilities, top_k_error


@pytest.mark.parametrize("classes", [5, 10, 1000])
def test_equal_scores_share_the_places(classes: int) -> None:
    scores = torch.zeros(3, classes)
    labels = torch.tensor([0, 1, classes - 1])
    assert top_k_error(scores, labels, 1).tolist() == pytest.approx([1 - 1 / classes] * 3)
    assert top_k_error(scores, labels, 5).tolist() == pytest.approx([1 - 5 / classes] * 3, abs=1e-6)


def test_hand_made_ties() -> None:
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0]]).expand(5, 5)
    labels = torch.arange(5)
    assert top_k_error(scores, labels, 1).tolist() == [0, 1, 1, 1, 1]
    assert top_k_error(scores, labels, 2).tolist() == pytest.approx([0, 2 / 3, 2 / 3, 2 / 3, 1])
    assert top_k_error(scores, labels, 3).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 1])
    assert top_k_error(scores, labels, 5).tolist() == [0, 0, 0, 0, 0]


@given(st.integers(1, 8), st.integers(2, 20), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_without_ties_it_is_what_sorting_says(batch: int, classes: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.stack([torch.randperm(classes, generator=generator) for _ in range(batch)]).float()
    labels = torch.randint(classes, (batch,), generator=generator)
    best = scores.topk(min(k, classes), dim=1).indices
    want = (best != labels[:, None]).all(dim=1).float()
    assert torch.equal(top_k_error(scores, labels, k), want)


def test_errors_of_all_labels_add_up_to_the_places_missed() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.25, 0.25, 0.25, 0.0]])
    for k in range(1, 7):
        total = sum(top_k_error(scores, torch.tensor([label]), k).item() for label in range(6))
        assert total == pytest.approx(6 - k, abs=1e-5)


def test_probabilities_are_averaged_not_logits() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.3, 0.7]])
    averaged = average_log_probabilities(probabilities.log(), 2).exp()
    torch.testing.assert_close(averaged, torch.tensor([[0.55, 0.45], [0.4, 0.6]]))


def test_one_view_is_a_log_softmax_and_survives_extreme_logits() -> None:
    logits = torch.tensor([[0.0, -1000.0], [5.0, 5.0]])
    out = average_log_probabilities(logits, 1)
    torch.testing.assert_close(out, torch.tensor([[0.0, -1000.0], [-math.log(2), -math.log(2)]]))


def test_half_precision_logits_are_averaged_in_float32() -> None:
    out = average_log_probabilities(torch.zeros(4, 3, dtype=torch.bfloat16), 4)
    assert out.dtype is torch.float32
    torch.testing.assert_close(out, torch.full((1, 3), -math.log(3)))
