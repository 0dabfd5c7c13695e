"""The training loop: steps, epochs, checkpoints, and how to stop and go on without a trace."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from torch.nn import functional

from lmdali.model.alexnet import AlexNet
from lmdali.model.checkpoint import (
    Checkpoint,
    CheckpointDirectory,
    content_digest,
    lmdali_version,
    require_same_run,
)
from lmdali.model.evaluator import EvalResult, evaluate, network_input
from lmdali.model.journal import METRICS_FILE, Journal
from lmdali.model.metrics import top_k_error
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.progress import ProgressLine, StepFigures, Stopwatch
from lmdali.model.schedule import create_schedule
from lmdali.model.stop_signal import StopSignal
from lmdali.pipeline.batch import Batch, Loader
from lmdali.pipeline.errors import ConfigError, InputError, LmdaliError
from lmdali.pipeline.files import storage_errors

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CHECKPOINT_DIR = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained; the defaults are the paper's (section 5).

    Attributes:
        epochs: passes over the training set, at most; a schedule may stop earlier.
        lr: base learning rate, for weights and biases alike.
        momentum: of the paper's update rule.
        weight_decay: of weights.
        bias_decay: decay biases too.
        schedule: see `schedule.create_schedule`.
        label_smoothing: 0..1, share of the target spread over all classes.
        seed: of the initial weights, the dropout masks, and the loader's order and draws.
        precision: `float32` or `bfloat16` (autocast; weights, updates and losses stay float32).
        channels_last: memory format; the same numbers up to rounding, about twice as fast on a CPU.
        log_steps: steps between two `step` lines in the metrics file.
        checkpoint_seconds: time between two checkpoints inside an epoch; 0 for none. Each epoch ends with one anyway.
        checkpoint_steps: the same, counted in steps; 0 for none.
        keep_checkpoints: newest checkpoints that are kept, besides the best one.
        tensorboard: also write TensorBoard events.
    """

    epochs: int = 90
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_decay: bool = False
    schedule: str = "plateau"
    label_smoothing: float = 0.0
    seed: int = 0
    precision: str = "float32"
    channels_last: bool = True
    log_steps: int = 20
    checkpoint_seconds: float = 600.0
    checkpoint_steps: int = 0
    keep_checkpoints: int = 3
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.log_steps < 1 or self.keep_checkpoints < 1:
            raise ConfigError(
                "epochs, log_steps and keep_checkpoints must be at least 1, "
                f"found {self.epochs}, {self.log_steps} and {self.keep_checkpoints}"
            )
        if not self.lr > 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ConfigError(
                "training needs lr > 0, 0 <= momentum < 1 and weight_decay >= 0, "
                f"found {self.lr}, {self.momentum} and {self.weight_decay}"
            )
        if not 0 <= self.label_smoothing < 1 or self.checkpoint_seconds < 0 or self.checkpoint_steps < 0:
            raise ConfigError("label_smoothing must be in 0..1, checkpoint_seconds and checkpoint_steps at least 0")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, found {self.precision!r}")
        create_schedule(self.schedule, self.epochs)

    def to_json(self) -> dict[str, Any]:
        """All fields, for checkpoints and reports."""
        return dataclasses.asdict(self)


@dataclass
class TrainState:
    """Where a run is. Sums are over the current epoch; together with the loader's position they make resuming exact.

    Attributes:
        epoch: the one being trained or validated, from 0; after the last one, their number.
        step: updates made.
        samples_seen: images trained on, all epochs together.
        epoch_samples: images of this epoch trained on.
        epoch_steps: updates of this epoch.
        trained: this epoch's updates are done, its validation is not.
        stopped: the schedule ended the run.
        loss_sum: over the epoch's steps, of the batch means.
        top1_sum: same, of the top-1 errors.
        top5_sum: same, of the top-5 errors.
        best_top1_error: lowest validation error so far.
        best_epoch: when it was reached, or -1.
        metrics_bytes: length of the metrics file.
        seconds: training time, all sessions together.
    """

    epoch: int = 0
    step: int = 0
    samples_seen: int = 0
    epoch_samples: int = 0
    epoch_steps: int = 0
    trained: bool = False
    stopped: bool = False
    loss_sum: float = 0.0
    top1_sum: float = 0.0
    top5_sum: float = 0.0
    best_top1_error: float = math.inf
    best_epoch: int = -1
    metrics_bytes: int = 0
    seconds: float = 0.0

    def begin_next_epoch(self) -> None:
        """Clear what belongs to one epoch."""
        self.epoch += 1
        self.epoch_samples = self.epoch_steps = 0
        self.loss_sum = self.top1_sum = self.top5_sum = 0.0
        self.trained = False


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a call of `Trainer.fit` ended.

    Attributes:
        epochs: epochs finished, those before a resume included.
        steps: updates made, likewise.
        seconds: training time, likewise.
        val: the last validation, or None if none was reached in this session.
        best_top1_error: lowest validation top-1 error (0..1), or None.
        best_epoch: when it was reached, from 0, or -1.
        images_per_second: of this session's training steps, waiting for data included.
        stall: share of this session's training time spent waiting for data.
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
        """All fields; `val` as its own object."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**fields, "val": None if self.val is None else self.val.to_json()}


class Trainer:
    """Trains one network on one device, and can be stopped after any step.

    A run stopped by a signal, or killed and resumed from its last checkpoint, ends with the weights and the metrics of a
    run that was never stopped: bit for bit on a CPU.

    Args:
        model: the network; moved to `device`.
        config: see `TrainConfig`.
        train_loader: one view per sample, shuffled.
        val_loader: every sample once, one view, the same classes.
        run_dir: gets `metrics.jsonl` and `checkpoints/`.
        device: where to train.
        loader_config: how the training images are made, kept in the checkpoints for whoever evaluates them.
        progress: stream for the progress line, None for silence.

    Raises:
        InputError: the classes of model and loaders differ, or `run_dir` holds another run.
    """

    def __init__(
        self,
        model: AlexNet,
        config: TrainConfig,
        train_loader: Loader,
        val_loader: Loader,
        *,
        run_dir: Path,
        device: torch.device | str = "cpu",
        loader_config: dict[str, Any] | None = None,
        progress: TextIO | None = None,
    ) -> None:
        _require_same_classes(model, train_loader, val_loader)
        self.config, self.run_dir, self.device = config, run_dir, torch.device(device)
        self.train_loader, self.val_loader = train_loader, val_loader
        self.state = TrainState()
        self.checkpoints = CheckpointDirectory(run_dir / CHECKPOINT_DIR, keep=config.keep_checkpoints)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = PaperSGD(
            parameter_groups(model, weight_decay=config.weight_decay, bias_decay=config.bias_decay),
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.schedule = create_schedule(config.schedule, config.epochs)
        self._loader_config = loader_config or {}
        self._progress = ProgressLine(progress)
        self._watch = Stopwatch()
        self._session = Stopwatch()
        self._resumed: Checkpoint | None = None
        self._pending: tuple[Tensor, Batch] | None = None
        self._val: EvalResult | None = None
        self._journal: Journal
        self._saved_at = 0.0

    def resume(self, checkpoint: Checkpoint) -> list[str]:
        """Continue from a checkpoint when `fit` is called.

        Returns:
            Training settings that differ from the checkpoint's, in words; the ones given here are used.

        Raises:
            InputError: the checkpoint is of another network, other classes or another training set.
        """
        require_same_run(
            checkpoint,
            model_config=self.model.config.to_json(),
            class_names=self.train_loader.class_names,
            manifest_digest=self.train_loader.manifest_digest,
        )
        self.model.load_state_dict(checkpoint.model)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(checkpoint.optimizer)
        for group, given in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(given)
        then, now = checkpoint.train_config, self.config.to_json()
        if then.get("schedule") == now["schedule"]:
            self.schedule.load_state_dict(checkpoint.schedule)
        self.state = TrainState(**checkpoint.progress)
        self._resumed = checkpoint
        return [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]

    def fit(self) -> TrainResult:
        """Train to the end, or until SIGINT or SIGTERM: then the step is finished, saved, and the result says so.

        Raises:
            InputError: `run_dir` holds a run that this one does not resume.
            LmdaliError: the loss is not finite; names the step and the samples.
            StorageError: a checkpoint or the metrics could not be written.
        """
        with storage_errors(self.run_dir):
            self.run_dir.mkdir(parents=True, exist_ok=True)
        self._journal = self._open_journal()
        self._restore_generators()
        self._saved_at = time.monotonic()
        try:
            with StopSignal() as stop:
                while self.state.epoch < self.config.epochs and not self.state.stopped:
                    if not self.state.trained and not self._train_epoch(stop):
                        break
                    self._end_epoch()
                    if stop.received is not None:
                        break
        finally:
            self._journal.close()
        return self._result(stop.received)

    def _train_epoch(self, stop: StopSignal) -> bool:
        """Train what is left of the epoch; False if a signal ended it early (and the state is saved)."""
        self.model.train()
        self._watch = Stopwatch()
        batches = self._open_epoch()
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            data_seconds = time.perf_counter() - began
            if batch is None:
                break
            self._step(batch)
            self._account(len(batch.labels), time.perf_counter() - began, data_seconds)
            if stop.received is not None:
                self._save()
                return False
            if self._checkpoint_is_due():
                self._save()
        self._settle()
        self.state.trained = True
        return True

    def _open_epoch(self) -> Iterator[Batch]:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and self.state.epoch_steps > 0:
            self.train_loader.load_state_dict(resumed.train_loader)
        else:
            self.train_loader.set_epoch(self.state.epoch)
        return iter(self.train_loader)

    def _step(self, batch: Batch) -> None:
        """One update: forward, backward, and the paper's rule at this position's learning rate."""
        images = network_input(batch.images, self.device, channels_last=self.config.channels_last)
        labels = batch.labels.to(self.device, non_blocking=True)
        precision = PRECISIONS[self.config.precision]
        with torch.autocast(self.device.type, precision, enabled=precision is not torch.float32):
            logits = self.model(images)
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # Only now is the step before this one waited for, so a GPU never runs dry between two steps.
        self._settle()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        scores = logits.detach()
        figures = [loss.detach(), top_k_error(scores, labels, 1).mean(), top_k_error(scores, labels, 5).mean()]
        self._pending = (torch.stack(figures), batch)

    def learning_rate(self) -> float:
        """The rate of the next update."""
        position = self.state.epoch + self.state.epoch_samples / self.train_loader.num_samples
        return self.config.lr * self.schedule.factor(position)
