"""`lmdali report`: a run made here, as a page that is read by a parser and, where there is one, by a browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, NO_BROWSER, measure_page, show_page
from click.testing import CliRunner
from page_parts import PageParts, parse_page
from remote_server import serving

from lmdali.model.checkpoint import save_checkpoint
from lmdali.pipeline.errors import ConfigError, InputError
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.checkpoint_network import read_checkpoint
from lmdali.tools.features import FeaturesConfig, compute_features
from lmdali.tools.features import command as features_command
from lmdali.tools.report import ReportConfig, command, write_report
from lmdali.tools.run_facts import load_run_facts, save_run_facts
from lmdali.tools.train import command as train_command

QUIET = ReportConfig(quiet=True, num_threads=1)
ALWAYS = ["Result", "Curves", "First-layer kernels", "Evaluation", "Classes", "Confusions", "Calibration"]
ALWAYS += ["Worst mistakes", "Predictions"]
SMALL = ("--preset", "small", "--width", "0.03125", "--schedule", "constant", "-b", "8", "--quiet", "-j", "1")
END = ["Data and order", "Settings", "Machine"]


@pytest.fixture(scope="module")
def datasets(
    tmp_path_factory: pytest.TempPathFactory, make_photo_folder: Callable[..., Path], make_dataset: Callable[..., Path]
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("report")
    sources = [
        make_photo_folder(root / f"source{i}", per_class=n, sides=(60, 120), seed=i) for i, n in ((1, 8), (2, 4))
    ]
    return make_dataset(sources[0], root / "train"), make_dataset(sources[1], root / "val")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, datasets: tuple[Path, Path]) -> Path:
    out = tmp_path_factory.mktemp("run") / "first <run>"
    options = [*SMALL, "--epochs", "2", "--log-steps", "1"]
    call(train_command, *datasets, "--run-dir", out, *options)
    call(features_command, datasets[0], out, out / "features", "--quiet")
    return out


def call(verb: Any, *arguments: Any) -> str:
    done = CliRunner().invoke(verb, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def written(run_dir: Path, out: Path, config: ReportConfig = QUIET) -> tuple[PageParts, list[str]]:
    left_out = write_report(run_dir, out, config)
    return parse_page(out.read_text()), left_out


def test_a_run_says_how_it_was_made(run_dir: Path, datasets: tuple[Path, Path]) -> None:
    facts = load_run_facts(run_dir)
    assert facts is not None and facts.recipe is not None
    assert [facts.train_digest, facts.val_digest] == [load_manifest(path).digest for path in datasets]
    assert facts.recipe["origins"]["model"]["width"] == "--width"
    (session,) = facts.sessions
    assert (session["step"], session["world_size"], session["devices"]) == (0, 1, "cpu")
    assert session["machine"]["num_cpus"] >= 1


def test_a_resumed_run_keeps_its_sessions(run_dir: Path, datasets: tuple[Path, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    options = [*SMALL, "--epochs", "2", "--resume"]
    call(train_command, *datasets, "--run-dir", copy, *options)
    facts = load_run_facts(copy)
    assert facts is not None and [session["step"] for session in facts.sessions] == [0, 6]


def test_the_report_has_everything(run_dir: Path, datasets: tuple[Path, Path], tmp_path: Path) -> None:
    parts, left_out = written(run_dir, tmp_path / "new" / "run.html")
    assert left_out == []
    assert parts.headings == ["Run first <run>", *ALWAYS, "Neighbours", *END]
    kinds = [picture.partition(";")[0] for picture in parts.pictures]
    assert kinds == ["data:image/png", *["data:image/webp"] * 3]
    assert [plot.split(" ")[0] for plot in parts.plots] == ["loss", "top-1", "top-5", "learning", "top-1", "accuracy"]
    for digest in (load_manifest(path).digest for path in datasets):
        assert digest in parts.text
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for record in lines:
        if record["kind"] == "epoch":
            assert record["digest"] in parts.text
    best = min(record["val_top1_error"] for record in lines if record["kind"] == "epoch")
    assert f"{100 * best:.2f} %" in parts.text
    assert "It was chosen by its error on them" in parts.text
    assert "--width" in parts.text and "preset small" in parts.text and "torch" in parts.text


def test_an_address_is_told_without_its_password_and_fetched_into_the_cache_that_was_asked_for(
    run_dir: Path, datasets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMDALI_CACHE_DIR", str(tmp_path / "cache"))
    with serving(datasets[1]) as server:
        address = server.address.replace("://", "://me:secret@")
        parts, _ = written(
            run_dir, tmp_path / "run.html", replace(QUIET, val=address, cache_dir=tmp_path / "asked for")
        )
    assert f"The best checkpoint on {server.address}, one central view" in parts.text
    assert not (tmp_path / "cache").exists(), "the pictures, too"
    assert "secret" not in (tmp_path / "run.html").read_text()


def test_neighbours_and_statistics_at_an_address_come_by_the_cache_that_was_asked_for(
    run_dir: Path, datasets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMDALI_CACHE_DIR", str(tmp_path / "cache"))
    options: dict[str, Any] = {"num_threads": 1, "quiet": True, "cache_dir": tmp_path / "asked for"}
    copy = shutil.copytree(run_dir, tmp_path / "run")
    (copy / "statistics.json").unlink()  # so that they come from where the training set was
    with serving(datasets[0]) as server:
        path, stored = read_checkpoint(copy)
        path.unlink()  # it may be a link to one that another test reads
        save_checkpoint(path, replace(stored, loader_config=stored.loader_config | {"dataset": server.address}))
        compute_features(server.address, str(copy), tmp_path / "features", FeaturesConfig(**options))
        parts, left_out = written(copy, tmp_path / "run.html", ReportConfig(features=tmp_path / "features", **options))
    assert "Neighbours" in parts.headings and not left_out
    assert (tmp_path / "asked for").exists() and not (tmp_path / "cache").exists()


def test_it_needs_the_run_only(run_dir: Path, tmp_path: Path) -> None:
    """A run of an earlier version, copied to another machine."""
    copy = shutil.copytree(run_dir, tmp_path / "run")
    (copy / "run.json").unlink()
    shutil.rmtree(copy / "features")
    parts, left_out = written(copy, tmp_path / "run.html")
    assert [line.partition(":")[0] for line in left_out] == ["errors and predictions", "neighbours"]
    assert parts.headings[1:] == [*ALWAYS[:3], *END[:2], "Not in this report"]
    assert "did not keep their origins" in parts.text


RUN_KEYS = {
    "train": (None, 3),
    "val_digest": (["x"],),
    "recipe": ("x", [], {}, {"origins": 1}),
    "recipe.loader": (3, None),
    "recipe.origins.model": ("typed",),
    "sessions": (None, 5, {}, [], ["x"], [{"step": 0}]),
    "sessions.0.started": (0,),
    "sessions.0.step": ("0", 1.5, True),
    "sessions.0.machine": ("x", None),
    "sessions.0.machine.packages": ([],),
}


@pytest.mark.parametrize("key", RUN_KEYS)
def test_a_run_file_that_was_edited_is_named_with_key_and_way_out(key: str, run_dir: Path, tmp_path: Path) -> None:
    shutil.copyfile(run_dir / "metrics.jsonl", tmp_path / "metrics.jsonl")
    *parents, name = key.split(".")
    for value in (*RUN_KEYS[key], "REMOVED"):
        document = json.loads((run_dir / "run.json").read_text())
        inner = document
        for parent in parents:
            inner = inner[int(parent) if isinstance(inner, list) else parent]
        inner[name] = value
        if value == "REMOVED":
            del inner[name]
        (tmp_path / "run.json").write_text(json.dumps(document))
        if value == "REMOVED" and name in ("packages", "model"):  # nobody needs them
            assert load_run_facts(tmp_path) is not None
            continue
        told = (
            rf"run\.json.*: edited or damaged|run\.json.*{name}.*: it was edited or damaged: remove it, and the report"
        )
        with pytest.raises(InputError, match=told):
            write_report(tmp_path, tmp_path / "run.html", QUIET)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("epoch", "val_loss", "low"), ("epoch", "epoch", None), ("epoch", "lr", "REMOVED"), ("epoch", "seconds", "1")],
)
def test_a_journal_that_was_edited_is_named_with_line_and_key(
    kind: str, key: str, value: Any, run_dir: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == kind
    lines[-1][key] = value
    if value == "REMOVED":
        del lines[-1][key]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(InputError, match=rf"metrics\.jsonl, line {len(lines)}: .*{key}.*: put it right, or remove"):
        write_report(tmp_path, tmp_path / "run.html", QUIET)


def test_a_run_file_that_is_cut_off_does_not_stop_a_training_and_is_refused_by_the_report(
    run_dir: Path, tmp_path: Path
) -> None:
    facts = load_run_facts(run_dir)
    assert facts is not None
    (tmp_path / "run.json").write_bytes((run_dir / "run.json").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"run\.json: not valid JSON .*: remove it, and the report does without"):
        load_run_facts(tmp_path)
    save_run_facts(tmp_path, facts)
    assert load_run_facts(tmp_path) == facts


def test_a_run_without_an_epoch_is_told_so(run_dir: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    first = (run_dir / "metrics.jsonl").read_text().splitlines()[0]
    failure = {"kind": "failure", "epoch": 0, "step": 2, "loss": "nan", "lr": 0.1, "samples": [1]}
    timed = {"images_per_second": 5.0, "stall": 0.0, "seconds": 1.0}
    (bare / "metrics.jsonl").write_text(f"{first}\n{json.dumps(failure | timed)}\n")
    parts, left_out = written(bare, tmp_path / "run.html")
    assert "No finished epoch" in parts.text and "the loss was nan" in parts.text
    assert len(left_out) == 1


def test_what_does_not_go_with_the_run_is_refused(
    run_dir: Path, datasets: tuple[Path, Path], raw_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.html"
    with pytest.raises(InputError, match="its 4 classes are not the 3"):
        write_report(run_dir, out, ReportConfig(val=raw_dataset, quiet=True))
    other = tmp_path / "other"
    options = [*SMALL, "--epochs", "1", "--seed", "5"]
    call(train_command, *datasets, "--run-dir", other, *options)
    with pytest.raises(InputError, match="features of another network"):
        write_report(other, out, ReportConfig(features=run_dir / "features", quiet=True))
    shutil.copytree(run_dir / "features", other / "features")
    assert [line.partition(":")[0] for line in write_report(other, out, QUIET)] == ["neighbours"]
    with pytest.raises(InputError, match="no such file"):
        write_report(tmp_path, out, QUIET)
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        write_report(run_dir, tmp_path / "run.pdf", QUIET)


def test_the_command_says_what_is_not_in_it(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(copy / "features")
    told = call(command, copy, "--out", tmp_path / "run.html", "--quiet", "-j", 1)
    assert told.splitlines()[0] == str(tmp_path / "run.html")
    assert "not in it: neighbours" in told


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_a_browser_shows_it_without_a_complaint(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    write_report(run_dir, out, QUIET)
    for found in measure_page(out.read_text(), tmp_path):
        assert found["scroll"] <= found["width"], f"wider than the window: {found}"
        assert found["clipped"] == []
        assert len(found["plots"]) == 6 and min(found["plots"]) > 50
        assert len(found["pictures"]) == 4 and min(found["pictures"]) > 100, (
            "a picture that cannot be decoded has no width"
        )
    shown = show_page(out, tmp_path, dark=False, height=2800)
    # Not blank from top to bottom: each seventh of the window has something in it.
    assert all(part.std() > 3 for part in (shown[at : at + 400] for at in range(0, 2800, 400)))
