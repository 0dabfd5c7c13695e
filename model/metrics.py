"""Error rates with fair ties, and the loss of averaged predictions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def top_k_error(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Share of the blame each sample gets: 0 where the label is among the k best scores, 1 where it is not.

    Where scores tie with the label's, the places left among the k best are shared equally, as in the original code:
    with n equal scores the top-1 error is `1 - 1/n`, whatever order a sort would have put them in. Low-precision
    logits tie often.

    Args:
        scores: `(B, C)` logits or probabilities, any floating dtype, no NaN.
        labels: `(B,)` int64, 0..C-1.
        k: places, at least 1.

    Returns:
        `(B,)` float32, 0..1.
    """
    label_scores = scores.gather(1, labels[:, None])
    better = (scores > label_scores).sum(dim=1)
    equal = (scores == label_scores).sum(dim=1)
    return 1.0 - ((k - better) / equal).clamp(0.0, 1.0)


def average_log_probabilities(logits: Tensor, num_views: int) -> Tensor:
    """Log of the mean, over the views of each sample, of the softmax outputs (paper section 4.1).

    Probabilities are averaged, not logits; the sum is taken in the log domain, so that nothing underflows.

    Args:
        logits: `(B * V, C)`, the V views of one sample adjacent.
        num_views: V.

    Returns:
        `(B, C)` float32 log probabilities.
    """
    log_probabilities = torch.log_softmax(logits.float(), dim=1).reshape(-1, num_views, logits.shape[1])
    return torch.logsumexp(log_probabilities, dim=1) - math.log(num_views)
