"""Pictures of a run: its learning curve, and the kernels of the first layer (figure 3 of the paper)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmdali.model.journal import best_epoch, read_metrics
from lmdali.model.picture_file import save_picture
from lmdali.model.plot_file import open_plot, save_plot, tidy_axes
from lmdali.pipeline.errors import InputError

KERNELS_PER_ROW = 16
_CURVES = ("train_loss", "val_loss", "train_top1_error", "val_top1_error")
_TRAIN_COLOR, _VAL_COLOR = "#0072b2", "#d55e00"  # apart for every kind of colour vision


def kernel_grid(weights: Tensor, *, levels: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """All kernels of the first layer in one image, 16 per row, a black line of one pixel around each.

    Gray levels are comparable between kernels: the smallest weight of all is black, the largest white. Kernels are in
    order, so that the first half of them belongs to the first tower (in the paper: rows 1 to 3 of 6).

    Args:
        weights: `(N, 3, h, w)` floating point, channels R, G, B.
        levels: weights that are drawn black and white; default: the smallest and the largest of `weights`.

    Returns:
        `(rows * (h + 1) + 1, 16 * (w + 1) + 1, 3)` uint8 RGB; for 96 kernels of 11 x 11 that is 73 x 193.
    """
    kernels = weights.detach().double().cpu().numpy().transpose(0, 2, 3, 1)
    count, height, width, channels = kernels.shape
    if channels != 3:
        raise InputError(f"kernels of {channels} input channels have no colours: give the weights of conv1")
    low, high = levels or (float(kernels.min()), float(kernels.max()))
    pixels = np.rint((kernels - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    rows = -(-count // KERNELS_PER_ROW)
    grid = np.zeros((rows * (height + 1) + 1, KERNELS_PER_ROW * (width + 1) + 1, 3), np.uint8)
    for number, kernel in enumerate(pixels):
        top = 1 + (height + 1) * (number // KERNELS_PER_ROW)
        left = 1 + (width + 1) * (number % KERNELS_PER_ROW)
        grid[top : top + height, left : left + width] = kernel
    return grid


def save_kernels(weights: Tensor, path: Path, *, scale: int = 6) -> Path:
    """Write `kernel_grid` as a PNG, each pixel enlarged to `scale` x `scale`.

    Raises:
        StorageError: the file cannot be written.
    """
    save_picture(kernel_grid(weights).repeat(scale, axis=0).repeat(scale, axis=1), path)
    return path


def save_learning_curve(metrics: Path, path: Path) -> Path:
    """Draw loss and top-1 error over epochs, training and validation, as a PNG.

    Training values are taken while an epoch goes on, with dropout and augmentation; validation values at its end, with
    one central view. So early in a run validation is often the better of the two.

    Args:
        metrics: a run's `metrics.jsonl` with at least one epoch.
        path: the picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: no epoch was finished.
        StorageError: the picture cannot be written.
    """
    epochs = [record for record in read_metrics(metrics) if record["kind"] == "epoch"]
    # A line that was edited must not end a training in its last step.
    epochs = [record for record in epochs if all(record.get(name) is not None for name in _CURVES)]
    if not epochs:
        raise InputError(f"{metrics}: no finished epoch, so there is no curve to draw: train one")
    figure, (loss, error) = open_plot("the learning curve")
    _draw(loss, epochs, "loss", 1.0)
    _draw(error, epochs, "top1_error", 100.0)
    loss.set(xlabel="epoch", ylabel="cross-entropy, nats", title="loss")
    best = best_epoch(epochs)
    percent = 100 * best["val_top1_error"]
    error.plot(best["epoch"] + 1, percent, "o", color=_VAL_COLOR)
    error.set(xlabel="epoch", ylabel="top-1 error, %", title=f"lowest validation error {percent:.1f} %")
    error.set_ylim(0, 100)
    loss.legend(frameon=False)
    return save_plot(figure, path)


def _draw(axes: Any, epochs: list[dict[str, Any]], name: str, factor: float) -> None:
    at = [record["epoch"] + 1 for record in epochs]
    mark = "." if len(epochs) < 40 else ""
    for kind, color, label in (("train", _TRAIN_COLOR, "training"), ("val", _VAL_COLOR, "validation")):
        values = [factor * record[f"{kind}_{name}"] for record in epochs]
        axes.plot(at, values, color=color, label=label, marker=mark, linewidth=1.5)
    axes.locator_params(axis="x", integer=True)
    if len(at) == 1:  # or ticks at fractions of an epoch
        axes.set_xlim(at[0] - 1, at[0] + 1)
    tidy_axes(axes)
