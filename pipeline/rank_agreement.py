"""All ranks of a job compare, once, what must be equal on all of them: one rank with other options spoils the run.

A rank with another seed, dataset or batch size trains without any error on samples that others train on too, or waits
for ever at the end of the epoch. So the loaders of a job agree before the first batch, or none of them is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import distributed

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.torchrun_variables import torchrun_number

Gather = Callable[[dict[str, Any]], list[dict[str, Any]]]
"""Gives every rank what each rank gave."""


def rank_and_world_size() -> tuple[int, int]:
    """This process among those of its job: as the default process group knows it, or else torchrun's environment.

    A job that was started without torchrun (`torch.multiprocessing.spawn`, Slurm, MPI) has the group alone.

    Raises:
        ConfigError: RANK or WORLD_SIZE is no number.
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return torchrun_number("RANK", 0), torchrun_number("WORLD_SIZE", 1)


def process_group_gather(world_size: int, device: torch.device) -> Gather | None:
    """How the ranks of a loader can talk: the default process group, or None where there is none to ask.

    There is none for one rank, before `torch.distributed.init_process_group`, and when the group has another size than
    the loader's world (a loader for part of a job, whose other part may never call).

    Args:
        world_size: of the loader.
        device: of the loader; where NCCL moves the values.
    """
    if world_size < 2 or not (distributed.is_available() and distributed.is_initialized()):
        return None
    if distributed.get_world_size() != world_size:
        return None

    def gather(mine: dict[str, Any]) -> list[dict[str, Any]]:
        gathered: list[Any] = [None] * world_size
        # NCCL would take each process's current GPU, which is number 0 on all of them unless somebody said otherwise.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            distributed.all_gather_object(gathered, mine)
        return gathered

    return gather


def require_agreement(rank: int, facts: Mapping[str, Any], gather: Gather) -> None:
    """Compare facts with all other ranks; every rank must call this.

    Args:
        rank: this loader's; each must be there once.
        facts: name to value; dataclasses are compared field by field.
        gather: from `process_group_gather`.

    Raises:
        ConfigError: on every rank, if any differs: names each rank's value.
    """
    everyone = gather({"rank": rank, "facts": _flat(facts)})
    ranks = [one["rank"] for one in everyone]
    if sorted(ranks) != list(range(len(ranks))):
        raise ConfigError(
            f"the {len(ranks)} processes of this job make loaders for ranks {ranks}, expected each of "
            f"0..{len(ranks) - 1} once: give each process its own rank"
        )
    in_order = [one["facts"] for one in sorted(everyone, key=lambda one: int(one["rank"]))]
    names = list(dict.fromkeys(name for one in in_order for name in one))
    absent = "nothing"
    values = {name: [one.get(name, absent) for one in in_order] for name in names}
    different = [f"{name} is {_shown(found)}" for name, found in values.items() if len(set(found)) > 1]
    if different:
        raise ConfigError(
            f"ranks disagree: {'; '.join(different)}: start all ranks with the same options, data and lmdali"
        )


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    """Values as text, so that ranks with different versions can still compare."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            flat |= {f"{name}.{key}": repr(item) for key, item in dataclasses.asdict(value).items()}
        else:
            flat[name] = value if isinstance(value, str) else repr(value)
    return flat


def _shown(values: list[str]) -> str:
    """`0 on rank 0, 1 on ranks 1, 2`."""
    parts = []
    for value in dict.fromkeys(values):
        ranks = [str(rank) for rank, found in enumerate(values) if found == value]
        shown = ", ".join(ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
        parts.append(f"{value} on rank{'s' if len(ranks) > 1 else ''} {shown}")
    return ", ".join(parts)
