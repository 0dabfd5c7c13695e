"""What-if: rates on other hardware, predicted from what was measured on this one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lmdali.pipeline.errors import ConfigError
from lmdali.tools.prediction import predict
from lmdali.tools.suggestion import Situation

_CPUS = re.compile(r"cpus=(\d+)")
_DISK = re.compile(r"disk=(\d+(?:\.\d+)?)MB/s")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to a what-if. Never measured.

    Attributes:
        question: as it was asked.
        baseline_images_per_second: what was measured as things are: training steps, or the loader without a model.
        predicted_images_per_second: of the same; None where the costs are not known.
        limit: what would hold the run back then, in words, if that is new.
    """

    question: str
    baseline_images_per_second: float
    predicted_images_per_second: float | None
    limit: str | None = None


def check_question(question: str) -> None:
    """Refuse what cannot be answered.

    Raises:
        ConfigError: not `cpus=16`, `disk=500MB/s` or `raw`.
    """
    cpus = _CPUS.fullmatch(question)
    disk = _DISK.fullmatch(question)
    if question != "raw" and not (cpus and int(cpus[1])) and not (disk and float(disk[1])):
        raise ConfigError(f"--what-if {question}: expected cpus=16, disk=500MB/s or raw")


def answer(question: str, situation: Situation, record_bytes: float) -> Prediction:
    """Predict one question.

    Args:
        question: `cpus=N`, with as many threads; `disk=NMB/s`, cold, in MB of 10**6 bytes; `raw`, pixels for JPEG.
        situation: what was measured.
        record_bytes: mean stored bytes of a record.

    Raises:
        ConfigError: it is none of these.
    """
    check_question(question)
    costs, then, cap, limit = situation.costs, situation.resources, float("inf"), None
    if cpus := _CPUS.fullmatch(question):
        then = replace(then, num_cpus=int(cpus[1]), num_threads=int(cpus[1]))
    elif disk := _DISK.fullmatch(question):
        cap = float(disk[1]) * 1e6 / record_bytes
    elif situation.encoding == "jpeg":
        costs = costs.scaled({"decode": 0.0, "verify": situation.raw_bytes / record_bytes})
    known = situation.backend == "cpu" and bool(situation.costs.worker)
    before = situation.costs, situation.resources
    predicted = predict(situation.measured, before, (costs, then)) if known else None
    if predicted is not None and cap < predicted:
        predicted, limit = cap, "the disk"
    return Prediction(
        question=question,
        baseline_images_per_second=situation.measured,
        predicted_images_per_second=predicted,
        limit=limit,
    )
