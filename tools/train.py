"""`lmdali train`: from two datasets to a trained network, its metrics and its pictures."""

from __future__ import annotations

import dataclasses
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, get_args

import click
import torch

from lmdali.model.alexnet import AlexNet
from lmdali.model.checkpoint import BEST_NAME
from lmdali.model.device import pick_devices
from lmdali.model.figures import save_kernels, save_learning_curve
from lmdali.model.journal import METRICS_FILE
from lmdali.model.parallel import Ranks, process_group
from lmdali.model.presets import PRESETS, Preset
from lmdali.model.torchrun import Parallel, TorchrunPlace, torchrun_place
from lmdali.model.train_state import TrainResult
from lmdali.model.trainer import CHECKPOINT_DIR, Trainer
from lmdali.model.weight_layout import weights_of
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.eigenbasis import load_moments, save_statistics
from lmdali.pipeline.errors import MissingExtraError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.tools.evaluate import evaluation_augment
from lmdali.tools.exit_codes import Terminated
from lmdali.tools.loader_options import EpochOptions, epoch_options, loader_options
from lmdali.tools.preset_options import chosen_preset, preset_options
from lmdali.tools.report_table import print_json, print_pairs

LEARNING_CURVE_FILE = "learning_curve.png"
KERNELS_FILE = "kernels.png"


@dataclass(frozen=True, kw_only=True)
class TrainJob(EpochOptions):
    """Everything that `lmdali train` is told; what `EpochOptions` says is for both loaders.

    The order and the decoded cache are for the training loader alone: validation goes through its set in storage order,
    and a second cache would need as much memory again.

    Attributes:
        train: training set made by `lmdali convert`.
        val: validation set of the same classes; it is normalised with the training set's statistics.
        run_dir: gets checkpoints, metrics, the statistics, and the pictures.
        preset: network, training and augmentation; its batch is that of all ranks together.
        resume: continue the run in `run_dir`, if there is one.
        device: auto, cpu or cuda:N.
        parallel: one device, two with a tower each, or one process per device under torchrun.
        devices: of the towers, or of this machine's ranks, with commas between them; empty leaves it to `device`.
        rank_timeout: seconds that a rank waits for the others before it gives the job up.
    """

    train: Path
    val: Path
    run_dir: Path
    preset: Preset = PRESETS["paper"]
    resume: bool = False
    device: str = "auto"
    parallel: Parallel = "none"
    devices: str = ""
    rank_timeout: float = 600.0

    def loader_configs(self, place: TorchrunPlace | None = None) -> tuple[LoaderConfig, LoaderConfig]:
        """Of the training and the validation loader of one rank, which has its part of the batch and of the CPUs.

        Raises:
            ConfigError: the batch cannot be divided equally among the ranks.
        """
        place = place or TorchrunPlace()
        arguments = self.loader_arguments()
        if arguments["num_threads"] is None and place.local_world_size > 1:
            arguments["num_threads"] = max(1, usable_cpus() // place.local_world_size)
        train = LoaderConfig(
            dataset=self.train,
            batch_size=place.share_of(self.preset.batch_size),
            seed=self.preset.train.seed,
            augment=self.preset.augment,
            layout="NHWC" if self.preset.train.channels_last else "NCHW",
            **arguments,
        )
        val = dataclasses.replace(
            train,
            dataset=self.val,
            augment=evaluation_augment(self.preset.augment, views=1),
            order="sequential",
            decoded_cache_bytes=0,
            basis=self.train,
        )
        return train, val


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """How it went, and where everything is.

    Attributes:
        result: of the training.
        run_dir: the run's directory.
        best_checkpoint: lowest validation error.
        learning_curve: picture, or None without a finished epoch or without matplotlib.
        kernels: picture of the first layer.
        device: trained on; of several ranks the first one's, of two towers both.
        backend: of the training loader.
        world_size: ranks that trained.
    """

    result: TrainResult
    run_dir: Path
    best_checkpoint: Path | None
    learning_curve: Path | None
    kernels: Path
    device: str
    backend: str
    world_size: int = 1

    def to_json(self) -> dict[str, Any]:
        """The result's fields, the number of ranks, and the rest as text."""
        names = ("run_dir", "best_checkpoint", "learning_curve", "kernels", "device", "backend")
        values = {name: getattr(self, name) for name in names}
        paths = {name: None if value is None else str(value) for name, value in values.items()}
        return {**self.result.to_json(), **paths, "world_size": self.world_size}


def train_dataset(job: TrainJob, progress: TextIO | None = None) -> TrainReport:
    """Train until the end or a signal, and draw the pictures; with several ranks, all of them call this.

    Args:
        job: what to do.
        progress: stream for progress lines, usually stderr; None for silence.

    Returns:
        The same on every rank.

    Raises:
        ConfigError: options that do not go together, or with what torchrun says.
        InputError: a dataset, its classes or the run directory cannot be used.
        IntegrityError: a dataset or all checkpoints are damaged.
        StorageError: the run directory cannot be written.
        MachineError: a device is not there, or another rank is gone.
        LmdaliError: the loss became infinite or NaN.
    """
    place = torchrun_place(job.parallel)
    devices = pick_devices(job.parallel, job.device, job.devices, place)
    configs = job.loader_configs(place)
    with process_group(place, devices[0], timeout_seconds=job.rank_timeout) as ranks:
        return _train(job, devices, configs, ranks, progress if ranks.is_first else None)


def _train(
    job: TrainJob,
    devices: tuple[torch.device, ...],
    configs: tuple[LoaderConfig, LoaderConfig],
    ranks: Ranks,
    progress: TextIO | None,
) -> TrainReport:
    rank = {"rank": ranks.rank, "world_size": ranks.world_size}
    with (
        create_loader(configs[0], device=devices[0], **rank) as train_loader,
        create_loader(configs[1], device=devices[0], **rank) as val_loader,
    ):
        model_config = dataclasses.replace(job.preset.model, num_classes=len(train_loader.class_names))
        trainer = Trainer(
            AlexNet(model_config, seed=job.preset.train.seed),
            job.preset.train,
            train_loader,
            val_loader,
            run_dir=job.run_dir,
            device=devices[0],
            loader_config=_describe(job),
            progress=progress,
            ranks=ranks,
        )
        if job.resume:
            trainer.resume_latest()
        trainer.require_vacant()
        if progress is not None:
            print(_opening(job, trainer, train_loader), file=progress, flush=True)
        if job.preset.augment.needs_basis:
            # Whoever evaluates the run later needs the training set's mean, not the training set.
            ranks.on_first(lambda: save_statistics(job.run_dir, *load_moments(job.train)))
        result = trainer.fit()
        # The others wait here, so that none of them is gone, and torchrun ends the first, before it is through.
        return ranks.on_first(lambda: _report(job, trainer, result, train_loader.backend_name, progress))


def _describe(job: TrainJob) -> dict[str, Any]:
    return {
        "dataset": str(job.train.resolve()),
        "batch_size": job.preset.batch_size,
        "augment": dataclasses.asdict(job.preset.augment),
    }


def _opening(job: TrainJob, trainer: Trainer, loader: DatasetLoader) -> str:
    parameters = sum(p.numel() for p in trainer.model.parameters())
    ranks = f", the first of {trainer.ranks.world_size} ranks" if trainer.ranks.world_size > 1 else ""
    return (
        f"{loader.num_samples:,} training and {trainer.val_loader.num_samples:,} validation samples of "
        f"{len(loader.class_names)} classes; {parameters:,} parameters on {trainer.device}{ranks}; "
        f"loader {loader.backend_name} ({loader.backend_reason}), order {loader.order_text}; "
        f"{len(loader)} steps of {job.preset.batch_size} per epoch"
    )


def _report(job: TrainJob, trainer: Trainer, result: TrainResult, backend: str, progress: TextIO | None) -> TrainReport:
    curve: Path | None = None
    try:
        if result.epochs:
            curve = save_learning_curve(job.run_dir / METRICS_FILE, job.run_dir / LEARNING_CURVE_FILE)
    except MissingExtraError as error:
        if progress is not None:
            print(error, file=progress)
    best = job.run_dir / CHECKPOINT_DIR / BEST_NAME
    return TrainReport(
        result=result,
        run_dir=job.run_dir,
        best_checkpoint=best if best.exists() else None,
        learning_curve=curve,
        kernels=save_kernels(weights_of(trainer.model)["conv1.weight"], job.run_dir / KERNELS_FILE),
        device=str(trainer.device),
        backend=backend,
        world_size=trainer.ranks.world_size,
    )


@click.command("train")
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@click.option("--run-dir", type=click.Path(path_type=Path), required=True, help="Directory for everything written.")
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir, if there is one.")
@click.option("--device", default=TrainJob.device, show_default=True, help="auto, cpu or cuda:N.")
@click.option(
    "--parallel",
    type=click.Choice(get_args(Parallel)),
    default=TrainJob.parallel,
    show_default=True,
    help="One device; two with a tower each; or one process per device, each with its part of every batch.",
)
@click.option(
    "--devices", default=TrainJob.devices, help="Of the two towers, or of each rank of this machine: cuda:0,cuda:1."
)
@click.option(
    "--rank-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=TrainJob.rank_timeout,
    show_default=True,
    help="Seconds to wait for other ranks.",
)
@loader_options
@epoch_options
@preset_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def command(train: Path, val: Path, as_json: bool, quiet: bool, **given: Any) -> None:
    """Train AlexNet on the dataset TRAIN, validating on VAL.

    SIGINT and SIGTERM finish the step, save a checkpoint, and exit with 130 or 143; --resume continues there, with as
    many devices and processes as it has then.

    Several devices with a copy of the network each:
    torchrun --nproc-per-node 2 -m lmdali.tools train TRAIN VAL --run-dir DIR --parallel ddp
    """
    recipe = chosen_preset(given)
    job = TrainJob(train=train, val=val, preset=recipe, **given)
    report = train_dataset(job, None if quiet else sys.stderr)
    if report.world_size > 1 and report.result.stopped_by is not None:
        # All ranks leave now, and once the first is gone torchrun would end the rest before they can say why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not torchrun_place(job.parallel).rank:
        if as_json:
            print_json(report.to_json())
        else:
            _print_report(report)
    if report.result.stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    if report.result.stopped_by is not None:
        raise Terminated


def _print_report(report: TrainReport) -> None:
    result = report.result
    rows: list[tuple[str, object]] = [
        ("epochs, steps, time", f"{result.epochs}, {result.steps:,}, {result.seconds:.0f} s"),
        ("training rate", f"{result.images_per_second:.0f} images/s, {100 * result.stall:.1f} % waiting for data"),
    ]
    if result.best_top1_error is not None:
        accuracy = f"{100 * (1 - result.best_top1_error):.2f} % (epoch {result.best_epoch})"
        rows.append(("best validation top-1 accuracy", accuracy))
    if result.val is not None:
        last = f"{100 * (1 - result.val.top1_error):.2f} %, top-5 {100 * (1 - result.val.top5_error):.2f} %"
        rows.append(("last validation top-1 accuracy", last))
    if result.stopped_by is not None:
        rows.append(("stopped by", f"{signal.Signals(result.stopped_by).name}: continue with --resume"))
    named = {
        "best checkpoint": report.best_checkpoint,
        "metrics": report.run_dir / METRICS_FILE,
        "learning curve": report.learning_curve,
        "first-layer kernels": report.kernels,
        "weights sha256": result.weights_sha256[:16],
    }
    rows += [(name, value) for name, value in named.items() if value is not None]
    print_pairs(f"run {report.run_dir}", rows)
