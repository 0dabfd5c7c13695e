"""Dropout by three rules: as printed in 2012, as torch has it, and as the original code does without its masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmdali.model.alexnet_config import DROPOUT_RULES
from lmdali.pipeline.errors import ConfigError


class Dropout(nn.Module):
    """Dropout of units with probability `rate`, kept units times a factor.

    * `paper` (section 4.2): masks while training; all outputs times `1 - rate` at test time.
    * `inverted` (torch, Caffe): masks and a division by `1 - rate` while training; nothing at test time.
    * `scale_only`: no masks, all outputs times `1 - rate` always; what the original code does when its dropout is
      switched off, so that its weights keep their scale.

    The expectations of the first two agree, the training dynamics do not: next to `paper`, the layer that follows
    `inverted` would need half the weights, a quarter of the learning rate and four times the decay (at rate 0.5).

    Args:
        rate: probability that a unit is dropped, 0 to below 1.
        rule: `paper`, `inverted` or `scale_only`.
    """

    def __init__(self, rate: float = 0.5, rule: str = "paper") -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"a dropout rate must be at least 0 and below 1, found {rate}")
        if rule not in DROPOUT_RULES:
            raise ConfigError(f"a dropout rule is one of {', '.join(DROPOUT_RULES)}, found {rule!r}")
        self.rate, self.rule = rate, rule

    def forward(self, units: Tensor) -> Tensor:
        """Mask or scale `units` of any shape; the masks come from torch's generator."""
        return self.masked(units, self.draw(units.shape, units.device))

    def draw(self, shape: torch.Size, device: torch.device) -> Tensor | None:
        """A mask for this mode and rule: bool on `device`, True for units that stay; None where nothing is dropped."""
        if self.rate == 0.0 or not self.training or self.rule == "scale_only":
            return None
        return torch.rand(shape, dtype=torch.float32, device=device) >= self.rate

    def masked(self, units: Tensor, mask: Tensor | None) -> Tensor:
        """`units` under a mask of `draw`, which may be a part of a larger one, times the rule's factor."""
        kept = 1.0 - self.rate
        if mask is not None:
            return units * mask if self.rule == "paper" else units * mask / kept
        return units if self.rule == "inverted" or self.rate == 0.0 else units * kept

    def extra_repr(self) -> str:
        """The arguments, for `print(model)`."""
        return f"rate={self.rate}, rule={self.rule}"
