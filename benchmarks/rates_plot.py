"""The picture of one or more runs of loaders.py: a panel per stored form and batch form: only like stands by like.

    python benchmarks/rates_plot.py RESULT.json... FIGURE.png

A bar is the median ratio to the reference, its line reaches from the lowest to the highest round, and the numbers
beside it are the ratio and the median rate. Parts of the work alone (reading, copying) are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from results_table import stored_form

_COLORS = {"ceiling": "#8a8a8a", "lmdali": "#c0392b", "peer": "#2c6e9b"}
_INCHES_PER_ROW, _TITLE_INCHES, _PANEL_INCHES = 0.24, 1.25, 7.6


def plot(documents: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw all forms of all documents: a row of panels per document."""
    rcParams["svg.hashsalt"] = "lmdali"
    heights = [
        max(len(_shown(form)) + _num_failed_lines(form) for form in document["forms"]) * _INCHES_PER_ROW + _TITLE_INCHES
        for document in documents
    ]
    columns = max(len(document["forms"]) for document in documents)
    figure = Figure(figsize=(_PANEL_INCHES * columns, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(documents), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for document, line in zip(documents, panels, strict=True):
        for panel in line[len(document["forms"]) :]:
            panel.set_axis_off()
        for form, panel in zip(document["forms"], line[: len(document["forms"])], strict=True):
            _draw(panel, document, form)
    first = documents[0]
    figure.suptitle(
        f"Loaders on {first['num_threads']} CPUs ({first['machine']['cpu']}), batches of {first['batch_size']}, "
        f"median and range of {first['rounds']} round{'s' if first['rounds'] > 1 else ''}",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)


def _draw(panel: Axes, document: dict[str, Any], form: dict[str, Any]) -> None:
    rows = sorted(_shown(form), key=lambda row: row["ratio"])
    ratios = [row["ratio"] for row in rows]
    lines = [[row["ratio"] - row["ratio_low"] for row in rows], [row["ratio_high"] - row["ratio"] for row in rows]]
    panel.barh(
        [row["label"] for row in rows],
        ratios,
        xerr=lines,
        color=[_COLORS[row["kind"]] for row in rows],
        error_kw={"ecolor": "#222222", "elinewidth": 1.0, "capsize": 2.0},
        height=0.72,
    )
    widest = max(row["ratio_high"] for row in rows)
    for height, row in enumerate(rows):
        text = f"{row['ratio']:.2f}   {row['images_per_second']:,.0f}/s"
        panel.text(row["ratio_high"] + 0.012 * widest, height, text, va="center", fontsize=7.5, backgroundcolor="white")
    panel.axvline(1.0, color="#222222", linewidth=0.8, linestyle=":")
    panel.set_xlim(0, 1.25 * max(widest, 1.0))
    panel.set_ylim(-0.6, len(rows) - 0.4)
    panel.set_title(f"{stored_form(document)}\n{form['title']}", fontsize=9, loc="left")
    label = f"images/s as a share of: {form['reference']}"
    failed = [row["label"] for row in form["rows"] if row["error"]]
    panel.set_xlabel(label + (f"\nnot measured: {'; '.join(failed)}" if failed else ""), fontsize=8, wrap=True)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _shown(form: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in form["rows"] if not row["error"] and row["kind"] != "part"]


def _num_failed_lines(form: dict[str, Any]) -> int:
    return 1 if any(row["error"] for row in form["rows"]) else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results, draw."""
    *results, figure = sys.argv[1:] if arguments is None else arguments
    if not results:
        raise SystemExit("usage: python benchmarks/rates_plot.py RESULT.json... FIGURE.png")
    plot([json.loads(Path(result).read_text()) for result in results], Path(figure))


if __name__ == "__main__":
    main()
