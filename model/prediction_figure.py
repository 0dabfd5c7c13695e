"""Figure 4, left, of the paper: pictures with their five most probable labels as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lmdali.model.pen import BLACK, GRAY, HAIRLINE, Color, Pen, Pixels
from lmdali.pipeline.errors import InputError

NUM_BARS = 5
_COLUMNS = 4
_MARGIN, _GAP, _ROW_GAP = 28, 24, 28
_CELL_WIDTH = 264
_TITLE_HEIGHT, _BAR_HEIGHT, _BAR_GAP, _AXIS_HEIGHT = 32, 24, 4, 24
_TITLE_SIZE, _LABEL_SIZE, _SMALL_SIZE = 18, 15, 12
_CORRECT: Color = (240, 128, 116)
_OTHER: Color = (168, 202, 228)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one picture.

    Attributes:
        pixels: `(S, S, 3)` uint8 RGB, what the network saw.
        label: the true class.
        top: the most probable classes, at most five, the most probable first; equal ones in label order.
        probabilities: of each of `top`, 0..1, the numbers as float32 gave them.
        class_names: readable name of each class.
    """

    pixels: Pixels
    label: int
    top: tuple[int, ...]
    probabilities: tuple[float, ...]
    class_names: Sequence[str]

    @property
    def correct_place(self) -> int | None:
        """Where the true class is in `top`, from 1, or None."""
        return self.top.index(self.label) + 1 if self.label in self.top else None


def rank_classes(pixels: Pixels, label: int, probabilities: Tensor, class_names: Sequence[str]) -> Prediction:
    """The five most probable classes of one picture.

    Args:
        pixels: `(S, S, 3)` uint8 RGB.
        label: the true class.
        probabilities: `(C,)` of the central crop, floating point.
        class_names: C readable names.

    Raises:
        InputError: other than C names, or a probability is not finite.
    """
    if len(class_names) != len(probabilities):
        found = f"{len(class_names)} class names for the {len(probabilities)} classes of the network"
        raise InputError(f"{found}: give those it was trained on")
    values = probabilities.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise InputError(
            "the network's probabilities are not finite: its training diverged: give an earlier checkpoint"
        )
    order = np.argsort(-values, kind="stable")[:NUM_BARS].tolist()
    return Prediction(pixels, label, tuple(order), tuple(float(values[place]) for place in order), class_names)


def draw_predictions(predictions: Sequence[Prediction]) -> Pixels:
    """Draw pictures in a grid: the true label below each, then the bars, the most probable on top.

    A bar's length is its probability, on an axis from 0 to 1; the bar of the true label is red.

    Args:
        predictions: at least one, pictures of one size.

    Returns:
        `(H, W, 3)` uint8 RGB on white.
    """
    side = len(predictions[0].pixels)
    width = max(_CELL_WIDTH, side)
    bars = max(len(prediction.top) for prediction in predictions)
    height = side + _TITLE_HEIGHT + bars * (_BAR_HEIGHT + _BAR_GAP) + _AXIS_HEIGHT
    columns = min(_COLUMNS, len(predictions))
    rows = -(-len(predictions) // columns)
    shape = (
        2 * _MARGIN + rows * height + (rows - 1) * _ROW_GAP,
        2 * _MARGIN + columns * width + (columns - 1) * _GAP,
        3,
    )
    sheet: Pixels = np.full(shape, 255, np.uint8)
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, columns)
        _draw_cell(sheet, prediction, _MARGIN + column * (width + _GAP), _MARGIN + row * (height + _ROW_GAP), width)
    return sheet


def _draw_cell(sheet: Pixels, prediction: Prediction, x: int, y: int, width: int) -> None:
    pen = Pen(sheet)
    side = len(prediction.pixels)
    left = x + (width - side) // 2
    sheet[y - 1 : y + side + 1, left - 1 : left + side + 1] = HAIRLINE
    sheet[y : y + side, left : left + side] = prediction.pixels
    title = pen.shorten(prediction.class_names[prediction.label], _TITLE_SIZE, width, bold=True)
    centred = x + (width - pen.width(title, _TITLE_SIZE, bold=True)) // 2
    pen.write(title, centred, y + side + 23, _TITLE_SIZE, BLACK, width, bold=True)
    top = bar_top = y + side + _TITLE_HEIGHT
    for place, probability in zip(prediction.top, prediction.probabilities, strict=True):
        color = _CORRECT if place == prediction.label else _OTHER
        sheet[bar_top : bar_top + _BAR_HEIGHT, x : x + round(width * probability)] = color
        number = _percent(probability)
        room = pen.width(number, _SMALL_SIZE) + 6
        pen.write(number, x + width - room, bar_top + 17, _SMALL_SIZE, GRAY if probability < 0.8 else BLACK, room)
        name = prediction.class_names[place]
        pen.write(name, x + 6, bar_top + 17, _LABEL_SIZE, BLACK, width - room - 14)
        bar_top += _BAR_HEIGHT + _BAR_GAP
    for part, text in ((0.0, "0"), (0.5, "0.5"), (1.0, "1")):
        tick = min(x + round(width * part), x + width - 1)
        sheet[bar_top : bar_top + 4, tick] = GRAY
        shift = (0.0, 0.5, 1.0)[int(2 * part)] * pen.width(text, _SMALL_SIZE)
        pen.write(text, tick - round(shift), bar_top + 17, _SMALL_SIZE, GRAY, width)
    sheet[top:bar_top, x - 1] = GRAY
    sheet[bar_top, x - 1 : x + width] = GRAY


def _percent(probability: float) -> str:
    """Short: no number that is not certain looks so."""
    percent = 100 * probability
    if percent >= 99.95 and probability < 1:
        return ">99.9 %"
    return f"{percent:.1f} %" if percent >= 0.05 or percent == 0 else "<0.1 %"
