"""Two gloo ranks, one of them slow: by its loader, by its model; one report names it. One start for all tests.

They sleep in a time in which nothing else takes long, and in which they wait for each other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from ranked_loader import start_ranks
from slow_model import SlowModel
from torch import Tensor, distributed
from virtual_time import VirtualTime

from lmdali.model.parallel import Ranks
from lmdali.model.torchrun import TorchrunPlace
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError
from lmdali.tools import foreign_profile, profiler
from lmdali.tools.profile_config import ProfileConfig
from lmdali.tools.suggestion import Situation, suggest


def profiled_by_rank(ranks: Ranks, dataset: Path, out: Path) -> None:
    """What a rank does, in a process of its own: what is put in another's place may stay there."""
    time, average = VirtualTime(pytest.MonkeyPatch()), Ranks.averaging
    is_slow = ranks.rank == 1

    def wait_for_others(*_: Any) -> None:
        # Whoever comes first to where gradients are averaged waits for the last one: so it is that one's time for all.
        latest = torch.tensor(time.now, dtype=torch.float64)
        distributed.all_reduce(latest, distributed.ReduceOp.MAX)
        time.now = float(latest)

    def averaging(ranks: Ranks, network: Any) -> Any:
        averaged = average(ranks, network)
        averaged.register_forward_hook(wait_for_others)
        return averaged

    class Batches:
        num_workers = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                time.sleep(0.02 * is_slow)
                yield torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)

    Ranks.averaging = averaging  # type: ignore[assignment, method-assign]
    # A process can meet the others only once, and this is to be one start of torchrun.
    profiler.process_group = foreign_profile.process_group = lambda *_, **__: nullcontext(ranks)  # type: ignore
    sys.modules["slow_job"] = SimpleNamespace(Batches=Batches)  # type: ignore[assignment]
    arguments = "run --loader slow_job:Batches --parallel ddp --no-model --steps 10 --device cpu --json --quiet"
    with (out / f"printed{ranks.rank}").open("w") as file, redirect_stdout(file):
        profiler.command(arguments.split(), standalone_mode=False)
    config = ProfileConfig(batch_size=4, steps=10, device="cpu", parallel="ddp", num_threads=1)
    by_input = foreign_profile.profile_iterable(Batches, "slow", config, model=SlowModel(0.005, 1000), quiet=True)
    model, augment = SlowModel(0.02 if is_slow else 0.001), AugmentConfig(crop_size=24)
    by_compute = profiler.profile_dataset(dataset, config, model=model, augment=augment, quiet=True)
    reports = [by_input.to_json(), by_compute.to_json()]
    (out / f"reports{ranks.rank}.json").write_text(json.dumps(reports))


class Reports(NamedTuple):
    """What the command printed, and what each rank was given."""

    printed: dict[str, Any]
    by_input: list[dict[str, Any]]
    by_compute: list[dict[str, Any]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, small_jpeg_dataset: Path) -> Reports:
    folder = tmp_path_factory.mktemp("ranks")
    assert start_ranks(2, profiled_by_rank, small_jpeg_dataset, folder) == [0, 0]
    printed, nothing = ((folder / f"printed{rank}").read_text() for rank in (0, 1))
    assert nothing == "", "one report for all ranks, by the first"
    by_input, by_compute = zip(
        *(json.loads((folder / f"reports{rank}.json").read_text()) for rank in (0, 1)), strict=True
    )
    return Reports(json.loads(printed), by_input, by_compute)


def test_one_rank_prints_one_report_of_both_loaders(job: Reports) -> None:
    assert job.printed["ranks"]["straggler"] == 1
    assert job.printed["verdict"]["word"] == "STRAGGLER rank 1"
    assert [each["rank"] for each in job.printed["ranks"]["ranks"]] == [0, 1]


def test_a_rank_whose_loader_sleeps_is_named_by_every_rank(job: Reports) -> None:
    for report in job.by_input:
        assert report["verdict"]["word"] == "STRAGGLER rank 1"
        ranks = report["ranks"]
        assert (ranks["world_size"], ranks["straggler"], ranks["cause"]) == (2, 1, "input")
        first, second = ranks["ranks"]
        assert (first["input_seconds"], second["input_seconds"]) == pytest.approx((0, 0.01), abs=1e-4)  # of two images
        # In the job both go at one pace, that of the slower one, and the first one's accelerator is idle for it.
        assert [each["alone"]["images_per_second"] for each in (first, second)] == pytest.approx([400, 80], rel=0.01)
        assert [each["together"]["images_per_second"] for each in (first, second)] == pytest.approx([80, 80], rel=0.01)
        assert first["au"] == pytest.approx(0.2, rel=0.01)
    # A stall is a rank's own: waiting for others is not taken for waiting for input.
    stalls = [report["verdict"]["data_stall"] for report in job.by_input]
    assert stalls == pytest.approx([0, 0.8], abs=0.01)
    assert job.by_input[0]["together"] == job.by_input[0]["ranks"]["ranks"][0]["together"]
    assert job.by_input[0]["ranks"] == job.by_input[1]["ranks"]


def test_a_rank_whose_model_sleeps_is_named_too(job: Reports) -> None:
    for report in job.by_compute:
        assert report["verdict"]["word"] == "STRAGGLER rank 1"
        assert (report["ranks"]["straggler"], report["ranks"]["cause"]) == (1, "compute")
        assert report["setting"]["num_threads"] == 1
    # Four images in a step that sleeps for 20 ms: what is fed is the step, not the loader alone.
    assert job.by_compute[1]["together"]["images_per_second"] == pytest.approx(4 / 0.02, rel=0.01)
    # Each rank has its half of the 37 samples, in batches of its own.
    assert [report["setting"]["steps_per_epoch"] for report in job.by_compute] == [37 // 8] * 2


def test_a_rank_is_told_of_its_part_of_the_machine_only(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eight ranks on 64 CPUs have eight threads each: 64 for every one of them would be advice to ruin the job.
    situations: list[Situation] = []
    monkeypatch.setattr(profiler, "torchrun_place", lambda parallel: TorchrunPlace(local_world_size=8))
    monkeypatch.setattr("lmdali.pipeline.cpu_budget.usable_cpus", lambda process=0: 64)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(profiler, "suggest", lambda found: situations.append(found) or suggest(found))
    config = ProfileConfig(batch_size=4, steps=10, device="cpu", num_threads=2)
    report = profiler.profile_dataset(
        small_jpeg_dataset, config, model=SlowModel(0.001), augment=AugmentConfig(crop_size=24), quiet=True
    )
    (situation,) = situations
    assert situation.resources.num_cpus == 8
    assert situation.memory_bytes == report.machine["memory_bytes"] // 8
    assert "share 64 CPUs" not in report.verdict.reason


def test_what_one_process_must_have_to_itself_is_refused_of_ranks(
    small_jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler, "torchrun_place", lambda parallel: TorchrunPlace(world_size=2, local_world_size=2))
    with pytest.raises(ConfigError, match="--try measures"):
        profiler.profile_dataset(small_jpeg_dataset, ProfileConfig(device="cpu"), try_suggestion=True)
    with pytest.raises(ConfigError, match="--cold drops"):
        profiler.profile_dataset(small_jpeg_dataset, ProfileConfig(device="cpu", cold=True))
