from __future__ import annotations

import pytest

from lmdali.pipeline.errors import ConfigError
from lmdali.tools.dask_executor import DaskExecutor
from lmdali.tools.executors import make_executor
from lmdali.tools.shard_pool import ShardPool
from lmdali.tools.worker_limits import WorkerLimits


def test_the_local_executor_is_the_default_and_keeps_its_limits() -> None:
    limits = WorkerLimits(seconds=5)
    pool = make_executor(workers=3, limits=limits)
    assert isinstance(pool, ShardPool)
    assert (pool.workers, pool.limits) == (3, limits)


def test_dask_runs_here_or_at_a_scheduler() -> None:
    pytest.importorskip("distributed", reason="distributed is of the extra 'dask'")
    here, there = make_executor("dask", workers=2), make_executor("dask", scheduler="tcp://a:1")
    assert isinstance(here, DaskExecutor) and (here.workers, here.scheduler) == (2, None)
    assert isinstance(there, DaskExecutor) and there.scheduler == "tcp://a:1"


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="--scheduler is for --executor dask"):
        make_executor("local", scheduler="tcp://a:1")
    with pytest.raises(ConfigError, match="leave out --workers"):
        make_executor("dask", workers=2, scheduler="tcp://a:1")
    with pytest.raises(ConfigError, match="--time-limit and --memory-limit are for --executor local"):
        make_executor("dask", limits=WorkerLimits())
