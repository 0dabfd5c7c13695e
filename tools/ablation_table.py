"""An ablation in the shape of the paper's tables: each variant beside the baseline and beside what the paper claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.model.variants import BASELINE, Variant
from lmdali.tools.ablation import AblationReport, ended_errors
from lmdali.tools.report_table import print_table

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % points of Student's t with 1 to 10 degrees of freedom; with more, `1.96 + 2.7 / degrees` is above it."""
_NORMAL = 1.96


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One error of a variant minus the baseline's, over the seeds that both have.

    Attributes:
        mean: positive where the variant is worse.
        noise: half of the 95 % interval around it: what other validation images would change, and, from two seeds on,
            other seeds.
        seeds: that both have.
        paired: whether the images were compared one by one.
    """

    mean: float
    noise: float
    seeds: int
    paired: bool = False

    @property
    def is_noise(self) -> bool:
        """Whether it may as well be nothing."""
        return abs(self.mean) <= self.noise


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """What another seed changes, from all variants together.

    Attributes:
        variance: of one training's error, after what its variant and its seed add to it.
        degrees: of freedom of that estimate.
    """

    variance: float
    degrees: int

    @classmethod
    def of(cls, errors: Sequence[Mapping[int, float]]) -> SeedNoise | None:
        """The residual of errors by variant and seed (randomised blocks, a seed is a block).

        That training is about as noisy in one variant as in another is assumed, as in any analysis of variance: from
        three seeds of two variants one learns little of it, from three seeds of eleven enough.

        Args:
            errors: of each variant, seed -> error. Only seeds that all have count, and variants without one do not.

        Returns:
            None with fewer than two seeds or variants.
        """
        ended = [of_seed for of_seed in errors if of_seed]
        seeds = sorted(set.intersection(*map(set, ended))) if ended else []
        if len(ended) < 2 or len(seeds) < 2:
            return None
        table = np.array([[of_seed[seed] for seed in seeds] for of_seed in ended])
        rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        degrees = (len(ended) - 1) * (len(seeds) - 1)
        return cls(variance=float((rest**2).sum()) / degrees, degrees=degrees)


def compare(
    baseline: Mapping[int, float],
    variant: Mapping[int, float],
    num_images: int,
    *,
    of_seeds: SeedNoise | None = None,
    of_images: Sequence[NDArray[np.floating]] = (),
) -> Difference | None:
    """The difference of two errors, seed by seed; None without a common seed.

    The noise has two parts, added as squares. Of the seeds it is Student's interval of a difference of two means, with
    the spread of all variants. Of the images it is the normal interval of the difference's mean over them, seeds
    averaged. What images and seeds do together is in both, so that the sum is rather too large. Without each image's
    errors the two networks count as measured on images of their own, which is two to three times too large. One seed
    says nothing of others: its noise is that of the images alone, which is too little, and verdicts say so.

    Args:
        baseline: seed -> error, 0..1.
        variant: likewise.
        num_images: that each was measured on.
        of_seeds: what another seed changes; None takes it from these two alone.
        of_images: of each common seed, `(N,)` the variant's error of each image minus the baseline's; empty where that
            is not known of all.
    """
    seeds = sorted(baseline.keys() & variant.keys())
    if not seeds:
        return None
    differences = [variant[seed] - baseline[seed] for seed in seeds]
    of_seeds = of_seeds or SeedNoise.of([{seed: one[seed] for seed in seeds} for one in (baseline, variant)])
    by_seeds = 0.0
    if of_seeds is not None and len(seeds) > 1:
        by_seeds = _student(of_seeds.degrees) * sqrt(2 * of_seeds.variance / len(seeds))
    paired = len(of_images) == len(seeds) and num_images > 1
    if paired:
        by_images = _NORMAL * float(np.mean(of_images, axis=0, dtype=np.float64).std(ddof=1)) / sqrt(num_images)
    else:
        means = (fmean(baseline[seed] for seed in seeds), fmean(variant[seed] for seed in seeds))
        by_images = _NORMAL * sqrt(sum(mean * (1 - mean) for mean in means) / num_images)
    noise = sqrt(by_seeds**2 + by_images**2)
    return Difference(mean=fmean(differences), noise=noise, seeds=len(seeds), paired=paired)


def verdict(difference: Difference | None, claim: float | None) -> str:
    """In words: whether there is a difference, and whether the claim lies within the noise around it."""
    if difference is None:
        return ""
    found = "within noise" if difference.is_noise else "worse" if difference.mean > 0 else "better"
    if claim is not None:
        agrees = abs(difference.mean - claim) <= difference.noise
        found += f", claim {'not contradicted' if agrees else 'not met'}"
    return found if difference.seeds > 1 else f"{found} (one seed)"


def ablation_json(report: AblationReport) -> dict[str, Any]:
    """One JSON document."""
    rows = []
    for variant, parameters in zip(report.variants, report.parameters, strict=True):
        entry: dict[str, Any] = {
            "variant": variant.name,
            "title": variant.title,
            "parameters": parameters,
            "claim": variant.claim,
            "top1_claim": variant.top1_claim,
            "top5_claim": variant.top5_claim,
        }
        for name in ("top1_error", "top5_error", "loss"):
            errors = list(ended_errors(report.runs, variant.name, name).values())
            entry[f"mean_{name}"] = fmean(errors) if errors else None
            entry[f"std_{name}"] = stdev(errors) if len(errors) > 1 else None
        if variant.name != BASELINE:
            for name in ("top1", "top5"):
                difference = baseline_difference(report, variant, f"{name}_error")
                entry[f"{name}_difference"] = None if difference is None else asdict(difference)
                entry[f"{name}_verdict"] = verdict(difference, getattr(variant, f"{name}_claim"))
        rows.append(entry)
    return {
        "num_val": report.num_val,
        "stopped_by": report.stopped_by,
        "variants": rows,
        "runs": [asdict(run) for run in report.runs],
    }


def print_ablation(report: AblationReport) -> None:
    """The tables for people, and a line for each run that failed."""
    print_table(
        f"errors on {report.num_val:,} validation images, % ± deviation over seeds", ERROR_COLUMNS, error_rows(report)
    )
    beside = beside_rows(report)
    if beside:  # the baseline alone has nothing to stand beside
        print_table(
            "beside the baseline: % more errors ± noise, and what the paper has on ImageNet", BESIDE_COLUMNS, beside
        )
    claims = claim_rows(report)
    if claims:
        print_table("what the paper says", CLAIM_COLUMNS, claims, align="left")
    for line in failures(report):
        print(line)


ERROR_COLUMNS = ("variant", "parameters", "seeds", "top-1 error", "top-5 error")
BESIDE_COLUMNS = ("variant", "top-1", "paper", "top-5", "paper", "in top-1 it is")
CLAIM_COLUMNS = ("variant", "claim")


def error_rows(report: AblationReport) -> list[tuple[str, ...]]:
    """Rows of `ERROR_COLUMNS`, percent."""
    return [
        (variant.name, f"{parameters:,}", *_errors(report, variant))
        for variant, parameters in zip(report.variants, report.parameters, strict=True)
    ]


def beside_rows(report: AblationReport) -> list[tuple[str, ...]]:
    """Rows of `BESIDE_COLUMNS`, percent, for all but the baseline."""
    return [_beside(report, variant) for variant in report.variants if variant.name != BASELINE]


def claim_rows(report: AblationReport) -> list[tuple[str, str]]:
    """Rows of `CLAIM_COLUMNS`."""
    return [(variant.name, variant.claim) for variant in report.variants if variant.claim]


def failures(report: AblationReport) -> list[str]:
    """A line for each run that failed."""
    return [f"{run.variant}, seed {run.seed}: failed: {run.failure}" for run in report.runs if run.failure is not None]


def _errors(report: AblationReport, variant: Variant) -> tuple[str, ...]:
    errors = [list(ended_errors(report.runs, variant.name, name).values()) for name in ("top1_error", "top5_error")]
    return (str(len(errors[0])), *map(_mean, errors))


def _beside(report: AblationReport, variant: Variant) -> tuple[str, ...]:
    cells = [variant.name]
    for name in ("top1", "top5"):
        difference = baseline_difference(report, variant, f"{name}_error")
        claim = getattr(variant, f"{name}_claim")
        cells.append("" if difference is None else f"{100 * difference.mean:+.2f} ± {100 * difference.noise:.2f}")
        cells.append("" if claim is None else f"{100 * claim:+.1f}")
    return (*cells, verdict(baseline_difference(report, variant, "top1_error"), variant.top1_claim))


def baseline_difference(report: AblationReport, variant: Variant, name: str) -> Difference | None:
    """A variant's error minus the baseline's.

    Args:
        report: what was trained.
        variant: of it.
        name: `top1_error` or `top5_error`.
    """
    errors = {one.name: ended_errors(report.runs, one.name, name) for one in report.variants}
    row, found = ("top1_error", "top5_error").index(name), report.image_errors
    seeds = sorted(errors[BASELINE].keys() & errors[variant.name].keys())
    of_images = [
        found[variant.name, seed][row] - found[BASELINE, seed][row]
        for seed in seeds
        if (variant.name, seed) in found and (BASELINE, seed) in found
    ]
    return compare(
        errors[BASELINE],
        errors[variant.name],
        report.num_val,
        of_seeds=SeedNoise.of(list(errors.values())),
        of_images=of_images,
    )


def _mean(errors: list[float]) -> str:
    if not errors:
        return ""
    return f"{100 * fmean(errors):.2f}" + (f" ± {100 * stdev(errors):.2f}" if len(errors) > 1 else "")


def _student(degrees: int) -> float:
    return _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else _NORMAL + 2.7 / degrees
