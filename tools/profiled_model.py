"""The model that a profile trains: on its device, and one step of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.train_config import TrainConfig
from lmdali.model.train_step import TrainStep
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import DType

_LEARNING_RATE = 1e-6
"""Costs what any other does, and leaves the weights where no number of steps on one batch finds an infinity."""

CROP_SIZE = AugmentConfig.crop_size
"""Side of the images that the AlexNet takes, pixels."""

_AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def place_model(
    model: nn.Module | Literal["alexnet"] | None, *, num_classes: int, width: float, device: torch.device
) -> nn.Module | None:
    """The model on its device, ready for training; None stays None."""
    if model is None:
        return None
    if not isinstance(model, nn.Module):
        model = AlexNet(AlexNetConfig(num_classes=max(num_classes, 2), width=width))
    placed: nn.Module = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed.train()


def training_step(
    model: nn.Module, optimizer: PaperSGD, *, dtype: DType, device: torch.device, cuda_graph: bool = True
) -> TrainStep:
    """What the trainer does with a batch, as it does it by default; without a graph where ranks average gradients."""
    precision = _AUTOCAST.get(dtype, torch.float32)
    return TrainStep(model, optimizer, device=device, precision=precision, cuda_graph=cuda_graph)


def resting_optimizer(model: nn.Module) -> PaperSGD:
    """The paper's rule at a rate that leaves the weights nearly what they are."""
    return PaperSGD(parameter_groups(model, TrainConfig(weight_decay=0.0)), _LEARNING_RATE)
