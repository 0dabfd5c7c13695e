"""The states of torch's random generators, from which dropout masks come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmdali.pipeline.sampler import round_keys


def seed_generators(seed: int, *, rank: int = 0, step: int = 0) -> None:
    """Begin every generator of this process anew: at the run's seed on rank 0, apart from it on every other one.

    Args:
        seed: of the run.
        rank: ranks with equal masks would drop the same units for all their parts of a batch.
        step: where a rank begins that a resumed run did not have before.
    """
    torch.manual_seed(int(round_keys(seed, rank, step)[0]) if rank or step else seed)


def generator_states(devices: Sequence[torch.device]) -> dict[str, Tensor]:
    """States of the CPU's generator and of each GPU's: `(n,)` uint8 by "cpu", "cuda", and "cuda.1" for a second one."""
    states = {"cpu": torch.get_rng_state()}
    for name, device in _gpus(devices):
        states[name] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Tensor], devices: Sequence[torch.device]) -> None:
    """Put the generators back to where `generator_states` found them.

    A run that moves between CPU and GPU goes on with the generator of its new device as it is: such a run cannot be
    repeated bit for bit anyway.
    """
    torch.set_rng_state(states["cpu"])
    for name, device in _gpus(devices):
        if name in states:
            torch.cuda.set_rng_state(states[name], device)


def _gpus(devices: Sequence[torch.device]) -> list[tuple[str, torch.device]]:
    gpus = [device for device in dict.fromkeys(devices) if device.type == "cuda"]
    return [(f"cuda.{place}" if place else "cuda", device) for place, device in enumerate(gpus)]
