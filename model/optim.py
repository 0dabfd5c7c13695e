"""The paper's update rule, and which parameters share rates and decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from lmdali.model.layer_rates import LayerRate, parse_layer_rates, rates_of
from lmdali.model.train_config import TrainConfig
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.gpu_kernels import has_gpu_kernels


class PaperSGD(torch.optim.Optimizer):
    """Stochastic gradient descent with momentum as printed in section 5 of the paper.

    `v <- momentum * v - weight_decay * lr * w - lr * g`, `w <- w + v`.

    The velocity carries the learning rate. `torch.optim.SGD` multiplies by it last, so the two agree while the rate is
    constant and part at every change: after a cut to a tenth, this rule's weights still travel on by the old velocity,
    `momentum / (1 - momentum)` times as far in all as the last step, and torch's a tenth of that.

    Groups may set `lr`, `momentum`, `weight_decay`, and `frozen=True`, which leaves weights *and* velocity untouched.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, at least 0.
        momentum: 0 to below 1.
        weight_decay: at least 0.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.01,
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1:
            raise ConfigError(
                "the update rule needs lr >= 0, weight decay >= 0 and 0 <= momentum < 1, "
                f"found {lr}, {weight_decay} and {momentum}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "frozen": False})
        self._rates: dict[tuple[int, torch.device], tuple[float, Tensor]] = {}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.load_rates()
        for number, group in enumerate(self.param_groups):
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights or group["frozen"]:
                continue
            lr = group["lr"]
            velocities = [self._velocity(weight) for weight in weights]
            if has_gpu_kernels(weights[0].device) and all(weight.dtype == torch.float32 for weight in weights):
                self._step_on_gpu(number, group, weights, velocities)
                continue
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, [weight.grad for weight in weights], alpha=-lr)
            if group["weight_decay"]:
                torch._foreach_add_(velocities, weights, alpha=-lr * group["weight_decay"])
            torch._foreach_add_(weights, velocities)
        return loss

    def load_rates(self) -> None:
        """Bring learning rates that changed to the GPUs, where the kernels read them.

        `step` does so itself; whoever replays a captured step calls this before, and before the capture: then `step`
        finds nothing to bring, and the graph has no rate built in.
        """
        for number, group in enumerate(self.param_groups):
            for device in {weight.device for weight in group["params"] if has_gpu_kernels(weight.device)}:
                known = self._rates.get((number, device))
                if known is None:
                    known = (float("nan"), torch.empty((), device=device))
                if known[0] != group["lr"]:
                    known[1].fill_(group["lr"])
                self._rates[number, device] = (group["lr"], known[1])

    def constants(self) -> tuple[Any, ...]:
        """Everything but the rates that a step has built in: a captured graph is valid as long as it is the same."""
        return tuple((group["momentum"], group["weight_decay"], group["frozen"]) for group in self.param_groups)

    def _step_on_gpu(self, number: int, group: dict[str, Any], weights: list[Tensor], velocities: list[Tensor]) -> None:
        from lmdali.model.update_kernel import update  # Triton is there where `has_gpu_kernels` says so

        for weight, velocity in zip(weights, velocities, strict=True):
            assert weight.grad is not None
            gradient = weight.grad
            if gradient.stride() != weight.stride():
                gradient = torch.empty_like(weight).copy_(gradient)
            rate = self._rates[number, weight.device][1]
            update(weight, velocity, gradient, rate, group["momentum"], group["weight_decay"])

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity: Tensor = state["velocity"]
        return velocity


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """As few groups as rates and weight decay need: weights, biases, and those of layers with rates of their own.

    Each has `layer`, the first of its layers, and `kind`, `weights` or `biases`; within a group parameters are in the
    order of `model.named_parameters()`. Weights without a rate of their own come first, then such biases.

    Args:
        model: any module; the first part of a parameter's name is its layer, and parameters of fewer than two
            dimensions count as biases.
        config: its `weight_decay` is for weights, and for biases if `bias_decay`; the original code decays none.

    Raises:
        ConfigError: `layer_lr` names a layer that the model does not have.
    """
    rates = parse_layer_rates(config.layer_lr)
    named = [(name.partition(".")[0], weight) for name, weight in model.named_parameters() if weight.requires_grad]
    _require_layers(rates, list(dict.fromkeys(layer for layer, _ in named)))
    groups: dict[tuple[tuple[LayerRate, ...], str], dict[str, Any]] = {}
    for kind, decay in (
        ("weights", config.weight_decay),
        ("biases", config.weight_decay if config.bias_decay else 0.0),
    ):
        for layer, weight in named:
            if (weight.ndim < 2) == (kind == "biases"):
                fresh = {"layer": layer, "kind": kind, "weight_decay": decay, "params": []}
                groups.setdefault((rates_of(rates, layer), kind), fresh)["params"].append(weight)
    return [groups[key] for key in sorted(groups, key=lambda key: len(key[0]) > 0)]


def _require_layers(rates: tuple[LayerRate, ...], layers: list[str]) -> None:
    for rate in rates:
        if not set(rate.layers) & set(layers):
            raise ConfigError(f"layer_lr names {', '.join(rate.layers)}, the network has {', '.join(layers)}")
