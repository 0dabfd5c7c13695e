"""Plots: matplotlib is an extra, and only this file knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lmdali.model.picture_file import save_picture
from lmdali.pipeline.errors import MissingExtraError


def open_plot(purpose: str) -> tuple[Any, Any]:
    """A figure and its two axes side by side, without a display.

    Raises:
        MissingExtraError: matplotlib is not installed; `purpose` is what it is needed for.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "report", purpose) from None
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, 2)


def tidy_axes(axes: Any) -> None:
    """No box around the plot, and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def save_plot(figure: Any, path: Path) -> Path:
    """Write a figure as a picture.

    Raises:
        StorageError: it cannot be written.
    """
    figure.canvas.draw()
    save_picture(np.asarray(figure.canvas.buffer_rgba())[:, :, :3], path)
    return path
