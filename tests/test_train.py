"""`lmdali train` on a small dataset of its own: what it writes, how it stops, how it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lmdali.model.alexnet import AlexNetConfig
from lmdali.model.journal import read_metrics
from lmdali.model.presets import PRESETS, Preset
from lmdali.model.train_config import TrainConfig
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.tools.exit_codes import Terminated
from lmdali.tools.preset_options import PRESET_OPTIONS
from lmdali.tools.train import TrainJob, command, train_dataset

FAST = ["--preset", "small", "--width", "0.03125", "-b", "8", "--epochs", "2", "--schedule", "constant", "-j", "1"]

OPTIONS = (
    "-b -j --backend --batch-size --bias-decay --block-shards --channels-last --checkpoint-seconds --checkpoint-steps "
    "--cuda-graph --decode --decoded-cache-bytes --device --devices --dropout --epochs --init --json "
    "--keep-checkpoints --label-smoothing --lighting --lighting-std --log-steps --lr --momentum --normalize "
    "--num-threads --order --parallel --precision --prefetch --preset --quiet --rank-timeout --readahead-bytes "
    "--resume --run-dir --schedule --seed --tensorboard --verify --wd "
    "--weight-decay --width --workers"
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def datasets(
    tmp_path_factory: pytest.TempPathFactory, make_photo_folder: Callable[..., Path], make_dataset: Callable[..., Path]
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("train")
    made = []
    for name, per_class, seed in (("train", 8, 3), ("val", 4, 4)):
        folder = make_photo_folder(root / f"{name}_source", per_class=per_class, sides=(60, 120), seed=seed)
        made.append(make_dataset(folder, root / name))
    return made[0], made[1]


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=True)


def small_preset(**train: Any) -> Preset:
    return PRESETS["small"].changed(
        model={"width": 1 / 32}, train={"epochs": 2, "schedule": "constant", **train}, batch_size=8
    )


def test_a_run_leaves_metrics_checkpoints_statistics_and_pictures(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    outcome = run(*datasets, "--run-dir", tmp_path / "run", *FAST, "--json", "--quiet")
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    assert outcome.stderr == ""
    assert (document["epochs"], document["steps"], document["val"]["num_samples"]) == (2, 6, 12)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"metrics.jsonl", "checkpoints", "statistics.json", "mean.npy", "kernels.png"} <= names
    assert Path(document["best_checkpoint"]).is_file()
    assert [r["epoch"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "epoch"] == [0, 1]


def test_people_get_a_table_on_stdout_and_progress_on_stderr(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    outcome = run(*datasets, "--run-dir", tmp_path / "run", *FAST)
    assert outcome.exit_code == 0, outcome.output
    assert "best validation top-1 accuracy" in outcome.stdout
    assert "24 training and 12 validation samples of 3 classes" in outcome.stderr
    assert "Epoch: [0][1/3]" in outcome.stderr


def test_validation_uses_the_training_sets_statistics(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    train, val = TrainJob(train=datasets[0], val=datasets[1], run_dir=tmp_path, preset=small_preset()).loader_configs()
    assert (train.basis, val.basis) == (None, datasets[0])
    assert (train.order, val.order) == ("shuffled", "sequential")
    assert not val.drops_last
    assert (val.augment.crop, val.augment.flip, val.augment.lighting) == ("center", False, "none")
    assert val.augment.normalize == train.augment.normalize


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    def job(name: str, *, resume: bool = False) -> TrainJob:
        preset = small_preset(checkpoint_steps=1)
        return TrainJob(
            train=datasets[0], val=datasets[1], run_dir=tmp_path / name, preset=preset, resume=resume, num_threads=1
        )

    whole = train_dataset(job("whole"))
    train_dataset(job("cut"))
    for path in sorted((tmp_path / "cut" / "checkpoints").glob("step-*.pt"))[1:]:
        path.unlink()  # as if it had been killed after step 4, in the middle of the second epoch
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").glob("step-*.pt")] == ["step-000000004.pt"]
    resumed = train_dataset(job("cut", resume=True))
    assert resumed.result.weights_sha256 == whole.result.weights_sha256
    assert resumed.result.val == whole.result.val
    steps = [[(r["kind"], r["step"]) for r in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("whole", "cut")]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(("number", "raised"), [(2, KeyboardInterrupt), (15, Terminated)])
def test_a_signal_ends_in_its_own_exit(
    tmp_path: Path,
    datasets: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    raised: type[BaseException],
) -> None:
    job = TrainJob(train=datasets[0], val=datasets[1], run_dir=tmp_path, preset=small_preset(), num_threads=1)
    report = train_dataset(job)
    stopped = dataclasses.replace(report, result=dataclasses.replace(report.result, stopped_by=number))
    monkeypatch.setattr("lmdali.tools.train.train_dataset", lambda job, progress: stopped)
    arguments = [*map(str, datasets), "--run-dir", str(tmp_path), "--preset", "small", "--quiet"]
    # Not `main`, in which click turns an interrupt into an exception of its own.
    with pytest.raises(raised), command.make_context("train", arguments) as context:
        command.invoke(context)


def test_a_run_directory_is_not_overwritten(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    job = TrainJob(train=datasets[0], val=datasets[1], run_dir=tmp_path / "run", preset=small_preset(), num_threads=1)
    first = train_dataset(job).result.weights_sha256
    with pytest.raises(InputError, match="--resume"):
        train_dataset(job)
    again = train_dataset(dataclasses.replace(job, resume=True))
    assert again.result.weights_sha256 == first


def test_validation_classes_must_be_the_training_classes(
    tmp_path: Path, datasets: tuple[Path, Path], small_jpeg_dataset: Path, raw_dataset: Path
) -> None:
    job = TrainJob(train=datasets[0], val=raw_dataset, run_dir=tmp_path, preset=small_preset(), num_threads=1)
    with pytest.raises(InputError, match="different classes"):
        train_dataset(job)
    assert list(tmp_path.iterdir()) == []


def test_every_option_is_a_field_with_the_presets_value() -> None:
    sections = {"model": AlexNetConfig, "train": TrainConfig, "augment": AugmentConfig}
    declared = {parameter.name for parameter in command.params}
    for section, fields in PRESET_OPTIONS.items():
        known = {field.name for field in dataclasses.fields(sections[section])}
        assert set(fields) <= known
        assert set(fields) <= declared
    assert set(PRESET_OPTIONS["train"]) == {field.name for field in dataclasses.fields(TrainConfig)}


def test_the_list_of_options_is_frozen() -> None:
    flags = sorted(flag for parameter in command.params for flag in parameter.opts if flag.startswith("-"))
    assert flags == sorted(OPTIONS.split())


def test_given_options_replace_the_presets_values_only_where_given(
    tmp_path: Path, datasets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[TrainJob] = []

    def remember(job: TrainJob, progress: object) -> None:
        jobs.append(job)
        raise InputError("far enough")

    monkeypatch.setattr("lmdali.tools.train.train_dataset", remember)
    run(*datasets, "--run-dir", tmp_path, "--lr", "0.5", "--no-channels-last", "--lighting", "none", "-b", "7")
    paper, got = PRESETS["paper"], jobs[0].preset
    assert got.model == paper.model
    assert got.train == dataclasses.replace(paper.train, lr=0.5, channels_last=False)
    assert got.augment == dataclasses.replace(paper.augment, lighting="none")
    assert got.batch_size == 7


def test_the_paper_preset_is_the_paper() -> None:
    paper = PRESETS["paper"]
    assert (paper.model.width, paper.model.init, paper.model.lrn_alpha) == (1.0, "paper", 5e-4)
    train = paper.train
    assert (train.lr, train.momentum, train.weight_decay, train.epochs) == (0.01, 0.9, 5e-4, 90)
    assert (train.schedule, train.label_smoothing, train.bias_decay) == ("plateau", 0.0, False)
    assert paper.augment == AugmentConfig.paper()
    assert paper.batch_size == 128


def test_impossible_values_are_refused() -> None:
    with pytest.raises(ConfigError):
        PRESETS["paper"].changed(train={"lr": -1.0})
    with pytest.raises(ConfigError):
        PRESETS["paper"].changed(batch_size=0)
