"""The network of the paper on one device: `AlexNetConfig`, `AlexNet`, and the ways to initialise it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmdali.model.layers import PaperDropout, ResponseNorm
from lmdali.pipeline.errors import ConfigError

IMAGE_SIZE_PIXELS = 224
"""Side of the input. Conv1 needs it extended to 227 and is, see `AlexNet`."""

_WIDTHS = {"conv1": 96, "conv2": 256, "conv3": 384, "conv4": 384, "conv5": 256, "fc6": 4096, "fc7": 4096}


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


_ONES = {"conv2": 1.0, "conv4": 1.0, "conv5": 1.0, "fc6": 1.0, "fc7": 1.0}
_TENTHS = dict.fromkeys(_ONES, 0.1)
INITIALISATIONS = {
    # Section 5 of the paper, to the letter.
    "paper": Initialisation(0.01, 0.0, {}, _ONES),
    # The released configuration of run #145, which the paper's tables come from.
    "original2012": Initialisation(0.01, 0.0, {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}, _ONES),
    # Caffe's bvlc_alexnet: smaller biases, because ones gave "flat training loss" there.
    "caffe": Initialisation(0.01, 0.0, {"fc6": 0.005, "fc7": 0.005}, _TENTHS),
    # For small sets, where biases of one take many epochs to leave chance level. Conv1 sees gray levels around 0 +- 70
    # rather than unit variance, so it keeps the paper's 0.01, and so does the classifier, to begin undecided.
    "lecun": Initialisation(None, 0.0, {"conv1": 0.01, "fc8": 0.01}, {}),
}


@dataclass(frozen=True, kw_only=True)
class AlexNetConfig:
    """What the network is, independent of how it is trained.

    Attributes:
        num_classes: outputs of fc8.
        width: factor on the widths of conv1 to fc7, rounded so that the towers are equal; 1 is the paper's, 0.25 suits
            a CPU.
        towers: groups in conv2, conv4, conv5 and in the response normalisation; 2 as in the paper.
        init: name of an entry of `INITIALISATIONS`.
        dropout: probability that a unit of fc6 or fc7 is dropped.
        lrn_size: channels in a response normalisation sum.
        lrn_alpha: 5e-4 is the printed formula, 1e-4 the original code (see `ResponseNorm`).
        lrn_beta: its exponent.
        lrn_k: its constant.
    """

    num_classes: int = 1000
    width: float = 1.0
    towers: int = 2
    init: str = "paper"
    dropout: float = 0.5
    lrn_size: int = 5
    lrn_alpha: float = 5e-4
    lrn_beta: float = 0.75
    lrn_k: float = 2.0

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, found {self.num_classes}")
        if self.init not in INITIALISATIONS:
            raise ConfigError(f"init must be one of {', '.join(INITIALISATIONS)}, found {self.init!r}")
        if not self.width > 0 or self.towers < 1:
            raise ConfigError(f"width and towers must be positive, found {self.width} and {self.towers}")

    def widths(self) -> dict[str, int]:
        """Outputs of each hidden layer, by name: the nearest multiples of `towers`."""
        return {
            layer: self.towers * max(1, round(width * self.width / self.towers)) for layer, width in _WIDTHS.items()
        }

    def to_json(self) -> dict[str, Any]:
        """All fields, for checkpoints and reports."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> AlexNetConfig:
        """Inverse of `to_json`.

        Raises:
            ConfigError: a field is unknown or has an impossible value.
        """
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ConfigError(f"network settings unknown to this version of lmdali: {', '.join(unknown)}")
        return cls(**fields)


class AlexNet(nn.Module):
    """Five convolutional and three fully connected layers (paper section 3.5), both towers on one device.

    The towers are the two groups of conv2, conv4 and conv5; conv3 and the fully connected layers read both. At width 1
    with 1000 classes there are 60,965,224 parameters.

    Conv1 pads three pixels at the right and the bottom only: the original code rounds the number of windows up, so 55
    windows start at 0, 4, ... 216 and the last ones reach past the edge. Symmetric padding would shift every window.

    Args:
        config: see `AlexNetConfig`.
        seed: the initial weights are a function of `config` and `seed` alone.
    """

    def __init__(self, config: AlexNetConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        c1, c2, c3, c4, c5, f6, f7 = config.widths().values()
        towers = config.towers
        self.edge = nn.ZeroPad2d((0, 3, 0, 3))
        self.conv1 = nn.Conv2d(3, c1, 11, stride=4)
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, groups=towers)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1)
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, groups=towers)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, groups=towers)
        self.fc6 = nn.Linear(c5 * 6 * 6, f6)
        self.fc7 = nn.Linear(f6, f7)
        self.fc8 = nn.Linear(f7, config.num_classes)
        self.norm = ResponseNorm(
            towers, size=config.lrn_size, alpha=config.lrn_alpha, beta=config.lrn_beta, k=config.lrn_k
        )
        self.pool = nn.MaxPool2d(3, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = PaperDropout(config.dropout)
        self.reset_parameters(seed)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of `(B, 3, 224, 224)` images: RGB, 0..255 minus the mean."""
        logits: Tensor = self.fc8(self.hidden(images))
        return logits

    def hidden(self, images: Tensor) -> Tensor:
        """Activations of fc7 `(B, 4096 * width)` after ReLU and dropout (in evaluation: after its scaling)."""
        x = self.features(images)
        # Channel-major, so that the first half of fc6's columns belongs to the first tower.
        x = self.dropout(self.relu(self.fc6(torch.flatten(x, 1))))
        units: Tensor = self.dropout(self.relu(self.fc7(x)))
        return units

    def features(self, images: Tensor) -> Tensor:
        """Maps `(B, 256 * width, 6, 6)` behind the fifth layer's pooling."""
        x = self.pool(self.norm(self.relu(self.conv1(self.edge(images)))))  # 55 -> 27
        x = self.pool(self.norm(self.relu(self.conv2(x))))  # 27 -> 13
        x = self.relu(self.conv3(x))
        x = self.relu(self.conv4(x))
        maps: Tensor = self.pool(self.relu(self.conv5(x)))  # 13 -> 6
        return maps

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw fresh weights according to `config.init`."""
        generator = torch.Generator().manual_seed(seed)
        rule = INITIALISATIONS[self.config.init]
        for name, layer in self.named_children():
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            std = rule.layer_std.get(name, rule.std)
            if std is None:
                std = math.sqrt(1.0 / layer.weight[0].numel())
            # Drawn on the CPU, so that a seed means the same weights on every device.
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
            assert layer.bias is not None
            layer.bias.fill_(rule.layer_bias.get(name, rule.bias))
