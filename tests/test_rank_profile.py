"""Two gloo ranks, one of them slow: by its loader, by its model; one report names it. One start for all tests.

They sleep in a time in which nothing else takes long, and in which they wait for each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from slow_model import SlowModel
from torch import distributed

from lmdali.model.torchrun import TorchrunPlace
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError
from lmdali.tools import profiler
from lmdali.tools.profile_config import ProfileConfig
from lmdali.tools.suggestion import Situation, suggest

JOB = """
import json, os, sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed

torch.set_num_threads(1)
sys.path.append(sys.argv[3])
import pytest
from slow_model import SlowModel
from torch import distributed
from virtual_time import VirtualTime

from lmdali.pipeline.augment import AugmentConfig
from lmdali.model.parallel import Ranks, process_group
from lmdali.model.torchrun import torchrun_place
from lmdali.tools import foreign_profile, profiler
from lmdali.tools.profile_config import ProfileConfig

SLOW = int(os.environ["RANK"]) == 1
DATASET, OUT = map(Path, sys.argv[1:3])
TIME = VirtualTime(pytest.MonkeyPatch())


def wait_for_others(*_):
    # Whoever comes first to where gradients are averaged waits for the last one: so it is that one's time for all.
    latest = torch.tensor(TIME.now, dtype=torch.float64)
    distributed.all_reduce(latest, distributed.ReduceOp.MAX)
    TIME.now = float(latest)


def averaging(ranks, network, average=Ranks.averaging):
    averaged = average(ranks, network)
    averaged.register_forward_hook(wait_for_others)
    return averaged


class Batches:
    num_workers = 0

    def __iter__(self):
        while True:
            TIME.sleep(0.02 * SLOW)
            yield torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)


def main():
    sys.modules["slow_job"] = sys.modules["__main__"]
    arguments = "run --loader slow_job:Batches --parallel ddp --no-model --steps 10 --device cpu --json --quiet"
    profiler.command(arguments.split(), standalone_mode=False)
    config = ProfileConfig(batch_size=4, steps=10, device="cpu", parallel="ddp", num_threads=1)
    by_input = foreign_profile.profile_iterable(Batches, "slow", config, model=SlowModel(0.005, 1000), quiet=True)
    model, augment = SlowModel(0.02 if SLOW else 0.001), AugmentConfig(crop_size=24)
    by_compute = profiler.profile_dataset(DATASET, config, model=model, augment=augment, quiet=True)
    reports = [by_input.to_json(), by_compute.to_json()]
    OUT.joinpath(f"rank{os.environ['RANK']}.json").write_text(json.dumps(reports))


Ranks.averaging = averaging
with process_group(torchrun_place("ddp"), torch.device("cpu"), timeout_seconds=200) as ranks:
    # A process can meet the others only once, and this is to be one start of torchrun.
    profiler.process_group = foreign_profile.process_group = lambda *_, **__: nullcontext(ranks)
    main()
"""


class Reports(NamedTuple):
    """What the command printed, and what each rank was given."""

    printed: dict[str, Any]
    by_input: list[dict[str, Any]]
    by_compute: list[dict[str, Any]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, small_jpeg_dataset: Path) -> Reports:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "job.py").write_text(JOB)
    # Started as torchrun starts them, without itself: it costs as much as a rank. (test_torchrun.py has it.) So their
    # store is here.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    torchrun |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "job.py"), str(small_jpeg_dataset), str(folder), str(Path(__file__).parent)]
    with ExitStack() as running:
        ranks = [
            running.enter_context(
                subprocess.Popen(
                    command,
                    env={**os.environ, **torchrun, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in (0, 1)
        ]
        for rank in ranks:
            running.callback(rank.kill)  # whatever happens, none is left behind
        outputs = [rank.communicate(timeout=250) for rank in ranks]
    del store
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    (printed,) = (line for out, _ in outputs for line in out.splitlines() if line.startswith("{"))
    assert printed in outputs[0][0]  # one report for all ranks, by the first
    by_input, by_compute = zip(*(json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)), strict=True)
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
