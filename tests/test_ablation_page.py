"""`lmdali ablate --html`, read by a parser and, where there is one, by a browser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from browser import BROWSER, NO_BROWSER, measure_page, show_page
from page_parts import parse_page

from lmdali.model.variants import VARIANTS
from lmdali.tools.ablation import AblationConfig, AblationReport, VariantRun
from lmdali.tools.ablation_page import save_ablation_page
from lmdali.tools.recipe import resolve_recipe

# Top-1 errors of two seeds: worse beyond any noise, within it, better.
WORSE = {"no-conv3": 0.2, "half-net": 0.25}
BETTER = {"no-lighting": -0.2}


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> tuple[AblationReport, AblationConfig]:
    """All variants with two seeds and five epochs, but one that failed."""
    root = tmp_path_factory.mktemp("ablation")
    runs = []
    for place, name in enumerate(VARIANTS):
        for seed in (0, 1):
            if name == "no-dropout":
                runs.append(failed(name, seed))
                continue
            error = 0.45 + WORSE.get(name, 0.0) + BETTER.get(name, 0.0) + 0.003 * place + 0.01 * seed
            journal = root / name / f"seed-{seed}" / "metrics.jsonl"
            journal.parent.mkdir(parents=True)
            lines = [
                {"kind": "epoch", "epoch": epoch, "step": epoch, "val_top1_error": error + 0.3 * 0.5**epoch}
                for epoch in range(5)
            ]
            journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
            runs.append(VariantRun(variant=name, seed=seed, epochs=5, top1_error=error, top5_error=error / 3, loss=1.0))
    config = AblationConfig(
        train=Path("data/train"), val=Path("data/val"), run_dir=root, recipe=resolve_recipe([]), seeds=2
    )
    variants = tuple(VARIANTS.values())
    report = AblationReport(
        variants=variants,
        parameters=(60_965_224,) * len(variants),
        runs=tuple(runs),
        num_val=341,
        stopped_by=None,
    )
    return report, config


def failed(name: str, seed: int) -> VariantRun:
    return VariantRun(
        variant=name, seed=seed, epochs=0, top1_error=None, top5_error=None, loss=None, failure="the loss is nan"
    )


def test_the_page_stands_beside_the_claims_and_marks_noise(
    ablation: tuple[AblationReport, AblationConfig], tmp_path: Path
) -> None:
    report, config = ablation
    save_ablation_page(report, config, tmp_path / "new" / "page.html")
    parts = parse_page((tmp_path / "new" / "page.html").read_text())
    assert parts.headings == [
        "Ablation on train", "Beside the paper", "Errors", "Learning curves", "What was trained",
    ]  # fmt: skip
    # One plot of bars; ten variants but one that failed are two plots of curves, five to a plot.
    assert len(parts.plots) == 3
    assert "3 of 9" in parts.text and "no-conv3, no-lighting, half-net" in parts.text
    for told in ("2 failed", "within noise, claim not contradicted", "worse, claim not met", "better, claim not met"):
        assert told in parts.text
    assert "no-dropout, seed 1: failed: the loss is nan" in parts.text
    assert "+20.60 ± " in parts.text and "+2.0" in parts.text  # no-conv3, and the paper's claim
    assert "section 3.3" in parts.text and "Stopped early" not in parts.text


def test_errors_are_drawn_from_zero_to_at_most_all_of_them(tmp_path: Path) -> None:
    """Two seeds that disagree: a whisker from nearly 0 to beyond 100 %."""
    errors = {("baseline", 0): 0.5, ("baseline", 1): 0.5, ("no-lrn", 0): 0.56, ("no-lrn", 1): 0.45}
    runs = [
        VariantRun(variant=name, seed=seed, epochs=1, top1_error=error, top5_error=error, loss=1.0)
        for (name, seed), error in errors.items()
    ]
    report = AblationReport(
        variants=(VARIANTS["baseline"], VARIANTS["no-lrn"]),
        parameters=(1, 1),
        runs=tuple(runs),
        num_val=100,
        stopped_by=None,
    )
    config = AblationConfig(train=Path("train"), val=Path("val"), run_dir=tmp_path, recipe=resolve_recipe([]), seeds=2)
    save_ablation_page(report, config, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "logarithmic" not in page and ">100<" in page and ">120<" not in page and ">150<" not in page


def test_what_is_not_there_is_left_out(ablation: tuple[AblationReport, AblationConfig], tmp_path: Path) -> None:
    report, config = ablation
    nothing = replace(
        report,
        variants=report.variants[:1],
        parameters=report.parameters[:1],
        runs=(failed("baseline", 0),),
        stopped_by=15,
    )
    save_ablation_page(nothing, replace(config, run_dir=tmp_path), tmp_path / "page.html")
    parts = parse_page((tmp_path / "page.html").read_text())
    assert "Learning curves" not in parts.headings and parts.plots == []
    assert "Stopped early" in parts.text and "0 of 0" in parts.text
    assert "the baseline right, less the reverse" not in parts.text  # of a table without a row


def test_an_address_is_told_without_its_password(
    ablation: tuple[AblationReport, AblationConfig], tmp_path: Path
) -> None:
    report, config = ablation
    config = replace(config, train="https://me:secret@host/sets/train", val="https://host/sets/val?key=secret")
    save_ablation_page(report, config, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "https://host/sets/train" in page and "secret" not in page


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_a_browser_shows_the_page(ablation: tuple[AblationReport, AblationConfig], tmp_path: Path) -> None:
    save_ablation_page(*ablation, tmp_path / "page.html")
    for found in measure_page((tmp_path / "page.html").read_text(), tmp_path):
        assert found["scroll"] <= found["width"] and found["clipped"] == []
        assert len(found["plots"]) == 3 and min(found["plots"]) > 100
    assert show_page(tmp_path / "page.html", tmp_path, dark=False).std() > 10
