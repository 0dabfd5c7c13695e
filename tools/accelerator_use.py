"""`lmdali profile au`: how busy a loader would keep an accelerator, as MLPerf Storage defines it.

The accelerator is emulated: each step is a batch from the loader and a sleep as long as the real step was measured to
be. The definition is that of the rules of MLPerf Storage (mlcommons/storage, Rules.md and Submission_guidelines.md):
AU = compute time / running time, where compute time is steps times the sleep they asked for, and the wait for an
epoch's first batch counts for samples/s but not for AU. Per epoch, then the mean over epochs.

Two things differ from MLPerf's own program. Its dataset and reader are synthetic, and nothing is decoded; here the
whole loader runs, so AU is at most what storage alone would give. And a loader that does nothing is measured first: a
machine on which even that misses `CALIBRATION_AU` measures its own scheduler, and the run is INVALID.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import asdict, dataclass
from statistics import fmean
from time import perf_counter, sleep
from typing import Any, Literal, Protocol

CALIBRATION_AU = 0.99
"""What a loader that does nothing must reach."""

CALIBRATION_STEPS = 20

MEMORY_FACTOR = 5
"""Times the host's memory that the dataset must have, so that no page cache can hold it."""

MIN_STEPS_PER_EPOCH = 500
MIN_EPOCHS = 5

Outcome = Literal["PASS", "FAIL", "INVALID"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A step of an emulated accelerator.

    Attributes:
        batch_size: samples per step.
        compute_seconds: that a step takes when data is there.
        threshold: AU below which the loader fails, 0..1.
        record_bytes: mean bytes of a sample; None where nothing is prescribed.
    """

    batch_size: int
    compute_seconds: float
    threshold: float = 0.9
    record_bytes: int | None = None

    @property
    def images_per_second(self) -> float:
        """What the accelerator takes at an AU of 100 %."""
        return self.batch_size / self.compute_seconds


RESNET50 = {
    "h100": Workload(batch_size=400, compute_seconds=0.224, record_bytes=114_660),
    "a100": Workload(batch_size=400, compute_seconds=0.435, record_bytes=114_660),
}
"""ResNet-50 of MLPerf Storage v1.0 and v2.0: the workloads resnet50_h100 and resnet50_a100 of its DLIO settings."""


class Batch(Protocol):
    """What a loader gives."""

    @property
    def labels(self) -> Sized:
        """One for each sample."""
        ...


@dataclass(frozen=True)
class Clock:
    """Time, and waiting; tests have one of their own."""

    now: Callable[[], float] = perf_counter
    sleep: Callable[[float], None] = sleep


@dataclass(frozen=True)
class Epoch:
    """One epoch of an emulated accelerator.

    Attributes:
        steps: batches.
        samples: in them.
        compute_seconds: steps times the sleep that each asked for.
        first_wait_seconds: from asking for the epoch to its first batch.
        running_seconds: from the first batch to the end of the last step.
    """

    steps: int
    samples: int
    compute_seconds: float
    first_wait_seconds: float
    running_seconds: float

    @property
    def au(self) -> float:
        """Accelerator utilisation, 0..1."""
        return self.compute_seconds / self.running_seconds

    @property
    def images_per_second(self) -> float:
        """The wait for the first batch included."""
        return self.samples / (self.first_wait_seconds + self.running_seconds)


@dataclass(frozen=True)
class Rule:
    """A rule for results that may be compared with MLPerf's.

    Attributes:
        name: what it is about.
        required: what it asks for.
        found: what there was.
        met: whether that is enough.
    """

    name: str
    required: str
    found: str
    met: bool


@dataclass(frozen=True, kw_only=True)
class AuReport:
    """What was measured.

    Attributes:
        workload: that was emulated.
        epochs: in their order.
        calibration_au: of a loader that does nothing, 0..1.
        rules: of MLPerf Storage, and whether they are kept.
        mean_record_bytes: stored bytes per sample.
    """

    workload: Workload
    epochs: tuple[Epoch, ...]
    calibration_au: float
    rules: tuple[Rule, ...]
    mean_record_bytes: float

    @property
    def au(self) -> float:
        """Mean over the epochs, 0..1."""
        return fmean(epoch.au for epoch in self.epochs)

    @property
    def images_per_second(self) -> float:
        """Mean over the epochs."""
        return fmean(epoch.images_per_second for epoch in self.epochs)

    @property
    def outcome(self) -> Outcome:
        """INVALID where the machine cannot even sleep on time, otherwise whether the threshold is reached."""
        if self.calibration_au < CALIBRATION_AU:
            return "INVALID"
        return "PASS" if self.au >= self.workload.threshold else "FAIL"

    @property
    def reason(self) -> str:
        """The numbers behind the outcome."""
        if self.outcome == "INVALID":
            return (
                f"a loader that does nothing reached {self.calibration_au:.2%}, and needs {CALIBRATION_AU:.0%}: this "
                "machine is too busy to emulate an accelerator; measure again when it is quiet"
            )
        return f"the accelerator computed {self.au:.2%} of the time, and {self.workload.threshold:.0%} is asked for"

    def to_json(self) -> dict[str, Any]:
        """One JSON-able document."""
        epochs = [
            {**asdict(epoch), "au": epoch.au, "images_per_second": epoch.images_per_second} for epoch in self.epochs
        ]
        return {
            **asdict(self),
            "epochs": epochs,
            "outcome": self.outcome,
            "reason": self.reason,
            "au": self.au,
            "images_per_second": self.images_per_second,
            "megabytes_per_second": self.images_per_second * self.mean_record_bytes / 1e6,
            "comparable_with_mlperf": self.outcome != "INVALID" and all(rule.met for rule in self.rules),
        }


def emulate_epoch(
    batches: Iterable[Batch],
    workload: Workload,
    *,
    max_steps: int | None = None,
    clock: Clock | None = None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Epoch:
    """Take batches and sleep for each, as an accelerator would compute.

    Args:
        batches: one epoch, at least one batch.
        workload: whose step is emulated.
        max_steps: stop after so many.
        clock: None is the system's.
        progress: told the steps done.
    """
    clock = clock or Clock()
    steps = samples = 0
    asked = first = clock.now()
    for batch in batches:
        if steps == 0:
            first = clock.now()
        steps, samples = steps + 1, samples + len(batch.labels)
        clock.sleep(workload.compute_seconds)
        progress(steps)
        if steps == max_steps:
            break
    return Epoch(steps, samples, steps * workload.compute_seconds, first - asked, clock.now() - first)


@dataclass(frozen=True)
class _NoData:
    labels: range


def calibrate(workload: Workload, *, clock: Clock | None = None) -> float:
    """The AU of a loader that does nothing."""
    batches = [_NoData(range(workload.batch_size))] * CALIBRATION_STEPS
    return emulate_epoch(batches, workload, clock=clock).au


def check_rules(
    *,
    dataset_bytes: int,
    memory_bytes: int | None,
    epochs: Sequence[Epoch],
    whole_epochs: bool,
    seed_given: bool,
    mean_record_bytes: float,
    workload: Workload,
) -> tuple[Rule, ...]:
    """The rules of MLPerf Storage for a result, and what this run had.

    Args:
        dataset_bytes: of all shards.
        memory_bytes: of the host; None where that is not known, and then the rule is not met.
        epochs: that were measured.
        whole_epochs: whether none was cut short.
        seed_given: whether the order was known before the run; MLPerf hides it from the storage.
        mean_record_bytes: stored bytes per sample.
        workload: that was emulated.
    """
    times = None if memory_bytes is None else dataset_bytes / memory_bytes
    steps = min(epoch.steps for epoch in epochs)
    return (
        Rule(
            "dataset",
            f"{MEMORY_FACTOR} times the memory",
            "memory not known" if times is None else f"{times:.3g} times",
            times is not None and times >= MEMORY_FACTOR,
        ),
        Rule("steps per epoch", f"{MIN_STEPS_PER_EPOCH}", f"{steps}", steps >= MIN_STEPS_PER_EPOCH),
        Rule("epochs", f"{MIN_EPOCHS}", f"{len(epochs)}", len(epochs) >= MIN_EPOCHS),
        Rule("whole epochs", "yes", "yes" if whole_epochs else "cut short", whole_epochs),
        Rule("order", "not known before", "given by --seed" if seed_given else "drawn", not seed_given),
        Rule(
            "workload",
            "ResNet-50, as prescribed",
            "as prescribed" if workload in RESNET50.values() else "changed",
            workload in RESNET50.values(),
        ),
        Rule(
            "record",
            f"{RESNET50['h100'].record_bytes:,} B",
            f"{mean_record_bytes:,.0f} B",
            abs(mean_record_bytes / (RESNET50["h100"].record_bytes or 1) - 1) < 0.01,
        ),
    )
