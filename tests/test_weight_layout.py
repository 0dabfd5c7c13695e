"""One checkpoint for one device, two towers and two ranks: whoever goes on from it has the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranked_loader import RankedLoader, start_ranks
from torch import Tensor

from lmdali.model.alexnet import AlexNet
from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.checkpoint import Checkpoint, content_digest, load_checkpoint
from lmdali.model.optim import PaperSGD
from lmdali.model.parallel import Ranks
from lmdali.model.towers import TowerAlexNet
from lmdali.model.train_config import TrainConfig
from lmdali.model.trainer import Trainer
from lmdali.model.weight_layout import Network, load_layout, velocities_of, weights_of

NET = AlexNetConfig(width=1 / 32, num_classes=4, init="lecun")
CONFIG = TrainConfig(
    epochs=2, lr=0.002, schedule="constant", log_steps=1, checkpoint_seconds=0, checkpoint_steps=1, keep_checkpoints=9
)
CPUS = (torch.device("cpu"), torch.device("cpu"))
KINDS: dict[str, Callable[[int], Network]] = {
    "one device": lambda seed: AlexNet(NET, seed=seed),
    "towers": lambda seed: TowerAlexNet(NET, CPUS, seed=seed),
}


def trainer(run_dir: Path, kind: str, ranks: Ranks | None = None, *, seed: int = 0) -> Trainer:
    ranks = ranks or Ranks()
    train, val = RankedLoader(24, ranks), RankedLoader(12, ranks, shuffle=False)
    return Trainer(KINDS[kind](seed), CONFIG, train, val, run_dir=run_dir, ranks=ranks)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole run of each kind, from the same seed."""
    root = tmp_path_factory.mktemp("layout")
    for kind in KINDS:
        trainer(root / kind, kind).fit()
    return {kind: root / kind for kind in KINDS}


def at_step(run_dir: Path, step: int) -> Checkpoint:
    return load_checkpoint(run_dir / f"checkpoints/step-{step:09d}.pt")


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Names, order, shapes and every bit."""
    return list(ours) == list(theirs) and content_digest(ours) == content_digest(theirs)


def test_towers_train_what_one_device_trains(runs: dict[str, Path]) -> None:
    for step in (1, 3, 6):
        one, two = (at_step(runs[kind], step) for kind in KINDS)
        assert list(one.model) == list(two.model) and list(one.velocities) == list(two.velocities)
        torch.testing.assert_close(two.model, one.model, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(two.velocities, one.velocities, rtol=1e-3, atol=1e-6)
        assert one.model_config == two.model_config


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_a_checkpoint_is_the_same_after_any_move(
    runs: dict[str, Path], tmp_path: Path, source: str, target: str
) -> None:
    stored = at_step(runs[source], 4)
    moved = trainer(tmp_path, target, seed=7)
    moved.resume(stored)
    assert same(weights_of(moved.model), stored.model)
    assert same(velocities_of(moved.model, moved.optimizer), stored.velocities)
    result = moved.fit()
    assert result.steps == 6
    if source == target:
        whole = at_step(runs[source], 6)
        assert result.weights_sha256 == content_digest(whole.model)
        assert same(at_step(tmp_path, 6).velocities, whole.velocities)


def by_two_ranks(ranks: Ranks, root: Path) -> None:
    """Go on with two ranks from checkpoints of each kind, having moved nothing."""
    for kind in KINDS:
        stored = at_step(root / kind, 4)
        moved = trainer(root / f"{kind} by ranks", "one device", ranks, seed=ranks.rank)
        moved.resume(stored)
        assert same(weights_of(moved.model), stored.model)
        assert same(velocities_of(moved.model, moved.optimizer), stored.velocities)
        assert moved.fit().steps == 6


def test_ranks_go_on_from_either_and_either_from_ranks(runs: dict[str, Path], tmp_path: Path) -> None:
    root = runs["towers"].parent
    assert start_ranks(2, by_two_ranks, root) == [0, 0]
    stored = at_step(root / "towers by ranks", 5)
    assert len(stored.rng) == 2
    for kind in KINDS:
        moved = trainer(tmp_path / kind, kind, seed=3)
        moved.resume(stored)
        assert same(weights_of(moved.model), stored.model)
        assert same(velocities_of(moved.model, moved.optimizer), stored.velocities)


def test_a_parameter_that_was_never_updated_has_no_velocity() -> None:
    for make in KINDS.values():
        network = make(0)
        optimizer = PaperSGD(network.parameters())
        assert velocities_of(network, optimizer) == {}
        load_layout(network, optimizer, weights_of(network), {})
        assert not optimizer.state
