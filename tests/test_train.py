"""`lmdali train` on a small dataset of its own: what it writes, how it stops, how it refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from lmdali.model.checkpoint import load_checkpoint
from lmdali.model.journal import read_metrics
from lmdali.model.presets import PRESETS, Preset
from lmdali.model.run_lock import LOCK_FILE, run_lock
from lmdali.model.torchrun import TorchrunPlace
from lmdali.pipeline.errors import ConfigError, InputError, LockedError
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.config_file import GivenSettings
from lmdali.tools.dataset_pair import SameDatasetWarning, SwappedDatasetsWarning
from lmdali.tools.exit_codes import Terminated
from lmdali.tools.recipe import resolve_recipe
from lmdali.tools.train import command
from lmdali.tools.train_job import TrainJob, train_dataset
from lmdali.tools.train_report import print_report

FAST = ["--preset", "small", "--width", "0.03125", "-b", "8", "--epochs", "2", "--schedule", "constant", "-j", "1"]

OPTIONS = (
    "--backend --batch-size --bias-decay --bias-lr --bias-schedule --block-nodes --block-shards --cache-bytes "
    "--cache-dir --channels-last "
    "--checkpoint-seconds --checkpoint-steps --config --crop --crop-chunk --crop-size --cuda-graph --decode "
    "--decoded-cache-bytes --device --devices --drop --drop-last --dropout --dropout-rule --dry-run --epochs --fetches "
    "--flip --half-net --init --init-from --init-layers --json --keep-checkpoints --label-smoothing --layer-lr "
    "--lighting --lighting-epochs --lighting-rescale --lighting-std --log-steps --lr --lrn-across-towers "
    "--lrn-alpha --lrn-beta --lrn-k --lrn-place --lrn-size --map-norm --max-aspect --mean-window --min-area "
    "--momentum --normalize "
    "--num-threads --order --parallel --pooling --precision --prefetch --preset --print-config --quiet "
    "--rank-timeout --readahead-bytes --resume --run-dir --schedule --seed --sixth-layer --stages --tensorboard "
    "--towers --verify --wd --weight-decay --width --workers -b -j"
)


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


def test_validating_on_the_training_set_is_told_by_name_and_is_no_error(
    tmp_path: Path, datasets: tuple[Path, Path]
) -> None:
    again = shutil.copytree(datasets[0], tmp_path / "copy")  # another place, the same manifest
    with pytest.warns(SameDatasetWarning, match="one dataset .* validation figures say nothing"):
        outcome = run(datasets[0], again, "--run-dir", tmp_path / "run", *FAST, "--epochs", "1", "--json", "--quiet")
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["val"]["num_samples"] == json.loads(outcome.stdout)["steps"] * 8


def test_datasets_in_each_others_place_are_told_and_trained_on(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    with pytest.warns(SwappedDatasetsWarning, match="the training set comes first"):
        outcome = run(*datasets[::-1], "--run-dir", tmp_path / "run", *FAST, "--epochs", "1", "--json", "--quiet")
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["val"]["num_samples"] == 24


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


def test_the_seed_of_a_training_is_that_of_its_order_and_draws(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    job = TrainJob(train=datasets[0], val=datasets[1], run_dir=tmp_path, preset=small_preset(seed=5))
    assert [config.seed for config in job.loader_configs()] == [5, 5]


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


def test_whatever_is_changed_on_resuming_is_shown(
    tmp_path: Path, datasets: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    job = TrainJob(
        train=datasets[0], val=datasets[1], run_dir=tmp_path, preset=small_preset(epochs=1), resume=True, num_threads=1
    )
    train_dataset(job)
    ended = train_dataset(job, screen := io.StringIO())
    assert "changed on" not in screen.getvalue()
    print_report(ended)
    assert "images/s" not in capsys.readouterr().out  # it had ended, so nothing was trained
    recipe = dataclasses.replace(job.preset.changed(augment={"lighting": "none"}, batch_size=4), drop_last=False)
    with pytest.warns(SameDatasetWarning):
        train_dataset(dataclasses.replace(job, preset=recipe, order="block", val=datasets[0]), screen := io.StringIO())
    changed = [line for line in screen.getvalue().splitlines() if line.startswith("changed")]
    digests = [load_manifest(path).digest[:12] for path in datasets[::-1]]
    assert changed == [
        f"changed on resuming: {change}"
        for change in (
            "batch_size 8 -> 4",
            "order shuffled -> block",
            "drop_last True -> False",
            f"validation_set {digests[0]} -> {digests[1]}",
            "lighting roots -> none",
        )
    ]


def test_a_second_run_in_a_directory_changes_nothing_of_the_first(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    """Neither what the report says of its settings, nor the mean that it is evaluated with."""
    job = TrainJob(train=datasets[0], val=datasets[1], run_dir=tmp_path, preset=small_preset(epochs=1), num_threads=1)
    train_dataset(job)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".png"}
    assert {"run.json", "statistics.json", "mean.npy"} <= set(before)
    second = dataclasses.replace(job, preset=small_preset(epochs=2, lr=0.5), resume=True)
    with run_lock(tmp_path):
        before[LOCK_FILE] = (tmp_path / LOCK_FILE).read_bytes()
        with pytest.raises(LockedError, match="another run is training here"):
            train_dataset(second)
        assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_run_that_lost_its_journal_ends_with_its_report(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    arguments = (*datasets, "--run-dir", tmp_path, *FAST)
    assert run(*arguments, "--quiet").exit_code == 0
    (tmp_path / "metrics.jsonl").unlink()
    outcome = run(*arguments, "--resume")
    assert outcome.exit_code == 0, outcome.output
    assert "no finished epoch, so there is no curve to draw" in outcome.stderr
    assert "best checkpoint" in outcome.stdout
    assert "learning curve" not in outcome.stdout


def test_the_settings_of_a_run_are_a_file_of_settings(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    assert run(*datasets, "--run-dir", tmp_path, *FAST, "--quiet").exit_code == 0
    typed, taken = (
        json.loads(run(datasets[0], *given, "--print-config", "--json").stdout)
        for given in (FAST, ("--config", tmp_path / "run.json"))
    )
    assert {**taken, "origins": None} == {**typed, "origins": None}


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


def test_every_setting_is_printed_and_taken_back(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    outcome = run(datasets[0], "--preset", "caffe", "--print-config", "--json", "--drop", "conv3", "--bias-lr", "none")
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    assert (document["preset"], document["model"]["num_classes"]) == ("caffe", 3)
    assert document["origins"]["model"] | {"drop": "--drop", "init": "preset caffe"} == document["origins"]["model"]
    assert document["origins"]["model"]["num_classes"] == f"dataset {datasets[0]}"
    (tmp_path / "c.json").write_text(outcome.stdout)
    again = json.loads(run(datasets[0], "--config", tmp_path / "c.json", "--print-config", "--json").stdout)
    assert {**again, "origins": None} == {**document, "origins": None}
    assert "preset caffe" in run("--preset", "caffe", "--print-config").stdout


def test_an_unknown_setting_in_a_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[train]\nweight_deacy = 0.1\n")
    outcome = run("--config", tmp_path / "c.toml", "--print-config")
    assert isinstance(outcome.exception, ConfigError)
    assert "no such field: weight_deacy; did you mean weight_decay?" in str(outcome.exception)


def test_a_run_begins_with_another_runs_layers(tmp_path: Path, datasets: tuple[Path, Path]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(*datasets, "--run-dir", first, *FAST, "--quiet").exit_code == 0
    given = ["--init-from", first, "--init-layers", "conv", "--layer-lr", "conv=frozen"]
    outcome = run(*datasets, "--run-dir", second, *FAST, *given, "--seed", "9")
    assert outcome.exit_code == 0, outcome.output
    assert "begins with conv1, conv2, conv3, conv4, conv5 from " in outcome.stderr
    old, new = (load_checkpoint(folder / "checkpoints" / "best.pt").model for folder in (first, second))
    assert torch.equal(old["conv4.weight"], new["conv4.weight"])
    assert not torch.equal(old["fc6.weight"], new["fc6.weight"])
    resumed = run(*datasets, "--run-dir", second, *FAST, *given, "--seed", "9", "--resume", "--epochs", "3")
    assert resumed.exit_code == 0, resumed.output
    assert "begins with" not in resumed.stderr


def test_the_last_smaller_batch_is_trained_on_where_the_recipe_says_so(
    tmp_path: Path, datasets: tuple[Path, Path]
) -> None:
    preset = dataclasses.replace(small_preset(epochs=1), batch_size=7, drop_last=False, order="shuffled_once")
    job = TrainJob(train=datasets[0], val=datasets[1], run_dir=tmp_path, preset=preset, num_threads=1)
    assert (job.loader_configs()[0].order, job.loader_configs()[1].order) == ("shuffled_once", "sequential")
    assert dataclasses.replace(job, order="block").loader_configs()[0].order == "block"
    assert train_dataset(job).result.steps == 4  # of 24 samples: three times seven, and three
    with pytest.raises(ConfigError, match="--drop-last"):
        job.loader_configs(TorchrunPlace(rank=0, world_size=7, local_rank=0, local_world_size=7))


def test_ranks_leave_out_the_last_smaller_batch_of_a_preset_and_refuse_one_that_was_asked_for(tmp_path: Path) -> None:
    def drops_last(world_size: int, *sources: GivenSettings) -> bool:
        recipe = resolve_recipe(sources)
        job = TrainJob(train=tmp_path, val=tmp_path, run_dir=tmp_path, preset=recipe.preset, recipe=recipe.to_json())
        return job.loader_configs(TorchrunPlace(0, world_size, 0, world_size))[0].drops_last

    preset = GivenSettings("command line", {}, "original2012")
    assert [drops_last(world_size, preset) for world_size in (1, 2)] == [False, True]
    wanted = GivenSettings("a file", {"loader": {"drop_last": False}}, None)
    assert not drops_last(1, preset, wanted)
    with pytest.raises(ConfigError, match="cannot share an epoch's last, smaller batch: leave it out, --drop-last"):
        drops_last(2, preset, wanted)
