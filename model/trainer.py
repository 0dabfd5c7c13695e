"""The training loop: steps, epochs, checkpoints, and how to stop and go on without a trace."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch

from lmdali.model.alexnet import AlexNet
from lmdali.model.checkpoint import (
    Checkpoint,
    CheckpointDirectory,
    content_digest,
    require_same_run,
)
from lmdali.model.evaluator import EvalResult, evaluate
from lmdali.model.generators import generator_states, restore_generators
from lmdali.model.journal import METRICS_FILE
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.rates import LearningRates
from lmdali.model.recorder import Recorder
from lmdali.model.run_lock import run_lock
from lmdali.model.schedule import create_schedule
from lmdali.model.stop_signal import StopSignal
from lmdali.model.train_config import PRECISIONS, TrainConfig
from lmdali.model.train_state import TrainResult, TrainState
from lmdali.model.train_step import TrainStep
from lmdali.pipeline.batch import Batch, Loader
from lmdali.pipeline.errors import InputError, IntegrityError, LmdaliError
from lmdali.pipeline.files import storage_errors
from lmdali.pipeline.release import lmdali_version

CHECKPOINT_DIR = "checkpoints"


class Trainer:
    """Trains one network on one device, and can be stopped after any step.

    A run that was stopped by a signal, or killed and resumed from its last checkpoint, ends with the weights and the
    metrics of a run that was never stopped: bit for bit on a CPU.

    Args:
        model: the network; moved to `device`.
        config: see `TrainConfig`.
        train_loader: one view per sample, shuffled.
        val_loader: every sample once, the same classes.
        run_dir: gets `metrics.jsonl` and `checkpoints/`.
        device: where to train.
        loader_config: how the training images are made, kept in the checkpoints for whoever evaluates them.
        progress: stream for the progress line, None for silence.

    Raises:
        InputError: the classes of model and loaders differ.
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
        self.model = model.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = PaperSGD(
            parameter_groups(model, config),
            config.lr,
            momentum=config.momentum,
        )
        self.schedule = create_schedule(config.schedule, config.epochs)
        self._rates = LearningRates(config, self.schedule)
        self._step = TrainStep(
            model,
            self.optimizer,
            device=self.device,
            precision=PRECISIONS[config.precision],
            channels_last=config.channels_last,
            label_smoothing=config.label_smoothing,
            cuda_graph=config.cuda_graph,
        )
        self._record = Recorder(run_dir, self.state, log_steps=config.log_steps, progress=progress)
        self._loader_config = loader_config or {}
        self._resumed: Checkpoint | None = None
        self._may_replace = False
        self._val: EvalResult | None = None
        self._saved_at = 0.0

    def resume_latest(self) -> None:
        """Continue from the newest whole checkpoint of `run_dir`, or from the beginning if none was written yet.

        Raises:
            InputError: the checkpoint is of another network, other classes or another training set.
            IntegrityError: there are checkpoints, but all of them are damaged.
        """
        self._may_replace = True
        found = self.checkpoints.latest(self._record.say)
        if found is not None:
            path, checkpoint = found
            self.resume(checkpoint)
            self._record.say(f"resuming at step {self.state.step} (epoch {self.state.epoch}) from {path}")
        elif self.checkpoints.paths():
            raise IntegrityError(
                f"{self.checkpoints.directory}: every checkpoint is damaged: train again in another --run-dir"
            )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint when `fit` is called. Training settings may differ from the checkpoint's; those
        given here are used, and each difference is shown.

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
        given = [(group["momentum"], group["weight_decay"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(checkpoint.optimizer)
        for group, (momentum, weight_decay) in zip(self.optimizer.param_groups, given, strict=True):
            group.update(momentum=momentum, weight_decay=weight_decay)
        then, now = checkpoint.train_config, self.config.to_json()
        if then.get("schedule") == now["schedule"]:
            self.schedule.load_state_dict(checkpoint.schedule)
        for name in now:
            if then.get(name) != now[name]:
                self._record.say(f"changed on resuming: {name} {then.get(name)} -> {now[name]}")
        self.state.restore(checkpoint.progress)
        self._resumed, self._may_replace = checkpoint, True

    def require_vacant(self) -> None:
        """Make `run_dir`, unless it holds a run that this one does not resume.

        Raises:
            InputError: it does.
            StorageError: it cannot be made.
        """
        if not self._may_replace and (self.checkpoints.paths() or (self.run_dir / METRICS_FILE).exists()):
            raise InputError(f"{self.run_dir}: holds a run: continue it with --resume, or use another --run-dir")
        with storage_errors(self.run_dir):
            self.run_dir.mkdir(parents=True, exist_ok=True)

    def fit(self) -> TrainResult:
        """Train to the end, or until SIGINT or SIGTERM: then the step is finished and saved, and the result says so.

        Raises:
            InputError: `run_dir` holds a run that this one does not resume.
            LockedError: another process trains in `run_dir`.
            LmdaliError: the loss is not finite; names the step and the samples.
            StorageError: a checkpoint or the metrics could not be written.
        """
        self.require_vacant()
        if self._resumed is None:
            torch.manual_seed(self.config.seed)
        else:
            restore_generators(self._resumed.rng, self.device)
        self._saved_at = time.monotonic()
        with (
            run_lock(self.run_dir),
            self._record.opened(resumed=self._resumed is not None, tensorboard=self.config.tensorboard),
            StopSignal() as stop,
        ):
            while self.state.epoch < self.config.epochs and not self.schedule.finished and stop.received is None:
                if self._train_epoch(stop):
                    self._end_epoch()
        return self._result(stop.received)

    def _train_epoch(self, stop: StopSignal) -> bool:
        """Train what is left of the epoch; False if a signal ended it early (and the state is saved)."""
        self.model.train()
        self._record.begin_epoch(len(self.train_loader))
        batches = self._open_epoch()
        while True:
            began = time.perf_counter()
            batch = self._next(batches)
            waited = time.perf_counter() - began
            if batch is None:
                break
            self._train_on(batch)
            self._record.time_step(time.perf_counter() - began, waited, len(batch.labels))
            if stop.received is not None:
                self._save()
                return False
            if self._checkpoint_is_due():
                self._save()
        self._record.settle()
        return True

    def _open_epoch(self) -> Iterator[Batch]:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and self.state.epoch_steps > 0:
            self.train_loader.load_state_dict(resumed.train_loader)
            if self.train_loader.epoch != self.state.epoch:
                return iter(())  # stopped behind the last step of its epoch: only the validation is missing
        else:
            self.train_loader.set_epoch(self.state.epoch)
        return iter(self.train_loader)

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        try:
            return next(batches, None)
        except LmdaliError:
            # A damaged record must not cost the steps since the last checkpoint.
            with contextlib.suppress(LmdaliError):
                self._save()
            raise

    def _train_on(self, batch: Batch) -> None:
        position = self.state.epoch + self.state.epoch_samples / self.train_loader.num_samples
        self.state.lr = self._rates.apply(self.optimizer, position)
        figures = self._step(batch)
        # Only now is the step before this one waited for, so a GPU always has work queued.
        self._record.settle()
        self.state.count_step(len(batch.labels), self.train_loader.epoch_digest)
        self._record.expect(figures, batch, self.state.lr)

    def _end_epoch(self) -> None:
        """Validate, tell the schedule, record, save."""
        self._val = evaluate(
            self.model,
            self.val_loader,
            self.device,
            channels_last=self.config.channels_last,
            precision=PRECISIONS[self.config.precision],
        )
        best = self.state.note_validation(self._val.top1_error)
        self.schedule.end_epoch(self._val.top1_error)
        self._record.end_epoch(self._val, lr=self.state.lr, best=best)
        self.state.begin_next_epoch()
        self._save(best=best)

    def _checkpoint_is_due(self) -> bool:
        seconds, steps = self.config.checkpoint_seconds, self.config.checkpoint_steps
        if steps and self.state.step % steps == 0:
            return True
        return bool(seconds) and time.monotonic() - self._saved_at >= seconds

    def _save(self, *, best: bool = False) -> None:
        self._record.settle()
        self._record.synchronise()
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            progress=dataclasses.asdict(self.state),
            train_loader=self.train_loader.state_dict(),
            rng=generator_states(self.device),
            model_config=self.model.config.to_json(),
            train_config=self.config.to_json(),
            loader_config=self._loader_config,
            class_names=self.train_loader.class_names,
            manifest_digest=self.train_loader.manifest_digest,
            lmdali_version=lmdali_version(),
        )
        self.checkpoints.save(checkpoint, step=self.state.step, best=best)
        self._saved_at = time.monotonic()

    def _result(self, stopped_by: int | None) -> TrainResult:
        best = self.state.best_top1_error
        return TrainResult(
            epochs=self.state.epoch,
            steps=self.state.step,
            seconds=self.state.seconds,
            val=self._val,
            best_top1_error=None if math.isinf(best) else best,
            best_epoch=self.state.best_epoch,
            images_per_second=self._record.session.images_per_second,
            stall=self._record.session.stall,
            weights_sha256=content_digest(dict(self.model.state_dict())),
            stopped_by=stopped_by,
        )


def _require_same_classes(model: AlexNet, train_loader: Loader, val_loader: Loader) -> None:
    train, val = train_loader.class_names, val_loader.class_names
    if train != val:
        raise InputError(
            f"training and validation set have different classes ({len(train)} and {len(val)}): convert the validation "
            "set with the training set's classes"
        )
    if len(train) != model.config.num_classes:
        raise InputError(f"the network has {model.config.num_classes} classes, the training set {len(train)}")
