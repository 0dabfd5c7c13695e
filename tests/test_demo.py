"""`lmdali demo`: the whole journey, small."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import pytest

from lmdali.model.schedule import create_schedule
from lmdali.model.trainer import Trainer
from lmdali.pipeline.errors import InputError, MachineError
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools import profile_config
from lmdali.tools.cli import cli
from lmdali.tools.conversion_report import ConvertSummary
from lmdali.tools.conversion_run import convert
from lmdali.tools.dataset_check import verify_dataset
from lmdali.tools.demo import DemoConfig, DemoReport, demo_recipe, print_report, run_demo
from lmdali.tools.exit_codes import run_command
from lmdali.tools.measurement import WindowPlan
from lmdali.tools.pictures import write_dataset


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DemoConfig:
    out = tmp_path_factory.mktemp("demo") / "out"
    return DemoConfig(out=out, num_train=70, num_val=20, epochs=3, device="cpu", profile_seconds=0.2, quiet=True)


@pytest.fixture(scope="module")
def report(config: DemoConfig) -> DemoReport:
    # What is measured is a matter of test_profiler.py: two windows of each show that it is, in half of the time.
    with pytest.MonkeyPatch.context() as short:
        short.setattr(profile_config, "WindowPlan", partial(WindowPlan, windows=2))
        return run_demo(config)


def test_everything_is_stored_but_the_two_broken_files(report: DemoReport) -> None:
    train, val = report.converted
    assert (train.num_stored, val.num_stored) == (68, 20)
    assert train.rejected == {"truncated": 1, "not_an_image": 1}
    assert val.rejected == {}
    assert verify_dataset(report.out / "data" / "train", quiet=True).problems == []
    names = load_manifest(report.out / "data" / "train").class_names
    assert len(names) == 10
    assert load_manifest(report.out / "data" / "val").class_names == names


def test_it_leaves_three_pictures_and_one_summary(report: DemoReport) -> None:
    for picture in (report.preview, report.trained.learning_curve, report.trained.kernels):
        assert picture is not None
        assert cv2.imread(str(picture)).shape[2] == 3
    document = json.loads((report.out / "demo.json").read_text())
    assert document == json.loads(json.dumps(report.to_json()))
    assert document["trained"]["epochs"] == 3


def test_evaluations_count_every_picture_once(report: DemoReport) -> None:
    assert [(e.analysis.num_samples, e.num_views) for e in report.evaluated] == [(20, 1), (20, 10)]


def test_the_report_is_one_table(report: DemoReport, capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report)
    out = capsys.readouterr().out
    for word in ("68 training and 20 validation", "1 truncated", "top-1", "0.2175", "contact sheet", "verdict"):
        assert word in out


def test_a_device_that_is_not_there_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cuda:99 was asked for"):
        run_demo(DemoConfig(out=tmp_path / "demo", device="cuda:99", quiet=True))
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_demo_of_any_length_has_a_schedule(tmp_path: Path, epochs: int) -> None:
    # The recipe's warm-up takes two epochs, and one and two were refused.
    train = demo_recipe(DemoConfig(out=tmp_path, epochs=epochs)).train
    factors = [create_schedule(train.schedule, epochs).factor(at / 4) for at in range(4 * epochs)]
    assert max(factors) == 1.0 and factors[-1] < 0.9


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_trains_ends_it(
    report: DemoReport,
    tmp_path: Path,
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # It went on with a network of half its epochs, and reported that.
    train_on, copied = Trainer._train_on, iter(report.converted)

    def copy(out: Path, split: str, config: DemoConfig) -> ConvertSummary:
        shutil.copytree(report.out / "data" / split, out / "data" / split)
        return next(copied)

    # What comes before the training takes most of the time, and has been done.
    monkeypatch.setattr("lmdali.tools.demo.write_dataset", lambda *arguments, **options: None)
    monkeypatch.setattr("lmdali.tools.demo._convert", copy)

    def signalled(self: Trainer, *arguments: Any) -> None:
        train_on(self, *arguments)
        signal.raise_signal(number)

    monkeypatch.setattr(Trainer, "_train_on", signalled)
    out = tmp_path / "demo"
    options = ["--num-train", "70", "--num-val", "20", "--epochs", "1", "--device", "cpu"]
    assert run_command(lambda: cli(["demo", "--out", str(out), *options], standalone_mode=False)) == code
    assert "== evaluate" not in capsys.readouterr().err
    assert not (out / "demo.json").exists()


def test_an_earlier_demo_is_replaced_and_nothing_else_is_touched(
    config: DemoConfig,
    report: DemoReport,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Profiling is a third of a demo this small, and has been done once; another is the start of processes.
    monkeypatch.setattr("lmdali.tools.demo.profile_dataset", lambda *arguments, **options: report.profiled)
    monkeypatch.setattr("lmdali.tools.demo.write_dataset", partial(write_dataset, workers=1))
    monkeypatch.setattr("lmdali.tools.demo.convert", partial(convert, workers=1))
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"'thesis.tex', which no demo made"):
        run_demo(DemoConfig(out=tmp_path, quiet=True))
    assert run_command(lambda: cli(["demo", "--out", str(tmp_path)], standalone_mode=False)) == 3
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    capsys.readouterr()
    options = ["--num-train", "70", "--num-val", "20", "--epochs", "3", "--device", "cpu", "--profile-seconds", "0.2"]
    command = ["demo", "--out", str(config.out), *options, "--json", "--quiet"]
    assert run_command(lambda: cli(command, standalone_mode=False)) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["converted"]["train"]["manifest_digest"] == report.converted[0].manifest_digest
    assert again["trained"]["weights_sha256"] == report.trained.result.weights_sha256
