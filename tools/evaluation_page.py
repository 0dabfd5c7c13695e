"""`lmdali eval --html`: an evaluation as one HTML file, with pictures of the worst mistakes."""

from __future__ import annotations

from pathlib import Path

from lmdali.model.error_analysis import worst_mistakes
from lmdali.pipeline.dataset_place import place_name, place_shown
from lmdali.pipeline.output_file import write_output
from lmdali.pipeline.release import lmdali_version
from lmdali.tools.evaluation_report import (
    BIN_COLUMNS,
    CLASS_COLUMNS,
    NETWORK_COLUMNS,
    EvalReport,
    class_rows,
    confusion_rows,
    percent,
    reliability_rows,
    table_rows,
    worst_classes,
)
from lmdali.tools.html_page import KeyFigure, Section, details, figure, key_figures, page, pairs, paragraph, table
from lmdali.tools.page_sheets import prediction_sheet
from lmdali.tools.svg_chart import Bar, Line, bar_chart, line_chart

MISTAKES = 12
_ROWS_SHOWN = 20
_BARS_SHOWN = 25
_PAIR_COLUMNS = ("class", "taken for", "images", "of the class, %")


def save_evaluation_page(report: EvalReport, out: Path) -> None:
    """Write the page.

    Raises:
        IntegrityError: a picture of the dataset is damaged.
        StorageError: the file cannot be written.
    """
    names, count = ", ".join(member.path.name for member in report.members), len(report.members)
    sections = [Section(title="Errors", body=errors_part(report)), *evaluation_sections(report), _about(report)]
    document = page(
        f"Evaluation on {place_name(report.dataset)}",
        sections,
        subtitle=f"{count} network{'s' if count > 1 else ''}: {names}; views of each image: {report.num_views}",
        footer=f"lmdali {lmdali_version()}",
    )
    write_output(out, document.encode())


def errors_part(report: EvalReport) -> str:
    """The figures to see first, and, where there are several networks, each beside the average."""
    analysis = report.analysis
    cards = key_figures(
        [
            KeyFigure(label="top-1 error", value=f"{percent(analysis.top1_error)} %", note=_spread(report)),
            KeyFigure(label="top-5 error", value=f"{percent(analysis.top5_error)} %"),
            KeyFigure(label="negative log-likelihood", value=f"{analysis.loss:.4f}", note="nats per image"),
            KeyFigure(
                label="calibration error",
                value=f"{100 * analysis.calibration_error:.2f} %",
                note="confidence and accuracy apart",
            ),
        ]
    )
    if len(report.members) == 1:
        return cards
    return cards + table(
        NETWORK_COLUMNS,
        table_rows(report),
        caption="Each network by itself, and the average of their probabilities",
    )


def evaluation_sections(report: EvalReport) -> list[Section]:
    """Classes, confusions, calibration, worst mistakes: what an evaluation and a run's report share."""
    sections = [Section(title="Classes", body=_classes(report))]
    if report.analysis.confusions:
        sections.append(Section(title="Confusions", body=_confusions(report)))
    sections.append(Section(title="Calibration", body=_calibration(report)))
    mistakes = worst_mistakes(report.probabilities.values, report.probabilities.labels, MISTAKES)
    if mistakes:
        sheet = prediction_sheet(
            report,
            mistakes,
            "Wrong with most certainty, the worst first. The true class stands below each picture; its bar is red.",
        )
        sections.append(Section(title="Worst mistakes", body=sheet))
    return sections


def _classes(report: EvalReport) -> str:
    rows = class_rows(report)
    bars = [
        Bar(
            label=report.class_names[entry.label],
            value=100 * (entry.top1_error or 0.0),
            text=f"{100 * (entry.top1_error or 0.0):.1f} %",
        )
        for entry in worst_classes(report)[:_BARS_SHOWN]
    ]
    plot = figure(bar_chart(bars, unit="top-1 error, %", description="top-1 error of each class", linear=True))
    return plot + details(f"all {len(rows)} classes", table(CLASS_COLUMNS, rows))


def _confusions(report: EvalReport) -> str:
    rows = confusion_rows(report)
    shown = table(_PAIR_COLUMNS, rows[:_ROWS_SHOWN], text_columns=2)
    if len(rows) <= _ROWS_SHOWN:
        return shown
    return shown + details(f"all {len(rows)} pairs", table(_PAIR_COLUMNS, rows, text_columns=2))


def _calibration(report: EvalReport) -> str:
    points = [
        (100 * entry.confidence, 100 * entry.accuracy)
        for entry in report.analysis.reliability
        if entry.confidence is not None and entry.accuracy is not None
    ]
    plot = line_chart(
        [Line(name="this network", points=points), Line(name="perfectly calibrated", points=[(0, 0), (100, 100)])],
        x_label="mean highest probability of a bin, %",
        y_label="part that is right, %",
        description="accuracy over confidence, beside the diagonal",
        from_zero=True,
    )
    told = (
        "Images in 15 bins by their highest probability. Below the line a network is surer than it is right. The "
        "calibration error is the mean distance between the two, weighted by the images of a bin."
    )
    return paragraph(told) + figure(plot) + details("the bins", table(BIN_COLUMNS, reliability_rows(report)))


def _about(report: EvalReport) -> Section:
    probabilities = report.probabilities
    rows: list[tuple[object, object]] = [
        ("dataset", place_shown(report.dataset)),
        ("dataset digest", probabilities.dataset_digest),
        ("class list", f"{len(probabilities.class_names)} classes, {probabilities.class_list_hash}"),
        ("images, views of each", f"{report.analysis.num_samples:,}, {report.num_views}"),
        ("processes", report.world_size),
    ]
    for member in report.members:
        rows.append(("network", member.path))
        rows += [
            (f"its {name.replace('_', ' ')}", value) for name, value in member.source.items() if name != "networks"
        ]
    return Section(title="What was measured", body=pairs(rows))


def _spread(report: EvalReport) -> str:
    """How far the error may lie from that of other images of the same kind."""
    error, count = report.analysis.top1_error, report.analysis.num_samples
    return f"± {100 * (error * (1 - error) / count) ** 0.5:.2f} standard error over {count:,} images"
