"""Lines of text in a picture, and the colours that all our pictures share."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.tables import printable

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]

BLACK: Color = (24, 24, 27)
GRAY: Color = (113, 113, 122)
HAIRLINE: Color = (212, 212, 216)
WHITE: Color = (255, 255, 255)
_ELLIPSIS = "..."


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
        text = self.shorten(text, size, room, bold=bold)
        if text and self._face is not None:
            cv2.putText(self._sheet, text, (x, baseline), color, self._face, size, 700 if bold else 400)
        elif text:
            self._stroke(text, x, baseline, size, color, bold=bold)

    def shorten(self, text: str, size: int, room: int, *, bold: bool = False) -> str:
        """`text` as it is written, or as much of its beginning as fits before an ellipsis."""
        text = printable(text)
        if self.width(text, size, bold=bold) <= room:
            return text
        for length in range(len(text) - 1, 0, -1):
            candidate = text[:length].rstrip(" ,-_") + _ELLIPSIS
            if self.width(candidate, size, bold=bold) <= room:
                return candidate
        return ""

    def width(self, text: str, size: int, *, bold: bool = False) -> int:
        """Pixels from the start of a line to its end."""
        text = printable(text)  # names of folders may hold bytes that are no text: OpenCV 5 ends the process on them
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
