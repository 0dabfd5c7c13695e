"""What `lmdali train` leaves and says at its end: the pictures, the report, the table."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lmdali.model.figures import save_kernels, save_learning_curve
from lmdali.model.journal import METRICS_FILE
from lmdali.model.towers import TowerAlexNet
from lmdali.model.train_state import TrainResult
from lmdali.model.trainer import Trainer
from lmdali.model.weight_layout import weights_of
from lmdali.pipeline.errors import InputError, IntegrityError, MissingExtraError
from lmdali.pipeline.path_kind import exists
from lmdali.tools.initial_weights import checkpoint_file
from lmdali.tools.report_table import print_pairs

LEARNING_CURVE_FILE = "learning_curve.png"
KERNELS_FILE = "kernels.png"


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


def device_names(trainer: Trainer) -> str:
    """The devices of this process that train."""
    return ",".join(map(str, trainer.model.devices)) if isinstance(trainer.model, TowerAlexNet) else str(trainer.device)


def finished_report(trainer: Trainer, result: TrainResult, backend: str, progress: TextIO | None) -> TrainReport:
    """Draw a run's pictures, and say where everything is; `progress` is told what could not be drawn.

    That a journal was edited or lost is no reason to call a training failed that has ended.
    """
    curve: Path | None = None
    try:
        if result.epochs:
            curve = save_learning_curve(trainer.run_dir / METRICS_FILE, trainer.run_dir / LEARNING_CURVE_FILE)
    except (MissingExtraError, InputError, IntegrityError) as error:
        if progress is not None:
            print(error, file=progress)
    best = checkpoint_file(trainer.run_dir)
    return TrainReport(
        result=result,
        run_dir=trainer.run_dir,
        best_checkpoint=best if exists(best) else None,
        learning_curve=curve,
        kernels=save_kernels(weights_of(trainer.model)["conv1.weight"], trainer.run_dir / KERNELS_FILE),
        device=device_names(trainer),
        backend=backend,
        world_size=trainer.ranks.world_size,
    )


def print_report(report: TrainReport) -> None:
    """The table for people."""
    result = report.result
    rows: list[tuple[str, object]] = [
        ("epochs, steps, time", f"{result.epochs}, {result.steps:,}, {result.seconds:.0f} s"),
    ]
    if result.images_per_second:  # a run that had ended has trained nothing now
        told = f"{result.images_per_second:.0f} images/s, {100 * result.stall:.1f} % waiting for data"
        rows.append(("training rate", told))
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
