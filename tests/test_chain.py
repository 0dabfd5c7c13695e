"""A chain trained for real, on two tasks of a few pictures: what each stage begins with, and how the chain goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from ranked_loader import start_ranks

from lmdali.model.checkpoint import CheckpointDirectory, load_checkpoint
from lmdali.model.trainer import Trainer
from lmdali.pipeline.errors import InputError
from lmdali.tools.chain import STAGE_FILE, run_chain
from lmdali.tools.stages import load_stages
from lmdali.tools.train import command

SHARED = """
preset = "small"
[model]
width = 0.03125
[train]
epochs = 2
schedule = "constant"
keep_checkpoints = 9
[loader]
batch_size = 4
num_threads = 1
"""


@pytest.fixture(scope="module")
def chain_file(
    tmp_path_factory: pytest.TempPathFactory, make_photo_folder: Callable[..., Path], make_dataset: Callable[..., Path]
) -> Path:
    root = tmp_path_factory.mktemp("chain")
    text = SHARED
    tasks = (
        ("fruit", ("apple", "fig", "quince"), ""),
        ("tree", ("elm", "oak"), 'init_from = "fruit"\ninit_checkpoint = "last"\ninit_layers = "conv"'),
        ("again", ("apple", "fig", "quince"), 'init_from = "tree"'),
    )
    for name, classes, more in tasks:
        text += f'[[stage]]\nname = "{name}"\n'
        for part, count in (("train", 4), ("val", 2)):
            folder = make_photo_folder(root / f"{name}_{part}_source", classes, count, sides=(60, 90))
            text += f'{part}_set = "{make_dataset(folder, root / f"{name}_{part}")}"\n'
        text += f"{more}\n"
    text += '[stage.train]\nlayer_lr = "conv=frozen"\n'
    path = root / "chain.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def whole(chain_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain that was never stopped."""
    run_dir = tmp_path_factory.mktemp("whole")
    report = run_chain(load_stages(chain_file), {"run_dir": run_dir, "device": "cpu"})
    assert [done.state for done in report.outcomes] == ["finished"] * 3
    return run_dir


def digests(run_dir: Path) -> list[str]:
    names = ("fruit", "tree", "again")
    return [json.loads((run_dir / name / STAGE_FILE).read_text())["report"]["weights_sha256"] for name in names]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_each_stage_begins_with_the_layers_of_the_one_before(whole: Path) -> None:
    fruit = load_checkpoint(CheckpointDirectory(whole / "fruit" / "checkpoints").paths()[-1]).model
    tree = load_checkpoint(whole / "tree" / "checkpoints" / "best.pt").model
    again = load_checkpoint(CheckpointDirectory(whole / "again" / "checkpoints").paths()[-1]).model
    assert (fruit["fc8.weight"].shape[0], tree["fc8.weight"].shape[0], again["fc8.weight"].shape[0]) == (3, 2, 3)
    # The last stage froze what it was given, so that its end shows its beginning; the others have moved on.
    assert torch.equal(again["conv3.weight"], tree["conv3.weight"])
    assert not torch.equal(again["fc6.weight"], tree["fc6.weight"])
    assert not torch.equal(tree["conv3.weight"], fruit["conv3.weight"])
    change = (tree["conv3.weight"] - fruit["conv3.weight"]).norm() / fruit["conv3.weight"].norm()
    assert change < 0.2  # near where it began; two random networks would be 1.4 apart


def test_every_stage_is_a_run_of_its_own(whole: Path) -> None:
    for name in ("fruit", "tree", "again"):
        found = {path.name for path in (whole / name).iterdir()}
        assert {STAGE_FILE, "metrics.jsonl", "checkpoints", "statistics.json", "kernels.png"} <= found


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_chain_stopped_in_any_stage_goes_on_there_and_ends_the_same(
    chain_file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    steps = 0
    original = Trainer._train_on

    def counted(self: Trainer, *arguments: Any) -> None:
        nonlocal steps
        original(self, *arguments)
        steps += 1
        if steps == stop:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_train_on", counted)
    given = {"run_dir": tmp_path, "device": "cpu"}
    report = run_chain(load_stages(chain_file), given)
    monkeypatch.undo()
    assert report.stopped_by == signal.SIGTERM
    states = [done.state for done in report.outcomes]
    at = states.index("stopped")
    assert states == ["finished"] * at + ["stopped"] + ["not begun"] * (2 - at)
    with pytest.raises(InputError, match="--resume"):
        run_chain(load_stages(chain_file), given)
    resumed = run_chain(load_stages(chain_file), {**given, "resume": True})
    assert [done.state for done in resumed.outcomes] == ["finished earlier"] * at + ["finished"] * (3 - at)
    assert digests(tmp_path) == digests(whole)


def test_a_finished_stage_with_other_settings_is_refused(chain_file: Path, whole: Path) -> None:
    given = {"run_dir": whole, "resume": True, "device": "cpu"}
    text = chain_file.read_text()
    changed = chain_file.with_name("changed.toml")
    changed.write_text(text.replace("epochs = 2", "epochs = 3"))
    with pytest.raises(InputError, match=r"finished with other settings: train.epochs 2 -> 3: use another"):
        run_chain(load_stages(changed), given)
    changed.write_text(text.replace("num_threads = 1", "num_threads = 2").replace("keep_checkpoints = 9\n", ""))
    assert [done.state for done in run_chain(load_stages(changed), given).outcomes] == ["finished earlier"] * 3


@pytest.mark.parametrize("change", [{"settings": []}, {"report": 3}, {"report": {"seconds": "long"}}])
def test_a_stage_file_that_was_edited_is_named_with_a_way_out(
    change: dict[str, Any], chain_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "fruit" / STAGE_FILE
    path.parent.mkdir()
    path.write_text(json.dumps({"name": "fruit", "settings": {}, "report": None} | change))
    with pytest.raises(InputError, match=r"stage\.json: .*: remove it, and --resume goes on"):
        run_chain(load_stages(chain_file), {"run_dir": tmp_path, "resume": True, "device": "cpu"})


def test_the_plan_is_shown_and_nothing_is_done(chain_file: Path, tmp_path: Path) -> None:
    outcome = run("--stages", chain_file, "--dry-run", "--run-dir", tmp_path / "run", "--epochs", "7")
    assert outcome.exit_code == 0, outcome.output
    assert not (tmp_path / "run").exists()
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in outcome.stdout.splitlines() if "│" in line]
    assert ["copied", "conv1, conv2, conv3, conv4, conv5"] in rows
    assert ["begins with", "fruit, last checkpoint, layers conv"] in rows
    assert ["rates of layers", "conv=frozen"] in rows
    assert rows.count(["epochs, batch", "7, 4"]) == 3
    document = json.loads(run("--stages", chain_file, "--dry-run", "--json").stdout)
    assert [stage["name"] for stage in document["stages"]] == ["fruit", "tree", "again"]
    assert "again model (preset small)" in run("--stages", chain_file, "--print-config").stdout


def test_a_chain_from_the_command_line(chain_file: Path, whole: Path) -> None:
    outcome = run("--stages", chain_file, "--run-dir", whole, "--resume", "--json", "--quiet")
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    assert [stage["state"] for stage in document["stages"]] == ["finished earlier"] * 3
    shown = run("--stages", chain_file, "--run-dir", whole, "--resume").stdout
    assert "finished earlier" in shown and "best top-1 accuracy" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stages", "c.toml", "train"), "leave TRAIN and --init-from out"),
        (("--stages", "c.toml", "--init-from", "x"), "leave TRAIN and --init-from out"),
        (("--dry-run",), "--dry-run is for --stages"),
        (("train", "val"), "Missing --run-dir"),
        (("--run-dir", "x"), "Missing TRAIN"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(arguments: tuple[str, ...], message: str) -> None:
    outcome = run(*arguments)
    assert outcome.exit_code == 2
    assert message in outcome.output


def train_chain(chain_file: Path, run_dir: Path) -> None:
    """What each rank does; the second comes late, when the first would have begun to write without it."""
    if os.environ["RANK"] == "1":
        time.sleep(0.5)
    given = {"run_dir": run_dir, "device": "cpu", "parallel": "ddp", "rank_timeout": 90.0}
    report = run_chain(load_stages(chain_file)[:2], given)
    assert [done.state for done in report.outcomes] == ["finished"] * 2


def test_several_ranks_train_a_chain_together(chain_file: Path, whole: Path, tmp_path: Path) -> None:
    assert start_ranks(2, train_chain, chain_file, tmp_path, meet=False) == [0, 0]
    for name in ("fruit", "tree"):
        alone, shared = (json.loads((run_dir / name / STAGE_FILE).read_text()) for run_dir in (whole, tmp_path))
        assert shared["settings"] == alone["settings"]
        assert (shared["report"]["epochs"], shared["report"]["steps"]) == (2, alone["report"]["steps"])
