"""A loss that never leaves chance level is told once, and a sound one is left alone."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import pytest
from memory_loader import MemoryLoader

from lmdali.model.alexnet import AlexNet
from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.journal import read_metrics
from lmdali.model.stuck_loss import PATIENCE_EPOCHS, PATIENCE_STEPS, WINDOW_STEPS, StuckLoss, StuckLossWarning
from lmdali.model.train_config import TrainConfig
from lmdali.model.train_state import TrainState
from lmdali.model.trainer import Trainer


def warned_at(losses: list[float], *, num_classes: int = 1000, steps_per_epoch: int = 10**6) -> list[int]:
    """Steps, from 1, at which a warning comes."""
    watch = StuckLoss()
    told = [
        watch.add(loss, num_classes=num_classes, step=step, epoch=step // steps_per_epoch)
        for step, loss in enumerate(losses, start=1)
    ]
    return [step for step, text in enumerate(told, start=1) if text is not None]


@pytest.mark.parametrize("factor", [0.991, 1.0, 1.009])
def test_a_loss_at_chance_level_is_told_once_after_patience(factor: float) -> None:
    assert warned_at([factor * math.log(1000)] * 3 * PATIENCE_STEPS) == [PATIENCE_STEPS]


def test_a_small_set_is_told_after_epochs() -> None:
    losses = [math.log(10)] * 1000
    (step,) = warned_at(losses, num_classes=10, steps_per_epoch=30)
    assert step == WINDOW_STEPS  # by then more than five epochs have gone
    (step,) = warned_at(losses, num_classes=10, steps_per_epoch=100)
    assert step == -(-PATIENCE_EPOCHS * 100 // WINDOW_STEPS) * WINDOW_STEPS


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_a_loss_elsewhere_is_none_of_its_business(factor: float) -> None:
    assert warned_at([factor * math.log(1000)] * 3 * PATIENCE_STEPS) == []


def test_a_slow_start_is_no_reason_to_warn() -> None:
    chance = math.log(1000)
    losses = [chance] * (PATIENCE_STEPS - WINDOW_STEPS) + [0.95 * chance] * PATIENCE_STEPS
    assert warned_at(losses) == []


def test_a_run_that_falls_back_to_guessing_is_told() -> None:
    chance = math.log(1000)
    assert warned_at([0.5 * chance] * PATIENCE_STEPS + [chance] * 1000) == [PATIENCE_STEPS + WINDOW_STEPS]


def test_the_watch_is_part_of_the_runs_state() -> None:
    state = TrainState(stuck_loss=StuckLoss(3.5, 2, True))
    again = TrainState()
    again.restore(dataclasses.asdict(state))
    assert again == state
    again.restore({"step": 3})  # as stored before there was one
    assert again.stuck_loss == StuckLoss()


def test_a_run_warns_by_name_on_the_screen_and_in_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmdali.model.stuck_loss.WINDOW_STEPS", 4)
    monkeypatch.setattr("lmdali.model.stuck_loss.PATIENCE_EPOCHS", 2)
    # Four classes without a difference, and steps too small to learn anything else.
    config = TrainConfig(epochs=5, lr=1e-9, schedule="constant", log_steps=100, checkpoint_seconds=0)
    net = AlexNet(AlexNetConfig(width=1 / 32, num_classes=4, init="lecun"))
    screen = io.StringIO()
    trainer = Trainer(net, config, MemoryLoader(24), MemoryLoader(12, shuffle=False), run_dir=tmp_path, progress=screen)
    with pytest.warns(
        StuckLossWarning, match=r"ln 4 = 1\.3863.*--init original2012 or lecun.*caffe.*warm-up"
    ) as caught:
        trainer.fit()
    assert len(caught) == 1
    (line,) = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "warning"]
    assert (line["warning"], line["step"], line["epoch"]) == ("StuckLossWarning", 8, 2)
    assert screen.getvalue().count(line["text"]) == 1
