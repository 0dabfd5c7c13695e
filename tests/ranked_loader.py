"""A `MemoryLoader` for one of several ranks, and how a test starts ranks."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from memory_loader import MemoryLoader
from torch import distributed

from lmdali.model.parallel import Ranks, process_group
from lmdali.model.torchrun import torchrun_place
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.loader_state import STATE_VERSION, LoaderState
from lmdali.pipeline.sampler import RankSlice
from lmdali.tools.exit_codes import run_command

CPU = torch.device("cpu")


class RankedLoader(MemoryLoader):
    """`batch_size` is that of all ranks; states and digests are as those of the real loader."""

    def __init__(self, num_samples: int, ranks: Ranks, *, batch_size: int = 8, **fields: Any) -> None:
        super().__init__(num_samples, batch_size=batch_size, **fields)
        self.slice = RankSlice(
            num_samples, batch_size // ranks.world_size, ranks.rank, ranks.world_size, drop_last=self._shuffle
        )

    def __iter__(self) -> Iterator[Batch]:
        epoch, start, order = self._begin()
        steps = self.slice.num_steps(start)
        for step in range(steps):
            places = self.slice.positions(step, start)
            self.before_batch(epoch, start + step * self.slice.global_batch_size)
            indices = order[places]
            self._position = self.slice.position_after(step, start)
            self._digest += sum(
                (place + 1) * (index + 1) for place, index in zip(places.tolist(), indices.tolist(), strict=True)
            )
            if step == steps - 1:
                self._epoch, self._position = epoch + 1, 0
            images = self._images(indices) if len(indices) else torch.empty(0, 3, self._size, self._size)
            yield Batch(images, indices % len(self.class_names), indices)

    def state_dict(self) -> dict[str, Any]:
        return LoaderState(
            epoch=self._epoch,
            sample_in_epoch=self._position,
            seed=0,
            num_samples=self.num_samples,
            manifest_digest=self.manifest_digest,
            order="shuffled",
            rank=self.slice.rank,
            world_size=self.slice.world_size,
            epoch_digest=self._digest if self._position else 0,
        ).to_json()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["state_version"] == STATE_VERSION
        given = LoaderState.parse(state)
        self._epoch, self._position = given.epoch, given.sample_in_epoch
        digest = given.digest_for(self.slice.rank, self.slice.world_size)
        assert digest is not None, "checkpoints have the digest of all ranks"
        self._start, self._digest = self._position, digest


def start_ranks(
    world_size: int, work: Callable[..., None], *arguments: object, timeout_seconds: float = 200, meet: bool = True
) -> list[int | None]:
    """Exit codes of processes that do `work(ranks, *arguments)`, by rank, in the environment that torchrun makes.

    With meet=False they do `work(*arguments)` and meet by themselves. Either way in a store of this process, which
    outlives them, like torchrun's: nobody else can take its port before they come, as one that was only looked for.
    """
    # Forked from a process that has torch but never used it: a start costs nothing, and no thread is lost.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lmdali.model.trainer", "torch._dynamo"])  # the optimiser imports the second
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = (world_size, store.port, timeout_seconds if meet else None, work, arguments)
    processes = [context.Process(target=_be_rank, args=(rank, *job)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(250)
        process.kill()
        process.join()
    del store
    return [process.exitcode for process in processes]


def _be_rank(
    rank: int,
    world_size: int,
    port: int,
    timeout_seconds: float | None,
    work: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }

    def main() -> None:
        if timeout_seconds is None:
            work(*arguments)
            return
        with process_group(torchrun_place("ddp"), CPU, timeout_seconds=timeout_seconds) as ranks:
            work(ranks, *arguments)

    sys.exit(run_command(main))
