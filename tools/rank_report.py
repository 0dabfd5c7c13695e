"""One report for all ranks of a job: each one's pace, the job's, and which rank the others wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal

from lmdali.tools.measurement import Rate
from lmdali.tools.verdict import MAX_DISSENT, MIN_STEPS, Verdict

Cause = Literal["input", "compute"]

STRAGGLER_SHARE = 0.85
"""A rank's own pace over the median of the others', below which it holds up the job and not just its turn."""

INPUT_STAGES = ("plan", "wait")
"""Stages that a training step waits for."""


@dataclass(frozen=True, kw_only=True)
class RankRates:
    """What one rank measured, while all the others measured the same.

    Attributes:
        rank: 0 to world size - 1.
        host: name of its machine.
        device: of its batches and its model.
        loader: its loader alone.
        model: its training steps on one cached batch; None without a model.
        alone: its training steps fed by its loader, without waiting for any other rank.
        together: the same with gradients averaged over all ranks.
    """

    rank: int
    host: str
    device: str
    loader: Rate
    model: Rate | None = None
    alone: Rate | None = None
    together: Rate | None = None

    @property
    def own(self) -> Rate:
        """Its pace without the others: fed steps, or its loader where there is no model."""
        return self.loader if self.alone is None else self.alone

    @property
    def input_seconds(self) -> float:
        """What a step alone waits for input, seconds per image; all of the time where there is no model."""
        if self.alone is None:
            return 1 / self.loader.images_per_second
        stages = self.alone.stage_seconds_per_image
        return sum(stages.get(stage) or 0.0 for stage in INPUT_STAGES)

    @property
    def compute_seconds(self) -> float:
        """The rest of a step alone, seconds per image."""
        return max(0.0, 1 / self.own.images_per_second - self.input_seconds)

    @property
    def au(self) -> float | None:
        """Accelerator utilisation, 0..1: the job's pace on this rank over its model's alone; None without a model."""
        if self.model is None or self.together is None:
            return None
        return min(1.0, self.together.images_per_second / self.model.images_per_second)


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """All ranks beside each other.

    Attributes:
        ranks: by rank.
        images_per_second: of the whole job: averaged training steps, or all loaders without a model.
        au: the job's accelerator utilisation: its rate over what all models do alone, 0..1; None without a model.
        slowest: the rank with the lowest pace of its own.
        slowest_share: that pace over the median of the others'.
        straggler: `slowest`, where it is clearly below the others; None where not.
        cause: what the slowest rank takes longer for than the others.
        averaging_share: of a step of the job, what comes on top of the slowest rank's own: gradients on their way,
            and ranks that are slow in turn; None without a model.
    """

    ranks: tuple[RankRates, ...]
    images_per_second: float
    au: float | None
    slowest: int
    slowest_share: float
    straggler: int | None
    cause: Cause
    averaging_share: float | None

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    def to_json(self) -> dict[str, Any]:
        """JSON-able, with what follows for each rank from its rates."""
        derived = [
            {"input_seconds": each.input_seconds, "compute_seconds": each.compute_seconds, "au": each.au}
            for each in self.ranks
        ]
        ranks = [asdict(each) | more for each, more in zip(self.ranks, derived, strict=True)]
        return {**asdict(self), "ranks": ranks, "world_size": self.world_size}


def rank_report(ranks: Sequence[RankRates]) -> RankReport:
    """From what all ranks measured, two or more, to the slowest of them, and why."""
    slowest = min(ranks, key=lambda each: each.own.images_per_second)
    others = [each for each in ranks if each is not slowest]
    # Round by round: a machine that changes its speed meanwhile changes the pace of all of its ranks.
    shares = [
        mine / median(theirs)
        for mine, *theirs in zip(slowest.own.per_window, *(each.own.per_window for each in others), strict=True)
    ]
    share = median(shares)
    dissent = sum(each >= 1 for each in shares) / len(shares)
    enough = all(each.own.steps >= MIN_STEPS for each in ranks)
    more_input = slowest.input_seconds - median(each.input_seconds for each in others)
    more_compute = slowest.compute_seconds - median(each.compute_seconds for each in others)
    job = sum((each.together or each.own).images_per_second for each in ranks)
    models = [each.model.images_per_second for each in ranks if each.model is not None]
    averaging = None
    if slowest.together is not None:
        averaging = max(0.0, 1 - slowest.together.images_per_second / slowest.own.images_per_second)
    return RankReport(
        ranks=tuple(ranks),
        images_per_second=job,
        au=min(1.0, job / sum(models)) if models else None,
        slowest=slowest.rank,
        slowest_share=share,
        straggler=slowest.rank if enough and share < STRAGGLER_SHARE and dissent <= MAX_DISSENT else None,
        cause="input" if more_input >= more_compute else "compute",
        averaging_share=averaging,
    )


def judged_by_ranks(verdict: Verdict, report: RankReport | None) -> Verdict:
    """STRAGGLER where one rank holds up all others; else the verdict on this rank as it was."""
    if report is None or report.straggler is None:
        return verdict
    slow = report.ranks[report.straggler]
    return replace(
        verdict,
        bound="STRAGGLER",
        stage=None,
        rank=slow.rank,
        reason=(
            f"rank {slow.rank} (on {slow.host}, {slow.device}) alone reaches {report.slowest_share:.0%} of the other "
            f"ranks' pace, by its {report.cause}; in every step they wait for it"
        ),
        advice=_ADVICE[report.cause],
    )


_ADVICE: dict[Cause, str] = {
    "input": (
        "Look at that rank's storage, CPUs and neighbours: `lmdali profile run` on that machine alone names the stage. "
        "More threads for all ranks of a machine take CPUs from each other."
    ),
    "compute": (
        "Look at that rank's device: its clock, its temperature, what else runs on it, and whether it is of the same "
        "kind as the others'."
    ),
}
