"""What-if: rates on other hardware, predicted from what was measured on this one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lmdali.pipeline.errors import ConfigError
from lmdali.tools.prediction import Costs, Resources, loader_rate, predict, step_limits, step_rate
from lmdali.tools.suggestion import Situation
from lmdali.tools.verdict import CLEAR, bound_of, word_of

_COUNT = re.compile(r"(cpus|gpus)=(\d+)")
_DISK = re.compile(r"disk=(\d+(?:\.\d+)?)MB/s")
_EXPECTED = "expected cpus=16, gpus=2, disk=500MB/s or raw, or several of them with commas: cpus=16,gpus=2"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to a what-if. Never measured.

    Attributes:
        question: as it was asked.
        baseline_images_per_second: what was measured as things are: training steps, or the loader without a model.
        predicted_images_per_second: of the same; None where the costs are not known.
        limit: what would set the pace then, in words; None where that is not known.
        bound: the verdict's word then; None without a model.
        unknown: why nothing is predicted; None where something is.
    """

    question: str
    baseline_images_per_second: float
    predicted_images_per_second: float | None
    limit: str | None = None
    bound: str | None = None
    unknown: str | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """Other hardware, or another form of the records; None leaves things as they are.

    Attributes:
        cpus: that the loader may use, with as many threads.
        gpus: for each that was measured, that steps are divided over.
        disk: bytes/s of cold storage.
        raw: pixels in place of JPEG.
    """

    cpus: int | None = None
    gpus: int | None = None
    disk: float | None = None
    raw: bool = False

    @classmethod
    def parse(cls, question: str) -> Case:
        """Read "cpus=16", "gpus=2", "disk=500MB/s", "raw", or several of them with commas, which apply together.

        Raises:
            ConfigError: none of these, zero of something, or one of them twice.
        """
        found: dict[str, int | float | bool] = {}
        for part in question.split(","):
            count, disk = _COUNT.fullmatch(part), _DISK.fullmatch(part)
            name = count[1] if count else "disk" if disk else part
            value = int(count[2]) if count else 1e6 * float(disk[1]) if disk else part == "raw"
            if not value:
                raise ConfigError(f"--what-if {question}: {_EXPECTED}")
            if name in found:
                raise ConfigError(f"--what-if {question}: {name} is given twice")
            found[name] = value
        return cls(**found)  # type: ignore[arg-type]  # each has the type of its field


def answer(question: str, situation: Situation, record_bytes: float) -> Prediction:
    """Predict one question.

    More GPUs divide the model's time of an image and nothing else: CPUs, threads and disk of the input stay what they
    are, as they do where one machine gets a second GPU. What ranks tell each other is not counted.

    Args:
        question: `cpus=N`, with as many threads; `gpus=N` for one that was measured; `disk=NMB/s`, cold, in MB of
            10**6 bytes; `raw`, pixels for JPEG; with commas, all of them at once.
        situation: what was measured.
        record_bytes: mean stored bytes of a record.

    Raises:
        ConfigError: it is none of these.
    """
    case, costs, then = Case.parse(question), situation.costs, situation.resources
    if case.raw and situation.encoding == "jpeg":
        costs = costs.scaled({"decode": 0.0, "verify": situation.raw_bytes / record_bytes})
        record_bytes = situation.raw_bytes
    if case.cpus is not None:
        then = replace(then, num_cpus=case.cpus, num_threads=case.cpus)
    if case.gpus is not None and costs.model is not None:
        costs = replace(costs, model=costs.model / case.gpus)
    cap = float("inf") if case.disk is None else case.disk / record_bytes
    baseline = situation.measured
    unknown = _unknown(case, situation)
    predicted = None if unknown else predict(baseline, (situation.costs, situation.resources), (costs, then))
    if predicted is None:
        return Prediction(
            question=question,
            baseline_images_per_second=baseline,
            predicted_images_per_second=None,
            unknown=unknown or "nothing is known that would limit it",
        )
    limits = step_limits(costs, then)
    # The cap is in real images/s, the limits are modelled ones: what the model misses is taken off them, too.
    missed = predicted / step_rate(costs, then)
    limits["the disk"] = cap / missed
    return Prediction(
        question=question,
        baseline_images_per_second=baseline,
        predicted_images_per_second=min(predicted, cap),
        limit=min(limits, key=limits.__getitem__),
        bound=_bound(costs, then, limits["the disk"]),
    )


def _unknown(case: Case, situation: Situation) -> str | None:
    """Why there is no prediction; None where there is one."""
    if situation.backend != "cpu" or not situation.costs.worker:
        return "this loader's stages are not timed"
    if case.gpus is not None and not (situation.costs.on_gpu and situation.costs.model is not None):
        return "no model was measured on a GPU"
    return None


def _bound(costs: Costs, resources: Resources, disk: float) -> str | None:
    """The verdict's word for modelled rates, by its own rules."""
    if costs.model is None:
        return None
    alone, model = min(loader_rate(costs, resources), disk), 1 / costs.model
    together = min(step_rate(costs, resources), disk)
    cpu = costs.loader_cpu + costs.model_cpu
    cores_decide = cpu > 0 and resources.num_cpus / cpu <= min(alone, model)
    shared = not costs.on_gpu and (cores_decide or alone / model >= CLEAR)
    stage = "read" if disk < loader_rate(costs, resources) else _stage(costs, resources)
    # On shared cores the stall is what input takes of them: a model that had them all would use those it lacks now.
    stall = costs.loader_cpu / cpu if shared and cores_decide else 1 - together / model
    return word_of(bound_of(stall, alone / model, shared=shared), stage)


def _stage(costs: Costs, resources: Resources) -> str | None:
    """Where most of the loader's time goes, on the threads that have the least of it to spare."""
    threads, consumer = sum(costs.worker.values()) / resources.num_threads, sum(costs.consumer.values())
    stages = costs.consumer if consumer > threads else costs.worker
    return max(stages, key=stages.__getitem__, default=None)
