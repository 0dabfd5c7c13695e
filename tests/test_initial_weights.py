"""Layers of an earlier network at the beginning of a training: bit for bit, the rest fresh, no momentum."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from memory_loader import MemoryLoader

from lmdali.model.alexnet import AlexNet, AlexNetConfig
from lmdali.model.checkpoint import load_checkpoint
from lmdali.model.train_config import TrainConfig
from lmdali.model.trainer import Trainer
from lmdali.model.weight_layout import velocities_of, weights_of
from lmdali.pipeline.errors import InputError
from lmdali.tools.initial_weights import begin_from, checkpoint_file

NET = AlexNetConfig(width=1 / 32, num_classes=4, init="lecun")
TRAIN = TrainConfig(epochs=1, lr=0.002, schedule="constant", checkpoint_seconds=0)


def trainer(run_dir: Path, net: AlexNetConfig = NET, seed: int = 0) -> Trainer:
    loaders = [MemoryLoader(16, num_classes=net.num_classes, shuffle=shuffle) for shuffle in (True, False)]
    return Trainer(AlexNet(net, seed=seed), dataclasses.replace(TRAIN, seed=seed), *loaders, run_dir=run_dir)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("earlier")
    trainer(run_dir).fit()
    return run_dir


def test_named_layers_are_copied_and_the_others_stay_fresh(tmp_path: Path, earlier: Path) -> None:
    wider = dataclasses.replace(NET, num_classes=6, sixth_layer=True)
    made = trainer(tmp_path, wider, seed=5)
    fresh = {name: weight.clone() for name, weight in weights_of(made.model).items()}
    said = begin_from(made, earlier, "conv1..conv5")
    assert said.startswith(f"conv1, conv2, conv3, conv4, conv5 from {earlier / 'checkpoints' / 'best.pt'} (epoch ")
    assert said.endswith("; conv6, fc6, fc7, fc8 at random")
    stored = load_checkpoint(checkpoint_file(earlier)).model
    for name, weight in weights_of(made.model).items():
        copied = name.startswith("conv") and not name.startswith("conv6")
        assert torch.equal(weight, stored[name] if copied else fresh[name]), name
    assert velocities_of(made.model, made.optimizer) == {}


def test_everything_but_the_head_into_another_set_of_classes(tmp_path: Path, earlier: Path) -> None:
    made = trainer(tmp_path, dataclasses.replace(NET, num_classes=6))
    assert begin_from(made, checkpoint_file(earlier), "all-but-fc8").endswith("; fc8 at random")
    result = made.fit()
    assert result.epochs == 1


def test_everything_is_everything(tmp_path: Path, earlier: Path) -> None:
    made = trainer(tmp_path, seed=3)
    assert begin_from(made, earlier, "all").endswith("; nothing at random")
    stored = load_checkpoint(checkpoint_file(earlier)).model
    assert all(torch.equal(weight, stored[name]) for name, weight in weights_of(made.model).items())


def test_what_makes_the_same_weights_do_something_else_is_said(tmp_path: Path, earlier: Path) -> None:
    made = trainer(tmp_path, dataclasses.replace(NET, dropout_rule="inverted", lrn_k=1.0, num_classes=6))
    said = begin_from(made, earlier, "all-but-fc8")
    changes = "lrn_k 2.0 there and 1.0 here, dropout_rule paper there and inverted here"
    assert said.endswith(f"; fc8 at random; the networks differ in {changes}")


def test_what_does_not_fit_or_is_not_there_is_refused(tmp_path: Path, earlier: Path) -> None:
    made = trainer(tmp_path, dataclasses.replace(NET, num_classes=6))
    with pytest.raises(InputError, match="fc8 cannot be copied"):
        begin_from(made, earlier, "all")
    with pytest.raises(InputError, match="no such checkpoint"):
        begin_from(made, tmp_path / "none.pt", "all")
