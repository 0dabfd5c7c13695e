"""`lmdali demo`: the whole journey on a built-in dataset, from drawn pictures to a profiled training run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from lmdali.model.device import pick_device
from lmdali.model.presets import PRESETS, Preset
from lmdali.pipeline.eigenbasis import load_eigenbasis
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.files import write_json
from lmdali.pipeline.path_kind import exists, is_dir
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.conversion_report import ConvertSummary
from lmdali.tools.conversion_run import convert
from lmdali.tools.evaluate import EvalConfig, evaluate_networks
from lmdali.tools.evaluation_report import EvalReport
from lmdali.tools.exit_codes import end_as, termination_as_exception
from lmdali.tools.pca import angles_degrees
from lmdali.tools.pictures import SMALLEST_SPLIT, write_dataset
from lmdali.tools.preview import draw_preview
from lmdali.tools.profiler import ProfileConfig, profile_dataset
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import megabytes, print_json, print_pairs
from lmdali.tools.sources import open_source
from lmdali.tools.throughput import ThroughputReport
from lmdali.tools.train_job import TrainJob, train_dataset
from lmdali.tools.train_report import TrainReport

_SUMMARY_FILE = "demo.json"
_PARTS = ("pictures", "data", "run", "preview.png", _SUMMARY_FILE)
_WARMUP_EPOCHS = 2
"""Of the recipe. A demo that is no longer than this goes without: its rate would only rise."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Size of the demo.

    Attributes:
        out: directory for everything; an earlier demo there is replaced.
        num_train: training pictures to draw.
        num_val: validation pictures to draw.
        epochs: passes over the training pictures; None means the preset's.
        seed: of pictures, order, draws and weights.
        device: auto, cpu or cuda:N.
        profile_seconds: for each measurement of the profile.
        quiet: no progress.
    """

    out: Path
    num_train: int = 1200
    num_val: int = 300
    epochs: int | None = 20
    seed: int = 0
    device: str = "auto"
    profile_seconds: float = 1.5
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Everything the demo found out.

    Attributes:
        out: where the files are.
        converted: summaries of training and validation set.
        eigenvalues: of the RGB covariance, pixels scaled to 0..1.
        angles_degrees: between the eigenvectors and the published ones.
        trained: how training went.
        evaluated: with one view and with ten.
        profiled: where the time goes.
        preview: contact sheet.
        seconds: wall time of each part.
    """

    out: Path
    converted: tuple[ConvertSummary, ConvertSummary]
    eigenvalues: list[float]
    angles_degrees: list[float]
    trained: TrainReport
    evaluated: tuple[EvalReport, EvalReport]
    profiled: ThroughputReport
    preview: Path
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """One JSON-able document."""
        return {
            "out": str(self.out),
            "converted": {
                name: asdict(summary) for name, summary in zip(("train", "val"), self.converted, strict=True)
            },
            "unit_eigenvalues": self.eigenvalues,
            "angles_to_published_degrees": self.angles_degrees,
            "trained": self.trained.to_json(),
            "evaluated": [report.to_json() for report in self.evaluated],
            "profiled": self.profiled.to_json(),
            "preview": str(self.preview),
            "seconds": self.seconds,
        }


def run_demo(config: DemoConfig) -> DemoReport:
    """The journey: draw, convert, statistics, preview, train, evaluate, profile.

    Raises:
        KeyboardInterrupt: SIGINT came, or `Terminated`: SIGTERM; half a training is not evaluated.
        MachineError: the device is not there.
        InputError: `out` holds something that is not an earlier demo.
        LmdaliError: whatever a part of it raises.
    """
    out, seconds = config.out, dict[str, float]()
    recipe = demo_recipe(config)
    pick_device(config.device)  # one that is not there is said before anything is drawn
    _make_room(out)
    with (
        _part("draw", seconds, config),
        progress_bar("draw", config.num_train + config.num_val, unit="pictures", quiet=config.quiet) as progress,
    ):
        write_dataset(
            out / "pictures",
            num_train=config.num_train,
            num_val=config.num_val,
            seed=config.seed,
            progress=lambda done, total: progress(done),
        )
    with _part("convert", seconds, config):
        train_set, val_set = (out / "data" / split for split in ("train", "val"))
        converted = (_convert(out, "train", config), _convert(out, "val", config))
    basis = load_eigenbasis(train_set)
    with _part("preview", seconds, config):
        preview = out / "preview.png"
        draw_preview(train_set, preview, seed=config.seed)
    with _part("train", seconds, config):
        job = TrainJob(train=train_set, val=val_set, run_dir=out / "run", preset=recipe, device=config.device)
        trained = train_dataset(job, None if config.quiet else sys.stderr)
        end_as(trained.result.stopped_by)
    with _part("evaluate", seconds, config):
        one, ten = (
            evaluate_networks(val_set, [out / "run"], EvalConfig(views=views, device=config.device, quiet=config.quiet))
            for views in (1, 10)
        )
    with _part("profile", seconds, config):
        profiled = profile_dataset(
            train_set,
            ProfileConfig(
                batch_size=recipe.batch_size,
                device=config.device,
                width=recipe.model.width,
                seconds=config.profile_seconds,
            ),
            quiet=config.quiet,
        )
    report = DemoReport(
        out=out,
        converted=converted,
        eigenvalues=basis.unit_eigenvalues.tolist(),
        angles_degrees=angles_degrees(basis).tolist(),
        trained=trained,
        evaluated=(one, ten),
        profiled=profiled,
        preview=preview,
        seconds=seconds,
    )
    write_json(out / _SUMMARY_FILE, report.to_json())
    return report


def demo_recipe(config: DemoConfig) -> Preset:
    """The preset for CPUs, for as many epochs as are asked for."""
    train: dict[str, Any] = {"seed": config.seed}
    if config.epochs is not None:
        train["epochs"] = config.epochs
        if config.epochs <= _WARMUP_EPOCHS:
            train["schedule"] = "cosine"
    return PRESETS["small"].changed(train=train)


def _make_room(out: Path) -> None:
    """Remove an earlier demo, and nothing else."""
    if not exists(out):
        out.mkdir(parents=True)
        return
    if not is_dir(out):
        raise InputError(f"{out}: exists and is not a directory: choose another --out")
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in _PARTS)
    if foreign:
        raise InputError(f"{out}: holds {foreign[0]!r}, which no demo made: choose an empty --out")
    for name in _PARTS:
        path = out / name
        if is_dir(path):
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _convert(out: Path, split: str, config: DemoConfig) -> ConvertSummary:
    source = open_source(out / "pictures" / split)
    return convert(source, out / "data" / split, ConvertConfig(seed=config.seed), quiet=config.quiet)


@contextmanager
def _part(name: str, seconds: dict[str, float], config: DemoConfig) -> Iterator[None]:
    if not config.quiet:
        print(f"== {name}", file=sys.stderr, flush=True)
    start = perf_counter()
    yield
    seconds[name] = perf_counter() - start


_DEFAULTS = DemoConfig(out=Path("demo-out"))
_COUNT = click.IntRange(SMALLEST_SPLIT)


@click.command("demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default=_DEFAULTS.out, show_default=True, help="Output directory."
)
@click.option(
    "--num-train", type=_COUNT, default=_DEFAULTS.num_train, show_default=True, help="Training pictures to draw."
)
@click.option(
    "--num-val", type=_COUNT, default=_DEFAULTS.num_val, show_default=True, help="Validation pictures to draw."
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=_DEFAULTS.epochs,
    show_default=True,
    help="Passes over the training set.",
)
@click.option("--seed", default=_DEFAULTS.seed, show_default=True, help="Of pictures, weights, order and augmentation.")
@click.option("--device", default=_DEFAULTS.device, show_default=True, help="auto, cpu or cuda:N.")
@click.option(
    "--profile-seconds", default=_DEFAULTS.profile_seconds, show_default=True, help="Seconds for each measurement."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(as_json: bool, **options: Any) -> None:
    """The whole journey on a built-in dataset, on a CPU or a GPU, in a few minutes.

    Draws 1,500 pictures of ten classes, some odd and two broken; converts them; computes the RGB eigenbasis; shows what
    the trainer will see; trains the quarter-width AlexNet; evaluates it with one view and ten; profiles the input.
    """
    with termination_as_exception():
        report = run_demo(DemoConfig(**options))
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)


def print_report(report: DemoReport) -> None:
    """The one table at the end."""
    train, val = report.converted
    result, profiled = report.trained.result, report.profiled
    unusual = ", ".join(f"{count} {name}" for name, count in train.oddities.items())
    rejected = ", ".join(f"{count} {name}" for name, count in train.rejected.items()) or "none"
    rates = [
        f"{name} {rate.images_per_second:,.0f}"
        for name, rate in (
            ("libjpeg-turbo decode", profiled.decode),
            ("loader", profiled.loader),
            ("model", profiled.model),
            ("together", profiled.together),
        )
        if rate is not None
    ]
    values = "  ".join(f"{value:.4f}" for value in report.eigenvalues)
    minutes = ", ".join(f"{name} {taken:.0f} s" for name, taken in report.seconds.items())
    print_pairs(
        "lmdali demo",
        [
            ("stored", f"{train.num_stored:,} training and {val.num_stored:,} validation images, "
                       f"{megabytes(train.file_bytes + val.file_bytes)}, {train.images_per_second:.0f} images/s"),
            ("rejected", rejected),
            ("unusual", unusual),
            ("RGB eigenvalues", f"{values}   (ImageNet: 0.2175  0.0188  0.0045)"),
            ("trained", f"{result.epochs} epochs on {report.trained.device}, {result.images_per_second:.0f} images/s, "
                        f"{100 * result.stall:.1f} % waiting for data"),
            ("validation, 1 view", _accuracy(report.evaluated[0])),
            ("validation, 10 views", f"{_accuracy(report.evaluated[1])}   (chance: 10 %)"),
            ("images/s", ", ".join(rates)),
            ("verdict", f"{profiled.verdict.bound}: {profiled.verdict.advice}"),
            ("time", f"{sum(report.seconds.values()):.0f} s: {minutes}"),
            ("contact sheet", report.preview),
            ("learning curve", report.trained.learning_curve),
            ("first-layer kernels", report.trained.kernels),
            ("everything", report.out),
        ],
    )  # fmt: skip


def _accuracy(report: EvalReport) -> str:
    return f"top-1 {100 * (1 - report.analysis.top1_error):.1f} %, top-5 {100 * (1 - report.analysis.top5_error):.1f} %"
