"""Shards made by the workers of a Dask cluster: one of this machine, or any that shares its file systems."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice
from typing import Any

from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.errors import LmdaliError, MachineError, MissingExtraError
from lmdali.pipeline.release import lmdali_version
from lmdali.tools.conversion import ShardJob
from lmdali.tools.dask_shard import (
    LOCAL_HINT,
    Surroundings,
    installed_versions,
    make_shard_on_worker,
    refuse_other_versions,
    with_absolute_paths,
)
from lmdali.tools.process_start import children_deaf_to_signals

_CONNECT_SECONDS = 30.0
_STOP_SECONDS = 2.0
"""For tasks to notice that the run was stopped; see `dask_shard`."""

_CLOSE_SECONDS = 30.0
"""For a client and a cluster to end: less than one where nothing else keeps the machine busy."""


class DaskExecutor:
    """Makes shards on a Dask cluster, one task per shard.

    Args:
        workers: processes of the cluster that is started where no scheduler is given; None means every usable CPU.
        scheduler: address of a running cluster's scheduler, such as `tcp://host:8786`.

    Raises:
        MissingExtraError: Dask is not installed.
    """

    def __init__(self, workers: int | None = None, scheduler: str | None = None) -> None:
        self.workers, self.scheduler = workers or usable_cpus(), scheduler
        self._dask = _import_distributed()

    def run(self, jobs: Iterator[ShardJob], progress: Callable[[int], None]) -> None:
        """Do all jobs; `progress` receives the number of sources in finished shards.

        Raises:
            MachineError: no cluster, or its workers have other versions of what decides the bytes.
            InputError: workers do not see the source or the output.
            LmdaliError: the first error of any task, or a worker that dies again and again.
        """
        first = next(jobs, None)
        if first is None:
            progress(0)
            return
        first = with_absolute_paths(first)
        run = _Run(self._dask, chain([first], map(with_absolute_paths, jobs)), progress)
        try:
            with self._client() as client:
                _check_versions(client)
                run.drain(client, Surroundings.seen_from_here(first))
        finally:
            run.discard_leftovers()

    @contextmanager
    def _client(self) -> Iterator[Any]:
        with ExitStack() as stack:
            if self.scheduler is None:
                address: Any = self._local_cluster()
                stack.callback(self._close, address)
            else:
                address = self.scheduler
            try:
                client = self._dask.Client(address, timeout=_CONNECT_SECONDS)
                stack.callback(self._close, client)
                client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
            except (OSError, ValueError) as error:  # asyncio's TimeoutError is an OSError
                raise MachineError(
                    f"no Dask cluster with workers answers at {self.scheduler} within {_CONNECT_SECONDS:.0f} s "
                    f"({error}): check --scheduler, and that its workers have started"
                ) from error
            yield client

    def _close(self, opened: Any) -> None:
        """End a client or a cluster. One that takes longer ends by itself, or with this process: no run fails by it."""
        with suppress(self._dask.TimeoutError):
            opened.close(timeout=_CLOSE_SECONDS)

    def _local_cluster(self) -> Any:
        with children_deaf_to_signals():
            return self._dask.LocalCluster(
                n_workers=self.workers,
                threads_per_worker=1,
                # No dashboard; the port is for a status page that Dask always has, and 8787 may be another cluster's.
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                silence_logs=logging.CRITICAL,
            )


class _Run:
    """The tasks of one run."""

    def __init__(self, dask: Any, jobs: Iterator[ShardJob], progress: Callable[[int], None]) -> None:
        self._dask, self._jobs, self._progress = dask, jobs, progress
        self._running: dict[Any, ShardJob] = {}

    def drain(self, client: Any, expected: Surroundings) -> None:
        """Submit all jobs, a few more at a time than there are threads."""
        stop_event = self._dask.Event(f"lmdali-stop-{secrets.token_hex(8)}", client=client)
        finished = 0
        try:
            while True:
                threads = client.nthreads().values()
                arguments = expected, stop_event.name, max(threads, default=1) == 1
                for job in islice(self._jobs, max(0, sum(threads) + 2 - len(self._running))):
                    self._running[client.submit(make_shard_on_worker, job, *arguments, pure=False)] = job
                if not self._running:
                    return
                finished += self._collect()
                self._progress(finished)
        finally:
            if self._running:  # let them drop their shards
                stop_event.set()
                with suppress(self._dask.TimeoutError):
                    self._dask.wait(list(self._running), timeout=_STOP_SECONDS)
                client.cancel(list(self._running))

    def discard_leftovers(self) -> None:
        """Remove what tasks have left that could not, for their process was killed."""
        for job in self._running.values():
            job.discard_leftovers()

    def _collect(self) -> int:
        """Wait a little for tasks to end; returns the number of sources in those that did."""
        with suppress(self._dask.TimeoutError):
            self._dask.wait(list(self._running), timeout=0.5, return_when="FIRST_COMPLETED")
        finished = 0
        for future in [future for future in self._running if future.done()]:
            job = self._running[future]
            try:
                future.result()
            except self._dask.KilledWorker as error:
                deaths = error.allowed_failures + 1
                raise LmdaliError(f"shard {job.name}: {deaths} Dask workers died of it: {LOCAL_HINT}") from error
            except self._dask.CancelledError as error:
                raise LmdaliError(f"shard {job.name}: the Dask cluster dropped it: run again with --resume") from error
            del self._running[future]
            job.discard_leftovers()  # of workers that were lost with it
            finished += len(job.entries)
        return finished


def _check_versions(client: Any) -> None:
    """Look at all workers that are there before there is any work; each looks again for itself with every shard."""
    try:
        found = client.run(installed_versions)
    except (ImportError, AttributeError) as error:
        message = f"the Dask workers have no lmdali, or an older one ({error}): install {lmdali_version()} there"
        raise MachineError(message) from error
    for address, there in found.items():
        refuse_other_versions(address, there, installed_versions())


def _import_distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError("distributed", "dask", "--executor dask") from error
    return distributed
