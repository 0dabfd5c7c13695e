"""What the records of a dataset share: one encoder writes them all, so their headers are equal byte for byte.

A header is parsed once; after that a record belongs to its layout when its first bytes are the layout's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.huffman_tables import HuffmanTables
from lmdali.pipeline.jpeg_header import SAMPLING_420, read_jpeg_header

MAX_HEAD_BYTES: Final = 4096
"""A header is looked for in no more than this: ours have 623 bytes, and metadata belongs in the tables of a dataset."""

MIN_SIDE, MAX_SIDE = 16, 4096
"""Pixels: libjpeg upsamples narrow pictures in another way, and the kernels' rows have room for no more."""


@dataclass(frozen=True, eq=False)
class JpegLayout:
    """Everything that records with the same header share, checked so that the kernel may trust it.

    Attributes:
        head: (H,) uint8, SOI to the end of SOS; the coded data starts right after it.
        size: side of the image, pixels.
        quant: (3, 64) int16, 1..255, quantisation step of each component, 8 * row + column.
        tables: the Huffman tables.
    """

    head: NDArray[np.uint8]
    size: int
    quant: NDArray[np.int16]
    tables: HuffmanTables


def read_layout(data: bytes) -> JpegLayout | str:
    """Parse the header of one record.

    Args:
        data: the record's image file, or at least its first bytes.

    Returns:
        The layout; or the reason, as a sentence, why the compiled path does not apply.
    """
    header = read_jpeg_header(data, MAX_HEAD_BYTES)
    if isinstance(header, str):
        return header
    if header.height != header.width:
        return f"it is {header.width} x {header.height} pixels, not square"
    if not MIN_SIDE <= header.width <= MAX_SIDE:
        return f"a side of {header.width} pixels is not within {MIN_SIDE} to {MAX_SIDE}"
    if header.sampling != SAMPLING_420:
        return "its sampling is not 4:2:0"
    tables = HuffmanTables()
    tables.fill(header)
    return JpegLayout(np.frombuffer(data[: header.num_bytes], np.uint8), header.width, header.quant, tables)
