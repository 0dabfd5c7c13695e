"""Bits against precision: codes of features and of pixels beside the exact search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmdali.model.code_quality import SearchQuality
from lmdali.model.plot_file import open_plot, save_plot, tidy_axes

_COLORS = {"features": "#0072b2", "pixels": "#d55e00"}


def save_code_plot(qualities: Sequence[SearchQuality], k: int, path: Path) -> Path:
    """Draw the precision of codes over their length as a picture.

    Args:
        qualities: codes, and at most one exact search.
        k: neighbours that were asked for.
        path: the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the picture cannot be written.
    """
    figure, (left, right) = open_plot("the plot of codes")
    left.set(title=f"neighbours among the {k} exact ones")
    right.set(title="neighbours with the query's label")
    for axes, field in ((left, "precision"), (right, "label_precision")):
        lengths = sorted({quality.bits for quality in qualities if quality.bits is not None})
        for source, color in _COLORS.items():
            points = sorted((q.bits, getattr(q, field)) for q in qualities if q.bits is not None and q.source == source)
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=color, label=f"codes of {source}", linewidth=1.5)
        exact = [getattr(quality, field) for quality in qualities if quality.bits is None]
        if exact:
            axes.axhline(exact[0], color="#555555", linestyle="--", linewidth=1, label="exact search of features")
        _label(axes, lengths, k)
    right.legend(frameon=False)
    return save_plot(figure, path)


def _label(axes: Any, lengths: Sequence[int], k: int) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set(xlabel="bits", ylabel=f"precision@{k}", ylim=(0, 1.03))
    tidy_axes(axes)
