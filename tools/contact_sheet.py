"""A sheet of captioned pictures: layout and type, knowing nothing of datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.files import storage_errors, write_atomic

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

MARGIN, GAP, ROW_GAP = 36, 16, 20
SMALLEST_TILE = 112
"""Smaller pictures are enlarged by a whole factor, pixel by pixel: captions need the room."""

_TITLE_SIZE, _DETAIL_SIZE, _CAPTION_SIZE, _NOTE_SIZE = 26, 15, 16, 13
_HEADER_HEIGHT, _CAPTION_HEIGHT = 68, 42
_BLACK: Color = (24, 24, 27)
_GRAY: Color = (113, 113, 122)
_HAIRLINE: Color = (212, 212, 216)
_WHITE = 255
_ELLIPSIS = "..."


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
    sheet: Pixels = np.full((height, width, 3), _WHITE, np.uint8)
    pen = Pen(sheet)
    room = width - 2 * MARGIN
    pen.write(title, MARGIN, MARGIN + 20, _TITLE_SIZE, _BLACK, room, bold=True)
    pen.write(detail, MARGIN, MARGIN + 44, _DETAIL_SIZE, _GRAY, room)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x = MARGIN + column * (side + GAP)
        y = MARGIN + _HEADER_HEIGHT + row * (side + _CAPTION_HEIGHT + ROW_GAP)
        # A hairline, or a picture of something on white has no edge.
        sheet[y - 1 : y + side + 1, x - 1 : x + side + 1] = _HAIRLINE
        sheet[y : y + side, x : x + side] = tile.pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        pen.write(tile.caption, x, y + side + 20, _CAPTION_SIZE, _BLACK, side)
        pen.write(tile.note, x, y + side + 38, _NOTE_SIZE, _GRAY, side)
    return sheet


def check_suffix(out: Path) -> None:
    """Refuse a name that no picture can be saved under, before the work is done.

    Raises:
        ConfigError: its suffix names no format that is known.
    """
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{out}: a picture's name ends in {', '.join(_SUFFIXES)}")


def save_sheet(sheet: Pixels, out: Path) -> None:
    """Write a sheet as a picture file; its suffix names the format, missing folders are made.

    Raises:
        StorageError: it cannot be written.
    """
    done, encoded = cv2.imencode(out.suffix.lower(), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert done
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, encoded.tobytes())


class Pen:
    """Writes lines of text into a picture.

    OpenCV 5 has real typefaces; before it there are only stroke fonts, which are drawn at four times the size and
    averaged down, because at the sizes of a caption their lines are uneven.

    Args:
        sheet: (H, W, 3) uint8, written to.
    """

    def __init__(self, sheet: Pixels) -> None:
        self._sheet = sheet
        face: Any = getattr(cv2, "FontFace", None)
        self._face = None if face is None else face("sans")

    def write(
        self, text: str, x: int, baseline: int, size: int, color: Color, room: int, *, bold: bool = False
    ) -> None:
        """Write one line, shortened where it is wider than `room` pixels."""
        text = self.shorten(_printable(text), size, room, bold=bold)
        if text and self._face is not None:
            cv2.putText(self._sheet, text, (x, baseline), color, self._face, size, 700 if bold else 400)
        elif text:
            self._stroke(text, x, baseline, size, color, bold=bold)

    def shorten(self, text: str, size: int, room: int, *, bold: bool = False) -> str:
        """`text`, or as much of its beginning as fits before an ellipsis."""
        if self.width(text, size, bold=bold) <= room:
            return text
        for length in range(len(text) - 1, 0, -1):
            candidate = text[:length].rstrip(" ,-_") + _ELLIPSIS
            if self.width(candidate, size, bold=bold) <= room:
                return candidate
        return ""

    def width(self, text: str, size: int, *, bold: bool = False) -> int:
        """Pixels from the start of a line to its end."""
        if self._face is not None:
            box = cv2.getTextSize((0, 0), text, (0, 0), self._face, size, 700 if bold else 400)
            return int(box[0] + box[2])
        scale, thickness = _stroke_form(size, bold=bold)
        (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        return -(-int(width) // _FINER)

    def _stroke(self, text: str, x: int, baseline: int, size: int, color: Color, *, bold: bool) -> None:
        scale, thickness = _stroke_form(size, bold=bold)
        top, height, width = baseline - size, 2 * size, self.width(text, size, bold=bold) + size
        ink = np.zeros((_FINER * height, _FINER * width), np.uint8)
        origin = (thickness, _FINER * size)
        cv2.putText(ink, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
        cover = cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA)[..., None].astype(np.float32) / 255
        area = self._sheet[top : top + height, x : x + width]
        cover = cover[: area.shape[0], : area.shape[1]]
        area[:] = np.rint(area * (1 - cover) + np.array(color, np.float32) * cover).astype(np.uint8)


_FINER = 4
_STROKE_HEIGHT = 32.0
"""Line height of the stroke font at scale 1, pixels."""


def _stroke_form(size: int, *, bold: bool) -> tuple[float, int]:
    """Scale and line width of the stroke font before it is averaged down."""
    return _FINER * size / _STROKE_HEIGHT, max(1, round(_FINER * size / (9 if bold else 14)))


def _printable(text: str) -> str:
    """Names of folders may hold bytes that are no text, and control characters."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(character if character.isprintable() else "?" for character in text)
