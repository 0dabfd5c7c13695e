"""Runs that are killed outright at random moments end as if they never were; so do runs of an earlier lmdali."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from kill_points import die_at
from memory_loader import MemoryLoader

from lmdali.model.alexnet import AlexNet
from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.checkpoint import Checkpoint, CheckpointDirectory, content_digest, load_checkpoint
from lmdali.model.generators import generator_states, restore_generators, seed_generators
from lmdali.model.journal import read_metrics
from lmdali.model.parallel import Ranks
from lmdali.model.train_config import TrainConfig
from lmdali.model.trainer import Trainer

NET = AlexNetConfig(width=1 / 32, num_classes=4, init="lecun")
CONFIG = TrainConfig(
    epochs=3, lr=0.002, schedule="cosine:1", log_steps=1, checkpoint_seconds=0, checkpoint_steps=1, keep_checkpoints=3
)
STEPS = 9
TIMES = ("seconds", "images_per_second", "stall")


def make(run_dir: Path, **config: Any) -> Trainer:
    changed = dataclasses.replace(CONFIG, **config)
    return Trainer(AlexNet(NET), changed, MemoryLoader(24), MemoryLoader(12, shuffle=False), run_dir=run_dir)


def train(run_dir: Path, operation: int | None = None) -> None:
    """Begin or go on, and end; or be gone at a file operation."""
    torch.set_num_threads(1)
    if operation is not None:
        die_at(operation, run_dir)
    trainer = make(run_dir)
    trainer.resume_latest()
    trainer.fit()


def started(run_dir: Path, operation: int | None = None) -> Any:
    # Forked from a process that has torch but never used it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lmdali.model.trainer", "torch._dynamo"])
    process = context.Process(target=train, args=(run_dir, operation))
    process.start()
    return process


def outcome(run_dir: Path) -> tuple[str, list[dict[str, Any]]]:
    """Digest of the last checkpoint's weights and velocities, and the journal without times."""
    path = CheckpointDirectory(run_dir / "checkpoints").paths()[-1]
    last = load_checkpoint(path)
    assert last.progress["step"] == STEPS
    lines = read_metrics(run_dir / "metrics.jsonl")
    return content_digest([last.model, last.velocities, list(last.rng)]), [
        {key: value for key, value in line.items() if key not in TIMES} for line in lines
    ]


def test_a_run_killed_outright_at_random_moments_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    """By SIGKILL from outside, and before any change to a file; in the middle of checkpoints as a rule."""
    began = time.monotonic()
    whole = started(tmp_path / "whole")
    whole.join(250)
    seconds = time.monotonic() - began
    assert whole.exitcode == 0
    wanted, dice = outcome(tmp_path / "whole"), random.Random(5)
    best = load_checkpoint(tmp_path / "whole/checkpoints/best.pt").progress["epoch"]
    rounds, kills, number = int(os.environ.get("LMDALI_TRAIN_KILLS", "3")), 0, 0
    while kills < rounds:
        number += 1
        run_dir = tmp_path / f"cut{number}"
        for _ in range(20):
            by_file = dice.random() < 0.5
            process = started(run_dir, dice.randrange(1, 40) if by_file else None)
            process.join(250 if by_file else dice.uniform(0, seconds))
            process.kill()
            process.join(250)
            assert process.exitcode in (0, 9, -signal.SIGKILL)
            kills += process.exitcode != 0
            if process.exitcode == 0 or kills == rounds:
                break
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run_dir / "checkpoints/.step-000000001.pt.01234567.tmp").write_bytes(b"what a kill leaves")
        last = started(run_dir)
        last.join(250)
        assert last.exitcode == 0
        assert outcome(run_dir) == wanted
        assert load_checkpoint(run_dir / "checkpoints/best.pt").progress["epoch"] == best
        left = {path.name for path in (run_dir / "checkpoints").iterdir()}
        assert left == {"best.pt", *(f"step-{step:09d}.pt" for step in (7, 8, 9))}


def as_version_1(stored: Path, out: Path) -> None:
    """The checkpoint as lmdali wrote it before ranks: one rank, and an optimiser's own state."""
    content = torch.load(stored, weights_only=True)["content"]
    velocities, (content["rng"],) = content.pop("velocities"), content["rng"]
    lr = content["progress"].pop("lr")
    del content["progress"]["stuck_loss"]
    order = [[name for name in content["model"] if name.endswith(kind)] for kind in ("weight", "bias")]
    places = {name: place for place, name in enumerate(order[0] + order[1])}
    content["optimizer"] = {
        "state": {places[name]: {"velocity": velocity} for name, velocity in velocities.items()},
        "param_groups": [{"lr": lr, "params": [places[name] for name in group]} for group in order],
    }
    document = {"format": "lmdali-checkpoint", "version": 1, "digest": content_digest(content), "content": content}
    out.parent.mkdir(parents=True)
    torch.save(document, out)


@pytest.mark.parametrize("step", [4, 6])
def test_a_checkpoint_of_format_1_is_gone_on_from(tmp_path: Path, step: int) -> None:
    make(tmp_path / "whole", keep_checkpoints=STEPS).fit()
    name = f"checkpoints/step-{step:09d}.pt"
    as_version_1(tmp_path / "whole" / name, tmp_path / "old" / name)
    (tmp_path / "old/metrics.jsonl").write_bytes((tmp_path / "whole/metrics.jsonl").read_bytes())
    old, new = (load_checkpoint(tmp_path / run / name) for run in ("old", "whole"))
    assert content_digest([old.model, old.velocities]) == content_digest([new.model, dict(sorted_like(old, new))])
    train(tmp_path / "old")
    assert outcome(tmp_path / "old") == outcome(tmp_path / "whole")


def sorted_like(old: Any, new: Any) -> list[tuple[str, torch.Tensor]]:
    """Velocities of the new checkpoint in the order of the old one's, weights first."""
    return [(name, new.velocities[name]) for name in old.velocities]


def test_each_rank_draws_its_own_masks_and_the_first_those_of_one_process() -> None:
    def drawn(rank: int, step: int = 0) -> float:
        seed_generators(7, rank=rank, step=step)
        return float(torch.rand(()))

    torch.manual_seed(7)
    assert drawn(0) == float(torch.rand((), generator=torch.Generator().manual_seed(7)))
    assert len({drawn(0), drawn(1), drawn(2), drawn(1, step=5)}) == 4


def test_a_rank_that_the_run_did_not_have_begins_a_stream_of_its_own_at_its_step(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.state.step = 5
    stored = SimpleNamespace(rng=(generator_states([torch.device("cpu")]),))
    expected = []
    for rank, step in ((1, 5), (2, 5)):
        seed_generators(CONFIG.seed, rank=rank, step=step)
        expected.append(float(torch.rand(())))
    drawn = []
    for rank in (1, 2):
        run = dataclasses.replace(trainer._run, ranks=Ranks(rank, 3))
        run.begin_generators(cast(Checkpoint, stored))
        drawn.append(float(torch.rand(())))
    assert drawn == expected
    assert len(set(drawn)) == 2


def test_each_gpu_has_a_state_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers are on two: one name for both would give the second the first's masks back."""
    put: dict[int | None, torch.Tensor] = {}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([device.index], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put.update({device.index: state}))
    devices = [torch.device("cuda", 1), torch.device("cuda", 0), torch.device("cuda", 1)]
    states = generator_states(devices)
    assert {name: state.tolist() for name, state in states.items() if name != "cpu"} == {"cuda": [1], "cuda.1": [0]}
    restore_generators(states, devices)
    assert {index: state.tolist() for index, state in put.items()} == {1: [1], 0: [0]}


def test_generators_go_on_where_they_were() -> None:
    devices = [torch.device("cpu")]
    states = generator_states(devices)
    first = torch.rand(3)
    restore_generators(states, devices)
    assert torch.equal(torch.rand(3), first)
    assert list(states) == ["cpu"]
