"""Two ranks train what one process trains, stop together, and leave one run behind that any number goes on with."""

from __future__ import annotations

import json
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from ranked_loader import RankedLoader, start_ranks
from torch import Tensor, distributed

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.checkpoint import CheckpointDirectory, load_checkpoint
from lmdali.model.evaluator import evaluate
from lmdali.model.journal import read_metrics
from lmdali.model.parallel import Notice, Ranks, SharedFigures
from lmdali.model.train_config import TrainConfig
from lmdali.model.trainer import Trainer
from lmdali.pipeline.errors import LmdaliError, MachineError

WORLD = 2
TINY = AlexNetConfig(width=1 / 32, num_classes=4, init="lecun")
CONFIG = TrainConfig(
    epochs=2, lr=0.002, schedule="constant", log_steps=1, checkpoint_seconds=0, checkpoint_steps=1, keep_checkpoints=9
)
TIMES = ("seconds", "images_per_second", "stall")


class DoubleLoader(RankedLoader):
    """Pictures in float64."""

    def _images(self, indices: Tensor) -> Tensor:
        return super()._images(indices).double()


class PoisonedLoader(RankedLoader):
    """Sample 13 is not a number."""

    def _images(self, indices: Tensor) -> Tensor:
        images = super()._images(indices)
        images[indices == 13] = torch.nan
        return images


class LaggingLoader(RankedLoader):
    """Leaves out sample 4 where this rank would have it."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        for batch in super().__iter__():
            batch.indices = torch.where(batch.indices == 4, 0, batch.indices)
            yield batch


def trainer(run_dir: Path, ranks: Ranks, *, net: AlexNet | None = None, **fields: Any) -> Trainer:
    config = TrainConfig(**CONFIG.to_json() | fields.pop("config", {}))
    train = fields.pop("train", None) or RankedLoader(24, ranks)
    val = fields.pop("val", None) or RankedLoader(13, ranks, shuffle=False)
    return Trainer(net or AlexNet(TINY), config, train, val, run_dir=run_dir, ranks=ranks, **fields)


def in_double(run_dir: Path, ranks: Ranks) -> Trainer:
    """The run in which ranks can be compared with one process: no dropout, 52 bits."""
    net = AlexNet(AlexNetConfig(width=1 / 32, num_classes=4, init="lecun", dropout=0.0)).double()
    train, val = DoubleLoader(24, ranks), DoubleLoader(13, ranks, shuffle=False)
    return trainer(run_dir, ranks, net=net, train=train, val=val, config={"epochs": 1})


def resumed(run_dir: Path, ranks: Ranks, **fields: Any) -> Trainer:
    made = trainer(run_dir, ranks, **fields)
    made.resume_latest()
    return made


def cut(run_dir: Path, out: Path, step: int) -> Path:
    """A copy of a run as if it had been killed after a step."""
    shutil.copytree(run_dir, out)
    for path in CheckpointDirectory(out / "checkpoints").paths():
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    return out


def refused(action: Any) -> str:
    try:
        action()
    except LmdaliError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


def stopping(run_dir: Path, ranks: Ranks, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Rank 1 alone gets SIGTERM while it waits for its third batch."""

    def before_batch(epoch: int, position: int) -> None:
        if ranks.rank == 1 and (epoch, position) == (0, 16):
            signal.raise_signal(signal.SIGTERM)

    result = trainer(
        run_dir, ranks, train=RankedLoader(24, ranks, before_batch=before_batch), config=config or {}
    ).fit()
    return {"steps": result.steps, "stopped_by": result.stopped_by}


def work(ranks: Ranks, root: Path) -> None:
    """All that this file's ranks do, and what came of it into a file."""
    whole = trainer(root / "whole", ranks).fit()
    seen: dict[str, Any] = {"whole": whole.to_json()}
    in_double(root / "double", ranks).fit()
    for step in (2, 3):
        copy = root / f"cut{step}"
        ranks.on_first(lambda copy=copy, step=step: cut(root / "whole", copy, step))  # type: ignore[misc]
        seen[f"cut{step}"] = resumed(copy, ranks).fit().to_json()
    seen["stopped"] = stopping(root / "stopped", ranks)
    seen["gone on"] = resumed(root / "stopped", ranks).fit().to_json()
    clock = {"checkpoint_steps": 0, "checkpoint_seconds": 1e-9}
    seen["clock"] = trainer(root / "clock", ranks, config=clock).fit().steps
    seen["nan"] = refused(trainer(root / "nan", ranks, train=PoisonedLoader(24, ranks)).fit)
    seen["occupied"] = refused(trainer(root / "whole", ranks).fit)
    seen["more ranks"] = resumed(root / "by one", ranks).fit().to_json()
    elsewhere = root / ("whole" if ranks.is_first else "nowhere")
    seen["not shared"] = refused(lambda: resumed(elsewhere, ranks))
    other = {"lr": 0.002 + 0.001 * ranks.rank}
    seen["other lr"] = refused(lambda: trainer(root / "other", ranks, config=other))
    lagging = LaggingLoader(13, ranks, shuffle=False)
    seen["lagging"] = refused(lambda: evaluate(AlexNet(TINY), lagging, ranks=ranks))
    (root / f"{ranks.rank}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks have worked."""
    root = tmp_path_factory.mktemp("ranks")
    before = trainer(root / "by one", Ranks())
    before.fit()
    shutil.move(root / "by one", root / "one")
    cut(root / "one", root / "by one", 2)
    assert start_ranks(WORLD, work, root) == [0] * WORLD
    return root


@pytest.fixture(scope="module")
def seen(root: Path) -> list[dict[str, Any]]:
    return [json.loads((root / f"{rank}.json").read_text()) for rank in range(WORLD)]


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The journal without times."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(run_dir / "metrics.jsonl")]


def digests(run_dir: Path) -> list[str]:
    return [line["digest"] for line in lines(run_dir) if line["kind"] == "epoch"]


def test_two_ranks_make_the_updates_of_one_process(root: Path, tmp_path: Path) -> None:
    in_double(tmp_path, Ranks()).fit()
    for step in (1, 2, 3):
        name = f"checkpoints/step-{step:09d}.pt"
        one, two = load_checkpoint(tmp_path / name), load_checkpoint(root / "double" / name)
        torch.testing.assert_close(two.model, one.model, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(two.velocities, one.velocities, rtol=1e-5, atol=1e-9)
        assert two.progress["epoch_digest"] == one.progress["epoch_digest"]
        assert two.progress["samples_seen"] == one.progress["samples_seen"] == 8 * step
    for ours, theirs in zip(lines(root / "double"), lines(tmp_path), strict=True):
        numbers = [{k: v for k, v in line.items() if not isinstance(v, str)} for line in (ours, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)


def test_all_ranks_end_with_the_same_weights_and_validation(seen: list[dict[str, Any]]) -> None:
    ours, theirs = (one["whole"] for one in seen)
    assert ours["weights_sha256"] == theirs["weights_sha256"]
    assert ours["val"] == theirs["val"]
    assert ours["val"]["num_samples"] == 13


def test_a_resumed_job_of_as_many_ranks_ends_as_the_undisturbed_one(seen: list[dict[str, Any]], root: Path) -> None:
    for name in ("cut2", "cut3"):
        assert {one[name]["weights_sha256"] for one in seen} == {seen[0]["whole"]["weights_sha256"]}
        assert lines(root / name) == lines(root / "whole")


def test_a_signal_to_one_rank_stops_all_after_one_step_with_one_checkpoint(
    seen: list[dict[str, Any]], root: Path
) -> None:
    assert seen[0]["stopped"] == seen[1]["stopped"]
    assert seen[0]["stopped"]["stopped_by"] == signal.SIGTERM
    assert seen[0]["stopped"]["steps"] == 3
    for one in seen:
        assert one["gone on"]["weights_sha256"] == seen[0]["whole"]["weights_sha256"]
    assert lines(root / "stopped") == lines(root / "whole")


def test_dropout_masks_differ_between_ranks(root: Path) -> None:
    states = load_checkpoint(root / "whole/checkpoints/step-000000001.pt").rng
    assert len(states) == WORLD
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])


def test_a_checkpoint_by_the_clock_is_agreed_on(seen: list[dict[str, Any]], root: Path) -> None:
    assert [one["clock"] for one in seen] == [6, 6]
    # Told with one step, done after the next: every second step, and the ends of epochs.
    steps = [int(path.stem.removeprefix("step-")) for path in CheckpointDirectory(root / "clock/checkpoints").paths()]
    assert steps == [2, 3, 5, 6]


def test_a_loss_that_is_not_finite_stops_all_with_the_samples_of_all(seen: list[dict[str, Any]], root: Path) -> None:
    assert seen[0]["nan"] == seen[1]["nan"]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    step = int((order == 13).nonzero()) // 8 + 1
    assert f"step {step}: the loss is nan" in seen[0]["nan"]
    assert lines(root / "nan")[-1]["samples"] == order[(step - 1) * 8 : step * 8].tolist()


def test_what_the_first_rank_refuses_all_refuse(seen: list[dict[str, Any]]) -> None:
    for one in seen:
        assert one["occupied"].startswith("InputError") and "--resume" in one["occupied"]
        assert "ConfigError: ranks disagree: checkpoint is step-000000006.pt on rank 0, none on" in one["not shared"]
        assert "ranks disagree: training.lr is 0.002 on rank 0, 0.003 on rank 1" in one["other lr"]
        assert one["lagging"].startswith("IntegrityError") and "more than once, such as sample 0" in one["lagging"]


def test_a_run_goes_on_with_more_ranks_and_with_fewer(seen: list[dict[str, Any]], root: Path, tmp_path: Path) -> None:
    assert {one["more ranks"]["steps"] for one in seen} == {6}
    cut(root / "whole", tmp_path / "fewer", 2)
    assert resumed(tmp_path / "fewer", Ranks()).fit().steps == 6
    assert digests(root / "one") == digests(root / "by one") == digests(tmp_path / "fewer") == digests(root / "whole")
    assert load_checkpoint(root / "by one/checkpoints/best.pt").progress["epoch"] in (1, 2)


def three(ranks: Ranks, root: Path) -> None:
    """A whole run of three ranks, and the rest of it once more."""

    def made(run_dir: Path) -> Trainer:
        net = AlexNet(AlexNetConfig(width=1 / 8, num_classes=4, init="lecun"))
        train, val = RankedLoader(27, ranks, batch_size=9), RankedLoader(2, ranks, batch_size=9, shuffle=False)
        return trainer(run_dir, ranks, net=net, train=train, val=val, config={"epochs": 1})

    whole = made(root / "whole").fit()
    ranks.on_first(lambda: cut(root / "whole", root / "cut", 1))
    rest = made(root / "cut")
    rest.resume_latest()
    assert rest.fit().weights_sha256 == whole.weights_sha256
    assert whole.val is not None and whole.val.num_samples == 2  # fewer than there are ranks


def test_three_ranks_resume_to_the_bit(tmp_path: Path) -> None:
    """gloo adds three gradients in an order that must not depend on how the session began."""
    assert start_ranks(3, three, tmp_path) == [0, 0, 0]


def lonely(ranks: Ranks, given_up: Path) -> None:
    """Rank 1 does not answer, until the other has given it up."""
    if ranks.rank == 1:
        while not given_up.exists():
            time.sleep(0.01)
        return
    # Only now: before, they have to find each other, however long that takes on a busy machine.
    distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
    try:
        ranks.gather(0)
    finally:
        given_up.touch()


def test_a_rank_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    assert start_ranks(WORLD, lonely, tmp_path / "given up") == [MachineError.exit_code, 0]


def test_one_rank_needs_nobody(tmp_path: Path) -> None:
    ranks = Ranks()
    assert ranks.is_first
    assert ranks.gather(7) == [7]
    assert ranks.on_first(lambda: "done") == "done"
    assert ranks.agreed_signal(15) == 15
    assert ranks.agreed_signal(None) is None
    network = torch.nn.Linear(2, 2)
    assert ranks.averaging(network) is network
    outcome = ranks.share(torch.tensor([1.0, 0.5, 0.25]), Notice(2, True)).wait()
    assert (outcome.loss, outcome.top1_error, outcome.top5_error, outcome.notice) == (1.0, 0.5, 0.25, Notice())


def test_a_wish_of_one_rank_is_heard_in_its_step_and_the_later_signal_counts() -> None:
    def heard(*wishes: float) -> Notice:
        outcome = SharedFigures(torch.tensor([3.0, 1.5, 0.0, *wishes], dtype=torch.float64), 3, None, None).wait()
        assert (outcome.loss, outcome.top1_error, outcome.top5_error) == (1.0, 0.5, 0.0)
        return outcome.notice

    assert heard(0, 0, 1) == Notice(stopped_by=15)
    assert heard(0, 1, 0) == Notice(stopped_by=2)
    assert heard(1, 1, 2) == Notice(stopped_by=15, save_is_due=True)
    assert heard(0, 0, 0) == heard() == Notice()
