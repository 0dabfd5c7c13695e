"""`lmdali eval`: top-1 and top-5 error of a checkpoint, on one view per picture or ten."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lmdali.model.evaluator import EvalResult, evaluate
from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.tools.checkpoint_network import open_network
from lmdali.tools.loader_options import LoaderOptions, loader_options
from lmdali.tools.progress import progress_bar
from lmdali.tools.report_table import print_json, print_pairs

_VIEWS_PER_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class EvalConfig(LoaderOptions):
    """How to evaluate, and what `LoaderOptions` says of the loader.

    Attributes:
        views: 1 central crop, or 10: four corners, centre, and their mirror images.
        batch_size: samples per step; None means as many as make 128 views.
        device: auto, cpu or cuda:N.
        basis: directory with the training set's statistics; None means the run's own copy.
        quiet: no progress.
    """

    views: int = 1
    batch_size: int | None = None
    device: str = "auto"
    basis: Path | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views not in (1, 10):
            raise ConfigError(f"views must be 1 or 10, found {self.views}")


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """What was evaluated, and how it did."""

    result: EvalResult
    checkpoint: Path
    dataset: Path
    epoch: int
    step: int
    device: str
    backend: str

    def to_json(self) -> dict[str, Any]:
        """One flat object."""
        return {
            **self.result.to_json(),
            "checkpoint": str(self.checkpoint),
            "dataset": str(self.dataset),
            "epoch": self.epoch,
            "step": self.step,
            "device": self.device,
            "backend": self.backend,
        }


def evaluate_checkpoint(dataset: Path, checkpoint: Path, config: EvalConfig | None = None) -> EvalReport:
    """Evaluate a checkpoint on a dataset.

    Args:
        dataset: made by `lmdali convert`, of the classes that the network was trained on.
        checkpoint: a checkpoint file, or a run directory, which means its best checkpoint.
        config: see `EvalConfig`.

    Raises:
        InputError: no such checkpoint, other classes, or the training set's statistics are not at hand.
        IntegrityError: the checkpoint or the dataset is damaged.
        MachineError: the device is not there.
    """
    config = config or EvalConfig()
    network = open_network(checkpoint, device=config.device, basis=config.basis)
    loader_config = LoaderConfig(
        dataset=dataset,
        batch_size=config.batch_size or max(1, _VIEWS_PER_BATCH // config.views),
        augment=network.augment(config.views),
        order="sequential",
        layout="NHWC",
        basis=network.basis,
        **config.loader_arguments(),
    )
    with create_loader(loader_config, device=network.device, rank=0, world_size=1) as loader:
        network.require_classes(loader.class_names, dataset)
        with progress_bar("eval", loader.num_samples, quiet=config.quiet) as progress:
            result = evaluate(network.model, loader, network.device, on_progress=progress)
        return EvalReport(
            result=result,
            checkpoint=network.path,
            dataset=dataset,
            epoch=network.stored.progress["epoch"],
            step=network.stored.progress["step"],
            device=str(network.device),
            backend=loader.backend_name,
        )


_DEFAULTS = EvalConfig()


@click.command("eval")
@click.argument("val", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--views",
    type=click.Choice(["1", "10"]),
    default=str(_DEFAULTS.views),
    show_default=True,
    help="Central crop, or ten crops with averaged probabilities.",
)
@click.option(
    "-b",
    "--batch-size",
    type=click.IntRange(min=1),
    default=_DEFAULTS.batch_size,
    help="Samples per step.  [default: 128 divided by the views]",
)
@click.option("--device", default=_DEFAULTS.device, show_default=True, help="auto, cpu or cuda:N.")
@loader_options
@click.option(
    "--basis",
    type=click.Path(path_type=Path),
    default=_DEFAULTS.basis,
    help="Directory with the training set's statistics.json.  [default: the run's copy]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, default=_DEFAULTS.quiet, help="No progress.")
def command(val: Path, checkpoint: Path, views: str, as_json: bool, **options: Any) -> None:
    """Evaluate CHECKPOINT on the dataset VAL.

    CHECKPOINT is a checkpoint file, or a run directory, which means its best checkpoint.
    """
    report = evaluate_checkpoint(val, checkpoint, EvalConfig(views=int(views), **options))
    if as_json:
        print_json(report.to_json())
        return
    result = report.result
    print_pairs(
        f"{report.checkpoint} on {val}",
        [
            ("samples, views of each", f"{result.num_samples:,}, {result.num_views}"),
            ("top-1 error", f"{100 * result.top1_error:.2f} %   (accuracy {100 * (1 - result.top1_error):.2f} %)"),
            ("top-5 error", f"{100 * result.top5_error:.2f} %   (accuracy {100 * (1 - result.top5_error):.2f} %)"),
            ("loss", f"{result.loss:.4f} nats"),
            ("trained for", f"{report.epoch} epochs, {report.step:,} steps"),
            ("device, loader", f"{report.device}, {report.backend}"),
        ],
    )
