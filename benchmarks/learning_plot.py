"""The picture of learning.py: validation accuracy by step, one panel for recipes and one for what was taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_PRESETS = ("paper", "original2012", "caffe", "fast")
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5f5f5f", "#b8a000", "#7a3db8", "#222222")


def save_curves(curves: Mapping[str, Sequence[Sequence[float]]], steps: int, path: Path) -> None:
    """Draw a line per run, thin, and the mean of a recipe's runs, thick.

    Args:
        curves: accuracies (0..1) at equal distances, by recipe and run.
        steps: of each run.
        path: the picture, PNG or SVG.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    recipes = {name: runs for name, runs in curves.items() if name in _PRESETS}
    removed = {name: runs for name, runs in curves.items() if name not in recipes or name == "original2012"}
    _draw(left, recipes, steps, "recipes")
    _draw(right, removed, steps, "original2012, and with one thing changed")
    left.set_ylabel("validation top-1 accuracy, %")
    figure.savefig(path, dpi=130)


def _draw(panel: Axes, curves: Mapping[str, Sequence[Sequence[float]]], steps: int, title: str) -> None:
    for (name, runs), color in zip(curves.items(), _COLORS, strict=False):
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
