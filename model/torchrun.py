"""What torchrun says of this process: which rank it is of how many, and on which machine's device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.torchrun_variables import torchrun_number

Parallel = Literal["none", "towers", "ddp"]
"""How devices share the work: one device; two devices with a tower each; one process per device, each with all of the
network and its part of every batch."""

LAUNCH = "torchrun --nproc-per-node 2 -m lmdali.tools COMMAND ... --parallel ddp"
"""How a job of two ranks on one machine is started; more machines need torchrun's own options only."""


@dataclass(frozen=True)
class TorchrunPlace:
    """A process among those that torchrun started.

    Attributes:
        rank: 0 to world_size - 1; rank 0 writes what the job leaves behind.
        world_size: processes of the job, on all machines.
        local_rank: this process among those of its machine.
        local_world_size: processes on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    def share_of(self, batch_size: int) -> int:
        """This rank's part of a global batch, samples.

        Raises:
            ConfigError: it cannot be divided equally; then the mean of the ranks' means would not be the batch's.
        """
        share, rest = divmod(batch_size, self.world_size)
        if rest or not share:
            near = " or ".join(str(self.world_size * count) for count in (share, share + 1) if count)
            raise ConfigError(
                f"a batch of {batch_size} cannot be divided equally among {self.world_size} ranks: use -b {near}"
            )
        return share


def torchrun_place(parallel: Parallel, environment: Mapping[str, str] = os.environ) -> TorchrunPlace:
    """The place that torchrun's variables name; without `ddp` the only place there is.

    Args:
        parallel: how the caller means to train.
        environment: where RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE are.

    Raises:
        ConfigError: `ddp` without torchrun, several processes without `ddp`, or variables that are no such numbers.
    """
    if parallel != "ddp":
        if torchrun_number("WORLD_SIZE", 1, environment) > 1:
            raise ConfigError(
                f"torchrun started {environment['WORLD_SIZE']} processes, and with --parallel {parallel} each of them "
                "would do all of the work by itself: add --parallel ddp, or start one process without torchrun"
            )
        return TorchrunPlace()
    if "RANK" not in environment:
        raise ConfigError(
            f"--parallel ddp needs one process per device, and this one was not started by torchrun: {LAUNCH}"
        )
    rank, world_size = torchrun_number("RANK", 0, environment), torchrun_number("WORLD_SIZE", 1, environment)
    local_rank = torchrun_number("LOCAL_RANK", rank, environment)
    local_world_size = torchrun_number("LOCAL_WORLD_SIZE", world_size, environment)
    place = TorchrunPlace(rank, world_size, local_rank, local_world_size)
    if not rank < world_size or not local_rank < place.local_world_size <= world_size:
        raise ConfigError(
            f"the environment says rank {rank} of {world_size}, local rank {local_rank} of {place.local_world_size}: "
            f"let torchrun set it: {LAUNCH}"
        )
    return place
