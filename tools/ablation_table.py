"""An ablation in the shape of the paper's tables: each variant beside the baseline and beside what the paper claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

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
    """

    mean: float
    noise: float
    seeds: int

    @property
    def is_noise(self) -> bool:
        """Whether it may as well be nothing."""
        return abs(self.mean) <= self.noise


def compare(baseline: Mapping[int, float], variant: Mapping[int, float], num_images: int) -> Difference | None:
    """The difference of two errors, seed by seed; None without a common seed.

    The noise has two parts, added as squares: Student's interval of the differences, from two seeds on; and the
    sampling of the validation images, as if the two networks had been measured on images of their own. They are
    measured on the same ones, so that the second part is rather too large. One seed says nothing of others: its noise
    is that of the images alone, which is too little, and verdicts say so.

    Args:
        baseline: seed -> error, 0..1.
        variant: likewise.
        num_images: that each was measured on.
    """
    seeds = sorted(baseline.keys() & variant.keys())
    if not seeds:
        return None
    differences = [variant[seed] - baseline[seed] for seed in seeds]
    of_seeds = 0.0
    if len(seeds) > 1:
        of_seeds = _student(len(seeds) - 1) * stdev(differences) / sqrt(len(seeds))
    means = (fmean(baseline[seed] for seed in seeds), fmean(variant[seed] for seed in seeds))
    of_images = _NORMAL * sqrt(sum(mean * (1 - mean) for mean in means) / num_images)
    return Difference(mean=fmean(differences), noise=sqrt(of_seeds**2 + of_images**2), seeds=len(seeds))


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
    errors = [ended_errors(report.runs, of, name) for of in (BASELINE, variant.name)]
    return compare(errors[0], errors[1], report.num_val)


def _mean(errors: list[float]) -> str:
    if not errors:
        return ""
    return f"{100 * fmean(errors):.2f}" + (f" ± {100 * stdev(errors):.2f}" if len(errors) > 1 else "")


def _student(degrees: int) -> float:
    return _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else _NORMAL + 2.7 / degrees
