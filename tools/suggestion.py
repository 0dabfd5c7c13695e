"""The next setting to try: one option of ours, and the rate that the measured costs predict for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lmdali.tools.prediction import Costs, Resources, loader_rate, predict

WORTH_TRYING = 1.05
"""Predicted gain from which a setting is worth a run."""

THREAD_STEPS = (1, 2, 4)
"""Threads that are considered, as multiples of the CPUs; more than one a CPU only where threads wait for storage."""

CACHE_SHARE = 0.5
"""Of the machine's memory, that decoded pixels may take."""

SPARE = 1.25
"""A loader this many times faster than the model keeps it fed."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One change, and what it should bring.

    Attributes:
        option: as on the command line.
        changes: fields of `LoaderConfig` and their new values.
        predicted_images_per_second: of the same thing as `baseline_images_per_second`; a prediction.
        baseline_images_per_second: what was measured: training steps fed by the loader, or the loader without a model.
        measured_images_per_second: with the change; None unless it was tried.
        why: in words.
    """

    option: str
    changes: dict[str, Any]
    predicted_images_per_second: float
    baseline_images_per_second: float
    measured_images_per_second: float | None = None
    why: str


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a suggestion is made from.

    Attributes:
        bound: the verdict's word; None without a model.
        costs: measured.
        resources: that they were measured with.
        measured: images/s of the training steps, or of the loader without a model.
        encoding: of the records, "jpeg" or "raw".
        backend: of the loader.
        verify: when CRCs are compared.
        decoded_cache_bytes: memory for decoded images.
        decoded_bytes: of all images of the dataset, decoded.
        memory_bytes: of the machine; None where it is not told.
        raw_bytes: of one image as pixels.
        reads_storage: whether a device delivered records meanwhile. Threads that wait for one need no CPU; threads that
            wait otherwise most likely wait for a CPU that others have, and more of them would wait as long.
    """

    bound: str | None
    costs: Costs
    resources: Resources
    measured: float
    encoding: str
    backend: str
    verify: str
    decoded_cache_bytes: int
    decoded_bytes: int
    memory_bytes: int | None
    raw_bytes: int = 0
    reads_storage: bool = False


def suggest(situation: Situation) -> Suggestion | None:
    """The change with the best predicted rate, the cheapest of those that are about as good; None where none helps."""
    if situation.bound == "INVALID" or situation.backend != "cpu":
        return None  # predictions need stages that were timed
    if situation.bound == "COMPUTE-BOUND" and situation.costs.on_gpu:
        return _fewer_threads(situation)
    best: Suggestion | None = None
    for candidate in _candidates(situation):
        bar = situation.measured if best is None else best.predicted_images_per_second
        if candidate.predicted_images_per_second >= WORTH_TRYING * bar:
            best = candidate
    return best


def _candidates(situation: Situation) -> Iterator[Suggestion]:
    """Cheapest first."""
    costs, now = situation.costs, situation.resources

    def made(option: str, changes: dict[str, Any], costs: Costs, then: Resources, why: str) -> Iterator[Suggestion]:
        predicted = predict(situation.measured, (situation.costs, now), (costs, then))
        if predicted is not None:
            yield Suggestion(
                option=option,
                changes=changes,
                predicted_images_per_second=predicted,
                baseline_images_per_second=situation.measured,
                why=why,
            )

    deeper = -(-now.num_threads // now.tasks_per_batch)
    if deeper > now.depth:
        why = f"batches in flight keep {now.busy_threads} of {now.num_threads} threads busy"
        yield from made(f"--prefetch {deeper}", {"prefetch": deeper}, costs, replace(now, prefetch=deeper), why)
    for multiple in THREAD_STEPS if situation.reads_storage else THREAD_STEPS[:1]:
        threads = multiple * now.num_cpus
        if threads > now.num_threads:
            idle = f"{now.num_threads} threads on {now.num_cpus} CPUs"
            why = f"{idle} leave some idle" if multiple == 1 else f"{idle} wait for storage, which needs no CPU"
            more = replace(now, num_threads=threads)
            yield from made(f"--num-threads {threads}", {"num_threads": threads}, costs, more, why)
    if situation.verify == "always" and "verify" in costs.worker:
        why = "comparing each CRC once finds what storage damaged"
        yield from made("--verify first", {"verify": "first"}, costs.scaled({"verify": 0.0}), now, why)
    if _cache_fits(situation):
        num_bytes = situation.decoded_bytes
        why = "all decoded images fit into memory; from the second epoch on"
        kept = costs.scaled({"read": 0.0, "verify": 0.0, "decode": 0.0})
        yield from made(f"--decoded-cache-bytes {num_bytes}", {"decoded_cache_bytes": num_bytes}, kept, now, why)


def _cache_fits(situation: Situation) -> bool:
    if situation.encoding != "jpeg" or situation.decoded_cache_bytes or situation.memory_bytes is None:
        return False
    return situation.decoded_bytes <= CACHE_SHARE * situation.memory_bytes


def _fewer_threads(situation: Situation) -> Suggestion | None:
    """A model on a GPU that waits for nothing: fewer threads do, and leave CPUs to others."""
    costs, now = situation.costs, situation.resources
    if costs.model is None:
        return None
    for threads in range(1, now.num_threads):
        if loader_rate(costs, replace(now, num_threads=threads)) >= SPARE / costs.model:
            return Suggestion(
                option=f"--num-threads {threads}",
                changes={"num_threads": threads},
                predicted_images_per_second=situation.measured,
                baseline_images_per_second=situation.measured,
                why="the model sets the pace: fewer threads feed it as well and leave CPUs to others",
            )
    return None
