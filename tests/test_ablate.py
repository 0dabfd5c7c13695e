"""`lmdali ablate` on a tiny dataset: same seeds and budget, nothing twice, and it goes on where it was stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from command_line import run
from page_parts import parse_page

from lmdali.model.journal import read_metrics
from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError, LmdaliError
from lmdali.pipeline.files import npy_bytes
from lmdali.tools import ablation
from lmdali.tools.ablate import command
from lmdali.tools.ablation import AblationConfig, run_ablation
from lmdali.tools.image_errors import image_errors
from lmdali.tools.recipe import resolve_recipe
from lmdali.tools.train_job import TrainJob, train_dataset

SMALL = ("--preset", "small", "--width", "0.03125", "--epochs", "1", "--schedule", "constant", "-b", "8", "-j", "1")


@pytest.fixture(scope="module")
def datasets(
    tmp_path_factory: pytest.TempPathFactory, make_photo_folder: Callable[..., Path], make_dataset: Callable[..., Path]
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("ablate")
    sources = [
        make_photo_folder(root / f"source{i}", per_class=n, sides=(60, 120), seed=i) for i, n in ((1, 8), (2, 4))
    ]
    return make_dataset(sources[0], root / "train"), make_dataset(sources[1], root / "val")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, datasets: tuple[Path, Path]) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("done") / "runs"
    return run_dir, json.loads(call(datasets, run_dir, "--variants", "no-conv3", "--seeds", 2))


def call(datasets: tuple[Path, Path], run_dir: Path, *arguments: Any) -> str:
    given = [*datasets, "--run-dir", run_dir, *SMALL, "--json", "--quiet", *arguments]
    outcome = CliRunner().invoke(command, [str(argument) for argument in given])
    assert outcome.exit_code == 0, outcome.output
    return str(outcome.stdout)


def test_each_variant_is_trained_with_each_seed(done: tuple[Path, dict[str, Any]]) -> None:
    run_dir, document = done
    names = ["baseline", "no-conv3"]
    assert [entry["variant"] for entry in document["variants"]] == names
    assert [(run["variant"], run["seed"]) for run in document["runs"]] == [(n, s) for n in names for s in (0, 1)]
    digests = {}
    for name in names:
        for seed in (0, 1):
            (epoch,) = (
                r for r in read_metrics(run_dir / name / f"seed-{seed}" / "metrics.jsonl") if r["kind"] == "epoch"
            )
            digests[name, seed] = epoch["digest"]
            (run,) = (run for run in document["runs"] if (run["variant"], run["seed"]) == (name, seed))
            assert run["top1_error"] == epoch["val_top1_error"] and run["epochs"] == 1
    # The same images in the same order with the same crops; another seed has others.
    assert digests["baseline", 0] == digests["no-conv3", 0] != digests["baseline", 1]


def test_each_image_is_kept_and_says_the_same_as_the_rates(done: tuple[Path, dict[str, Any]]) -> None:
    run_dir, document = done
    for one in document["runs"]:
        errors = np.load(run_dir / one["variant"] / f"seed-{one['seed']}" / "image_errors.npy")
        assert errors.shape == (2, document["num_val"]) and errors.dtype == np.float32
        assert errors.mean(axis=1) == pytest.approx([one["top1_error"], one["top5_error"]])
    assert document["variants"][1]["top1_difference"]["paired"] is True


def test_images_of_older_runs_are_measured_while_they_have_a_checkpoint(
    done: tuple[Path, dict[str, Any]], datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    finished, document = done
    run_dir = shutil.copytree(finished, tmp_path / "runs")
    arguments = ("--variants", "no-conv3", "--seeds", 2)
    kept = run_dir / "no-conv3" / "seed-1" / "image_errors.npy"
    before = kept.read_bytes()
    kept.unlink()
    assert json.loads(call(datasets, run_dir, *arguments)) == document
    assert kept.read_bytes() == before
    kept.unlink()
    shutil.rmtree(kept.parent / "checkpoints")
    found = json.loads(call(datasets, run_dir, *arguments))["variants"][1]["top1_difference"]
    assert found["paired"] is False and found["mean"] == document["variants"][1]["top1_difference"]["mean"]


@pytest.mark.parametrize("content", [b"no array", npy_bytes(np.zeros((2, 3), np.float32))])
def test_a_damaged_file_of_images_is_named(
    content: bytes, done: tuple[Path, dict[str, Any]], datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    run_dir = shutil.copytree(done[0], tmp_path / "runs")
    path = run_dir / "baseline" / "seed-0" / "image_errors.npy"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="remove it, and it is measured again"):
        image_errors(path.parent, datasets[1], device="cpu", loader_arguments={})


def test_what_has_finished_is_not_repeated(
    done: tuple[Path, dict[str, Any]], datasets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, document = done

    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(ablation, "train_dataset", never)
    page = tmp_path / "page.html"
    assert json.loads(call(datasets, run_dir, "--variants", "no-conv3", "--seeds", 2, "--html", page)) == document
    parts = parse_page(page.read_text())
    assert "Learning curves" in parts.headings and "no-conv3" in parts.text


def test_what_is_missing_is_trained_and_ends_the_same(
    done: tuple[Path, dict[str, Any]], datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    run_dir, document = done
    copy = shutil.copytree(run_dir, tmp_path / "runs")
    shutil.rmtree(copy / "no-conv3" / "seed-1")
    (copy / "baseline" / "seed-0" / "result.json").unlink()  # killed between the last checkpoint and the result
    assert json.loads(call(datasets, copy, "--variants", "no-conv3", "--seeds", 2)) == document


def test_a_result_of_another_kind_is_named(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = shutil.copytree(done[0] / "baseline" / "seed-0", tmp_path / "seed-0")
    (copy / "result.json").write_text('{"variant": "baseline", "accuracy": 0.5}')
    with pytest.raises(InputError, match=r"result\.json: has no seed, expected a whole number: .*: remove it, and"):
        ablation._ended(copy)


@pytest.mark.parametrize("damage", ["[]", '{"settings": []}', "{}", '{"settings'])
def test_a_plan_that_was_edited_is_named_with_a_way_out(
    damage: str, datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "ablation.json").write_text(damage)
    with pytest.raises(InputError, match=r"ablation\.json: .*use another --run-dir, or remove it"):
        run_ablation(config(datasets, tmp_path, variants=("no-lrn",)))


def config(datasets: tuple[Path, Path], run_dir: Path, **changes: Any) -> AblationConfig:
    fields = {"train": datasets[0], "val": datasets[1], "run_dir": run_dir, "recipe": resolve_recipe([])}
    return AblationConfig(**fields | changes)


def test_a_stopped_ablation_says_so_and_begins_nothing_more(
    datasets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped:
        class result:
            stopped_by = 15

    monkeypatch.setattr(ablation, "train_dataset", lambda job, progress: Stopped)
    report = run_ablation(config(datasets, tmp_path / "runs", variants=("no-lrn",), seeds=3))
    assert (report.stopped_by, report.runs) == (15, ())
    given = [*datasets, "--run-dir", tmp_path / "again", *SMALL, "--json", "--quiet", "--variants", "no-lrn"]
    assert run("ablate", *given) == 143
    assert f"stays in {tmp_path / 'again'}: the same command goes on" in capsys.readouterr().err


def test_a_loss_that_diverges_is_a_result(
    datasets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(job: Any, progress: Any) -> None:
        job.run_dir.mkdir(parents=True)
        (job.run_dir / "metrics.jsonl").touch()
        raise LmdaliError("step 3: the loss is nan")

    monkeypatch.setattr(ablation, "train_dataset", diverge)
    report = run_ablation(config(datasets, tmp_path / "runs", variants=("no-lrn",)))
    assert [(run.variant, run.top1_error, run.failure) for run in report.runs] == [
        ("baseline", None, "step 3: the loss is nan"),
        ("no-lrn", None, "step 3: the loss is nan"),
    ]


def test_an_ablation_a_training_and_a_dataset_do_not_share_a_directory(
    done: tuple[Path, dict[str, Any]], datasets: tuple[Path, Path]
) -> None:
    # A training in an ablation's directory, and the other way round, left files of both in one.
    recipe = config(datasets, done[0]).recipe.preset.changed(batch_size=8)
    one_run = done[0] / "baseline" / "seed-0"
    with pytest.raises(InputError, match="seed-0: holds a run of `lmdali train`: choose another --run-dir"):
        run_ablation(config(datasets, one_run))
    with pytest.raises(InputError, match="train: holds a dataset: choose another --run-dir"):
        run_ablation(config(datasets, datasets[0]))
    with pytest.raises(InputError, match="runs: holds an ablation: choose another --run-dir"):
        train_dataset(TrainJob(train=datasets[0], val=datasets[1], run_dir=done[0], preset=recipe, resume=True))
    assert not (one_run / "ablation.json").exists() and not (done[0] / "metrics.jsonl").exists()


def test_another_recipe_or_dataset_is_refused(
    done: tuple[Path, dict[str, Any]], datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"other settings: .*model.width 0.03125 -> 1.0"):
        run_ablation(config(datasets, done[0]))
    with pytest.raises(InputError, match="manifest"):
        run_ablation(config((datasets[0], tmp_path), tmp_path / "runs"))
    with pytest.raises(ConfigError, match="no variant"):
        run_ablation(config(datasets, tmp_path / "runs", variants=("no-such",)))
    with pytest.raises(ConfigError, match="seeds must be"):
        config(datasets, tmp_path, seeds=0)
