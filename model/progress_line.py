"""The progress line of a training run, in the form that the field's example scripts made familiar."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TextIO

PLAIN_INTERVAL_SECONDS = 10.0
"""Between two lines in a log file; a terminal's one line is redrawn more often."""

TERMINAL_INTERVAL_SECONDS = 0.2


@dataclass
class Meter:
    """A value and its mean over an epoch."""

    value: float = 0.0
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Take one more value."""
        self.value, self.total, self.count = value, self.total + value, self.count + 1

    @property
    def mean(self) -> float:
        """Mean of the values so far, 0 without any."""
        return self.total / self.count if self.count else 0.0


class Stopwatch:
    """Where a step's time goes: waiting for data, and all of it. Only this process's part of an epoch counts."""

    def __init__(self) -> None:
        self.step_seconds, self.data_seconds, self.images = Meter(), Meter(), Meter()

    def add(self, step_seconds: float, data_seconds: float, num_images: int) -> None:
        """Take one step; `step_seconds` includes `data_seconds`."""
        self.step_seconds.add(step_seconds)
        self.data_seconds.add(data_seconds)
        self.images.add(num_images)

    @property
    def images_per_second(self) -> float:
        """Rate over all steps so far."""
        return self.images.total / self.step_seconds.total if self.step_seconds.total else 0.0

    @property
    def stall(self) -> float:
        """Share of the time spent waiting for data, 0..1."""
        return self.data_seconds.total / self.step_seconds.total if self.step_seconds.total else 0.0


@dataclass(frozen=True)
class StepFigures:
    """What one step showed: the batch's own values, and the means over the epoch so far (errors 0..1)."""

    loss: float
    top1_error: float
    top5_error: float
    mean_loss: float
    mean_top1_error: float
    mean_top5_error: float

    def to_json(self) -> dict[str, float]:
        """All fields."""
        return dataclasses.asdict(self)


class ProgressLine:
    """Writes progress to a stream, or nowhere.

    On a terminal one line is redrawn; elsewhere a line is written at the first step, then every 10 s, and at the end.

    Args:
        stream: usually stderr; None for silence.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._terminal = stream is not None and stream.isatty()
        self._drawn_at = float("-inf")
        self._open_line = False

    def step(self, epoch: int, done: int, total: int, figures: StepFigures, watch: Stopwatch) -> None:
        """Show step `done` of `total` in `epoch`, if it is time to."""
        now = time.monotonic()
        interval = TERMINAL_INTERVAL_SECONDS if self._terminal else PLAIN_INTERVAL_SECONDS
        if self._stream is None or (now - self._drawn_at < interval and not (self._terminal and done == total)):
            return
        self._drawn_at = now
        text = step_text(epoch, done, total, figures, watch)
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text}")
            self._open_line = True
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Write one whole line."""
        if self._stream is None:
            return
        self._stream.write(f"\n{text}\n" if self._open_line else f"{text}\n")
        self._open_line = False
        self._stream.flush()


def step_text(epoch: int, done: int, total: int, figures: StepFigures, watch: Stopwatch) -> str:
    """`Epoch: [e][ i/N]  Time cur (avg)  Data cur (avg)  Loss cur (avg)  Acc@1 cur (avg)  Acc@5 ..  img/s  stall`."""
    width = len(str(total))
    accuracies = (
        f"Acc@{k} {100 * (1 - now):6.2f} ({100 * (1 - mean):6.2f})"
        for k, now, mean in (
            (1, figures.top1_error, figures.mean_top1_error),
            (5, figures.top5_error, figures.mean_top5_error),
        )
    )
    parts = (
        f"Epoch: [{epoch}][{done:{width}d}/{total}]",
        f"Time {watch.step_seconds.value:6.3f} ({watch.step_seconds.mean:6.3f})",
        f"Data {watch.data_seconds.value:6.3f} ({watch.data_seconds.mean:6.3f})",
        f"Loss {figures.loss:.4e} ({figures.mean_loss:.4e})",
        *accuracies,
        f"{watch.images_per_second:7.1f} img/s",
        f"stall {100 * watch.stall:4.1f} %",
    )
    return "  ".join(parts)
