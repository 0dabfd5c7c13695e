"""Weights and velocities by name in the one-device layout, whatever devices they are on: what checkpoints hold."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from lmdali.model.alexnet import AlexNet
from lmdali.model.towers import TowerAlexNet, merge_state, split_state

Network: TypeAlias = AlexNet | TowerAlexNet
"""What can be trained: the network on one device, or its towers on two."""


def weights_of(network: Network) -> dict[str, Tensor]:
    """Every weight and bias by name, in the one-device layout and its order."""
    return _merged(network, dict(network.state_dict()))


def velocities_of(network: Network, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The momentum of each parameter that has been updated, by the parameter's name, in the one-device layout."""
    velocities = {
        name: optimizer.state[parameter]["velocity"]
        for name, parameter in network.named_parameters()
        if "velocity" in optimizer.state.get(parameter, {})
    }
    return _merged(network, velocities)


@torch.no_grad()
def load_layout(
    network: Network, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], velocities: dict[str, Tensor]
) -> None:
    """Give a network and its optimiser what `weights_of` and `velocities_of` found; the inverse of both.

    Raises:
        InputError: the weights are of another network than these two towers.
        RuntimeError: the weights are of another network than this one.
    """
    if isinstance(network, TowerAlexNet):
        weights, velocities = split_state(weights, network.config), split_state(velocities, network.config)
    network.load_state_dict(weights)
    optimizer.state.clear()
    for name, parameter in network.named_parameters():
        if name in velocities:
            optimizer.state[parameter]["velocity"] = torch.empty_like(parameter).copy_(velocities[name])


def _merged(network: Network, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return merge_state(tensors, network.config) if isinstance(network, TowerAlexNet) else tensors
