"""Differences and their noise, worked out by hand, and the table beside the paper's claims."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from statistics import stdev

import numpy as np
import pytest

from lmdali.model.variants import VARIANTS
from lmdali.tools.ablation import AblationReport, VariantRun
from lmdali.tools.ablation_table import Difference, SeedNoise, ablation_json, compare, print_ablation, verdict


def test_the_noise_of_one_seed_is_that_of_the_images() -> None:
    found = compare({0: 0.5}, {0: 0.6}, 100)
    assert found is not None and found.seeds == 1
    assert found.mean == pytest.approx(0.1)
    assert found.noise == pytest.approx(1.96 * sqrt((0.25 + 0.24) / 100))
    assert found.is_noise


def test_one_seed_is_never_without_a_word() -> None:
    """Ten million images: what is left is what other seeds would change, and one seed does not tell."""
    assert verdict(compare({0: 0.40}, {0: 0.41}, 10**7), 0.02) == "worse, claim not met (one seed)"
    assert verdict(compare({0: 0.40}, {0: 0.41}, 10**7), None) == "worse (one seed)"


@pytest.mark.parametrize(
    ("seeds", "student"), [(2, 12.7062), (11, 2.22814), (12, 2.20099), (13, 2.17881), (21, 2.08596), (121, 1.97993)]
)
def test_intervals_are_no_narrower_than_students(seeds: int, student: float) -> None:
    differences = [(-1) ** seed * 0.01 for seed in range(seeds)]
    found = compare(dict.fromkeys(range(seeds), 0.4), {seed: 0.4 + differences[seed] for seed in range(seeds)}, 10**12)
    assert found is not None
    wanted = student * stdev(differences) / sqrt(seeds)
    assert wanted * 0.9999 <= found.noise <= wanted * 1.01


def test_seeds_are_compared_one_by_one() -> None:
    """Seeds differ by 20 %, the variant by 2 % in each of them: the seeds' part of the noise is nothing."""
    found = compare({0: 0.3, 1: 0.5, 2: 0.9}, {1: 0.52, 0: 0.32, 5: 0.1}, 10**8)
    assert found is not None and found.seeds == 2
    assert found.mean == pytest.approx(0.02)
    assert found.noise < 1e-3 and not found.is_noise


def test_seeds_that_disagree_are_noise() -> None:
    found = compare({0: 0.40, 1: 0.40}, {0: 0.40, 1: 0.44}, 10**8)
    assert found is not None
    assert found.noise == pytest.approx(12.706 * 0.02, rel=1e-2)  # deviation 0.0283, over the root of 2
    assert found.is_noise


def test_the_spread_over_seeds_is_that_of_all_variants() -> None:
    """Two-way analysis of variance, by the sum that defines it; a variant without a run does not count."""
    errors = [{0: 0.10, 1: 0.20, 2: 0.30}, {0: 0.22, 1: 0.28, 2: 0.40}, {0: 0.30, 1: 0.40, 2: 0.50}, {}]
    means = [[0.2, 0.3, 0.4], [0.62 / 3, 0.88 / 3, 1.2 / 3], 0.3]
    squares = sum(
        (errors[v][s] - means[0][v] - means[1][s] + means[2]) ** 2  # type: ignore[index, operator]
        for v in range(3)
        for s in range(3)
    )
    found = SeedNoise.of(errors)
    assert found is not None and found.degrees == 4
    assert found.variance == pytest.approx(squares / 4)


def test_of_two_variants_it_is_the_spread_of_their_differences() -> None:
    found = SeedNoise.of([{0: 0.40, 1: 0.40, 2: 0.41}, {2: 0.42, 0: 0.40, 1: 0.44}])
    assert found is not None and found.degrees == 2
    assert 2 * found.variance == pytest.approx(stdev([0.0, 0.04, 0.01]) ** 2)


@pytest.mark.parametrize("errors", [[], [{0: 0.4, 1: 0.5}], [{0: 0.4}, {0: 0.5}], [{0: 0.4, 1: 0.3}, {2: 0.5, 3: 0.1}]])
def test_too_few_seeds_or_variants_have_no_spread(errors: list[dict[int, float]]) -> None:
    assert SeedNoise.of(errors) is None


def test_more_variants_make_an_interval_narrower() -> None:
    baseline, variant = {0: 0.40, 1: 0.41, 2: 0.40}, {0: 0.42, 1: 0.42, 2: 0.43}
    alone = compare(baseline, variant, 10**8)
    others = [{seed: value + 0.01 for seed, value in baseline.items()} for _ in range(8)]
    together = compare(baseline, variant, 10**8, of_seeds=SeedNoise.of([baseline, variant, *others]))
    assert alone is not None and together is not None
    assert together.mean == alone.mean and together.noise < alone.noise / 3


def test_images_are_compared_one_by_one() -> None:
    """Of 100 images 50 are wrong for both and 4 for one of them: only these four can have come out otherwise."""
    of_images = np.zeros(100, np.float32)
    of_images[:3], of_images[3] = 1, -1
    found = compare({0: 0.51}, {0: 0.53}, 100, of_images=[of_images])
    assert found is not None and found.paired
    assert found.noise == pytest.approx(1.96 * float(of_images.std(ddof=1)) / 10, rel=1e-6)
    unpaired = compare({0: 0.51}, {0: 0.53}, 100)
    assert unpaired is not None and not unpaired.paired and unpaired.noise > 3 * found.noise
    assert not compare({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}, 100, of_images=[of_images]).paired, "one seed of two"  # type: ignore[union-attr]


def test_without_a_common_seed_there_is_nothing_to_say() -> None:
    assert compare({0: 0.4}, {1: 0.4}, 10) is None
    assert verdict(None, 0.02) == ""


@pytest.mark.parametrize(
    ("mean", "noise", "claim", "words"),
    [
        (0.02, 0.01, 0.02, "worse, claim not contradicted"),
        (0.05, 0.01, 0.02, "worse, claim not met"),
        (-0.05, 0.01, None, "better"),
        (0.005, 0.01, 0.014, "within noise, claim not contradicted"),
        (0.005, 0.01, 0.02, "within noise, claim not met"),
    ],
)
def test_verdicts(mean: float, noise: float, claim: float | None, words: str) -> None:
    assert verdict(Difference(mean=mean, noise=noise, seeds=3), claim) == words


def report() -> AblationReport:
    def run(variant: str, seed: int, top1: float | None, failure: str | None = None) -> VariantRun:
        top5 = None if top1 is None else top1 / 2
        return VariantRun(
            variant=variant, seed=seed, epochs=1, top1_error=top1, top5_error=top5, loss=top1, failure=failure
        )

    return AblationReport(
        variants=tuple(VARIANTS[name] for name in ("baseline", "no-lrn", "no-dropout")),
        parameters=(60_965_224, 60_965_224, 60_965_224),
        runs=(
            run("baseline", 0, 0.40),
            run("baseline", 1, 0.42),
            run("no-lrn", 0, 0.414),
            run("no-lrn", 1, 0.434),
            run("no-dropout", 0, None, "step 3: the loss is nan"),
        ),
        num_val=10**7,
        stopped_by=None,
    )


def test_the_table_stands_beside_the_claims(capsys: pytest.CaptureFixture[str]) -> None:
    print_ablation(report())
    told = capsys.readouterr().out
    errors, beside, claim = (line for line in told.splitlines() if "no-lrn" in line)
    assert "60,965,224" in errors and "42.40 ± 1.41" in errors
    for text in ("+1.40 ± 0.04", "+1.4", "+0.70 ±", "+1.2", "worse, claim not contradicted"):
        assert text in beside
    assert "section 3.3" in claim
    assert "no-dropout, seed 0: failed: step 3: the loss is nan" in told


def test_the_baseline_alone_has_its_errors_and_no_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    whole = report()
    alone = replace(whole, variants=whole.variants[:1], parameters=whole.parameters[:1], runs=whole.runs[:2])
    print_ablation(alone)
    told = capsys.readouterr().out
    assert "41.00 ± 1.41" in told and "20.50 ± 0.71" in told
    assert "beside the baseline" not in told


def test_json_has_means_differences_and_runs() -> None:
    document = ablation_json(report())
    baseline, lrn, dropout = document["variants"]
    assert baseline["mean_top1_error"] == pytest.approx(0.41) and "top1_difference" not in baseline
    assert lrn["top1_difference"]["mean"] == pytest.approx(0.014) and lrn["top1_claim"] == 0.014
    assert dropout["mean_top1_error"] is None and dropout["top1_difference"] is None
    assert len(document["runs"]) == 5
