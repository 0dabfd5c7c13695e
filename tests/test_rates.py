"""Rates of weights, biases and single layers: the hand-computed steps, what is frozen, and going on after a stop."""

from __future__ import annotations

import dataclasses
import io
import signal
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
from memory_loader import MemoryLoader
from torch import nn

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.rates import LearningRates
from lmdali.model.schedule import create_schedule
from lmdali.model.towers import TowerAlexNet
from lmdali.model.train_config import TrainConfig
from lmdali.model.trainer import Trainer
from lmdali.pipeline.errors import ConfigError


class TwoLayers(nn.Module):
    """Two scalar layers with the network's names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc8 = (nn.Linear(1, 1, dtype=torch.float64) for _ in range(2))
        for parameter in self.parameters():
            nn.init.ones_(parameter)


def made(config: TrainConfig) -> tuple[TwoLayers, PaperSGD, LearningRates]:
    net = TwoLayers()
    schedule = create_schedule(config.schedule, config.epochs)
    optimizer = PaperSGD(parameter_groups(net, config), config.lr, momentum=config.momentum)
    return net, optimizer, LearningRates(config, schedule)


def rates_at(config: TrainConfig, epoch: float) -> dict[str, float | str]:
    """Rate of each parameter, or "frozen"."""
    net, optimizer, rates = made(config)
    rates.apply(optimizer, epoch)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {
        names[id(parameter)]: "frozen" if group["frozen"] else group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_three_steps_with_a_cut_equal_the_hand_computed_ones() -> None:
    net, optimizer, rates = made(TrainConfig(lr=0.01, schedule="fixed:2"))
    path = []
    for epoch, gradient in enumerate((1.0, -2.0, 0.5)):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        rates.apply(optimizer, float(epoch))
        optimizer.step()
        path.append(net.conv1.weight.item())
    assert path == pytest.approx([0.989995, 1.000985550025, 1.010376544554725], abs=1e-14)
    assert optimizer.state[net.conv1.weight]["velocity"].item() == pytest.approx(0.009390994529725, abs=1e-14)


def test_after_a_cut_the_weights_go_8_old_steps_and_a_tenth_further_than_torchs() -> None:
    ends = []
    for kind in (PaperSGD, torch.optim.SGD):
        config = TrainConfig(lr=0.01, weight_decay=0.0, schedule="fixed:1")
        net, _, rates = made(config)
        optimizer = kind(parameter_groups(net, config), lr=config.lr, momentum=0.9)
        net.fc8.weight.grad = torch.ones_like(net.fc8.weight)
        rates.apply(optimizer, 0.0)
        optimizer.step()
        net.fc8.weight.grad.zero_()
        rates.apply(optimizer, 1.0)
        for _ in range(400):
            optimizer.step()
        ends.append(net.fc8.weight.item())
    assert (ends[1] - ends[0]) / 0.01 == pytest.approx(8.1, rel=1e-9)


def test_biases_follow_the_weights_unless_told_otherwise() -> None:
    got = rates_at(TrainConfig(lr=0.01, schedule="fixed:2"), 2.0)
    assert got == dict.fromkeys(got, pytest.approx(0.001))


def test_biases_at_twice_the_rate_are_cut_with_the_weights() -> None:
    config = TrainConfig(lr=0.01, bias_lr=0.02, schedule="fixed:2")
    assert [rates_at(config, e)["fc8.bias"] for e in (0.0, 2.0)] == pytest.approx([0.02, 0.002])


def test_biases_may_keep_a_schedule_of_their_own() -> None:
    config = TrainConfig(lr=0.01, bias_lr=0.02, schedule="fixed:2,4", bias_schedule="constant")
    assert [rates_at(config, e)["fc8.bias"] for e in (0.0, 2.0, 5.0)] == [0.02] * 3
    assert rates_at(config, 5.0)["fc8.weight"] == pytest.approx(1e-4)
    assert rates_at(TrainConfig(lr=0.01, schedule="fixed:2", bias_schedule="constant"), 2.0)["fc8.bias"] == 0.01


def test_a_layers_own_rate_replaces_schedule_and_all() -> None:
    config = TrainConfig(lr=0.01, schedule="fixed:2", layer_lr="conv1=1e-5@1.5")
    assert rates_at(config, 1.4)["conv1.weight"] == 0.01
    got = rates_at(config, 2.0)
    assert got["conv1.weight"] == got["conv1.bias"] == 1e-5
    assert got["fc8.weight"] == got["fc8.bias"] == pytest.approx(0.001)


def test_a_layers_own_rate_leaves_biases_alone_that_have_theirs() -> None:
    config = TrainConfig(bias_lr=0.02, bias_schedule="constant", schedule="constant", layer_lr="conv1=1e-5,fc8=x0.5")
    got = rates_at(config, 0.0)
    assert (got["conv1.weight"], got["conv1.bias"]) == (1e-5, 0.02)
    assert (got["fc8.weight"], got["fc8.bias"]) == (0.005, 0.01)  # a factor is for both
    scheduled = TrainConfig(lr=0.01, bias_schedule="constant", schedule="constant", layer_lr="conv1=1e-5")
    assert rates_at(scheduled, 0.0)["conv1.bias"] == 0.01


def test_frozen_is_for_weights_and_biases_and_the_log_shows_the_others() -> None:
    config = TrainConfig(lr=0.01, bias_lr=0.02, schedule="fixed:2", layer_lr="conv1=frozen@1")
    assert rates_at(config, 1.0) == {"conv1.weight": "frozen", "conv1.bias": "frozen", "fc8.weight": 0.01,
                                     "fc8.bias": 0.02}  # fmt: skip
    _, optimizer, rates = made(config)
    assert rates.apply(optimizer, 2.0) == pytest.approx(0.001)
    assert not optimizer.param_groups[0]["frozen"]
    thawed = TrainConfig(schedule="constant", layer_lr="conv1=frozen,conv1=x1@1")
    assert [rates_at(thawed, e)["conv1.weight"] for e in (0.5, 1.0)] == ["frozen", 0.01]


def test_there_are_no_more_groups_than_are_needed() -> None:
    net = AlexNet(AlexNetConfig(width=1 / 32, num_classes=4))

    def groups(text: str) -> list[tuple[str, str, int]]:
        made = parameter_groups(net, TrainConfig(layer_lr=text))
        return [(group["layer"], group["kind"], len(group["params"])) for group in made]

    assert groups("") == [("conv1", "weights", 8), ("conv1", "biases", 8)]
    assert groups("conv1=frozen@3,conv2+conv3=x2") == [
        ("conv4", "weights", 5),
        ("conv4", "biases", 5),
        ("conv1", "weights", 1),
        ("conv2", "weights", 2),
        ("conv1", "biases", 1),
        ("conv2", "biases", 2),
    ]


def test_both_towers_of_a_layer_are_in_its_group() -> None:
    config = AlexNetConfig(width=1 / 32, num_classes=4)
    net = TowerAlexNet(config, (torch.device("cpu"), torch.device("cpu")))
    named = {id(weight): name for name, weight in net.named_parameters()}
    groups = parameter_groups(net, TrainConfig(layer_lr="conv1=frozen@3"))
    of_conv1 = [
        sorted(named[id(weight)] for weight in group["params"]) for group in groups if group["layer"] == "conv1"
    ]
    assert of_conv1 == [["conv1.a.weight", "conv1.b.weight"], ["conv1.a.bias", "conv1.b.bias"]]


def test_a_layer_that_the_network_lacks_is_refused() -> None:
    # All of a kind are those that there are.
    assert len(parameter_groups(TwoLayers(), TrainConfig(layer_lr="conv=0.1"))) == 4
    with pytest.raises(ConfigError, match="names conv6, the network has conv1, fc8"):
        parameter_groups(TwoLayers(), TrainConfig(layer_lr="conv6=0.1"))
    with pytest.raises(ConfigError, match="layer_lr"):
        TrainConfig(layer_lr="conv9=0.1")


@pytest.mark.parametrize(
    "fields", [{"bias_lr": 0.0}, {"bias_lr": -1.0}, {"bias_schedule": "plateau:3"}, {"bias_schedule": "never"}]
)
def test_impossible_bias_rates_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**fields)


# Three steps of eight images make an epoch. Cuts, conv1's own rate and its freezing all fall inside the nine steps.
EVERYTHING = TrainConfig(
    epochs=3,
    lr=0.002,
    bias_lr=0.004,
    schedule="fixed:1,2",
    bias_schedule="cosine:1",
    layer_lr="conv1=1e-4@0.5,fc=x0.5@1.2,conv1=frozen@1.9",
    log_steps=1,
    checkpoint_seconds=0,
    keep_checkpoints=9,
)


def trainer(
    run_dir: Path, stop_after: int | None = None, *, config: TrainConfig = EVERYTHING, progress: TextIO | None = None
) -> Trainer:
    def before(epoch: int, position: int) -> None:
        if epoch * 3 + position // 8 == stop_after:
            signal.raise_signal(signal.SIGTERM)

    net = AlexNet(AlexNetConfig(width=1 / 32, num_classes=4, init="lecun"), seed=0)
    train = MemoryLoader(24, before_batch=before)
    return Trainer(net, config, train, MemoryLoader(12, shuffle=False), run_dir=run_dir, progress=progress)


def test_a_run_stopped_anywhere_among_cuts_and_freezing_ends_as_if_it_never_was(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole").fit()
    curve = (tmp_path / "whole" / "metrics.jsonl").read_text().count("\n")
    for step in range(8):
        trainer(tmp_path / str(step), stop_after=step).fit()
        resumed = trainer(tmp_path / str(step))
        resumed.resume_latest()
        assert resumed.fit().weights_sha256 == whole.weights_sha256, step
        assert (tmp_path / str(step) / "metrics.jsonl").read_text().count("\n") == curve


def test_a_run_goes_on_under_other_rates(tmp_path: Path) -> None:
    trainer(tmp_path, stop_after=3).fit()
    screen = io.StringIO()
    other = dataclasses.replace(EVERYTHING, layer_lr="fc8=frozen", bias_lr=None, bias_schedule=None)
    resumed = trainer(tmp_path, config=other, progress=screen)
    resumed.resume_latest()
    assert f"changed on resuming: layer_lr {EVERYTHING.layer_lr} -> fc8=frozen" in screen.getvalue()
    before = resumed.model.fc8.weight.detach().clone()
    resumed.fit()
    assert torch.equal(resumed.model.fc8.weight, before)


def test_the_frozen_layer_does_not_move_and_its_velocity_stays(tmp_path: Path) -> None:
    trainer(tmp_path, stop_after=5).fit()  # stopped after the sixth step, of which conv1 made all
    resumed = trainer(tmp_path)
    resumed.resume_latest()
    before = {name: weight.detach().clone() for name, weight in resumed.model.named_parameters()}
    velocities = {
        name: resumed.optimizer.state[weight]["velocity"].clone() for name, weight in resumed.model.named_parameters()
    }
    resumed.fit()
    for name, weight in resumed.model.named_parameters():
        same = (
            torch.equal(weight, before[name]),
            torch.equal(resumed.optimizer.state[weight]["velocity"], velocities[name]),
        )
        assert same == ((True, True) if name.startswith("conv1.") else (False, False)), name
