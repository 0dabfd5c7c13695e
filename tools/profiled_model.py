"""The model that a profile trains: on its device, and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.layer_plan import layer_plans
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.parallel import Notice, Ranks, SharedFigures
from lmdali.model.train_config import TrainConfig
from lmdali.model.train_step import TrainStep
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import DType
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.errors import ConfigError

_LEARNING_RATE = 1e-6
"""Costs what any other does, and leaves the weights where no number of steps on one batch finds an infinity."""

CROP_SIZE = AugmentConfig.crop_size
"""Side of the images that the AlexNet takes, pixels."""

AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""What a step computes in, by the dtype of its images; float32 for others."""


def require_trainable(model: object, augment: AugmentConfig | None) -> None:
    """A training step has one label an image, and an AlexNet patches of its size.

    Raises:
        ConfigError: a model, and images that it cannot be trained on.
    """
    if model is None or augment is None:
        return
    otherwise = "measure the loader only, with --no-model (model=None in Python)"
    if augment.num_views > 1:
        raise ConfigError(f"training steps take one view of an image, found {augment.num_views}: {otherwise}")
    sides = (augment.crop_size, CROP_SIZE)
    found, needed = (layer_plans(AlexNetConfig(), image_size=side)["fc6"].inputs for side in sides)
    if not isinstance(model, nn.Module) and found != needed:
        raise ConfigError(f"an AlexNet takes crops of {CROP_SIZE}, found crop_size {augment.crop_size}: {otherwise}")


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


def kept_generators(device: torch.device) -> AbstractContextManager[None]:
    """A context after which random numbers go on as if a profile had drawn none, on the CPU and on this device.

    Of this one alone: unless told, torch begins to use every GPU of the machine for that, and takes memory on each.
    """
    kept: AbstractContextManager[None] = torch.random.fork_rng([device] if device.type == "cuda" else [])
    return kept


class PacedStep:
    """A step whose caller is one step ahead of the device, as the trainer is, and no more.

    Without such a bound a loop that waits for nothing runs ahead of a GPU for as long as it is measured: each batch
    that it takes along is fresh memory, and the decoding threads are asked for batches that nobody needs yet.

    Args:
        step: done with each batch; its figures come back on the device.
        device: of the step.
    """

    def __init__(self, step: Callable[[Batch], Tensor], device: torch.device) -> None:
        self._step, self._ranks = step, Ranks(device=device)
        self._before: SharedFigures | None = None

    def __call__(self, batch: Batch) -> SharedFigures:
        """Begin a step, then wait for the one before it; the figures of this one are on their way."""
        figures = self._ranks.share(self._step(batch), Notice())
        if self._before is not None:
            self._before.wait()
        self._before = figures
        return figures


def training_step(model: nn.Module, *, dtype: DType, device: torch.device, cuda_graph: bool = True) -> PacedStep:
    """What the trainer does with a batch, as it does it by default; without a graph where ranks average gradients."""
    precision, optimizer = AUTOCAST.get(dtype, torch.float32), resting_optimizer(model)
    return PacedStep(TrainStep(model, optimizer, device=device, precision=precision, cuda_graph=cuda_graph), device)


def resting_optimizer(model: nn.Module) -> PaperSGD:
    """The paper's rule at a rate that leaves the weights nearly what they are."""
    return PaperSGD(parameter_groups(model, TrainConfig(weight_decay=0.0)), _LEARNING_RATE)
