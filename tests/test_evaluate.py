"""`lmdali eval` on a run made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import BROWSER, NO_BROWSER, measure_page
from click.testing import CliRunner
from page_parts import parse_page
from ranked_loader import start_ranks

from lmdali.model.checkpoint import load_checkpoint, save_checkpoint
from lmdali.model.error_analysis import analyse
from lmdali.model.parallel import Ranks
from lmdali.model.presets import PRESETS
from lmdali.model.probabilities_file import load_probabilities, save_probabilities
from lmdali.pipeline.errors import ConfigError, InputError, MachineError
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.evaluate import EvalConfig, command, evaluate_networks
from lmdali.tools.evaluation_page import save_evaluation_page
from lmdali.tools.evaluation_report import EvalReport, class_rows
from lmdali.tools.member_probabilities import EvaluationSet, member_probabilities
from lmdali.tools.train_job import TrainJob, train_dataset
from lmdali.tools.train_report import TrainReport


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


def evaluate_one(val: Path, checkpoint: Path, config: EvalConfig) -> EvalReport:
    return evaluate_networks(val, [checkpoint], config)


def test_it_repeats_the_trainers_validation(trained: TrainReport, val: Path) -> None:
    report = evaluate_one(val, trained.run_dir, QUIET)
    assert trained.result.val is not None
    assert report.analysis.top1_error == trained.result.val.top1_error
    assert report.analysis.loss == pytest.approx(trained.result.val.loss, rel=1e-5)
    source = report.members[0].source
    assert (source["epoch"], source["step"]) == (1, 3)


def test_ten_views_count_each_sample_once(trained: TrainReport, val: Path) -> None:
    report = evaluate_one(val, trained.run_dir, EvalConfig(views=10, quiet=True, num_threads=1))
    assert (report.analysis.num_samples, report.num_views) == (12, 10)


def test_a_run_needs_its_own_directory_only(trained: TrainReport, val: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(trained.run_dir, tmp_path / "elsewhere")
    want = evaluate_one(val, trained.run_dir, QUIET).analysis
    assert evaluate_one(val, moved, QUIET).analysis == want


def test_a_network_whose_probabilities_are_no_numbers_is_refused(
    trained: TrainReport, val: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(trained.run_dir, tmp_path / "diverged")
    path = moved / "checkpoints" / "best.pt"
    stored = load_checkpoint(path)
    path.unlink()
    save_checkpoint(path, replace(stored, model={**stored.model, "fc8.bias": stored.model["fc8.bias"] * torch.nan}))
    with pytest.raises(InputError, match="not finite: its training diverged"):
        evaluate_one(val, moved, QUIET)


def test_a_lone_checkpoint_finds_its_training_set_or_is_told(
    trained: TrainReport, val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained.best_checkpoint is not None
    lone = shutil.copy(trained.best_checkpoint, tmp_path / "lone.pt")
    want = evaluate_one(val, trained.run_dir, QUIET).analysis
    assert evaluate_one(val, lone, QUIET).analysis == want
    with pytest.raises(InputError, match="of dataset"):
        evaluate_one(val, lone, EvalConfig(basis=val, quiet=True, num_threads=1))
    with pytest.raises(InputError, match="--basis"):
        evaluate_one(val, lone, EvalConfig(basis=tmp_path, quiet=True, num_threads=1))


def test_other_classes_are_refused(trained: TrainReport, raw_dataset: Path) -> None:
    with pytest.raises(InputError, match="its 4 classes are not the 3"):
        evaluate_one(raw_dataset, trained.run_dir, QUIET)


def test_missing_things_are_named(trained: TrainReport, val: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        evaluate_one(val, tmp_path, QUIET)
    with pytest.raises(InputError):
        evaluate_one(tmp_path / "none", trained.run_dir, QUIET)
    with pytest.raises(MachineError, match="cuda:99"):
        evaluate_one(val, trained.run_dir, EvalConfig(device="cuda:99"))
    with pytest.raises(ConfigError, match="device"):
        evaluate_one(val, trained.run_dir, EvalConfig(device="tpu"))


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_or_json(trained: TrainReport, val: Path) -> None:
    table = run(val, trained.run_dir, "--quiet", "-j", 1)
    assert table.exit_code == 0, table.output
    assert "top-1 error" in table.stdout
    document = run(val, trained.run_dir, "--json", "--views", 10, "-j", 1)
    values = json.loads(document.stdout)
    assert (values["num_views"], values["num_samples"], values["networks"][0]["step"]) == (10, 12, 3)


def test_classes_without_images_are_in_no_table_and_the_worst_come_first(trained: TrainReport, val: Path) -> None:
    report = evaluate_one(val, trained.run_dir, QUIET)
    first, second, *others = report.analysis.classes
    absent = replace(second, num_images=0, top1_error=None, top5_error=None, confidence=None)
    worst = [replace(entry, top1_error=0.1 * entry.label) for entry in others]
    classes = (replace(first, top1_error=0.05), absent, *worst)
    rows = class_rows(replace(report, analysis=replace(report.analysis, classes=classes)))
    names = report.class_names
    assert [row[0] for row in rows] == [*(names[entry.label] for entry in reversed(worst)), names[0]]


def test_only_one_or_ten_views() -> None:
    with pytest.raises(ConfigError, match="views"):
        EvalConfig(views=5)


@pytest.fixture(scope="module")
def second(trained: TrainReport, val: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with other weights."""
    run_dir = shutil.copytree(trained.run_dir, tmp_path_factory.mktemp("second") / "run")
    best = run_dir / "checkpoints" / "best.pt"
    stored = load_checkpoint(best)
    model = {name: weight + 0.02 * torch.randn_like(weight) for name, weight in stored.model.items()}
    best.unlink()
    save_checkpoint(best, replace(stored, model=model))
    return run_dir


def test_one_network_five_times_is_itself(trained: TrainReport, val: Path) -> None:
    one = evaluate_one(val, trained.run_dir, QUIET)
    five = evaluate_networks(val, [trained.run_dir] * 5, QUIET)
    assert five.analysis == one.analysis and len(five.members) == 5


def test_the_average_is_that_of_softmaxes_and_files_take_the_place_of_networks(
    trained: TrainReport, second: Path, val: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for source, path in zip((trained.run_dir, second), files, strict=True):
        evaluate_one(val, source, replace(QUIET, save_probabilities=path, views=10))
    want = evaluate_networks(val, [trained.run_dir, second], replace(QUIET, views=10))
    for sources in (files, files[::-1], [files[0], second], [trained.run_dir, files[1]]):
        found = evaluate_networks(val, sources, QUIET)
        assert found.num_views == 10
        assert np.array_equal(found.probabilities.values, want.probabilities.values)
        assert found.analysis == want.analysis
    explicit = (load_probabilities(files[0]).values * 3 + load_probabilities(files[1]).values) / 4
    weighted = evaluate_networks(val, files, replace(QUIET, weights=(3, 1)))
    np.testing.assert_allclose(weighted.probabilities.values, explicit, rtol=1e-6)
    assert [member.weight for member in weighted.members] == [0.75, 0.25]


def test_files_of_something_else_are_refused(
    trained: TrainReport,
    val: Path,
    tmp_path: Path,
    make_dataset: Callable[..., Path],
    make_photo_folder: Callable[..., Path],
) -> None:
    path = tmp_path / "a.npz"
    made = evaluate_one(val, trained.run_dir, replace(QUIET, save_probabilities=path)).probabilities
    with pytest.raises(InputError, match="made with --views 1, the others with 10"):
        evaluate_networks(val, [path, trained.run_dir], replace(QUIET, views=10))
    turned = tmp_path / "turned.npz"
    save_probabilities(turned, replace(made, class_names=made.class_names[::-1]))
    with pytest.raises(InputError, match="the same classes in another order"):
        evaluate_networks(val, [path, turned], QUIET)
    other = make_dataset(
        make_photo_folder(tmp_path / "source", per_class=4, sides=(60, 120), seed=11), tmp_path / "val"
    )
    with pytest.raises(InputError, match="give the dataset that it was made of"):
        evaluate_one(other, path, QUIET)
    with pytest.raises(ConfigError, match="no network"):
        evaluate_networks(val, [], QUIET)


def test_the_command_averages_and_shows_each_network(trained: TrainReport, val: Path, tmp_path: Path) -> None:
    done = run(val, trained.run_dir, trained.run_dir, "--weights", "2,1", "--quiet", "-j", 1)
    assert done.exit_code == 0, done.output
    assert "average of 2" in done.stdout and "0.667" in done.stdout
    assert run(val, trained.run_dir, "--weights", "a,b").exit_code == 2


def evaluated_by_rank(ranks: Ranks, val: Path, run_dir: Path, out: Path) -> None:
    """One rank's part of `lmdali eval --parallel ddp`, without the process group, which is there already."""
    asked = EvaluationSet(
        dataset=val,
        manifest=load_manifest(val),
        num_views=10,
        batch_size=5,
        device="cpu",
        basis=None,
        loader_arguments={"num_threads": 1},
        quiet=True,
    )
    found = member_probabilities(asked, run_dir, ranks)
    save_probabilities(out / f"{ranks.rank}.npz", found)


def test_ranks_put_together_what_one_process_finds(trained: TrainReport, val: Path, tmp_path: Path) -> None:
    """12 images by 5 on 3 ranks: no rank has as many as another."""
    want = evaluate_one(val, trained.run_dir, EvalConfig(views=10, quiet=True, num_threads=1))
    assert start_ranks(3, evaluated_by_rank, val, trained.run_dir, tmp_path) == [0, 0, 0]
    for rank in range(3):
        found = load_probabilities(tmp_path / f"{rank}.npz")
        assert np.array_equal(found.labels, want.probabilities.labels)
        np.testing.assert_allclose(found.values, want.probabilities.values, rtol=1e-5)
        assert analyse(found.values, found.labels).top1_error == want.analysis.top1_error


def test_the_page_shows_everything_and_loads_nothing(
    trained: TrainReport, second: Path, val: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "page.html"
    done = run(val, trained.run_dir, second, "--html", out, "--quiet", "-j", 1)
    assert done.exit_code == 0, done.output
    assert str(out) in done.stdout
    parts = parse_page(out.read_text())
    expected = ["Errors", "Classes", "Confusions", "Calibration", "Worst mistakes", "What was measured"]
    assert parts.headings == [f"Evaluation on {val.name}", *expected]
    assert len(parts.pictures) == 1 and parts.pictures[0].startswith("data:image/webp;base64,")
    assert len(parts.plots) == 2
    report = evaluate_networks(val, [trained.run_dir, second], QUIET)
    assert f"{100 * report.analysis.top1_error:.2f} %" in parts.text
    assert report.probabilities.class_list_hash in parts.text


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_a_browser_shows_the_page(trained: TrainReport, val: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    save_evaluation_page(evaluate_one(val, trained.run_dir, QUIET), out)
    for found in measure_page(out.read_text(), tmp_path):
        assert found["scroll"] <= found["width"] and found["clipped"] == []
        assert len(found["plots"]) == 2 and min(found["pictures"]) > 100
