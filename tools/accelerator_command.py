"""The command `lmdali profile au`: a dataset's loader and an emulated accelerator, and what came of it."""

from __future__ import annotations

import secrets
from contextlib import closing
from dataclasses import dataclass, replace
from math import inf
from textwrap import fill
from typing import Any

import click

from lmdali.model.device import pick_device
from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import DType, Layout
from lmdali.pipeline.dataset_place import Place, place_manifest, place_shown
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.tools.accelerator_use import (
    CALIBRATION_AU,
    MIN_EPOCHS,
    RESNET50,
    AuReport,
    Clock,
    Workload,
    calibrate,
    check_rules,
    emulate_epoch,
)
from lmdali.tools.augment_options import WHAT_IS_DONE, augment_for, augment_options, take_augment
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.loader_options import EpochOptions, epoch_options, form_options, loader_options
from lmdali.tools.machine import machine_facts
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import print_json, print_pairs, print_table

_TEXT_COLUMNS = 74


@dataclass(frozen=True, kw_only=True)
class AuConfig(EpochOptions):
    """What to emulate, and the loader that `EpochOptions` says.

    Attributes:
        accelerator: whose ResNet-50 step is emulated: "h100" or "a100".
        batch_size: samples per step, instead of the workload's.
        compute_seconds: of a step, instead of the workload's.
        epochs: to measure.
        steps: at most, of each epoch; None goes through all of it.
        device: of the batches: "auto", "cpu" or "cuda:N".
        dtype: of the images.
        layout: of the images.
        seed: of order and draws; None draws one.
    """

    accelerator: str = "h100"
    batch_size: int | None = None
    compute_seconds: float | None = None
    epochs: int = MIN_EPOCHS
    steps: int | None = None
    device: str = "cpu"
    dtype: DType = LoaderConfig.dtype
    layout: Layout = LoaderConfig.layout
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accelerator not in RESNET50:
            raise ConfigError(f"accelerator must be one of {', '.join(RESNET50)}; found {self.accelerator!r}")
        if self.compute_seconds is not None and not 0 < self.compute_seconds < inf:
            raise ConfigError(f"compute_seconds must be more than 0 and finite, found {self.compute_seconds}")
        if self.epochs < 1:
            raise ConfigError(f"epochs must be at least 1, found {self.epochs}")

    @property
    def workload(self) -> Workload:
        """The prescribed step, with what was asked for instead."""
        given = {"batch_size": self.batch_size, "compute_seconds": self.compute_seconds}
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(RESNET50[self.accelerator], **changes)  # type: ignore[arg-type]


def measure_au(
    dataset: Place,
    config: AuConfig | None = None,
    *,
    augment: AugmentConfig | None = None,
    clock: Clock | None = None,
    quiet: bool = False,
) -> AuReport:
    """Calibrate, then feed an emulated accelerator from a dataset.

    Args:
        dataset: made by `lmdali convert`.
        config: how; None takes the defaults.
        augment: what the loader does to the images, but for mean and lighting of uint8 pixels; None is the paper's way.
        clock: None is the system's.
        quiet: no progress.

    Raises:
        ConfigError: options that cannot work together.
        InputError: not a finished dataset.
        IntegrityError: the dataset is damaged.
        MachineError: the device or a package is missing.
    """
    config = config or AuConfig()
    workload = config.workload
    manifest = place_manifest(dataset, cache_dir=config.cache_dir)
    device = pick_device(config.device)
    loader_config = LoaderConfig(
        dataset=dataset,
        batch_size=workload.batch_size,
        seed=secrets.randbits(31) if config.seed is None else config.seed,
        augment=augment_for(config.dtype, augment),
        **config.loader_arguments(),
    )
    with create_loader(loader_config, device, rank=0, world_size=1) as loader:
        steps = min(len(loader), config.steps or len(loader))
        calibration = calibrate(workload, clock=clock)
        epochs = []
        with progress_bar("au", config.epochs * steps, unit="steps", quiet=quiet) as progress:
            for number in range(config.epochs):
                loader.set_epoch(number)
                with closing(iter(loader)) as batches:  # type: ignore[type-var]  # a generator
                    done = number * steps
                    epochs.append(
                        emulate_epoch(
                            batches,
                            workload,
                            max_steps=steps,
                            clock=clock,
                            progress=lambda step, done=done: progress(done + step),  # type: ignore[misc]
                        )
                    )
        whole = steps == len(loader)
    rules = check_rules(
        dataset_bytes=manifest.file_bytes,
        memory_bytes=machine_facts(device)["memory_bytes"],
        epochs=epochs,
        whole_epochs=whole,
        seed_given=config.seed is not None,
        mean_record_bytes=manifest.mean_record_bytes,
        workload=workload,
    )
    return AuReport(
        workload=workload,
        epochs=tuple(epochs),
        calibration_au=calibration,
        rules=rules,
        mean_record_bytes=manifest.mean_record_bytes,
    )


def print_au(dataset: Place, report: AuReport) -> None:
    """Tables of at most 100 columns on stdout."""
    workload = report.workload
    step = f"{workload.batch_size} samples in {1e3 * workload.compute_seconds:g} ms"
    print_pairs(
        fill(f"accelerator utilisation, fed from {place_shown(dataset)}", _TEXT_COLUMNS),
        [
            ("outcome", report.outcome),
            ("why", fill(report.reason, _TEXT_COLUMNS)),
            ("AU", f"{report.au:.2%}"),
            ("step", f"{step}: {workload.images_per_second:,.0f} samples/s at 100 %"),
            ("delivered", f"{report.images_per_second:,.0f} samples/s, "
                          f"{report.images_per_second * report.mean_record_bytes / 1e6:,.1f} MB/s"),
            ("calibration", f"{report.calibration_au:.2%} without any loader, {CALIBRATION_AU:.0%} needed"),
        ],
    )  # fmt: skip
    rows = [
        (f"{number}", f"{epoch.au:.2%}", f"{epoch.images_per_second:,.0f}", f"{epoch.first_wait_seconds:.3f}")
        for number, epoch in enumerate(report.epochs, 1)
    ]
    print_table("epochs", ("", "AU", "samples/s", "first batch after, s"), rows)
    kept = [(rule.name, rule.required, rule.found, "kept" if rule.met else "NOT KEPT") for rule in report.rules]
    print_table("MLPerf Storage's rules; a run that keeps them all may be compared", ("", "rule", "found", ""), kept)


@click.command("au")
@click.argument("dataset", type=DATASET)
@click.option(
    "--accelerator",
    type=click.Choice(list(RESNET50)),
    default=AuConfig.accelerator,
    show_default=True,
    help="Whose ResNet-50 step of MLPerf Storage is emulated.",
)
@click.option("-b", "--batch-size", type=click.IntRange(1), help="Instead of the workload's 400.")
@click.option("--compute-seconds", type=float, help="Seconds that a step computes, instead of the workload's.")
@click.option("--epochs", type=click.IntRange(1), default=AuConfig.epochs, show_default=True, help="To measure.")
@click.option("--steps", type=click.IntRange(1), help="Of each epoch, at most.")
@loader_options
@epoch_options
@form_options
@augment_options(WHAT_IS_DONE)
@click.option("--device", default=AuConfig.device, show_default=True, help="Of the batches: auto, cpu or cuda:N.")
@click.option("--seed", type=int, help="Of order and draws; without it one is drawn.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def au_command(dataset: Place, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure MLPerf Storage's AU: how busy the loader of DATASET keeps an emulated accelerator.

    A step is a batch and a sleep as long as the accelerator computes. A loader that does nothing is measured first, and
    must reach 99 %. All of our loader runs, decoding too; MLPerf's own program decodes nothing.
    """
    augment = take_augment(options)
    report = measure_au(dataset, AuConfig(**options), augment=augment, quiet=quiet)
    if as_json:
        print_json(report.to_json())
    else:
        print_au(dataset, report)
