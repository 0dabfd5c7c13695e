"""torchrun's environment, and `lmdali train` as torchrun starts it: stopped, killed, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ranked_loader import start_ranks

from lmdali.model.checkpoint import CheckpointDirectory
from lmdali.model.device import pick_devices
from lmdali.model.journal import read_metrics
from lmdali.model.presets import PRESETS
from lmdali.model.torchrun import TorchrunPlace, torchrun_place
from lmdali.model.trainer import Trainer
from lmdali.pipeline.errors import ConfigError, MachineError
from lmdali.tools import train_job
from lmdali.tools.train_job import TrainJob, train_dataset

SETTINGS = ["--preset", "small", "--width", "0.03125", "-b", "8", "--schedule", "constant", "-j", "1"]
FOR_EVER = ["--epochs", "100000", "--log-steps", "1", "--checkpoint-seconds", "0.5", "--device", "cpu"]
JOB = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def test_the_place_is_that_of_torchruns_variables() -> None:
    assert torchrun_place("ddp", JOB) == TorchrunPlace(3, 8, 1, 2)
    assert torchrun_place("ddp", {"RANK": "0", "WORLD_SIZE": "1"}) == TorchrunPlace()
    assert torchrun_place("none", {}) == torchrun_place("towers", {"WORLD_SIZE": "1", "RANK": "0"}) == TorchrunPlace()


@pytest.mark.parametrize(
    ("parallel", "environment", "message"),
    [
        ("ddp", {}, "was not started by torchrun: torchrun --nproc-per-node 2 -m lmdali.tools COMMAND"),
        ("none", JOB, "torchrun started 8 processes, and with --parallel none .*: add --parallel ddp"),
        ("towers", JOB, "with --parallel towers each of them would do all of the work by itself"),
        ("ddp", JOB | {"RANK": "-1"}, "RANK is '-1', expected a number"),
        ("ddp", JOB | {"RANK": "8"}, "rank 8 of 8"),
        ("ddp", JOB | {"LOCAL_RANK": "2"}, "local rank 2 of 2"),
    ],
)
def test_what_torchrun_and_the_options_say_must_fit(parallel: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        torchrun_place(parallel, environment)  # type: ignore[arg-type]


def test_a_batch_is_divided_equally_or_not_at_all() -> None:
    assert TorchrunPlace(0, 4, 0, 4).share_of(128) == 32
    with pytest.raises(ConfigError, match="a batch of 128 cannot be divided equally among 3 ranks: use -b 126 or 129"):
        TorchrunPlace(0, 3, 0, 3).share_of(128)
    with pytest.raises(ConfigError, match=r"use -b 8$"):
        TorchrunPlace(0, 8, 0, 8).share_of(4)


def test_loaders_of_ranks_share_the_batch(tmp_path: Path) -> None:
    job = TrainJob(train=tmp_path, val=tmp_path, run_dir=tmp_path, preset=PRESETS["paper"])
    configs = job.loader_configs(TorchrunPlace(5, 8, 1, 4))
    assert [config.batch_size for config in configs] == [16] * 2


def names(*arguments: str, place: TorchrunPlace | None = None) -> list[str]:
    return [str(device) for device in pick_devices(*arguments, place or TorchrunPlace())]  # type: ignore[arg-type]


def test_devices_are_those_of_the_way_to_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    second = TorchrunPlace(1, 2, 1, 2)
    for gpus, towers, rank in (
        (0, ["cpu", "cpu"], ["cpu"]),
        (1, ["cuda:0", "cuda:0"], None),
        (4, ["cuda:0", "cuda:1"], ["cuda:1"]),
    ):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        monkeypatch.setattr("torch.cuda.is_available", lambda gpus=gpus: gpus > 0)
        assert names("towers", "auto", "") == towers
        if rank is None:
            with pytest.raises(MachineError, match="cuda:1 was asked for, this machine shows 1"):
                names("ddp", "auto", "", place=second)
        else:
            assert names("ddp", "auto", "", place=second) == rank
    assert names("ddp", "auto", "cuda:3,cuda:2", place=second) == ["cuda:2"]
    assert names("ddp", "cpu", "", place=second) == names("none", "cpu", "") == ["cpu"]
    assert names("towers", "auto", "cuda:3, cuda:1") == ["cuda:3", "cuda:1"]
    assert names("towers", "cuda:2", "") == ["cuda:2", "cuda:2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "auto", "cpu,cpu"), "--devices cpu,cpu is for --parallel towers and ddp"),
        (("towers", "cpu", "cpu,cpu"), "give one of the two"),
        (("towers", "auto", "cpu"), "two towers need two devices of a kind"),
        (("ddp", "auto", "cpu"), "2 ranks of this machine need a device each, found cpu"),
        (("ddp", "cuda:1", ""), "--device cuda:1 would be that of every rank"),
    ],
)
def test_devices_that_do_not_fit_are_refused(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        names(*arguments, place=TorchrunPlace(1, 2, 1, 2))


@pytest.fixture(scope="module")
def datasets(
    tmp_path_factory: pytest.TempPathFactory, make_photo_folder: Callable[..., Path], make_dataset: Callable[..., Path]
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("torchrun")
    folder = make_photo_folder(root / "source", per_class=8, sides=(60, 120))
    train, val = (make_dataset(folder, root / name, encoding="raw", seed=seed) for seed, name in enumerate("tv"))
    return train, val


def told_again(datasets: tuple[Path, Path], run_dir: Path) -> None:
    """What a rank does: the second is told to stop while it trains, the first while it says what came of it."""
    train_on, finished_report = Trainer._train_on, train_job.finished_report

    def stopped(*arguments: Any) -> None:
        train_on(*arguments)
        if os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)

    def told(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return finished_report(*arguments)

    Trainer._train_on, train_job.finished_report = stopped, told  # type: ignore[method-assign]
    preset = PRESETS["small"].changed(model={"width": 1 / 32}, train={"schedule": "constant"}, batch_size=8)
    job = TrainJob(
        train=datasets[0], val=datasets[1], run_dir=run_dir, preset=preset, device="cpu", num_threads=1, parallel="ddp"
    )
    assert train_dataset(job).result.stopped_by == signal.SIGTERM


def test_what_torchrun_does_to_the_rest_when_one_rank_has_left_ends_none_of_them(
    tmp_path: Path, datasets: tuple[Path, Path]
) -> None:
    assert start_ranks(2, told_again, datasets, tmp_path / "run", meet=False) == [0, 0]
    assert len(steps_saved(tmp_path / "run")) == 1


@contextmanager
def torchrun(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Two ranks of `lmdali train`; whatever happens, none of them is left behind."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "lmdali.tools", "train", *map(str, arguments), *SETTINGS, "--parallel", "ddp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def rank_process(launcher: int, rank: int) -> int:
    """Number of the process of a rank that torchrun has started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"torchrun has no rank {rank}")


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    journal = run_dir / "metrics.jsonl"
    while not (journal.exists() and any(line["step"] >= step for line in read_metrics(journal))):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def steps_saved(run_dir: Path) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in CheckpointDirectory(run_dir / "checkpoints").paths()]


def test_a_job_is_stopped_by_one_rank_killed_by_another_and_finished_by_one_process(
    tmp_path: Path, datasets: tuple[Path, Path]
) -> None:
    run_dir = tmp_path / "run"
    with torchrun(*datasets, "--run-dir", run_dir, *FOR_EVER) as job:
        wait_for_step(run_dir, 4, job)
        os.kill(rank_process(job.pid, 1), signal.SIGTERM)
        out, err = job.communicate(timeout=250)
    assert job.returncode == 1
    assert err.count("exitcode  : 143") == 2, err
    assert "continue with --resume" in out and out.count("weights sha256") == 1
    stopped = steps_saved(run_dir)[-1]
    assert read_metrics(run_dir / "metrics.jsonl")[-1]["step"] == stopped
    assert (run_dir / "kernels.png").is_file()

    with torchrun(*datasets, "--run-dir", run_dir, *FOR_EVER, "--resume") as job:
        wait_for_step(run_dir, stopped + 8, job)
        os.kill(rank_process(job.pid, 1), signal.SIGKILL)
        out, err = job.communicate(timeout=250)
    assert job.returncode == 1
    assert f"resuming at step {stopped}" in err
    # The other rank says so, unless torchrun is quicker to end it.
    assert "MachineError: rank 0 of 2 lost the others" in err or "Signal 15 (SIGTERM)" in err, err

    killed = steps_saved(run_dir)[-1]
    epochs = killed // 3 + 1
    preset = PRESETS["small"].changed(
        model={"width": 1 / 32}, train={"epochs": epochs, "schedule": "constant"}, batch_size=8
    )
    job_of_one = TrainJob(
        train=datasets[0], val=datasets[1], run_dir=run_dir, preset=preset, resume=True, device="cpu", num_threads=1
    )
    assert train_dataset(job_of_one).result.steps == 3 * epochs > killed
