from __future__ import annotations

import numpy as np
import pytest
import torch

from lmdali.model.prediction_figure import _CELL_WIDTH, _CORRECT, _MARGIN, _OTHER, draw_predictions, rank_classes
from lmdali.pipeline.errors import InputError

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
PIXELS = np.full((224, 224, 3), 90, np.uint8)


def test_the_five_most_probable_labels_come_in_order_and_equal_ones_by_label() -> None:
    values = torch.tensor([0.1, 0.3, 0.1, 0.05, 0.4, 0.05])
    prediction = rank_classes(PIXELS, 2, values, NAMES)
    assert prediction.top == (4, 1, 0, 2, 3)
    assert prediction.probabilities == tuple(float(values[label]) for label in prediction.top)
    assert prediction.correct_place == 4


def test_a_label_that_is_not_among_the_five_has_no_place() -> None:
    assert rank_classes(PIXELS, 5, torch.tensor([0.3, 0.25, 0.2, 0.15, 0.06, 0.04]), NAMES).correct_place is None


def test_fewer_classes_than_bars_are_all_shown() -> None:
    assert rank_classes(PIXELS, 0, torch.tensor([0.25, 0.75]), NAMES[:2]).top == (1, 0)


def test_wrong_names_and_diverged_networks_are_refused() -> None:
    with pytest.raises(InputError, match="6 class names for the 2 classes"):
        rank_classes(PIXELS, 0, torch.tensor([0.5, 0.5]), NAMES)
    with pytest.raises(InputError, match="not finite"):
        rank_classes(PIXELS, 0, torch.tensor([float("nan")] * 6), NAMES)


def bar_widths(sheet: np.ndarray, color: tuple[int, int, int]) -> list[int]:
    """Widths of the runs of rows in which a colour lies, as wide as it is there."""
    found = (sheet == color).all(axis=2)
    rows = np.flatnonzero(found.any(axis=1))
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    return [int(found[run].any(axis=0).sum()) for run in runs if len(run)]


def test_bars_are_as_long_as_their_probabilities_and_the_true_one_is_red() -> None:
    values = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125])
    sheet = draw_predictions([rank_classes(PIXELS, 1, values, ["i"] * 6)])
    assert sheet.shape[1] == 2 * _MARGIN + _CELL_WIDTH
    # Text covers a few columns of no bar entirely: each bar is 24 rows high.
    assert bar_widths(sheet, _CORRECT) == [round(_CELL_WIDTH / 4)]
    assert bar_widths(sheet, _OTHER) == [round(_CELL_WIDTH * part) for part in (1 / 2, 1 / 8, 1 / 16, 1 / 32)]


def test_without_the_true_label_no_bar_is_red() -> None:
    sheet = draw_predictions([rank_classes(PIXELS, 5, torch.tensor([0.3, 0.25, 0.2, 0.15, 0.06, 0.04]), NAMES)])
    assert not bar_widths(sheet, _CORRECT)


def test_pictures_keep_every_pixel_and_lie_in_rows_of_four() -> None:
    values = torch.tensor([0.5, 0.5])
    pictures = [np.full((224, 224, 3), level, np.uint8) for level in (10, 20, 30, 40, 50)]
    sheet = draw_predictions([rank_classes(picture, 0, values, NAMES[:2]) for picture in pictures])
    tops = []
    for level in (10, 20, 30, 40, 50):
        rows, columns = np.nonzero((sheet == level).all(axis=2))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1, len(rows)) == (224, 224, 224 * 224)
        tops.append(rows.min())
    assert tops[0] == tops[1] == tops[2] == tops[3] < tops[4]


def test_long_names_stay_inside_their_cell() -> None:
    long = ["a name that is far too long for any cell of any figure that was ever printed"] * 5
    one = draw_predictions([rank_classes(PIXELS, 0, torch.full((5,), 0.2), long)])
    assert (one[:, -_MARGIN + 1 :] == 255).all() and (one[:, : _MARGIN - 6] == 255).all()


def test_names_that_are_no_text_are_drawn_all_the_same() -> None:
    names = ["caf\udce9", "tab\tand\x07bell", "", "日本語", "x"]
    sheet = draw_predictions([rank_classes(PIXELS, 0, torch.full((5,), 0.2), names)])
    assert (sheet != 255).any()
