"""Where a training run is, and how it ended."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmdali.model.evaluator import EvalResult
from lmdali.model.stuck_loss import StuckLoss
from lmdali.pipeline.order_digest import combine, digest_text


@dataclass
class TrainState:
    """Position and sums of a run; together with the loader's position they make resuming exact.

    Attributes:
        epoch: the one being trained or validated, from 0; after the last one, their number.
        step: updates made.
        samples_seen: images trained on, all epochs together.
        lr: the weights' learning rate in the last update.
        epoch_samples: images of this epoch trained on.
        epoch_steps: updates of this epoch.
        epoch_digest: of the samples and draws of this epoch so far (before its first step: of the epoch before it), all
            ranks together, 16 hexadecimal digits, or None where a loader does not know it. Brought up to date for
            checkpoints and at the end of an epoch only.
        loss_sum: over the epoch's steps, of the batch means.
        top1_sum: same, of the top-1 errors.
        top5_sum: same, of the top-5 errors.
        stuck_loss: whether the loss has left chance level.
        best_top1_error: lowest validation error so far.
        best_epoch: when it was reached, or -1.
        metrics_bytes: length of the metrics file.
        seconds: time spent in `fit`, all sessions together.
    """

    epoch: int = 0
    step: int = 0
    samples_seen: int = 0
    lr: float = 0.0
    epoch_samples: int = 0
    epoch_steps: int = 0
    epoch_digest: str | None = None
    loss_sum: float = 0.0
    top1_sum: float = 0.0
    top5_sum: float = 0.0
    stuck_loss: StuckLoss = field(default_factory=StuckLoss)
    best_top1_error: float = math.inf
    best_epoch: int = -1
    metrics_bytes: int = 0
    seconds: float = 0.0

    def count_step(self, num_samples: int, lr: float) -> None:
        """One more update, at `lr`, on `num_samples` images of all ranks together."""
        self.step += 1
        self.epoch_steps += 1
        self.samples_seen += num_samples
        self.epoch_samples += num_samples
        self.lr = lr

    def note_digest(self, parts: Sequence[int | None]) -> None:
        """Take over the epoch's digest, of which each rank's loader has a part."""
        known = [part for part in parts if part is not None]
        self.epoch_digest = digest_text(combine(known)) if len(known) == len(parts) else None

    def add_figures(self, loss: float, top1_error: float, top5_error: float) -> None:
        """Add one step's batch means."""
        self.loss_sum += loss
        self.top1_sum += top1_error
        self.top5_sum += top5_error

    def means(self) -> tuple[float, float, float]:
        """Loss, top-1 and top-5 error over the epoch so far."""
        steps = max(1, self.epoch_steps)
        return self.loss_sum / steps, self.top1_sum / steps, self.top5_sum / steps

    def note_validation(self, top1_error: float) -> bool:
        """Remember the error if it is the lowest; says whether it is."""
        if top1_error >= self.best_top1_error:
            return False
        self.best_top1_error, self.best_epoch = top1_error, self.epoch
        return True

    @property
    def ends_best_epoch(self) -> bool:
        """Whether this is the end of the epoch with the lowest validation error so far."""
        return self.epoch_steps == 0 and self.best_epoch == self.epoch - 1 >= 0

    def restore(self, fields: dict[str, Any]) -> None:
        """Take over the fields that `dataclasses.asdict` gave."""
        given = TrainState(**fields | {"stuck_loss": StuckLoss(**fields.get("stuck_loss", {}))})
        for item in dataclasses.fields(given):
            setattr(self, item.name, getattr(given, item.name))

    def begin_next_epoch(self) -> None:
        """Clear what belongs to one epoch."""
        self.epoch += 1
        self.epoch_samples = self.epoch_steps = 0
        self.loss_sum = self.top1_sum = self.top5_sum = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a call of `Trainer.fit` ended.

    Attributes:
        epochs: epochs finished, those before a resume included.
        steps: updates made, likewise.
        seconds: time spent, likewise.
        val: the last validation of this session, or None.
        best_top1_error: lowest validation top-1 error (0..1), or None.
        best_epoch: when it was reached, from 0, or -1.
        images_per_second: of this session's training steps, waiting for data included.
        stall: share of those steps' time spent waiting for data, 0..1.
        weights_sha256: digest of the final weights.
        stopped_by: number of the signal that ended the session early, or None.
    """

    epochs: int
    steps: int
    seconds: float
    val: EvalResult | None
    best_top1_error: float | None
    best_epoch: int
    images_per_second: float
    stall: float
    weights_sha256: str
    stopped_by: int | None

    def to_json(self) -> dict[str, Any]:
        """All fields; `val` as an object of its own."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**fields, "val": None if self.val is None else self.val.to_json()}
