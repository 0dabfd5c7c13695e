"""What a run leaves behind while it goes: sums, metrics lines, and the line on the screen."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from torch import Tensor

from lmdali.model.evaluator import EvalResult
from lmdali.model.journal import METRICS_FILE, Journal
from lmdali.model.parallel import Notice, Ranks, SharedFigures
from lmdali.model.progress_line import ProgressLine, StepFigures, Stopwatch
from lmdali.model.stuck_loss import StuckLossWarning
from lmdali.model.train_state import TrainState
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.errors import LmdaliError


@dataclass(frozen=True)
class _Pending:
    """A step that devices may still be working on."""

    figures: SharedFigures
    batch: Batch
    lr: float


class ResumeWarning(UserWarning):
    """A run does not go on just as it was: other settings, a damaged checkpoint, lines that are missing."""


class Recorder:
    """Turns steps and epochs into sums of the run's state, lines of its journal, and a progress line.

    Args:
        run_dir: where the journal is.
        state: the run's; its sums and seconds are kept here.
        log_steps: steps between two `step` lines of the journal.
        num_classes: of the network.
        progress: stream for the progress line, None for silence.
        ranks: of the run; only the first one writes and shows anything.

    Attributes:
        session: times of all steps since this object was made.
    """

    def __init__(
        self,
        run_dir: Path,
        state: TrainState,
        *,
        log_steps: int,
        num_classes: int,
        progress: TextIO | None,
        ranks: Ranks,
    ) -> None:
        self.session = Stopwatch()
        self._run_dir, self._state, self._log_steps, self._ranks = run_dir, state, log_steps, ranks
        self._num_classes, self._is_silent = num_classes, progress is None
        self._line = ProgressLine(progress if ranks.is_first else None)
        self._watch = Stopwatch()
        self._epoch_length = 0
        self._pending: _Pending | None = None
        self._journal: Journal | None = None
        self._resumed_step: int | None = None
        self._timed_at = 0.0

    @contextmanager
    def opened(self, *, resumed: bool, tensorboard: bool) -> Iterator[None]:
        """Keep the journal open, continued from where the state left it or new; on the first rank.

        Raises:
            MissingExtraError: TensorBoard was asked for and is not installed.
            InputError, IntegrityError: a line of earlier steps was edited or damaged.
            StorageError: the journal cannot be written.
        """
        state = self._state
        self._resumed_step = state.step if resumed else None
        self._journal = Journal(
            self._run_dir,
            resume_bytes=state.metrics_bytes if resumed else None,
            tensorboard=tensorboard,
            resume_step=state.step,
            resume_epoch=state.epoch,
        )
        self._timed_at = time.monotonic()
        try:
            if self._journal.shortfall_bytes:
                self.notice(f"{self._journal.path}: {self._journal.shortfall_bytes} bytes of earlier steps are missing")
            yield
        finally:
            self._count_seconds()
            self._journal.close()

    def say(self, text: str) -> None:
        """Show one line."""
        self._line.say(text)

    def notice(self, text: str) -> None:
        """Show one line that nobody may miss: where nothing is shown it is a `ResumeWarning`."""
        self.say(text)
        if self._is_silent and self._ranks.is_first:
            warnings.warn(text, ResumeWarning, stacklevel=2)

    def begin_epoch(self, num_steps: int) -> None:
        """Start the epoch's clock; `num_steps` is what the progress line counts to."""
        self._watch, self._epoch_length = Stopwatch(), num_steps

    def time_step(self, step_seconds: float, data_seconds: float, num_images: int) -> None:
        """Count one step's time, `data_seconds` of it spent waiting for data."""
        for watch in (self._watch, self.session):
            watch.add(step_seconds, data_seconds, num_images)

    def expect(self, figures: SharedFigures, batch: Batch, lr: float) -> None:
        """Take a step's figures, which its device may still be computing; `settle` waits for them."""
        self._pending = _Pending(figures, batch, lr)

    def settle(self) -> Notice | None:
        """Wait for the last step's figures, check them, add them up and record them.

        Returns:
            What any rank wanted in that step; None if there was no step to wait for.

        Raises:
            LmdaliError: the loss is not finite.
        """
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        outcome = pending.figures.wait()
        state = self._state
        if not math.isfinite(outcome.loss):
            samples = [index for part in self._ranks.gather(pending.batch.indices.tolist()) for index in part]
            self._diverged(f"step {state.step}: the loss is {outcome.loss}", str(outcome.loss), pending.lr, samples)
        state.add_figures(outcome.loss, outcome.top1_error, outcome.top5_error)
        figures = StepFigures(outcome.loss, outcome.top1_error, outcome.top5_error, *state.means())
        if state.step % self._log_steps == 0:
            self._write("step", lr=pending.lr, **figures.to_json())
        self._warn_if_stuck(outcome.loss)
        self._line.step(state.epoch, state.epoch_steps, self._epoch_length, figures, self._watch)
        return outcome.notice

    def end_epoch(self, val: EvalResult, *, best: bool) -> None:
        """Record an epoch and its validation.

        Raises:
            LmdaliError: the validation loss is not finite.
        """
        state = self._state
        if not math.isfinite(val.loss):
            self._diverged(f"epoch {state.epoch}: the validation loss is {val.loss}", str(val.loss), state.lr, [])
        loss, top1, top5 = state.means()
        self._write(
            "epoch",
            lr=state.lr,
            digest=state.epoch_digest,
            train_loss=loss,
            train_top1_error=top1,
            train_top5_error=top5,
            val_loss=val.loss,
            val_top1_error=val.top1_error,
            val_top5_error=val.top5_error,
            best_top1_error=state.best_top1_error,
        )
        self.say(
            f" * Epoch: [{state.epoch}]  val Acc@1 {100 * (1 - val.top1_error):.2f}  "
            f"Acc@5 {100 * (1 - val.top5_error):.2f}  Loss {val.loss:.4f}  train Acc@1 {100 * (1 - top1):.2f}  "
            f"lr {state.lr:.2g}  {self._watch.images_per_second:.1f} img/s  stall {100 * self._watch.stall:.1f} %  "
            f"{state.seconds:.0f} s{'  best' if best else ''}"
        )

    def require_finite(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse weights that nobody could go on from: a step's loss is that before its update.

        Raises:
            LmdaliError: one of them is infinite or NaN.
        """
        for name, weight in weights.items():
            if not weight.isfinite().all():
                found = f"step {self._state.step}: its update has left {name} not finite, and is not saved,"
                self._diverged(found, "not finite", self._state.lr, [])

    def synchronise(self) -> None:
        """Put everything written so far on the disk, and its length and the time into the state."""
        if self._journal is not None:
            self._state.metrics_bytes = self._journal.position_bytes()
            self._count_seconds()

    def _warn_if_stuck(self, loss: float) -> None:
        state = self._state
        text = state.stuck_loss.add(loss, num_classes=self._num_classes, step=state.step, epoch=state.epoch)
        if text is not None and self._ranks.is_first:
            self._write("warning", warning=StuckLossWarning.__name__, text=text)
            self.say(text)
            warnings.warn(text, StuckLossWarning, stacklevel=2)

    def _diverged(self, found: str, loss: str, lr: float, samples: list[int]) -> NoReturn:
        # JSON has no NaN, so the loss is text here.
        self._write("failure", loss=loss, lr=lr, samples=samples)
        shown = ", ".join(map(str, samples[:8])) + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")
        of = f", samples {shown} (all of them in {self._run_dir / METRICS_FILE})" if samples else ""
        raise LmdaliError(f"{found} at learning rate {lr:g}{of}: {self._way_out()}")

    def _way_out(self) -> str:
        began = self._resumed_step
        if began is not None and self._state.step <= began + 1:
            # Nothing that this session did can have caused it.
            return f"the checkpoint of step {began} had diverged already: remove it, then resume with a lower --lr"
        return "resume with a lower --lr"

    def _write(self, kind: str, **fields: Any) -> None:
        if self._journal is None:
            return
        self._count_seconds()
        head = {"kind": kind, "epoch": self._state.epoch, "step": self._state.step}
        times = {
            "images_per_second": self._watch.images_per_second,
            "stall": self._watch.stall,
            "seconds": self._state.seconds,
        }
        self._journal.write({**head, **fields, **times})

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self._state.seconds += now - self._timed_at
        self._timed_at = now
