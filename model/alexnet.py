"""The network of the paper, and its relatives, on one device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmdali.model import fused_features
from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.dropout import Dropout
from lmdali.model.initialisation import INITIALISATIONS, initial_parameters
from lmdali.model.layer_plan import IMAGE_SIZE_PIXELS, feature_steps, layer_plans, weightless_steps

__all__ = ["IMAGE_SIZE_PIXELS", "INITIALISATIONS", "AlexNet", "AlexNetConfig"]


class AlexNet(nn.Module):
    """Five convolutional and three fully connected layers (paper section 3.5), both towers on one device.

    The towers are the two groups of conv2, conv4 and conv5; conv3 and the fully connected layers read both. At width 1
    with 1000 classes there are 60,965,224 parameters. Layers that the configuration leaves out are not there.

    Under `torch.device("meta")` it has shapes and no weights, at no cost.

    Args:
        config: see `AlexNetConfig`.
        seed: the initial weights are a function of `config` and `seed` alone.
    """

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    conv4: nn.Conv2d
    conv5: nn.Conv2d
    conv6: nn.Conv2d
    fc6: nn.Linear
    fc7: nn.Linear
    fc8: nn.Linear
    relu: nn.ReLU

    def __init__(self, config: AlexNetConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        for name, plan in layer_plans(config).items():
            self.add_module(name, plan.build())
        for name, step in weightless_steps(config, groups=config.groups).items():
            self.add_module(name, step)
        self.dropout = Dropout(config.dropout, config.dropout_rule)
        self._steps = feature_steps(config)
        self.reset_parameters(seed)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of `(B, 3, 224, 224)` images (or 227 x 227): RGB, 0..255 minus the mean."""
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
        """Maps `(B, 256 * width, 6, 6)` that fc6 sees; `feature_steps` says what happens on the way."""
        if fused_features.suits(self, images):
            return fused_features.features(self, self.config, images)
        x = images
        for step in self._steps:
            x = self.get_submodule(step)(x)
        return x

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draw fresh weights according to `config.init`."""
        if self.fc8.weight.is_meta:
            return
        shapes = {name: plan.weight_shape for name, plan in layer_plans(self.config).items()}
        for name, value in initial_parameters(self.config.init, shapes, seed):
            self.get_parameter(name).copy_(value)
