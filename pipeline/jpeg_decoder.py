"""Runs of JPEG records to planes: the compiled decoder, and the layouts it has met in this dataset."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline import jpeg_kernel
from lmdali.pipeline.jpeg_kernel import LayoutArrays
from lmdali.pipeline.jpeg_layout import JpegLayout, read_layout

_MAX_LAYOUTS = 4
"""Records of one conversion have one. A set whose every file has tables of its own is better off with libjpeg-turbo."""


class JpegDecoder:
    """Decodes records of layouts that the compiled path takes; thread-safe.

    Args:
        size: side of the images, pixels.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._layouts: list[LayoutArrays] = []
        self._refused = 0
        self._lock = threading.Lock()

    def decode(
        self,
        data: NDArray[np.uint8],
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        windows: NDArray[np.int64],
        planes: NDArray[np.uint64],
    ) -> NDArray[np.bool_]:
        """Decode n records; see `jpeg_kernel.decode_run`.

        Args:
            data: flat uint8; record i is `data[starts[i]:stops[i]]`.
            starts: (n,) int64.
            stops: (n,) int64.
            windows: (n, 4) int64, first and past-last row, then column, that are needed.
            planes: (n or more, ...) of `jpeg_kernel.new_planes`.

        Returns:
            (n,) bool: whose planes are whole. The others are of another encoder, or damaged.
        """
        status = np.full(len(starts), jpeg_kernel.HEAD_DIFFERS, np.int64)
        if self._layouts:
            jpeg_kernel.decode_run(data, starts, stops, *self._layouts[0], windows, planes, status)
        for at in np.flatnonzero(status == jpeg_kernel.HEAD_DIFFERS).tolist():
            one = slice(at, at + 1)
            for layout in self._others(data[starts[at] : stops[at]]):
                jpeg_kernel.decode_run(data, starts[one], stops[one], *layout, windows[one], planes[one], status[one])
                if status[at] != jpeg_kernel.HEAD_DIFFERS:
                    break
        decoded: NDArray[np.bool_] = status == jpeg_kernel.OK
        return decoded

    def _others(self, record: NDArray[np.uint8]) -> list[LayoutArrays]:
        """Layouts that may be this record's, its own learnt first if there is room."""
        head = record.tobytes()
        with self._lock:
            known = [layout for layout in self._layouts if head.startswith(layout[0].tobytes())]
            if not known and len(self._layouts) + self._refused < _MAX_LAYOUTS:
                layout = read_layout(head)
                if isinstance(layout, JpegLayout) and layout.size == self._size:
                    known = [jpeg_kernel.layout_arrays(layout)]
                    self._layouts += known
                else:
                    self._refused += 1
            return known
