"""The picture of learning.py: validation accuracy by step, one panel for recipes and one for what was taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_PRESETS = ("paper", "original2012", "caffe", "fast")
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5f5f5f", "#b8a000", "#7a3db8", "#222222")
_COLORS += ("#a0522d", "#117733", "#aa4499", "#88ccee")


def save_curves(curves: Mapping[str, Sequence[Sequence[float]]], steps: int, path: Path) -> None:
    """Draw a line per run, thin, and the mean of a recipe's runs, thick.

    Args:
        curves: accuracies (0..1) at equal distances, by recipe and run.
        steps: of each run.
        path: the picture, PNG or SVG.
    """
    recipes = {name: runs for name, runs in curves.items() if name in _PRESETS}
    removed = {name: runs for name, runs in curves.items() if name not in recipes or name == "original2012"}
    shown = {"recipes": recipes}
    if len(removed) > 1:
        shown["original2012, and with one thing changed"] = removed
    colors = dict(zip(curves, _COLORS, strict=False))  # a recipe has one colour in both panels
    figure = Figure(figsize=(1 + 5.5 * len(shown), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, (title, part) in zip(panels, shown.items(), strict=True):
        _draw(panel, part, steps, title, colors)
    panels[0].set_ylabel("validation top-1 accuracy, %")
    figure.savefig(path, dpi=130)


def _draw(
    panel: Axes,
    curves: Mapping[str, Sequence[Sequence[float]]],
    steps: int,
    title: str,
    colors: Mapping[str, str],
) -> None:
    for name, runs in curves.items():
        color = colors[name]
        places = len(runs[0])
        at = [steps * (place + 1) / places for place in range(places)]
        for run in runs:
            panel.plot(at, [100 * value for value in run], color=color, linewidth=0.5, alpha=0.5)
        means = [100 * sum(values) / len(runs) for values in zip(*runs, strict=True)]
        panel.plot(at, means, color=color, linewidth=2, label=f"{name} {means[-1]:.0f}")
    panel.set(title=title, xlabel="step")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8, loc="lower right")
