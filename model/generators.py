"""The states of torch's random generators, from which dropout masks come."""

from __future__ import annotations

import torch
from torch import Tensor


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """States of the CPU's generator and of `device`'s, by device kind: `(n,)` uint8."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Put the generators back to where `generator_states` found them.

    A run that moves between CPU and GPU goes on with the generator of its new device as it is: such a run cannot be
    repeated bit for bit anyway.
    """
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
