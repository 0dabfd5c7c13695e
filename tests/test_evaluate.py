"""`lmdali eval` on a run made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lmdali.model.presets import PRESETS
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.errors import ConfigError, InputError, MachineError
from lmdali.tools.checkpoint_network import evaluation_augment
from lmdali.tools.evaluate import EvalConfig, command, evaluate_checkpoint
from lmdali.tools.train_job import TrainJob, train_dataset
from lmdali.tools.train_report import TrainReport

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def val(
    tmp_path_factory: pytest.TempPathFactory, make_photo_folder: Callable[..., Path], make_dataset: Callable[..., Path]
) -> Path:
    root = tmp_path_factory.mktemp("eval")
    return make_dataset(make_photo_folder(root / "source", per_class=4, sides=(60, 120), seed=8), root / "val")


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    val: Path,
    make_photo_folder: Callable[..., Path],
    make_dataset: Callable[..., Path],
) -> TrainReport:
    root = tmp_path_factory.mktemp("trained")
    train = make_dataset(make_photo_folder(root / "source", per_class=8, sides=(60, 120), seed=9), root / "train")
    preset = PRESETS["small"].changed(
        model={"width": 1 / 32}, train={"epochs": 1, "schedule": "constant"}, batch_size=8
    )
    return train_dataset(TrainJob(train=train, val=val, run_dir=root / "run", preset=preset, num_threads=1))


QUIET = EvalConfig(quiet=True, num_threads=1)


def test_it_repeats_the_trainers_validation(trained: TrainReport, val: Path) -> None:
    report = evaluate_checkpoint(val, trained.run_dir, QUIET)
    assert trained.result.val is not None
    assert report.result.top1_error == trained.result.val.top1_error
    assert report.result.loss == pytest.approx(trained.result.val.loss, rel=1e-5)
    assert (report.epoch, report.step) == (1, 3)


def test_ten_views_count_each_sample_once(trained: TrainReport, val: Path) -> None:
    report = evaluate_checkpoint(val, trained.run_dir, EvalConfig(views=10, quiet=True, num_threads=1))
    assert (report.result.num_samples, report.result.num_views) == (12, 10)


def test_a_run_needs_its_own_directory_only(trained: TrainReport, val: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(trained.run_dir, tmp_path / "elsewhere")
    want = evaluate_checkpoint(val, trained.run_dir, QUIET).result
    assert evaluate_checkpoint(val, moved, QUIET).result == want


def test_a_lone_checkpoint_finds_its_training_set_or_is_told(
    trained: TrainReport, val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained.best_checkpoint is not None
    lone = shutil.copy(trained.best_checkpoint, tmp_path / "lone.pt")
    want = evaluate_checkpoint(val, trained.run_dir, QUIET).result
    assert evaluate_checkpoint(val, lone, QUIET).result == want
    with pytest.raises(InputError, match="of dataset"):
        evaluate_checkpoint(val, lone, EvalConfig(basis=val, quiet=True, num_threads=1))
    with pytest.raises(InputError, match="--basis"):
        evaluate_checkpoint(val, lone, EvalConfig(basis=tmp_path, quiet=True, num_threads=1))


def test_other_classes_are_refused(trained: TrainReport, raw_dataset: Path) -> None:
    with pytest.raises(InputError, match="its 4 classes are not the 3"):
        evaluate_checkpoint(raw_dataset, trained.run_dir, QUIET)


def test_missing_things_are_named(trained: TrainReport, val: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        evaluate_checkpoint(val, tmp_path, QUIET)
    with pytest.raises(InputError):
        evaluate_checkpoint(tmp_path / "none", trained.run_dir, QUIET)
    with pytest.raises(MachineError, match="cuda:99"):
        evaluate_checkpoint(val, trained.run_dir, EvalConfig(device="cuda:99"))
    with pytest.raises(ConfigError, match="device"):
        evaluate_checkpoint(val, trained.run_dir, EvalConfig(device="tpu"))


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_or_json(trained: TrainReport, val: Path) -> None:
    table = run(val, trained.run_dir, "--quiet", "-j", 1)
    assert table.exit_code == 0, table.output
    assert "top-1 error" in table.stdout
    document = run(val, trained.run_dir, "--json", "--views", 10, "-j", 1)
    values = json.loads(document.stdout)
    assert (values["num_views"], values["num_samples"], values["step"]) == (10, 12, 3)


def test_only_one_or_ten_views() -> None:
    with pytest.raises(ConfigError, match="views"):
        EvalConfig(views=5)


def test_evaluation_keeps_size_and_normalisation_and_draws_nothing() -> None:
    training = AugmentConfig(
        crop_size=112, normalize="channel_mean_std", mean_window="center", lighting="roots", lighting_rescale=True
    )
    for views, crop in ((1, "center"), (10, "ten")):
        augment = evaluation_augment(training, views)
        assert (augment.crop, augment.num_views, augment.flip, augment.lighting) == (crop, views, False, "none")
        assert (augment.crop_size, augment.normalize, augment.lighting_rescale) == (112, "channel_mean_std", False)
        assert augment.mean_window == "center"
