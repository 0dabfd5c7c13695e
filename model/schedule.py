"""Learning-rate schedules: fixed cuts, the paper's plateau heuristic, and cosine decay for short runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from lmdali.pipeline.errors import ConfigError

CUT = 0.1
"""Factor of one reduction: "divide the learning rate by 10" (paper section 5)."""


class Schedule(Protocol):
    """A factor on the base learning rate, and when to stop."""

    @property
    def finished(self) -> bool:
        """No further epoch should begin."""
        ...

    def factor(self, epoch: float) -> float:
        """Factor at a position in fractional epochs: 1.5 is half-way through the second epoch."""
        ...

    def end_epoch(self, val_error: float) -> None:
        """Tell it the validation top-1 error (0..1) that ends an epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that is not in the specification, as JSON-able values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        ...


@dataclass
class FixedCuts:
    """Divide by ten when given epochs begin, and stop before another.

    Attributes:
        cuts: epochs, counted from 0, at whose beginning the rate is divided by ten.
        stop: number of epochs after which to stop, or None to leave that to the trainer.
    """

    cuts: tuple[int, ...]
    stop: int | None = None
    epochs_done: int = field(default=0, init=False)

    @property
    def finished(self) -> bool:
        return self.stop is not None and self.epochs_done >= self.stop

    def factor(self, epoch: float) -> float:
        return CUT ** sum(epoch >= cut for cut in self.cuts)

    def end_epoch(self, val_error: float) -> None:
        self.epochs_done += 1

    def state_dict(self) -> dict[str, Any]:
        return {"epochs_done": self.epochs_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs_done = int(state["epochs_done"])


@dataclass
class Plateau:
    """Divide by ten when the validation error stopped improving; stop at the plateau after the last cut.

    "The heuristic which we followed was to divide the learning rate by 10 when the validation error rate stopped
    improving with the current learning rate ... reduced three times prior to termination" (paper section 5).

    Attributes:
        patience: epochs without improvement that are waited for; the next one cuts.
        threshold: smallest decrease of the error (0..1) that counts as an improvement.
        max_cuts: reductions before a plateau means the end.
    """

    patience: int = 5
    threshold: float = 0.001
    max_cuts: int = 3
    best_error: float = field(default=math.inf, init=False)
    bad_epochs: int = field(default=0, init=False)
    cuts: int = field(default=0, init=False)
    stopped: bool = field(default=False, init=False)

    @property
    def finished(self) -> bool:
        return self.stopped

    def factor(self, epoch: float) -> float:
        return CUT**self.cuts

    def end_epoch(self, val_error: float) -> None:
        if val_error < self.best_error - self.threshold:
            self.best_error, self.bad_epochs = val_error, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs <= self.patience:
            return
        self.bad_epochs = 0
        if self.cuts == self.max_cuts:
            self.stopped = True
        else:
            self.cuts += 1

    def state_dict(self) -> dict[str, Any]:
        # JSON has no infinity: None stands for "no epoch yet".
        best = None if math.isinf(self.best_error) else self.best_error
        return {"best_error": best, "bad_epochs": self.bad_epochs, "cuts": self.cuts, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_error = math.inf if state["best_error"] is None else float(state["best_error"])
        self.bad_epochs, self.cuts = int(state["bad_epochs"]), int(state["cuts"])
        self.stopped = bool(state["stopped"])


@dataclass
class Cosine:
    """A linear rise from 0 over `warmup` epochs, then half a cosine down to 0 at the last of `epochs`.

    Not the paper's: it needs no validation error and suits runs of a few minutes.
    """

    epochs: float
    warmup: float = 0.0

    @property
    def finished(self) -> bool:
        return False

    def factor(self, epoch: float) -> float:
        if epoch < self.warmup:
            return epoch / self.warmup
        done = min(1.0, (epoch - self.warmup) / (self.epochs - self.warmup))
        return 0.5 * (1.0 + math.cos(math.pi * done))

    def end_epoch(self, val_error: float) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def continue_as(schedule: Schedule, state: dict[str, Any], *, epochs_done: int) -> None:
    """Put a schedule where a run is that had another one until now.

    The epochs of fixed cuts count from the run's beginning, whatever it had before. A plateau goes on with another
    one's cuts and lowest error, and lifts its end: the reductions that were made stay made.

    Args:
        schedule: fresh.
        state: `state_dict` of the one before, of any kind.
        epochs_done: epochs that the run has finished.
    """
    if isinstance(schedule, FixedCuts):
        schedule.epochs_done = epochs_done
    elif isinstance(schedule, Plateau) and "cuts" in state:
        schedule.load_state_dict({**state, "stopped": False})


def create_schedule(text: str, epochs: int) -> Schedule:
    """The schedule that a specification names.

    Args:
        text: `plateau`, `plateau:PATIENCE`, `plateau:PATIENCE,THRESHOLD`; `fixed:23,51,78` (epochs, from 0, that begin
            at a tenth of the rate), `fixed:23,51,78:93` (and stop after 93); `cosine`, `cosine:WARMUP_EPOCHS`;
            `constant`.
        epochs: epochs of the whole run, which cosine needs.

    Raises:
        ConfigError: the text names no schedule.
    """
    name, _, rest = text.partition(":")
    try:
        if name == "constant" and not rest:
            return FixedCuts(())
        if name == "fixed":
            cuts, _, stop = rest.partition(":")
            return _fixed(tuple(int(cut) for cut in cuts.split(",")), int(stop) if stop else None)
        if name == "plateau":
            patience, _, threshold = rest.partition(",")
            return _plateau(
                int(patience) if patience else Plateau.patience, float(threshold) if threshold else Plateau.threshold
            )
        if name == "cosine":
            return _cosine(epochs, float(rest) if rest else 0.0)
    except ValueError:  # a number is missing, or none
        pass
    raise ConfigError(
        f"schedule {text!r} is none: use plateau[:PATIENCE[,THRESHOLD]], fixed:EPOCH,EPOCH,...[:STOP], "
        "cosine[:WARMUP_EPOCHS] or constant"
    )


def _fixed(cuts: tuple[int, ...], stop: int | None) -> FixedCuts:
    if any(cut < 1 for cut in cuts) or list(cuts) != sorted(set(cuts)):
        raise ConfigError(f"schedule: epochs must be positive and ascending, found {', '.join(map(str, cuts))}")
    if stop is not None and stop < 1:
        raise ConfigError(f"schedule: the last epoch must be positive, found {stop}")
    return FixedCuts(cuts, stop)


def _plateau(patience: int, threshold: float) -> Plateau:
    if patience < 0 or not 0 <= threshold < 1:
        raise ConfigError(
            f"schedule: patience must be at least 0 and the threshold an error rate in 0..1, found {patience} and "
            f"{threshold}"
        )
    return Plateau(patience, threshold)


def _cosine(epochs: int, warmup: float) -> Cosine:
    if not 0 <= warmup < epochs:
        raise ConfigError(
            f"schedule: a warm-up of {warmup:g} epochs does not fit into a run of {epochs}: take more epochs, or "
            "cosine:WARMUP with fewer"
        )
    return Cosine(epochs, warmup)
