"""How weights and biases begin: the named rules, and the draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Initialisation:
    """Zero-mean normal weights and constant biases, by layer name; layers not named get the default.

    Attributes:
        std: standard deviation of the weights, or None for `sqrt(1 / fan_in)`, which keeps the scale of a layer's input
            (LeCun et al., Efficient BackProp, 1998, section 4.6).
        bias: value of the biases.
        layer_std: exceptions to `std`.
        layer_bias: exceptions to `bias`.
    """

    std: float | None
    bias: float
    layer_std: dict[str, float]
    layer_bias: dict[str, float]


_ONES = {"conv2": 1.0, "conv4": 1.0, "conv5": 1.0, "conv6": 1.0, "fc6": 1.0, "fc7": 1.0}
_TENTHS = dict.fromkeys(_ONES, 0.1)
INITIALISATIONS = {
    # Section 5 of the paper, to the letter. It names five convolutional layers; conv6 follows conv5.
    "paper": Initialisation(0.01, 0.0, {}, _ONES),
    # The released configuration of run #145, which the paper's tables come from; conv6 as in run #146.
    "original2012": Initialisation(0.01, 0.0, {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03, "conv6": 0.03}, _ONES),
    # Caffe's bvlc_alexnet: smaller biases, because ones gave "flat training loss" there.
    "caffe": Initialisation(0.01, 0.0, {"fc6": 0.005, "fc7": 0.005}, _TENTHS),
    # For small sets, where biases of one take many epochs to leave chance level. Conv1 sees gray levels around 0 +- 70
    # rather than unit variance, so it keeps the paper's 0.01, and so does the classifier, to begin undecided.
    "lecun": Initialisation(None, 0.0, {"conv1": 0.01, "fc8": 0.01}, {}),
}


def initial_parameters(init: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Fresh `<layer>.weight` and `<layer>.bias`, float32 on the CPU, one layer after the other.

    Drawn on the CPU and for whole layers, so that a seed means the same weights on every device and for both towers.

    Args:
        init: name of an entry of `INITIALISATIONS`.
        shapes: of the weights, by layer, outputs first; their order is the order of the draws.
        seed: the draws are a function of the arguments alone.
    """
    rule = INITIALISATIONS[init]
    generator = torch.Generator().manual_seed(seed)
    for layer, shape in shapes.items():
        std = rule.layer_std.get(layer, rule.std)
        if std is None:
            std = math.sqrt(1.0 / math.prod(shape[1:]))
        yield f"{layer}.weight", torch.randn(shape, generator=generator, device="cpu") * std
        yield f"{layer}.bias", torch.full(shape[:1], rule.layer_bias.get(layer, rule.bias), device="cpu")
