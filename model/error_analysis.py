"""What per-image probabilities say about a network: errors, classes, confusions, calibration. Arithmetic in float64."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.model.metrics import top_k_error

NUM_BINS = 15
"""Bins of equal width for the calibration error (Guo et al. 2017, section 2, have 15)."""

SMALLEST_PROBABILITY = 2.0**-149
"""The smallest positive float32. What was rounded to zero counts as this, so the loss of one image is at most 103."""


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """One class. Errors and confidence are 0..1, or None where the class has no image.

    Attributes:
        label: the class.
        num_images: with that label.
        top1_error: of these images, ties shared.
        top5_error: of these images, ties shared.
        confidence: mean probability given to the label.
    """

    label: int
    num_images: int
    top1_error: float | None
    top5_error: float | None
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Images of one class that another class is found more probable for than any other.

    Attributes:
        label: the true class.
        predicted: the other one.
        num_images: so taken.
        share: of the images with that label, 0..1.
    """

    label: int
    predicted: int
    num_images: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Images whose highest probability lies in `(low, high]`; the first bin has 0 too.

    Attributes:
        low: lower end, 0..1.
        high: upper end, 0..1.
        num_images: in the bin.
        confidence: mean of their highest probabilities; None in an empty bin.
        accuracy: of them, ties shared; None in an empty bin.
    """

    low: float
    high: float
    num_images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class ErrorAnalysis:
    """Figures over a whole dataset.

    Attributes:
        top1_error: 0..1, ties shared (`metrics.top_k_error`).
        top5_error: 0..1.
        loss: mean negative log-likelihood of the label, nats.
        num_samples: images.
        classes: of every class, in label order.
        confusions: all pairs that occur, the most frequent first.
        calibration_error: ECE: mean distance of confidence and accuracy over the bins, weighted by their images.
        reliability: the bins.
    """

    top1_error: float
    top5_error: float
    loss: float
    num_samples: int
    classes: tuple[ClassFigures, ...]
    confusions: tuple[Confusion, ...]
    calibration_error: float
    reliability: tuple[ReliabilityBin, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, nested."""
        return asdict(self)


def analyse(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> ErrorAnalysis:
    """Compute everything there is to know without the images.

    Args:
        probabilities: `(N, C)`, rows that add up to 1; N at least 1.
        labels: `(N,)`, 0..C-1.
    """
    scores, targets = torch.from_numpy(probabilities), torch.from_numpy(labels)
    top1, top5 = (top_k_error(scores, targets, k).double().numpy() for k in (1, 5))
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    bins = _reliability(probabilities.max(axis=1).astype(np.float64), 1.0 - top1)
    gaps = [
        entry.num_images * abs(entry.confidence - entry.accuracy)
        for entry in bins
        if entry.confidence is not None and entry.accuracy is not None
    ]
    return ErrorAnalysis(
        top1_error=float(top1.mean()),
        top5_error=float(top5.mean()),
        loss=float(-np.log(np.maximum(of_label, SMALLEST_PROBABILITY)).mean()),
        num_samples=len(labels),
        classes=_classes(labels, top1, top5, of_label, probabilities.shape[1]),
        confusions=confusion_pairs(probabilities.argmax(axis=1), labels, probabilities.shape[1]),
        calibration_error=sum(gaps) / len(labels),
        reliability=bins,
    )


def confusion_pairs(predicted: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int) -> tuple[Confusion, ...]:
    """Pairs of true and predicted class that differ, the most frequent first, then in label order.

    Args:
        predicted: `(N,)` the most probable class of each image, the first of equal ones.
        labels: `(N,)`.
        num_classes: C.
    """
    wrong = predicted != labels
    codes, counts = np.unique(labels[wrong] * num_classes + predicted[wrong], return_counts=True)
    totals = np.bincount(labels, minlength=num_classes)
    pairs = [
        Confusion(label=label, predicted=other, num_images=count, share=count / int(totals[label]))
        for (label, other), count in zip(
            (divmod(code, num_classes) for code in codes.tolist()), counts.tolist(), strict=True
        )
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.num_images, pair.label, pair.predicted)))


def worst_mistakes(probabilities: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> list[int]:
    """Samples that are taken for another class with most certainty, the worst first; equal ones in sample order."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    certain = probabilities[wrong].max(axis=1)
    return [int(index) for index in wrong[np.argsort(-certain, kind="stable")][:count]]


def _classes(
    labels: NDArray[np.int64],
    top1: NDArray[np.float64],
    top5: NDArray[np.float64],
    of_label: NDArray[np.float64],
    num_classes: int,
) -> tuple[ClassFigures, ...]:
    counts = np.bincount(labels, minlength=num_classes)
    sums = [np.bincount(labels, weights=values, minlength=num_classes) for values in (top1, top5, of_label)]
    figures = []
    for label, count in enumerate(counts.tolist()):
        means = [float(total[label]) / count if count else None for total in sums]
        figures.append(
            ClassFigures(label=label, num_images=count, top1_error=means[0], top5_error=means[1], confidence=means[2])
        )
    return tuple(figures)


def _reliability(confidence: NDArray[np.float64], accuracy: NDArray[np.float64]) -> tuple[ReliabilityBin, ...]:
    places = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(places, minlength=NUM_BINS).tolist()
    sums = [np.bincount(places, weights=values, minlength=NUM_BINS).tolist() for values in (confidence, accuracy)]
    return tuple(
        ReliabilityBin(
            low=place / NUM_BINS,
            high=(place + 1) / NUM_BINS,
            num_images=count,
            confidence=sums[0][place] / count if count else None,
            accuracy=sums[1][place] / count if count else None,
        )
        for place, count in enumerate(counts)
    )
