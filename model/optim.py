"""The paper's update rule, and which parameters it decays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from lmdali.model.device import has_gpu_kernels
from lmdali.pipeline.errors import ConfigError


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
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            self.load_rates()
        for number, group in enumerate(self.param_groups):
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights or group["frozen"]:
                continue
            lr = group["lr"]
            velocities = [self._velocity(weight) for weight in weights]
            if has_gpu_kernels(weights[0].device):
                self._step_on_gpu(number, group, weights, velocities)
                continue
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, [weight.grad for weight in weights], alpha=-lr)
            if group["weight_decay"]:
                torch._foreach_add_(velocities, weights, alpha=-lr * group["weight_decay"])
            torch._foreach_add_(weights, velocities)
        return loss

    def load_rates(self) -> None:
        """Bring the groups' learning rates to the GPUs, where the kernels read them, a replayed CUDA graph's too."""
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


def parameter_groups(model: nn.Module, *, weight_decay: float, bias_decay: bool = False) -> list[dict[str, Any]]:
    """Two groups, `weights` and `biases`, in the order of `model.named_parameters()`.

    Args:
        model: any module; parameters of fewer than two dimensions count as biases.
        weight_decay: decay of the weights.
        bias_decay: decay the biases too; the original code does not.
    """
    weights = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    biases = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [
        {"name": "weights", "params": weights, "weight_decay": weight_decay},
        {"name": "biases", "params": biases, "weight_decay": weight_decay if bias_decay else 0.0},
    ]
