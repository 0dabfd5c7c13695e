"""How a network is trained: `TrainConfig`, the paper's settings by default."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from lmdali.model.layer_rates import parse_layer_rates
from lmdali.model.schedule import FixedCuts, create_schedule
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.whole_number import check_choices, require_finite_fields

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained; the defaults are the paper's (section 5).

    Attributes:
        epochs: passes over the training set, at most; a schedule may stop earlier.
        lr: base learning rate of weights, and of biases too without `bias_lr`.
        bias_lr: base learning rate of biases; None: as the weights.
        momentum: of the paper's update rule.
        weight_decay: of weights.
        bias_decay: decay biases too.
        schedule: see `schedule.create_schedule`.
        bias_schedule: of biases, if they have one of their own; not plateau. None: as the weights.
        layer_lr: rates of single layers, see `layer_rates.parse_layer_rates`.
        label_smoothing: 0..1, share of the target spread over all classes.
        seed: of the initial weights, the dropout masks, and the loader's order and draws.
        precision: `float32` or `bfloat16` (autocast; weights, updates and losses stay float32).
        channels_last: memory format; the same numbers up to rounding, half again as fast on a CPU.
        cuda_graph: on one GPU, capture the step and replay it; the same arithmetic, without the time between kernels.
        log_steps: steps between two `step` lines in the metrics file.
        checkpoint_seconds: time between two checkpoints inside an epoch; 0 for none. Each epoch ends with one anyway.
        checkpoint_steps: the same, counted in steps; 0 for none.
        keep_checkpoints: newest checkpoints that are kept, besides the best one.
        tensorboard: also write TensorBoard events.
    """

    epochs: int = 90
    lr: float = 0.01
    bias_lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_decay: bool = False
    schedule: str = "plateau"
    bias_schedule: str | None = None
    layer_lr: str = ""
    label_smoothing: float = 0.0
    seed: int = 0
    precision: str = "float32"
    channels_last: bool = True
    cuda_graph: bool = True
    log_steps: int = 20
    checkpoint_seconds: float = 600.0
    checkpoint_steps: int = 0
    keep_checkpoints: int = 3
    tensorboard: bool = False

    def __post_init__(self) -> None:
        require_finite_fields(self)
        if self.epochs < 1 or self.log_steps < 1 or self.keep_checkpoints < 1:
            raise ConfigError(
                "epochs, log_steps and keep_checkpoints must be at least 1, "
                f"found {self.epochs}, {self.log_steps} and {self.keep_checkpoints}"
            )
        if not self.lr > 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ConfigError(
                "training needs lr > 0, 0 <= momentum < 1 and weight_decay >= 0, "
                f"found {self.lr}, {self.momentum} and {self.weight_decay}"
            )
        if not 0 <= self.label_smoothing < 1 or self.checkpoint_seconds < 0 or self.checkpoint_steps < 0:
            raise ConfigError("label_smoothing must be in 0..1, checkpoint_seconds and checkpoint_steps at least 0")
        check_choices(self, {"precision": PRECISIONS})
        if self.bias_lr is not None and not self.bias_lr > 0:
            raise ConfigError(f"bias_lr must be over 0, or none to follow the weights; found {self.bias_lr}")
        create_schedule(self.schedule, self.epochs)
        if self.bias_schedule is not None:
            if self.bias_schedule.partition(":")[0] == "plateau":
                raise ConfigError("bias_schedule cannot be a plateau of its own: leave it out to follow the weights'")
            biases = create_schedule(self.bias_schedule, self.epochs)
            if isinstance(biases, FixedCuts) and biases.stop is not None:
                raise ConfigError(f"bias_schedule {self.bias_schedule!r} cannot stop a run: leave out :{biases.stop}")
        parse_layer_rates(self.layer_lr)

    def to_json(self) -> dict[str, Any]:
        """All fields, for checkpoints and reports."""
        return dataclasses.asdict(self)
