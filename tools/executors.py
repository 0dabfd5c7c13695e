"""Who gets the shards of a conversion done: processes of this machine, or a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Protocol, get_args

from lmdali.pipeline.errors import ConfigError
from lmdali.tools.conversion import ShardJob
from lmdali.tools.dask_executor import DaskExecutor
from lmdali.tools.shard_pool import ShardPool
from lmdali.tools.worker_limits import WorkerLimits

ExecutorName = Literal["local", "dask"]
EXECUTORS: tuple[ExecutorName, ...] = get_args(ExecutorName)


class ShardExecutor(Protocol):
    """Does the shards of a conversion, in any order: their bytes do not depend on who makes them."""

    def run(self, jobs: Iterator[ShardJob], progress: Callable[[int], None]) -> None:
        """Do all jobs; `progress` receives the number of sources done so far.

        Raises:
            LmdaliError: what ended the work; finished shards stay.
        """
        ...


def make_executor(
    name: ExecutorName = "local",
    *,
    workers: int | None = None,
    limits: WorkerLimits | None = None,
    scheduler: str | None = None,
) -> ShardExecutor:
    """An executor by its name on the command line.

    Args:
        name: "local" for processes of this machine, which set bad images aside one by one; "dask" for a cluster.
        workers: processes on this machine; None means every CPU this process may use.
        limits: of time and memory per image, for the local executor; None means those of `WorkerLimits`.
        scheduler: address of a running Dask cluster; None starts one on this machine.

    Raises:
        ConfigError: options that do not go together.
        MissingExtraError: Dask is not installed.
    """
    if name == "dask":
        if scheduler is not None and workers is not None:
            raise ConfigError(
                "--workers is for this machine, a cluster has its own: leave out --workers or --scheduler"
            )
        if limits is not None:
            raise ConfigError(
                "--time-limit and --memory-limit are for --executor local, a Dask worker keeps neither: leave them out"
            )
        return DaskExecutor(workers, scheduler)
    if scheduler is not None:
        raise ConfigError("--scheduler is for --executor dask: add that, or leave it out")
    return ShardPool(workers, limits)
