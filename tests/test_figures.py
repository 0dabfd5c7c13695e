"""Pictures checked pixel by pixel where they are ours to place, and by their ink where they are not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from lmdali.model import figures
from lmdali.model.figures import kernel_grid, save_kernels, save_learning_curve
from lmdali.pipeline.errors import InputError, MissingExtraError


def constant_kernels(count: int) -> torch.Tensor:
    """Kernel i has the value i / (count - 1) everywhere."""
    return (torch.arange(count) / (count - 1)).reshape(-1, 1, 1, 1).expand(-1, 3, 11, 11)


def test_ninety_six_kernels_fill_six_rows() -> None:
    grid = kernel_grid(constant_kernels(96))
    assert grid.shape == (73, 193, 3)
    for i in range(96):
        row, column = 1 + 12 * (i // 16), 1 + 12 * (i % 16)
        cell = grid[row : row + 11, column : column + 11]
        assert (cell == round(255 * i / 95)).all()
    assert not grid[::12].any()
    assert not grid[:, ::12].any()


def test_twenty_four_kernels_leave_the_rest_of_the_second_row_black() -> None:
    grid = kernel_grid(constant_kernels(24))
    assert grid.shape == (25, 193, 3)
    assert not grid[13:24, 1 + 12 * 8 :].any()


def test_all_kernels_share_one_scale_and_keep_their_colours() -> None:
    weights = torch.zeros(2, 3, 11, 11)
    weights[0, 0] = 1.0  # red
    weights[1, 2] = 0.5  # half as blue
    weights[1, 1] = -1.0  # the smallest of all is black
    grid = kernel_grid(weights)
    assert grid[1, 1].tolist() == [255, 128, 128]
    assert grid[1, 13].tolist() == [128, 0, 191]


def test_equal_weights_are_drawn() -> None:
    assert not kernel_grid(torch.full((16, 3, 2, 2), 0.3)).any()


def test_deeper_layers_are_refused() -> None:
    with pytest.raises(InputError, match="48 input channels"):
        kernel_grid(torch.zeros(4, 48, 5, 5))


def test_the_kernel_picture_is_the_grid_enlarged(tmp_path: Path) -> None:
    weights = torch.randn(24, 3, 11, 11)
    path = save_kernels(weights, tmp_path / "kernels.png", scale=3)
    read = cv2.imread(str(path))
    assert read is not None
    assert np.array_equal(read[1::3, 1::3, ::-1], kernel_grid(weights))


def write_run(path: Path, epochs: int) -> Path:
    lines = [{"kind": "step", "epoch": 0, "step": 1, "loss": 3.0}]
    lines += [
        {"kind": "epoch", "epoch": e, "step": e + 1, "train_loss": 2.0 / (e + 1), "val_loss": 2.2 / (e + 1),
         "train_top1_error": 0.9 / (e + 1), "val_top1_error": 0.95 / (e + 1)}
        for e in range(epochs)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("epochs", [1, 5, 60])
def test_the_learning_curve_has_both_colours(tmp_path: Path, epochs: int) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is the extra 'report'")
    metrics = write_run(tmp_path / "metrics.jsonl", epochs)
    picture = cv2.imread(str(save_learning_curve(metrics, tmp_path / "curve.png")))
    assert picture is not None
    assert picture.shape[1] > 900
    for color in ((0xB2, 0x72, 0x00), (0x00, 0x5E, 0xD5)):  # BGR of training and validation
        assert (np.abs(picture.astype(int) - color).sum(axis=2) < 12).sum() > 20


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_epochs_are_whole_on_the_axis(tmp_path: Path, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is the extra 'report'")
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "save_plot", lambda figure, path: drawn.append(figure))
    save_learning_curve(write_run(tmp_path / "metrics.jsonl", epochs), tmp_path / "curve.png")
    for axes in drawn[0].axes:
        low, high = axes.get_xlim()
        assert all(float(tick).is_integer() for tick in axes.get_xticks() if low <= tick <= high)


def test_an_epoch_whose_line_was_edited_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is the extra 'report'")
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "save_plot", lambda figure, path: drawn.append(figure))
    metrics = write_run(tmp_path / "metrics.jsonl", 3)
    first, second, third, fourth = metrics.read_text().splitlines()
    metrics.write_text("\n".join([first, second, third.replace("0.45", "null"), fourth, ""]))
    save_learning_curve(metrics, tmp_path / "curve.png")
    assert [line.get_xdata().tolist() for line in drawn[0].axes[1].lines] == [[1, 3], [1, 3], [3]]


def test_a_run_without_an_epoch_has_no_curve(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished epoch"):
        save_learning_curve(write_run(tmp_path / "metrics.jsonl", 0), tmp_path / "curve.png")
    with pytest.raises(InputError, match="no such file"):
        save_learning_curve(tmp_path / "none.jsonl", tmp_path / "curve.png")


def test_matplotlib_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"lmdali\[report\]"):
        save_learning_curve(write_run(tmp_path / "metrics.jsonl", 2), tmp_path / "curve.png")
