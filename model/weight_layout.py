"""Weights and velocities by name in the one-device layout, whatever devices they are on: what checkpoints hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Every weight and bias by name, in the one-device layout."""
    return dict(network.state_dict())


def velocities_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The momentum of each parameter that has been updated, by the parameter's name, in the one-device layout."""
    return {
        name: optimizer.state[parameter]["velocity"]
        for name, parameter in network.named_parameters()
        if "velocity" in optimizer.state.get(parameter, {})
    }


@torch.no_grad()
def load_layout(
    network: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], velocities: dict[str, Tensor]
) -> None:
    """Give a network and its optimiser what `weights_of` and `velocities_of` found; the inverse of both.

    Raises:
        RuntimeError: the weights are of another network.
    """
    network.load_state_dict(weights)
    optimizer.state.clear()
    for name, parameter in network.named_parameters():
        if name in velocities:
            optimizer.state[parameter]["velocity"] = torch.empty_like(parameter).copy_(velocities[name])
