"""Which learning rate each parameter has at which point of the training: `LearningRates`."""

from __future__ import annotations

import torch

from lmdali.model.layer_rates import LayerRate, parse_layer_rates, rate_at, rates_of
from lmdali.model.schedule import Schedule, create_schedule
from lmdali.model.train_config import TrainConfig


class LearningRates:
    """The rates of weights and biases, and of the layers that have rates of their own.

    Weights follow `lr` times `schedule`, and biases do as they do, unless `bias_lr` or `bias_schedule` says otherwise:
    Caffe's biases learn at twice the rate of the weights all along, those of the released run #145 at 0.02 to the end,
    while its weights go from 0.01 to 1e-5. `layer_lr` then changes single layers, see `LayerRate`; a rate given there
    is for weights, and for biases only where these follow the weights.

    It has no state beyond the schedule's: the rates are a function of the position, so a resumed run has them at once.

    Args:
        config: rates and texts.
        schedule: of the weights, as the training has moved it.

    Raises:
        ConfigError: a text that means nothing.
    """

    def __init__(self, config: TrainConfig, schedule: Schedule) -> None:
        self._config, self._schedule = config, schedule
        self._bias_schedule = (
            schedule if config.bias_schedule is None else create_schedule(config.bias_schedule, config.epochs)
        )
        self._rates = parse_layer_rates(config.layer_lr)

    def apply(self, optimizer: torch.optim.Optimizer, epoch: float) -> float:
        """Set `lr` and `frozen` of every group that `optim.parameter_groups` made.

        Args:
            optimizer: with these groups.
            epoch: position in fractional epochs: 1.5 is half-way through the second epoch.

        Returns:
            The rate of weights without one of their own: what a log shows.
        """
        config = self._config
        weights = config.lr * self._schedule.factor(epoch)
        biases = (config.lr if config.bias_lr is None else config.bias_lr) * self._bias_schedule.factor(epoch)
        for group in optimizer.param_groups:
            layer, is_bias = group["layer"], group["kind"] == "biases"
            rule = rate_at(rates_of(self._rates, layer), epoch)
            group["frozen"] = rule is not None and rule.kind == "frozen"
            group["lr"] = self._ruled(biases if is_bias else weights, rule, is_bias=is_bias)
        return weights

    def _ruled(self, rate: float, rule: LayerRate | None, *, is_bias: bool) -> float:
        if rule is not None and rule.kind == "factor":
            return rate * rule.value
        follows = self._config.bias_lr is None and self._config.bias_schedule is None
        if rule is not None and rule.kind == "rate" and (not is_bias or follows):
            return rule.value
        return rate
