"""The training loop: steps, epochs, checkpoints, and how to stop and go on without a trace."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch

from lmdali.model.alexnet import AlexNet
from lmdali.model.checkpoint import Checkpoint, CheckpointDirectory, content_digest
from lmdali.model.evaluator import EvalResult, evaluate
from lmdali.model.journal import METRICS_FILE
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.parallel import Notice, Ranks
from lmdali.model.rates import LearningRates
from lmdali.model.recorder import Recorder
from lmdali.model.run_lock import make_run_directory, run_lock
from lmdali.model.saved_run import SavedRun, require_same_classes
from lmdali.model.schedule import create_schedule
from lmdali.model.stop_signal import StopSignal
from lmdali.model.train_config import PRECISIONS, TrainConfig
from lmdali.model.train_state import TrainResult, TrainState
from lmdali.model.train_step import TrainStep
from lmdali.model.weight_layout import Network, weights_of
from lmdali.pipeline.batch import Batch, Loader
from lmdali.pipeline.errors import InputError, IntegrityError, LmdaliError
from lmdali.pipeline.path_kind import exists

CHECKPOINT_DIR = "checkpoints"

LAUNCHER_ECHO_SECONDS = 5.0
"""With several ranks a signal may come twice, from whoever sent it and from torchrun, which hands it on."""


class Trainer:
    """Trains one network, alone or as one of several ranks, and can be stopped after any step.

    A run that was stopped by a signal, or killed and resumed from its last checkpoint, ends with the weights and the
    metrics of a run that was never stopped: bit for bit on a CPU, with the same number of ranks.

    Each rank has a trainer, and all of them do the same: the first alone writes, and a signal to one stops all of them
    after the same step.

    Args:
        model: the network; moved to `device`, unless it is towers, which stay on their own.
        config: see `TrainConfig`.
        train_loader: one view per sample, shuffled; this rank's part of each global batch.
        val_loader: every sample once, the same classes; this rank's part of them.
        run_dir: gets `metrics.jsonl` and `checkpoints/`.
        device: where to train; of towers the first one's.
        loader_config: how the training images are made, kept in the checkpoints for whoever evaluates them.
        progress: stream for the progress line, None for silence; of use on the first rank only.
        ranks: all processes that train this network; this one alone by default.

    Raises:
        InputError: the classes of model and loaders differ.
        ConfigError: ranks were given different settings.
    """

    def __init__(
        self,
        model: Network,
        config: TrainConfig,
        train_loader: Loader,
        val_loader: Loader,
        *,
        run_dir: Path,
        device: torch.device | str = "cpu",
        loader_config: dict[str, Any] | None = None,
        progress: TextIO | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        require_same_classes(model, train_loader, val_loader)
        self.config, self.run_dir, self.device = config, run_dir, torch.device(device)
        self.ranks = Ranks(device=self.device) if ranks is None else ranks
        self.train_loader, self.val_loader = train_loader, val_loader
        self.ranks.require_same({"network": model.config, "training": config})
        self.state = TrainState()
        self.checkpoints = CheckpointDirectory(run_dir / CHECKPOINT_DIR, keep=config.keep_checkpoints)
        self.model = model.to(self.device) if isinstance(model, AlexNet) else model
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model.to(memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = PaperSGD(parameter_groups(model, config), config.lr, momentum=config.momentum)
        self.schedule = create_schedule(config.schedule, config.epochs)
        self._rates = LearningRates(config, self.schedule)
        self._step = TrainStep(
            self.ranks.averaging(self.model),
            self.optimizer,
            device=self.device,
            precision=PRECISIONS[config.precision],
            channels_last=config.channels_last,
            label_smoothing=config.label_smoothing,
            # A graph holds the work of one device: not what ranks do between them, nor two towers.
            cuda_graph=config.cuda_graph and self.ranks.world_size == 1 and isinstance(model, AlexNet),
        )
        self._record = Recorder(
            run_dir,
            self.state,
            log_steps=config.log_steps,
            num_classes=model.config.num_classes,
            progress=progress,
            ranks=self.ranks,
        )
        self._run = SavedRun(
            network=self.model,
            optimizer=self.optimizer,
            schedule=self.schedule,
            state=self.state,
            train_loader=train_loader,
            config=config,
            loader_config=loader_config or {},
            ranks=self.ranks,
        )
        self._resumed: Checkpoint | None = None
        self._resumed_from: Path | None = None
        self._may_replace = False
        self._val: EvalResult | None = None
        self._saved_at = 0.0
        self._heard = Notice()
        self._stepped = False

    def resume_latest(self) -> None:
        """Continue from the newest whole checkpoint of `run_dir`, or from the beginning if none was written yet.

        Raises:
            InputError: the checkpoint is of another network, other classes or another training set.
            IntegrityError: there are checkpoints, but all of them are damaged.
        """
        self._may_replace = True
        found = self.checkpoints.latest(self._record.notice)
        self._run.require_same_everywhere(found)
        if found is not None:
            path, checkpoint = found
            self.resume(checkpoint)
            self._resumed_from = path
            self._record.say(f"resuming at step {self.state.step} (epoch {self.state.epoch}) from {path}")
        elif self.checkpoints.candidates():
            raise IntegrityError(
                f"{self.checkpoints.directory}: every checkpoint is damaged: train again in another --run-dir"
            )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint when `fit` is called. Training settings may differ from the checkpoint's; those
        given here are used, and each difference is shown: as a `ResumeWarning` where there is no progress stream.

        Raises:
            InputError: the checkpoint is of another network, other classes or another training set.
        """
        self._run.restore(checkpoint, self._record.notice)
        if self.state.epoch_steps > 0:
            self.train_loader.load_state_dict(checkpoint.train_loader)
        self._resumed, self._may_replace = checkpoint, True

    def require_vacant(self) -> None:
        """Make `run_dir`, unless it holds a run that this one does not resume.

        Raises:
            InputError: it does, or it can be no run's directory.
            StorageError: it cannot be made.
        """

        def check() -> None:
            if not self._may_replace and (self.checkpoints.candidates() or exists(self.run_dir / METRICS_FILE)):
                raise InputError(f"{self.run_dir}: holds a run: continue it with --resume, or use another --run-dir")
            make_run_directory(self.run_dir)

        self.ranks.on_first(check)

    def fit(self, prepare: Callable[[], None] = lambda: None) -> TrainResult:
        """Train to the end, or until SIGINT or SIGTERM: then the step is finished and saved, and the result says so.

        Args:
            prepare: called on the first rank once no other process can train in `run_dir`: writes what else is kept
                there.

        Raises:
            InputError: `run_dir` holds a run that this one does not resume.
            LockedError: another process trains in `run_dir`, or has done so since `resume_latest`.
            LmdaliError: a loss or a weight is not finite; names the step and the samples.
            StorageError: a checkpoint or the metrics could not be written.
        """
        self.require_vacant()
        self._run.begin_generators(self._resumed)
        self._saved_at = time.monotonic()
        stopped_by: int | None = None
        echo_seconds = LAUNCHER_ECHO_SECONDS if self.ranks.world_size > 1 else 0.0
        with contextlib.ExitStack() as opened:
            self.ranks.on_first(lambda: self._open(opened, prepare))
            stop = opened.enter_context(StopSignal(echo_seconds=echo_seconds))
            while self.state.epoch < self.config.epochs and not self.schedule.finished and stopped_by is None:
                if self._train_epoch(stop):
                    self._end_epoch()
                stopped_by = self.ranks.agreed_signal(stop.received)
        return self._result(stopped_by)

    def _open(self, opened: contextlib.ExitStack, prepare: Callable[[], None]) -> None:
        opened.enter_context(run_lock(self.run_dir))
        self.checkpoints.recover(self._resumed_from if self.state.ends_best_epoch else None)
        prepare()
        resumed = self._resumed is not None
        opened.enter_context(self._record.opened(resumed=resumed, tensorboard=self.config.tensorboard))

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
            self._train_on(batch, stop)
            self._record.time_step(time.perf_counter() - began, waited, len(batch.labels) * self.ranks.world_size)
            notice = self._wanted(stop) if self.ranks.world_size == 1 else self._heard
            if notice.stopped_by is not None:
                self._save()
                return False
            if notice.save_is_due or self._steps_are_due():
                self._save()
        self._settle()
        if self.ranks.world_size > 1 and self.ranks.agreed_signal(stop.received) is not None:
            self._save()
            return False
        return True

    def _open_epoch(self) -> Iterator[Batch]:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and self.state.epoch_steps > 0:
            if self.train_loader.epoch != self.state.epoch:
                return iter(())  # stopped behind the last step of its epoch: only the validation is missing
        else:
            self.train_loader.set_epoch(self.state.epoch)
        return iter(self.train_loader)

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        try:
            return next(batches, None)
        except LmdaliError:
            # A damaged record must not cost the steps since the last checkpoint. The other ranks cannot be asked for
            # their part of one: they have gone on into the next step.
            if self.ranks.world_size == 1:
                with contextlib.suppress(LmdaliError):
                    self._save()
            raise

    def _train_on(self, batch: Batch, stop: StopSignal) -> None:
        position = self.state.epoch + self.state.epoch_samples / self.train_loader.num_samples
        lr = self._rates.apply(self.optimizer, position)
        figures = self.ranks.share(self._step(batch), self._wanted(stop))
        # Only now is the step before this one waited for, so a GPU always has work queued.
        self._settle()
        self.state.count_step(len(batch.labels) * self.ranks.world_size, lr)
        self._stepped = True
        self._record.expect(figures, batch, lr)

    def _wanted(self, stop: StopSignal) -> Notice:
        """What this rank would do after the step that it is at."""
        seconds = self.config.checkpoint_seconds
        return Notice(stop.received, bool(seconds) and time.monotonic() - self._saved_at >= seconds)

    def _settle(self) -> None:
        """Wait for the last step's figures; remember what any rank wanted then."""
        self._heard = self._record.settle() or self._heard

    def _steps_are_due(self) -> bool:
        return bool(self.config.checkpoint_steps) and self.state.step % self.config.checkpoint_steps == 0

    def _end_epoch(self) -> None:
        """Validate, tell the schedule, record, save."""
        self._val = evaluate(
            self.model,
            self.val_loader,
            self.device,
            channels_last=self.config.channels_last,
            precision=PRECISIONS[self.config.precision],
            ranks=self.ranks,
        )
        best = self.state.note_validation(self._val.top1_error)
        self.schedule.end_epoch(self._val.top1_error)
        self._note_digest()
        self._record.end_epoch(self._val, best=best)
        self.state.begin_next_epoch()
        self._save(best=best)

    def _note_digest(self) -> None:
        if self._stepped and self.state.epoch_steps:
            self.state.note_digest(self.ranks.gather(self.train_loader.epoch_digest))

    def _save(self, *, best: bool = False) -> None:
        self._settle()
        self._heard = Notice(self._heard.stopped_by)
        self._note_digest()
        self._record.require_finite(dict(self.model.named_parameters()))
        self._record.synchronise()
        checkpoint, step = self._run.checkpoint(), self.state.step
        # Nobody goes on to change the weights, or to leave, before they are on the disk.
        self.ranks.on_first(lambda: self.checkpoints.save(checkpoint, step=step, best=best))
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
            weights_sha256=content_digest(weights_of(self.model)),
            stopped_by=stopped_by,
        )
