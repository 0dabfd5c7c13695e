"""From measured rates to one word and one line of advice: what holds a training run back."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Literal

from lmdali.tools.fetch_figures import FETCH_STAGE, waits_for_shards
from lmdali.tools.measurement import Rate
from lmdali.tools.prediction import CONSUMER_STAGES, WORKER_STAGES, known
from lmdali.tools.stage_advice import stage_advice

Bound = Literal["INPUT-BOUND", "COPY-BOUND", "COMPUTE-BOUND", "BALANCED", "STRAGGLER", "INVALID"]

MIN_STEPS = 8
"""Counted steps below which a rate is an anecdote."""

MIN_STEPS_PER_EPOCH = 4
"""With fewer, the loader is always filling its queue or draining it, and never at its pace."""

MAX_DISSENT = 0.25
"""Share of the rounds that may say INPUT-BOUND where the median says COMPUTE-BOUND, or the other way round."""

STALL_OF_NOTE = 0.1
"""Data stall that is worth somebody's time."""

HEADROOM = 1.25
"""A loader this many times faster than the model is not what holds it back."""

SHARED_HIGH, SHARED_LOW = 0.55, 0.45
"""On shared cores: share of a step that input takes, above which it is the larger half, below which the smaller."""

CLEAR = 4.0
"""Loader over model, or model over loader: from here on it takes more than a busy neighbour to turn the verdict."""

OUTSIDE_COPY = 0.5
"""Of a loader's time seen from outside: copies that take more of it hold it back."""

TOLERANCE = 0.2
"""A step may seem this much faster with the loader than without, by noise; more, and something is wrong."""

_MEASURE_AGAIN = "Measure again when it is quiet, or with more --seconds."
_OPPOSITE: dict[Bound, Bound] = {"INPUT-BOUND": "COMPUTE-BOUND", "COMPUTE-BOUND": "INPUT-BOUND"}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a verdict is made from.

    Attributes:
        loader: the loader alone.
        model: training steps on one cached batch; None without a model.
        together: training steps fed by the loader.
        steps_per_epoch: batches of an epoch; None where a loader does not say.
        num_threads: of the loader.
        num_cpus: that this process may use.
        on_gpu: whether the model runs on a GPU.
        backend: of the loader.
        encoding: of the records, "jpeg" or "raw"; None where the loader is not ours.
        dtype: of the batches; None where it does not matter.
        verify: when CRCs are compared; None where that is not known.
    """

    loader: Rate
    model: Rate | None
    together: Rate | None
    steps_per_epoch: int | None
    num_threads: int
    num_cpus: int
    on_gpu: bool
    backend: str
    encoding: str | None
    dtype: str | None = None
    verify: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome.

    Attributes:
        bound: what holds the run back; None without a model. COPY-BOUND is input whose copies to the device hold it
            back, STRAGGLER one rank that the others wait for.
        stage: of the loader, where most of its time goes, by the names of `StageTimers`; None where that is not known.
        data_stall: 1 - ideal step / measured step, 0..1, where ideal is the model alone; None without a model. Of
            several ranks it is this one's, without the others.
        shared_cores: whether loader and model need more CPU together than there is.
        reason: the numbers behind the word.
        advice: what to do.
        rank: that the others wait for; None where there is no such rank.
    """

    bound: Bound | None
    stage: str | None
    data_stall: float | None
    shared_cores: bool
    reason: str
    advice: str
    rank: int | None = None

    @property
    def word(self) -> str | None:
        """`bound`, with the stage where input is what holds the run back: INPUT-BOUND (decode); STRAGGLER rank 3."""
        return f"{self.bound} rank {self.rank}" if self.rank is not None else word_of(self.bound, self.stage)


def word_of(bound: Bound | None, stage: str | None) -> str | None:
    """A bound as people are told it; None without a model."""
    return f"{bound} ({stage})" if bound == "INPUT-BOUND" and stage else bound


def judge(evidence: Evidence) -> Verdict:
    """The verdict on a measurement.

    On separate resources (a GPU, or cores to spare) the slower of loader and model sets the pace, and the stall says
    how much. On a CPU that both need, a step is the sum of both, so a stall is certain; the verdict then goes to the
    larger half.
    """
    invalid = _invalid(evidence)
    if invalid:
        return _without_word("INVALID", *invalid)
    loader, model, together = evidence.loader, evidence.model, evidence.together
    stage = dominant_stage(evidence)
    if model is None or together is None:
        return _without_word(
            None,
            f"the loader alone delivers {loader.images_per_second:,.0f} images/s",
            "Leave out --no-model to learn whether that is enough for a training step.",
            stage,
        )
    # Round by round: a machine that changes its speed meanwhile changes both sides of each quotient.
    rounds = list(zip(loader.per_window, model.per_window, together.per_window, strict=True))
    stall = median(_stall(m, both) for _, m, both in rounds)
    ratio = median(alone / m for alone, m, _ in rounds)
    shared = _shares_cores(evidence, loader, model, ratio)
    bound = bound_of(stall, ratio, shared=shared)
    words = [bound_of(_stall(m, both), alone / m, shared=shared) for alone, m, both in rounds]
    disturbance = None if _is_clear(bound, ratio) else _disturbance(bound, stall, words)
    if disturbance is not None:
        return _without_word("INVALID", f"{disturbance}: something else used this machine meanwhile", _MEASURE_AGAIN)
    return Verdict(
        bound="COPY-BOUND" if bound == "INPUT-BOUND" and stage == "copy" else bound,
        stage=stage,
        # A step that got faster by being fed was disturbed; its stall is not known, and surely not negative.
        data_stall=None if stall < -TOLERANCE else max(stall, 0.0),
        shared_cores=shared,
        reason=_reason(evidence, stall, ratio, shared=shared),
        advice=_advice(evidence, bound, stage, ratio, shared=shared),
    )


def _is_clear(bound: Bound, ratio: float) -> bool:
    """Whether loader and model are so far apart that noise cannot have decided."""
    return (bound == "COMPUTE-BOUND" and ratio >= CLEAR) or (bound == "INPUT-BOUND" and ratio <= 1 / CLEAR)


def _disturbance(bound: Bound, stall: float, words: list[Bound]) -> str | None:
    """What is wrong with measurements that contradict each other; None where they do not."""
    if stall < -TOLERANCE:
        return f"with the loader a step takes {1 / (1 - stall):.0%} of what it takes without"
    opposite = _OPPOSITE.get(bound)
    if opposite is not None and words.count(opposite) > MAX_DISSENT * len(words):
        return f"{words.count(opposite)} of {len(words)} rounds say {opposite}, the median {bound}"
    return None


def _without_word(bound: Bound | None, reason: str, advice: str, stage: str | None = None) -> Verdict:
    return Verdict(bound=bound, stage=stage, data_stall=None, shared_cores=False, reason=reason, advice=advice)


def _stall(model: float, together: float) -> float:
    """1 - ideal step / measured step, from the two rates; below zero by noise alone."""
    return 1 - together / model


def bound_of(stall: float, ratio: float, *, shared: bool) -> Bound:
    """The word for a stall (1 - ideal step / step), and for the loader's rate over the model's.

    Args:
        stall: 0..1; below zero by noise alone.
        ratio: of the rates alone.
        shared: whether loader and model need the same cores.
    """
    if shared:
        return "INPUT-BOUND" if stall > SHARED_HIGH else "COMPUTE-BOUND" if stall < SHARED_LOW else "BALANCED"
    if stall >= STALL_OF_NOTE:
        return "INPUT-BOUND"
    return "COMPUTE-BOUND" if ratio >= HEADROOM else "BALANCED"


def dominant_stage(evidence: Evidence) -> str | None:
    """The stage that would have to become faster for the loader to become faster; None where it cannot be told."""
    loader = evidence.loader
    per_image = loader.stage_seconds_per_image
    workers, consumer = known(per_image, WORKER_STAGES), known(per_image, CONSUMER_STAGES)
    if waits_for_shards(loader, evidence.model, evidence.num_threads, workers):
        return FETCH_STAGE
    if evidence.backend == "dali":
        # DALI decodes and augments out of our sight: its `decode` is the consumer's wait for that.
        reading = workers.get("read", 0.0) * loader.images_per_second / evidence.num_threads
        return "read" if reading > 0.8 else None
    if evidence.encoding is None:
        # Nothing is seen of what happens inside: the only thing to blame is copies, if they take most of the time.
        return "copy" if consumer.get("copy", 0.0) * loader.images_per_second > OUTSIDE_COPY else None
    # Of a resource's time, the share that is busy: threads work side by side, the consumer's thread is one.
    workers_busy = sum(workers.values()) * loader.images_per_second / evidence.num_threads
    consumer_busy = sum(consumer.values()) * loader.images_per_second
    if consumer and consumer_busy > workers_busy:
        return max(consumer, key=consumer.__getitem__)
    return max(workers, key=workers.__getitem__) if workers else None


def _invalid(evidence: Evidence) -> tuple[str, str] | None:
    """Reason and advice where the measurement cannot carry a verdict."""
    steps = evidence.steps_per_epoch
    if steps is not None and steps < MIN_STEPS_PER_EPOCH:
        return (
            f"an epoch has {steps} batches, a verdict needs {MIN_STEPS_PER_EPOCH}: the loader never reaches its pace",
            "Take a smaller batch (-b), or a larger dataset.",
        )
    named = (("loader", evidence.loader), ("model", evidence.model), ("training step", evidence.together))
    for name, rate in named:
        if rate is not None and rate.steps < MIN_STEPS:
            return (
                f"{rate.steps} steps of the {name} were measured, a verdict needs {MIN_STEPS}",
                "Give it more --seconds, or more --steps.",
            )
    return None


def _shares_cores(evidence: Evidence, loader: Rate, model: Rate, ratio: float) -> bool:
    """Whether the cores, and not the slower of the two, limit loader and model together."""
    if evidence.on_gpu:
        return False
    both = loader.cpu_seconds_per_image + model.cpu_seconds_per_image
    cores_decide = both > 0 and evidence.num_cpus / both < 0.95 * min(loader.images_per_second, model.images_per_second)
    # Alone, a loader of this speed never lets a step wait; beside the model only its cores can be missing.
    return cores_decide or ratio >= CLEAR


def _reason(evidence: Evidence, stall: float, ratio: float, *, shared: bool) -> str:
    times = f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"
    text = f"the loader alone is {times} times as fast as the model alone"
    if stall >= -TOLERANCE:
        text += f", and {max(stall, 0):.0%} of a step is input"
    if shared:
        text += f"; both share {evidence.num_cpus} CPUs, so a step costs the sum of the two even if nobody waits"
    return text


def _advice(evidence: Evidence, bound: Bound, stage: str | None, ratio: float, *, shared: bool) -> str:
    if bound == "COMPUTE-BOUND":
        if shared:
            # Unlike a GPU's, these steps do get slower with every image that is decoded.
            return (
                "The model needs most of the cores: a smaller --width, or a GPU, helps more than any loader could. "
                "The rest goes to input: fewer threads would not give it back."
            )
        return f"More threads or another loader will not help: this one could feed {ratio:,.1f} such models."
    if bound == "BALANCED":
        if shared:
            return "Input and model take about half of the cores each: speeding up either one gains at most half."
        return "Input keeps up, with less than 25 % to spare: a faster model would have to wait for it."
    has_spare = evidence.num_threads < evidence.num_cpus
    more = f"more threads (-j {evidence.num_cpus})" if has_spare else "more CPUs"
    return stage_advice(stage, encoding=evidence.encoding, dtype=evidence.dtype, verify=evidence.verify, more=more)
