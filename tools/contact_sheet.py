"""A sheet of captioned pictures: layout and type, knowing nothing of datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmdali.model.pen import BLACK, GRAY, HAIRLINE, WHITE, Pen, Pixels

MARGIN, GAP, ROW_GAP = 36, 16, 20
SMALLEST_TILE = 112
"""Smaller pictures are enlarged by a whole factor, pixel by pixel: captions need the room."""

_TITLE_SIZE, _DETAIL_SIZE, _CAPTION_SIZE, _NOTE_SIZE = 26, 15, 16, 13
_HEADER_HEIGHT, _CAPTION_HEIGHT = 68, 42


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture and what is written under it.

    Attributes:
        pixels: (S, S, 3) uint8 RGB.
        caption: first line.
        note: second line, smaller and paler.
    """

    pixels: Pixels
    caption: str
    note: str


def draw_sheet(tiles: Sequence[Tile], *, columns: int, title: str, detail: str) -> Pixels:
    """Draw a sheet.

    Args:
        tiles: at least one, all of one size; row by row.
        columns: pictures side by side.
        title: large, at the top.
        detail: below it, smaller.

    Returns:
        (H, W, 3) uint8 RGB on white.
    """
    side = len(tiles[0].pixels)
    factor = -(-SMALLEST_TILE // side)
    side *= factor
    rows, columns = -(-len(tiles) // columns), min(columns, len(tiles))
    width = 2 * MARGIN + columns * side + (columns - 1) * GAP
    height = 2 * MARGIN + _HEADER_HEIGHT + rows * (side + _CAPTION_HEIGHT) + (rows - 1) * ROW_GAP
    sheet: Pixels = np.full((height, width, 3), WHITE, np.uint8)
    pen = Pen(sheet)
    room = width - 2 * MARGIN
    pen.write(title, MARGIN, MARGIN + 20, _TITLE_SIZE, BLACK, room, bold=True)
    pen.write(detail, MARGIN, MARGIN + 44, _DETAIL_SIZE, GRAY, room)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x = MARGIN + column * (side + GAP)
        y = MARGIN + _HEADER_HEIGHT + row * (side + _CAPTION_HEIGHT + ROW_GAP)
        # A hairline, or a picture of something on white has no edge.
        sheet[y - 1 : y + side + 1, x - 1 : x + side + 1] = HAIRLINE
        sheet[y : y + side, x : x + side] = tile.pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        pen.write(tile.caption, x, y + side + 20, _CAPTION_SIZE, BLACK, side)
        pen.write(tile.note, x, y + side + 38, _NOTE_SIZE, GRAY, side)
    return sheet
