"""Training that learns, that can be stopped anywhere, and that goes on as if it never was."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from memory_loader import MemoryLoader

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.checkpoint import CheckpointDirectory, load_checkpoint
from lmdali.model.evaluator import evaluate
from lmdali.model.journal import read_metrics
from lmdali.model.recorder import ResumeWarning
from lmdali.model.saved_run import class_difference
from lmdali.model.schedule import Plateau
from lmdali.model.stuck_loss import StuckLoss
from lmdali.model.train_config import TrainConfig
from lmdali.model.train_state import TrainResult, TrainState
from lmdali.model.trainer import Trainer
from lmdali.pipeline import AugmentConfig, DatasetLoader, LoaderConfig, create_loader
from lmdali.pipeline.errors import (
    ConfigError,
    InputError,
    IntegrityError,
    LmdaliError,
    LockedError,
    MissingExtraError,
    RecordError,
)

TINY = AlexNetConfig(width=1 / 32, num_classes=4, init="lecun")
CONFIG = TrainConfig(epochs=3, lr=0.002, schedule="cosine:1", log_steps=2, checkpoint_seconds=0, keep_checkpoints=9)
STEPS_PER_EPOCH = 3
TIMES = ("seconds", "images_per_second", "stall")


def make(run_dir: Path, *, config: TrainConfig = CONFIG, net: AlexNetConfig = TINY, **fields: Any) -> Trainer:
    train = fields.pop("train", None) or MemoryLoader(24)
    val = fields.pop("val", None) or MemoryLoader(12, shuffle=False)
    return Trainer(AlexNet(net, seed=config.seed), config, train, val, run_dir=run_dir, **fields)


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines without times, which differ between runs."""
    records = read_metrics(run_dir / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, list[dict[str, Any]]]:
    """The run that every interrupted one must equal."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    return make(run_dir).fit(), metrics_of(run_dir)


def at_step(step: int, action: Callable[[], None]) -> Callable[[int, int], None]:
    """Do something before the batch of a step (counted from 0) is delivered."""

    def before_batch(epoch: int, position: int) -> None:
        if epoch * STEPS_PER_EPOCH + position // 8 == step:
            action()

    return before_batch


def test_a_small_set_is_learned_by_heart(tmp_path: Path) -> None:
    net = AlexNetConfig(width=1 / 16, num_classes=8, init="lecun", dropout=0.0)
    config = TrainConfig(epochs=18, lr=0.003, schedule="cosine:2", log_steps=1, checkpoint_seconds=0)
    train = MemoryLoader(64, num_classes=8, batch_size=16)
    val = MemoryLoader(64, num_classes=8, batch_size=16, shuffle=False)
    result = make(tmp_path, config=config, net=net, train=train, val=val).fit()
    losses = [record["loss"] for record in metrics_of(tmp_path) if record["kind"] == "step"]
    assert result.steps == len(losses) == 72
    assert losses[0] > 1.5
    assert losses[-1] < 0.05
    assert result.val is not None
    assert result.val.top1_error == 0.0


def test_the_same_seed_gives_the_same_run(
    tmp_path: Path, undisturbed: tuple[TrainResult, list[dict[str, Any]]]
) -> None:
    again = make(tmp_path).fit()
    assert again.weights_sha256 == undisturbed[0].weights_sha256
    assert metrics_of(tmp_path) == undisturbed[1]


def test_the_same_seed_gives_the_same_run_of_several_threads(tmp_path: Path) -> None:
    # Three steps: beside other tests, threads that wait for each other take long.
    config = TrainConfig(**CONFIG.to_json() | {"epochs": 1, "schedule": "constant"})
    torch.set_num_threads(2)  # everywhere else it is one
    try:
        runs = [make(tmp_path / name, config=config).fit().weights_sha256 for name in ("one", "other")]
    finally:
        torch.set_num_threads(1)
    assert runs[0] == runs[1]


def test_metrics_hold_each_step_and_each_epoch_once(undisturbed: tuple[TrainResult, list[dict[str, Any]]]) -> None:
    steps = [(r["epoch"], r["step"]) for r in undisturbed[1] if r["kind"] == "step"]
    epochs = [(r["epoch"], r["step"]) for r in undisturbed[1] if r["kind"] == "epoch"]
    assert steps == [(0, 2), (1, 4), (1, 6), (2, 8)]
    assert epochs == [(0, 3), (1, 6), (2, 9)]


def test_another_seed_gives_another_run(tmp_path: Path, undisturbed: tuple[TrainResult, list[dict[str, Any]]]) -> None:
    other = make(tmp_path, config=TrainConfig(**CONFIG.to_json() | {"seed": 1})).fit()
    assert other.weights_sha256 != undisturbed[0].weights_sha256


@pytest.mark.parametrize(("step", "number"), [*((step, signal.SIGTERM) for step in range(9)), (4, signal.SIGINT)])
def test_a_signal_finishes_the_step_and_the_resumed_run_equals_the_undisturbed_one(
    tmp_path: Path, step: int, number: signal.Signals, undisturbed: tuple[TrainResult, list[dict[str, Any]]]
) -> None:
    handler = signal.getsignal(number)
    train = MemoryLoader(24, before_batch=at_step(step, lambda: signal.raise_signal(number)))
    stopped = make(tmp_path, train=train).fit()
    assert stopped.stopped_by == number
    assert stopped.steps == step + 1
    assert signal.getsignal(number) is handler
    resumed = make(tmp_path)
    resumed.resume_latest()
    result = resumed.fit()
    assert result.stopped_by is None
    assert result.weights_sha256 == undisturbed[0].weights_sha256
    assert metrics_of(tmp_path) == undisturbed[1]


@pytest.mark.parametrize("step", [0, 1, 2, 5, 7])
def test_a_run_killed_at_any_step_resumes_to_the_same_end(
    tmp_path: Path, step: int, undisturbed: tuple[TrainResult, list[dict[str, Any]]]
) -> None:
    class Killed(BaseException):
        """Stands for a process that is gone: nothing is saved on the way out."""

    def die() -> None:
        raise Killed

    config = TrainConfig(**CONFIG.to_json() | {"checkpoint_steps": 2})
    with pytest.raises(Killed):
        make(tmp_path, config=config, train=MemoryLoader(24, before_batch=at_step(step, die))).fit()
    resumed = make(tmp_path, config=config)
    resumed.resume_latest()
    result = resumed.fit()
    assert result.weights_sha256 == undisturbed[0].weights_sha256
    assert metrics_of(tmp_path) == undisturbed[1]


def test_a_run_killed_while_validating_resumes_to_the_same_end(
    tmp_path: Path, undisturbed: tuple[TrainResult, list[dict[str, Any]]]
) -> None:
    def die(epoch: int, position: int) -> None:
        raise KeyboardInterrupt

    config = TrainConfig(**CONFIG.to_json() | {"checkpoint_steps": 3})
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, config=config, val=MemoryLoader(12, shuffle=False, before_batch=die)).fit()
    resumed = make(tmp_path, config=config)
    resumed.resume_latest()
    assert resumed.state.step == 3
    assert resumed.fit().weights_sha256 == undisturbed[0].weights_sha256
    assert metrics_of(tmp_path) == undisturbed[1]


def test_a_damaged_newest_checkpoint_costs_steps_but_not_the_result(
    tmp_path: Path, undisturbed: tuple[TrainResult, list[dict[str, Any]]]
) -> None:
    make(tmp_path).fit()
    checkpoints = CheckpointDirectory(tmp_path / "checkpoints").paths()
    assert [path.name for path in checkpoints] == [f"step-{step:09d}.pt" for step in (3, 6, 9)]
    for path in checkpoints[1:]:
        path.write_bytes(path.read_bytes()[:1000])
    screen = io.StringIO()
    resumed = make(tmp_path, progress=screen)
    resumed.resume_latest()
    assert screen.getvalue().count("passed over") == 2
    assert resumed.state.step == 3
    assert resumed.fit().weights_sha256 == undisturbed[0].weights_sha256
    assert metrics_of(tmp_path) == undisturbed[1]


def real_loader(seed: int = 0) -> DatasetLoader:
    """The loader of this project, with its order and draws, and noise for images."""
    return create_loader(
        LoaderConfig(dataset="synthetic:24x4", batch_size=8, backend="synthetic", prefetch=2, seed=seed)
    )


def make_real(run_dir: Path, **fields: Any) -> Trainer:
    val = LoaderConfig(
        dataset="synthetic:12x4", augment=AugmentConfig.center(), order="sequential", backend="synthetic"
    )
    return make(run_dir, **{"train": real_loader(), "val": create_loader(val), **fields})


def digests_of(run_dir: Path) -> list[str]:
    return [record["digest"] for record in metrics_of(run_dir) if record["kind"] == "epoch"]


def test_each_epochs_line_has_the_digest_of_its_samples_and_draws(tmp_path: Path) -> None:
    make_real(tmp_path).fit()
    expected, other = [], real_loader()
    for _ in range(3):
        list(other)
        expected.append(f"{other.epoch_digest:016x}")
    assert digests_of(tmp_path) == expected
    assert len(set(expected)) == 3


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 8])
def test_a_run_killed_at_any_step_resumes_to_the_same_digests(tmp_path: Path, step: int) -> None:
    class Killed(BaseException):
        """Stands for a process that is gone."""

    make_real(tmp_path / "whole").fit()
    config = TrainConfig(**CONFIG.to_json() | {"checkpoint_steps": 1})
    trainer = make_real(tmp_path / "cut", config=config)
    train_on = trainer._step

    def dies(*args: Any) -> torch.Tensor:
        if trainer.state.step == step:
            raise Killed
        return train_on(*args)

    trainer._step = dies  # type: ignore[assignment]
    with pytest.raises(Killed):
        trainer.fit()
    resumed = make_real(tmp_path / "cut", config=config)
    resumed.resume_latest()
    assert resumed.state.step == step
    resumed.fit()
    assert digests_of(tmp_path / "cut") == digests_of(tmp_path / "whole")


def test_checkpoints_have_the_digest_so_far_and_at_its_end_that_of_the_epoch(tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG.to_json() | {"checkpoint_steps": 1, "epochs": 1, "schedule": "constant"})
    make_real(tmp_path, config=config).fit()
    loader = real_loader()
    for number, _ in enumerate(loader, start=1):
        checkpoint = load_checkpoint(tmp_path / "checkpoints" / f"step-{number:09d}.pt")
        assert checkpoint.progress["epoch_digest"] == f"{loader.epoch_digest:016x}"
        assert checkpoint.train_loader == loader.state_dict()
    assert checkpoint.progress["epoch"] == 1


def test_an_epochs_figures_are_the_means_of_its_own_steps(tmp_path: Path) -> None:
    loaders = {"train": MemoryLoader(24, num_classes=9), "val": MemoryLoader(18, num_classes=9, shuffle=False)}
    config = dataclasses.replace(CONFIG, log_steps=1)
    make(tmp_path, config=config, net=dataclasses.replace(TINY, num_classes=9), **loaders).fit()
    records = metrics_of(tmp_path)
    for epoch in range(3):
        steps, line = ([r for r in records if (r["kind"], r["epoch"]) == (kind, epoch)] for kind in ("step", "epoch"))
        assert len(steps) == 3
        for name in ("loss", "top1_error", "top5_error"):
            mean = sum(record[name] for record in steps) / 3
            assert mean > 0
            assert line[0][f"train_{name}"] == pytest.approx(mean)
            assert steps[-1][f"mean_{name}"] == pytest.approx(mean)


def test_the_state_of_a_run_comes_back_whole() -> None:
    state = TrainState(epoch=2, step=7, best_top1_error=0.5, best_epoch=1, stuck_loss=StuckLoss(3.0, 2, True))
    restored = TrainState()
    restored.restore(json.loads(json.dumps(dataclasses.asdict(state))))
    assert restored == state
    assert not state.note_validation(0.5)  # the first of two epochs that are as good stays the best one
    assert state.best_epoch == 1
    state.note_digest([7, None])  # a part is not known
    assert state.epoch_digest is None


def test_progress_of_an_earlier_version_has_no_digest() -> None:
    state = TrainState()
    state.count_step(8, 0.1)
    state.note_digest([7])
    state.restore({"epoch": 1, "step": 5})
    assert (state.step, state.epoch_digest) == (5, None)


def test_all_checkpoints_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    make(tmp_path, config=TrainConfig(**CONFIG.to_json() | {"epochs": 2, "schedule": "constant"})).fit()
    for path in CheckpointDirectory(tmp_path / "checkpoints").candidates():
        path.unlink()
        path.write_bytes(b"x")
    with pytest.raises(IntegrityError, match="every checkpoint is damaged"):
        make(tmp_path).resume_latest()


def test_a_run_whose_newest_checkpoints_are_gone_goes_on_from_its_best(
    tmp_path: Path, undisturbed: tuple[TrainResult, list[dict[str, Any]]]
) -> None:
    make(tmp_path, config=dataclasses.replace(CONFIG, keep_checkpoints=1)).fit()
    checkpoints = CheckpointDirectory(tmp_path / "checkpoints")
    best = load_checkpoint(checkpoints.candidates()[0]).progress["step"]
    checkpoints.paths()[-1].unlink()
    with pytest.raises(InputError, match="holds a run"):
        make(tmp_path).fit()
    resumed = make(tmp_path)
    resumed.resume_latest()
    assert resumed.state.step == best
    assert resumed.fit().weights_sha256 == undisturbed[0].weights_sha256
    assert metrics_of(tmp_path) == undisturbed[1]


def test_a_damaged_record_costs_no_steps(tmp_path: Path, undisturbed: tuple[TrainResult, list[dict[str, Any]]]) -> None:
    def damaged() -> None:
        raise RecordError("record 17 is damaged")

    with pytest.raises(RecordError):
        make(tmp_path, train=MemoryLoader(24, before_batch=at_step(5, damaged))).fit()
    resumed = make(tmp_path)
    resumed.resume_latest()
    assert resumed.state.step == 5
    assert resumed.fit().weights_sha256 == undisturbed[0].weights_sha256
    assert metrics_of(tmp_path) == undisturbed[1]


def test_resuming_where_nothing_was_saved_starts_from_the_beginning(
    tmp_path: Path, undisturbed: tuple[TrainResult, list[dict[str, Any]]]
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step"}\n{"ki')
    trainer = make(tmp_path)
    trainer.resume_latest()
    assert trainer.fit().weights_sha256 == undisturbed[0].weights_sha256
    assert metrics_of(tmp_path) == undisturbed[1]


def test_resuming_a_finished_run_trains_nothing(
    tmp_path: Path, undisturbed: tuple[TrainResult, list[dict[str, Any]]]
) -> None:
    make(tmp_path).fit()
    again = make(tmp_path)
    again.resume_latest()
    result = again.fit()
    assert result.weights_sha256 == undisturbed[0].weights_sha256
    assert result.steps == 9
    assert result.val is None
    assert metrics_of(tmp_path) == undisturbed[1]


def test_a_directory_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG.to_json() | {"epochs": 1, "schedule": "constant"})
    make(tmp_path, config=config).fit()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="--resume"):
        make(tmp_path, config=config).fit()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_two_runs_cannot_share_a_directory(tmp_path: Path) -> None:
    def second() -> None:
        other = make(tmp_path)
        other.resume_latest()
        with pytest.raises(LockedError, match="another run is training here"):
            other.fit()

    result = make(tmp_path, train=MemoryLoader(24, before_batch=at_step(4, second))).fit()
    assert result.steps == 9
    assert metrics_of(tmp_path)[-1]["step"] == 9


def test_what_another_run_has_trained_since_is_not_removed(tmp_path: Path) -> None:
    # A job that is requeued while its predecessor still saves: it finds the lock free, and has read an older one.
    config = TrainConfig(**CONFIG.to_json() | {"checkpoint_steps": 2})
    stop = at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    make(tmp_path, config=config, train=MemoryLoader(24, before_batch=stop)).fit()
    early = make(tmp_path, config=config)
    early.resume_latest()
    meanwhile = make(tmp_path, config=config)
    meanwhile.resume_latest()
    assert meanwhile.fit().steps == 9
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    prepared: list[bool] = []
    with pytest.raises(LockedError, match="another run has trained here since"):
        early.fit(lambda: prepared.append(True))
    assert not prepared
    assert all(path.read_bytes() == content for path, content in files.items())


def test_changed_settings_are_used_and_shown(tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG.to_json() | {"epochs": 1, "schedule": "constant"})
    make(tmp_path, config=config).fit()
    screen = io.StringIO()
    longer = TrainConfig(**config.to_json() | {"epochs": 2, "momentum": 0.5})
    trainer = make(tmp_path, config=longer, progress=screen)
    trainer.resume_latest()
    assert "changed on resuming: momentum 0.9 -> 0.5" in screen.getvalue()
    assert trainer.optimizer.param_groups[0]["momentum"] == 0.5
    assert trainer.fit().steps == 6


def test_changed_settings_of_the_loader_are_shown_where_the_checkpoint_knows_them(tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG.to_json() | {"epochs": 1, "schedule": "constant"})
    augment = {"lighting": "roots", "crop_chunk": 1}
    make(tmp_path, config=config, loader_config={"dataset": "a", "batch_size": 8, "augment": augment}).fit()
    now = {"dataset": "b", "batch_size": 4, "order": "block", "augment": augment | {"lighting": "none"}}
    screen = io.StringIO()
    make(tmp_path, config=config, loader_config=now, progress=screen).resume_latest()
    changes = [line for line in screen.getvalue().splitlines() if line.startswith("changed")]
    expected = [f"changed on resuming: {change}" for change in ("batch_size 8 -> 4", "lighting roots -> none")]
    assert changes == expected
    with pytest.warns(ResumeWarning) as told:
        make(tmp_path, config=config, loader_config=now).resume_latest()
    assert [str(warning.message) for warning in told] == expected, "silence is of progress"


@pytest.mark.parametrize("before", ["constant", "plateau:9", "cosine:1"])
def test_another_schedule_goes_on_where_the_run_is(tmp_path: Path, before: str) -> None:
    make(tmp_path, config=dataclasses.replace(CONFIG, epochs=2, schedule=before)).fit()
    trainer = make(tmp_path, config=dataclasses.replace(CONFIG, epochs=9, schedule="fixed:1:3"))
    trainer.resume_latest()
    assert trainer.fit().epochs == 3


def test_errors_of_another_validation_set_are_not_compared_with_those_of_this_one(tmp_path: Path) -> None:
    """Or the best checkpoint stays one that did well on images that are not asked about any more."""
    config = dataclasses.replace(CONFIG, epochs=1, schedule="plateau:9")
    make(tmp_path, config=config, loader_config={"validation_set": "a", "augment": {}}).fit()
    stored = load_checkpoint(tmp_path / "checkpoints" / "step-000000003.pt")
    lucky = dataclasses.replace(stored, progress=stored.progress | {"best_top1_error": 0.0, "best_epoch": 0},
                                schedule=stored.schedule | {"best_error": 0.0, "bad_epochs": 3})  # fmt: skip
    for here, expected in (("a", (0.0, 0, 0.0, 3)), ("b", (math.inf, -1, math.inf, 0))):
        trainer = make(tmp_path, config=config, loader_config={"validation_set": here, "augment": {}})
        trainer.resume(lucky)
        state, schedule = trainer.state, trainer.schedule
        assert isinstance(schedule, Plateau)
        assert (state.best_top1_error, state.best_epoch, schedule.best_error, schedule.bad_epochs) == expected
    longer = dataclasses.replace(config, epochs=2)
    trainer = make(tmp_path, config=longer, loader_config={"validation_set": "b", "augment": {}})
    trainer.resume(lucky)
    result = trainer.fit()
    assert result.best_epoch == 1
    assert load_checkpoint(tmp_path / "checkpoints" / "best.pt").progress["step"] == 6


def test_another_seed_in_the_middle_of_an_epoch_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, schedule="constant", checkpoint_steps=1)
    make_real(tmp_path, config=config).fit()
    CheckpointDirectory(tmp_path / "checkpoints").paths()[-1].unlink()
    with real_loader(seed=5) as other, pytest.raises(InputError, match="seed 0 there, 5 here"):
        make_real(tmp_path, train=other).resume_latest()
    (tmp_path / "checkpoints" / "step-000000002.pt").unlink()
    (tmp_path / "checkpoints" / "step-000000001.pt").unlink()
    with real_loader(seed=5) as other:  # from the best one: where an epoch begins, it may change
        trainer = make_real(tmp_path, train=other)
        trainer.resume_latest()
        assert trainer.fit().epochs == 3


def test_another_network_or_dataset_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG.to_json() | {"epochs": 1, "schedule": "constant"})
    make(tmp_path, config=config).fit()
    with pytest.raises(InputError, match="width"):
        make(tmp_path, net=AlexNetConfig(width=1 / 16, num_classes=4, init="lecun")).resume_latest()
    with pytest.raises(InputError, match="training set dddddddddddd in the checkpoint and eeeeeeeeeeee here"):
        make(tmp_path, train=MemoryLoader(24, manifest_digest="e" * 64)).resume_latest()


def test_a_loss_that_is_not_finite_stops_with_step_and_samples(tmp_path: Path) -> None:
    class Poisoned(MemoryLoader):
        def _images(self, indices: torch.Tensor) -> torch.Tensor:
            images = super()._images(indices)
            images[indices == 13] = torch.nan
            return images

    train = Poisoned(24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    position = int((order == 13).nonzero())
    step = position // 8 + 1
    with pytest.raises(LmdaliError, match=rf"step {step}: the loss is nan .*lower --lr"):
        make(tmp_path, train=train).fit()
    failure = metrics_of(tmp_path)[-1]
    assert failure["kind"] == "failure"
    assert failure["step"] == step
    assert failure["samples"] == order[(step - 1) * 8 : step * 8].tolist()
    assert CheckpointDirectory(tmp_path / "checkpoints").paths() == []


def test_an_infinite_loss_is_not_finite_either(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    with torch.no_grad():
        trainer.model.get_parameter("fc8.bias")[2] = -math.inf
    with pytest.raises(LmdaliError, match="step 1: the loss is inf"):
        trainer.fit()
    assert metrics_of(tmp_path)[-1]["loss"] == "inf"


def at_rate(lr: float, **fields: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, lr=lr, schedule="constant", **fields)


def test_an_epoch_whose_validation_is_not_finite_is_no_result_and_not_the_best_one(tmp_path: Path) -> None:
    with pytest.raises(LmdaliError, match=r"epoch 0: the validation loss is nan at learning rate 1e\+30: resume with"):
        make(tmp_path, config=at_rate(1e30), train=MemoryLoader(8)).fit()
    (failure,) = metrics_of(tmp_path)
    assert (failure["kind"], failure["step"], failure["loss"]) == ("failure", 1, "nan")
    assert not list(tmp_path.glob("checkpoints/*.pt"))


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trainer = make(tmp_path, config=at_rate(0.002, checkpoint_steps=1))
    trainer.model.get_parameter("fc7.weight").register_hook(lambda gradient: gradient + torch.inf)
    with pytest.raises(LmdaliError, match=r"step 1: its update has left fc7.weight not finite, and is not saved, .*lr"):
        trainer.fit()
    assert metrics_of(tmp_path)[-1]["kind"] == "failure"
    assert not list(tmp_path.glob("checkpoints/*.pt"))


def test_a_checkpoint_that_had_diverged_is_named_when_nothing_can_go_on_from_it(tmp_path: Path) -> None:
    with pytest.raises(LmdaliError, match=r"step 2: the loss is nan .*: resume with a lower --lr"):
        make(tmp_path, config=at_rate(1e25, checkpoint_steps=1)).fit()
    again = make(tmp_path, config=at_rate(0.001))
    again.resume_latest()
    with pytest.raises(LmdaliError, match="the checkpoint of step 1 had diverged already: remove it, then resume"):
        again.fit()


def test_the_plateau_schedule_ends_the_run(tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG.to_json() | {"epochs": 50, "lr": 1e-12, "schedule": "plateau:0"})
    result = make(tmp_path, config=config).fit()
    rates = [record["lr"] for record in metrics_of(tmp_path) if record["kind"] == "epoch"]
    assert rates == pytest.approx([1e-12, 1e-12, 1e-13, 1e-14, 1e-15])
    assert result.epochs == 5


def test_learning_rates_follow_the_position_in_samples(tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG.to_json() | {"log_steps": 1, "schedule": "cosine:2"})
    make(tmp_path, config=config).fit()
    rates = [record["lr"] for record in metrics_of(tmp_path) if record["kind"] == "step"]
    assert rates[:6] == pytest.approx([0.002 * step / 6 for step in range(6)])
    assert rates[6] == pytest.approx(0.002)
    assert rates[8] == pytest.approx(0.002 * 0.25)


def saved_steps(run_dir: Path) -> list[int]:
    return [int(path.stem.partition("-")[2]) for path in CheckpointDirectory(run_dir / "checkpoints").paths()]


def test_checkpoints_come_by_steps_of_the_run_and_with_each_epoch(tmp_path: Path) -> None:
    make(tmp_path, config=dataclasses.replace(CONFIG, checkpoint_steps=4)).fit()
    assert saved_steps(tmp_path) == [3, 4, 6, 8, 9]


def test_checkpoints_come_by_the_time_since_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, config=dataclasses.replace(CONFIG, checkpoint_seconds=2.0))
    clock = SimpleNamespace(monotonic=lambda: float(trainer.state.step), perf_counter=time.perf_counter)
    monkeypatch.setattr("lmdali.model.trainer.time", clock)  # a step takes a second
    trainer.fit()
    assert saved_steps(tmp_path) == [2, 3, 5, 6, 8, 9]


def test_the_best_checkpoint_that_a_kill_left_undone_is_marked(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, schedule="constant")
    make(tmp_path, config=config).fit()
    (tmp_path / "checkpoints" / "best.pt").unlink()
    trainer = make(tmp_path, config=config)
    trainer.resume_latest()
    trainer.fit()
    assert load_checkpoint(tmp_path / "checkpoints" / "best.pt").progress["step"] == 3


def test_a_network_in_evaluation_mode_is_trained_as_any_other(
    tmp_path: Path, undisturbed: tuple[TrainResult, list[dict[str, Any]]]
) -> None:
    trainer = make(tmp_path)
    trainer.model.eval()
    assert trainer.fit().weights_sha256 == undisturbed[0].weights_sha256


def test_the_schedule_is_told_the_top_1_error(tmp_path: Path) -> None:
    # Of nine classes, so that five places are not all of them.
    loaders = {"train": MemoryLoader(24, num_classes=9), "val": MemoryLoader(18, num_classes=9, shuffle=False)}
    trainer = make(tmp_path, net=dataclasses.replace(TINY, num_classes=9), **loaders)
    told: list[float] = []
    trainer.schedule.end_epoch = told.append  # type: ignore[method-assign]
    trainer.fit()
    epochs = [record for record in metrics_of(tmp_path) if record["kind"] == "epoch"]
    assert told == [record["val_top1_error"] for record in epochs]
    assert told != [record["val_top5_error"] for record in epochs]


def test_checkpoints_hold_what_evaluation_needs(tmp_path: Path) -> None:
    config = TrainConfig(**CONFIG.to_json() | {"epochs": 1, "schedule": "constant"})
    make(tmp_path, config=config, loader_config={"normalize": "none"}).fit()
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert checkpoint.loader_config == {"normalize": "none"}
    assert AlexNetConfig.from_json(checkpoint.model_config) == TINY
    assert checkpoint.train_config == config.to_json()
    AlexNet(TINY, seed=9).load_state_dict(checkpoint.model)


def test_different_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"different classes \(4 and 3\)"):
        make(tmp_path, val=MemoryLoader(12, num_classes=3, shuffle=False))
    with pytest.raises(InputError, match="the network has 5 classes, the training set 4"):
        make(tmp_path, net=AlexNetConfig(width=1 / 32, num_classes=5))


def test_where_the_classes_differ_is_said() -> None:
    assert class_difference(("a", "b", "c"), ("a", "c", "b")) == "label 1 is 'b' and 'c'"


def test_a_dataset_or_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="data: holds a dataset: choose another --run-dir"):
        make(tmp_path / "data").fit()
    with pytest.raises(InputError, match="is not a directory"):
        make(tmp_path / "data" / "manifest.json").fit()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["manifest.json"]


def test_progress_lines_are_in_the_familiar_form(tmp_path: Path) -> None:
    screen = io.StringIO()
    make(tmp_path, progress=screen).fit()
    lines = screen.getvalue().splitlines()
    assert lines[0].startswith("Epoch: [0][1/3]  Time ")
    for word in ("Data ", "Loss ", "Acc@1 ", "Acc@5 ", "img/s", "stall"):
        assert word in lines[0]
    summaries = [line for line in lines if line.startswith(" * Epoch: [")]
    assert len(summaries) == 3
    for word in ("val Acc@1 ", "Acc@5 ", "Loss ", "lr ", "img/s", "stall"):
        assert all(word in summary for summary in summaries)


def test_bfloat16_trains_too(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, lr=0.001, schedule="constant", precision="bfloat16")
    trainer = make(tmp_path, config=config)
    result = trainer.fit()
    assert all(parameter.dtype is torch.float32 for parameter in make(tmp_path).model.parameters())
    assert result.val == evaluate(trainer.model, MemoryLoader(12, shuffle=False), precision=torch.bfloat16)
    assert result.val != evaluate(trainer.model, MemoryLoader(12, shuffle=False))


def test_label_smoothing_is_in_the_loss(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, schedule="constant", log_steps=1, label_smoothing=0.3)
    trainer = make(tmp_path, config=config, net=dataclasses.replace(TINY, dropout=0.0))
    images, labels = next(iter(MemoryLoader(24)))
    with torch.no_grad():
        log_p = trainer.model(images).log_softmax(1)
    expected = 0.7 * -log_p.gather(1, labels[:, None]).mean() - 0.3 * log_p.mean()
    trainer.fit()
    assert metrics_of(tmp_path)[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_results_are_json(undisturbed: tuple[TrainResult, list[dict[str, Any]]]) -> None:
    document = json.loads(json.dumps(undisturbed[0].to_json()))
    assert document["steps"] == 9
    assert document["val"]["num_samples"] == 12
    assert 0 <= document["stall"] <= 1


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    config = TrainConfig(**CONFIG.to_json() | {"tensorboard": True})
    with pytest.raises(MissingExtraError, match=r"lmdali\[tensorboard\]"):
        make(tmp_path, config=config).fit()


@pytest.mark.parametrize(
    "fields",
    [{"epochs": 0}, {"lr": 0.0}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"label_smoothing": 1.0},
     {"precision": "float8"}, {"schedule": "never"}, {"log_steps": 0}, {"keep_checkpoints": 0},
     {"checkpoint_steps": -1}, {"lr": math.inf}, {"lr": math.nan}, {"bias_lr": math.inf}, {"weight_decay": math.nan},
     {"weight_decay": math.inf}, {"checkpoint_seconds": math.nan}, {"checkpoint_seconds": math.inf},
     {"bias_schedule": "fixed:1:2"}],
)  # fmt: skip
def test_impossible_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**fields)
