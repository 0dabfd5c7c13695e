"""Figure 4, right, of the paper: queries in the first column, the images nearest to each of them beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from lmdali.model.pen import BLACK, GRAY, HAIRLINE, Pen, Pixels

TILE_SIDE = 160
_MARGIN, _GAP, _QUERY_GAP, _ROW_GAP, _CAPTION_HEIGHT, _HEADER_HEIGHT = 28, 12, 36, 18, 42, 34
_HEADER_SIZE, _CAPTION_SIZE, _NOTE_SIZE = 16, 15, 12


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture and what is written under it.

    Attributes:
        pixels: `(S, S, 3)` uint8 RGB.
        caption: first line.
        note: second line, smaller and paler.
    """

    pixels: Pixels
    caption: str
    note: str


def draw_neighbours(rows: Sequence[tuple[Picture, Sequence[Picture]]], *, legend: str = "") -> Pixels:
    """Draw one row for each query.

    Args:
        rows: at least one: a query and its neighbours, the nearest first.
        legend: what the notes say, at the top right.

    Returns:
        `(H, W, 3)` uint8 RGB on white.
    """
    count = max(len(neighbours) for _, neighbours in rows)
    width = 2 * _MARGIN + TILE_SIDE + _QUERY_GAP + count * TILE_SIDE + (count - 1) * _GAP
    height = 2 * _MARGIN + _HEADER_HEIGHT + len(rows) * (TILE_SIDE + _CAPTION_HEIGHT) + (len(rows) - 1) * _ROW_GAP
    sheet: Pixels = np.full((height, width, 3), 255, np.uint8)
    first = _MARGIN + TILE_SIDE + _QUERY_GAP
    pen = Pen(sheet)
    pen.write("query", _MARGIN, _MARGIN + 16, _HEADER_SIZE, BLACK, TILE_SIDE, bold=True)
    heading, room = "nearest first", width - _MARGIN - first
    pen.write(heading, first, _MARGIN + 16, _HEADER_SIZE, BLACK, room, bold=True)
    room -= pen.width(heading, _HEADER_SIZE, bold=True) + _GAP
    legend = pen.shorten(legend, _NOTE_SIZE, room)
    pen.write(legend, width - _MARGIN - pen.width(legend, _NOTE_SIZE), _MARGIN + 16, _NOTE_SIZE, GRAY, room)
    y = _MARGIN + _HEADER_HEIGHT
    for query, neighbours in rows:
        _draw_picture(sheet, query, _MARGIN, y)
        for place, neighbour in enumerate(neighbours):
            _draw_picture(sheet, neighbour, first + place * (TILE_SIDE + _GAP), y)
        y += TILE_SIDE + _CAPTION_HEIGHT + _ROW_GAP
    line = _MARGIN + TILE_SIDE + _QUERY_GAP // 2
    sheet[_MARGIN : height - _MARGIN, line] = HAIRLINE
    return sheet


def _draw_picture(sheet: Pixels, picture: Picture, x: int, y: int) -> None:
    side = len(picture.pixels)
    interpolation = cv2.INTER_AREA if side > TILE_SIDE else cv2.INTER_CUBIC
    resized = cv2.resize(picture.pixels, (TILE_SIDE, TILE_SIDE), interpolation=interpolation)
    sheet[y - 1 : y + TILE_SIDE + 1, x - 1 : x + TILE_SIDE + 1] = HAIRLINE
    sheet[y : y + TILE_SIDE, x : x + TILE_SIDE] = resized
    pen = Pen(sheet)
    pen.write(picture.caption, x, y + TILE_SIDE + 19, _CAPTION_SIZE, BLACK, TILE_SIDE)
    pen.write(picture.note, x, y + TILE_SIDE + 36, _NOTE_SIZE, GRAY, TILE_SIDE)
