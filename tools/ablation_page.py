"""`lmdali ablate --html`: an ablation as one HTML file: beside the paper, noise marked, with learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from lmdali.model.journal import METRICS_FILE, read_metrics
from lmdali.model.variants import BASELINE, Variant
from lmdali.pipeline.dataset_place import place_name, place_shown
from lmdali.pipeline.output_file import write_output
from lmdali.pipeline.path_kind import is_file
from lmdali.pipeline.release import lmdali_version
from lmdali.tools.ablation import AblationConfig, AblationReport, ended_errors
from lmdali.tools.ablation_table import (
    BESIDE_COLUMNS,
    CLAIM_COLUMNS,
    ERROR_COLUMNS,
    baseline_difference,
    beside_rows,
    claim_rows,
    error_rows,
    failures,
)
from lmdali.tools.html_page import (
    KeyFigure,
    Section,
    bullets,
    callout,
    details,
    figure,
    key_figures,
    page,
    pairs,
    paragraph,
    table,
)
from lmdali.tools.page_style import SERIES_COLORS
from lmdali.tools.svg_chart import Bar, Line, bar_chart, line_chart

_SAME_SERIES, _OTHER_SERIES = 1, 2


def save_ablation_page(report: AblationReport, config: AblationConfig, out: Path) -> None:
    """Write the page.

    Args:
        report: what was trained.
        config: how; learning curves are read from its `run_dir`.
        out: the file.

    Raises:
        StorageError: the file cannot be written.
    """
    sections = [Section(title="Beside the paper", body=_beside(report)), Section(title="Errors", body=_errors(report))]
    curves = _curves(report, config.run_dir)
    if curves:
        sections.append(Section(title="Learning curves", body=curves))
    sections.append(Section(title="What was trained", body=_about(config)))
    seeds = f"{config.seeds} seed{'s' if config.seeds > 1 else ''}"
    document = page(
        f"Ablation on {place_name(config.train)}",
        sections,
        subtitle=f"{len(report.variants)} variants, {seeds} of each; "
        f"{report.num_val:,} images of {place_name(config.val)}",
        footer=f"lmdali {lmdali_version()}",
    )
    write_output(out, document.encode())


def _beside(report: AblationReport) -> str:
    others = [variant for variant in report.variants if variant.name != BASELINE]
    found = [(variant, baseline_difference(report, variant, "top1_error")) for variant in others]
    real = [variant.name for variant, difference in found if difference is not None and not difference.is_noise]
    known = [variant for variant, difference in found if difference is not None]
    baseline = list(ended_errors(report.runs, BASELINE, "top1_error").values())
    cards = key_figures(
        [
            KeyFigure(label="baseline, top-1 error", value=f"{100 * fmean(baseline):.2f} %" if baseline else "none"),
            KeyFigure(label="beyond noise", value=f"{len(real)} of {len(known)}", note=", ".join(real)),
            KeyFigure(label="trainings", value=str(len(report.runs)), note=f"{len(failures(report))} failed"),
        ]
    )
    told = (
        "Percent of the validation images that a variant gets wrong and the baseline right, less the reverse; and half "
        "of the 95 % interval: what other seeds (by their spread in all variants) and other images would change, or "
        "with one seed other images alone. Of twenty variants that change nothing, one is beyond it by chance. The "
        "paper's numbers are of ImageNet."
    )
    early = "" if report.stopped_by is None else callout("Stopped early", ["Not all has been trained."], tone="warn")
    rows = beside_rows(report)
    beside = paragraph(told) + table(BESIDE_COLUMNS, rows) if rows else ""
    return early + cards + beside + _bars(report)


def _bars(report: AblationReport) -> str:
    bars = [bar for variant in report.variants if (bar := _bar(report, variant)) is not None]
    if not bars:
        return ""
    caption = (
        "The whisker is the noise of the difference from the baseline: where it reaches the baseline's error, there "
        "may be none."
    )
    return figure(
        bar_chart(bars, unit="top-1 error, %", description="top-1 error of each variant", linear=True), caption
    )


def _bar(report: AblationReport, variant: Variant) -> Bar | None:
    errors = list(ended_errors(report.runs, variant.name, "top1_error").values())
    if not errors:
        return None
    value, series = 100 * fmean(errors), _SAME_SERIES
    low = high = None
    text = f"{value:.1f} %"
    difference = baseline_difference(report, variant, "top1_error") if variant.name != BASELINE else None
    if difference is not None:
        noise = 100 * difference.noise
        low, high = max(value - noise, 0.0), min(value + noise, 100.0)
        series = _SAME_SERIES if difference.is_noise else _OTHER_SERIES
        text += ", within noise" if difference.is_noise else ", worse" if difference.mean > 0 else ", better"
    return Bar(label=variant.title, value=value, text=text, low=low, high=high, series=series)


def _errors(report: AblationReport) -> str:
    body = table(ERROR_COLUMNS, error_rows(report), caption="% ± deviation over seeds, after the last epoch")
    failed = failures(report)
    if failed:
        body += callout("Failed", failed, tone="bad")
    claims = claim_rows(report)
    return body + details("what the paper says", table(CLAIM_COLUMNS, claims, text_columns=2)) if claims else body


def _curves(report: AblationReport, run_dir: Path) -> str:
    """Top-1 errors over epochs: the baseline in each plot, beside as many variants as there are other colours."""
    lines = {variant.name: _curve(report, variant, run_dir) for variant in report.variants}
    baseline = lines.pop(BASELINE)
    others, size = [line for line in lines.values() if line.points], SERIES_COLORS - 1
    groups = [others[start : start + size] for start in range(0, max(len(others), 1), size)]
    shown = [[line for line in (baseline, *group) if line.points] for group in groups]
    plots = [
        line_chart(
            group,
            x_label="epoch",
            y_label="top-1 error on the validation images, % (mean over seeds)",
            description="top-1 error over epochs",
        )
        for group in shown
        if group
    ]
    return "".join(figure(plot) for plot in plots)


def _curve(report: AblationReport, variant: Variant, run_dir: Path) -> Line:
    errors: dict[int, list[float]] = {}
    for run in report.runs:
        path = run_dir / variant.name / f"seed-{run.seed}" / METRICS_FILE
        if run.variant != variant.name or not is_file(path):
            continue
        for record in read_metrics(path):
            if record["kind"] == "epoch" and record.get("val_top1_error") is not None:
                errors.setdefault(record["epoch"] + 1, []).append(100 * record["val_top1_error"])
    points: Sequence[tuple[float, float]] = [(epoch, fmean(errors[epoch])) for epoch in sorted(errors)]
    return Line(name=variant.name, points=points)


def _about(config: AblationConfig) -> str:
    places = ("training set", place_shown(config.train)), ("validation set", place_shown(config.val))
    rows = pairs([*places, ("runs", config.run_dir)])
    settings = [
        (f"{section}.{name}", value)
        for section, values in config.recipe.values().items()
        for name, value in values.items()
    ]
    note = "The recipe that each variant changes; the seed is that of the first training."
    return rows + details("the recipe", bullets([note]) + pairs(settings))
