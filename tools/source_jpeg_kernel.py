"""Whole JPEG sources to RGB, compiled: those with a sample of chroma for each pixel (4:4:4), or for each four (4:2:0).

The decoder is that of the loader's records. Of 4:4:4, which no record has, an MCU row becomes pixels while its
coefficients are still in the core's cache. The result is libjpeg-turbo's accurate decode (JDCT_ISLOW) bit for bit.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.crop_kernel import compiled, inlined
from lmdali.pipeline.entropy_kernel import (
    EOI,
    SPARE_BYTES,
    bits_left,
    decode_block,
    ends_well,
    first_state,
    is_beyond,
    undo_stuffing,
)
from lmdali.pipeline.huffman_tables import HuffmanTables
from lmdali.pipeline.idct_kernel import transform_group
from lmdali.pipeline.idct_vectors import GROUP, LANES
from lmdali.pipeline.jpeg_header import SAMPLING_420, SAMPLING_444, JpegHeader
from lmdali.pipeline.jpeg_kernel import OK, decode_run, plane_words
from lmdali.pipeline.jpeg_layout import MAX_SIDE, MIN_SIDE
from lmdali.pipeline.paint_kernel import ROW, convert_row, paint_whole, put_row

MAX_HALVED_PIXELS: Final = 1 << 24
"""Of a picture of 4:2:0, whose planes are made before its pixels: 24 MB."""

_GROUP_WIDTH: Final = 8 * LANES


def is_made_for(header: JpegHeader) -> bool:
    """Whether `decode_picture` can decode files with this header."""
    if header.width > MAX_SIDE:
        return False
    if header.sampling == SAMPLING_420:
        is_wide_enough = min(header.height, header.width) >= MIN_SIDE
        return is_wide_enough and header.height * header.width <= MAX_HALVED_PIXELS
    return header.sampling == SAMPLING_444


class Scratch:
    """Memory of one thread, used by one picture after the other."""

    def __init__(self) -> None:
        groups = MAX_SIDE // _GROUP_WIDTH
        self.tables = HuffmanTables()
        self.coefficients = np.empty(3 * groups * GROUP, np.int16)
        self.words = np.empty(3 * groups * GROUP // 8, np.uint64)
        self.bits = np.empty(1 << 18, np.uint8)
        self.planes = np.empty((1, 1 << 17), np.uint64)


def decode_picture(data: bytes, header: JpegHeader, scratch: Scratch, out: NDArray[np.uint8]) -> bool:
    """Decode one file.

    Args:
        data: the file.
        header: its header, which `is_made_for` this.
        scratch: overwritten.
        out: (H, W, 3) uint8, C-contiguous, filled with RGB.

    Returns:
        Whether `out` is what libjpeg-turbo gives, and without a complaint. If not, let it decode the file.
    """
    scratch.tables.fill(header)
    made = _decode_halved if header.sampling == SAMPLING_420 else _decode_full
    return made(np.frombuffer(data, np.uint8), header, scratch, out)


def _decode_halved(data: NDArray[np.uint8], header: JpegHeader, scratch: Scratch, out: NDArray[np.uint8]) -> bool:
    needed = plane_words(header.height, header.width)
    if scratch.planes.shape[1] < needed:
        scratch.planes = np.empty((1, needed), np.uint64)
    status, tables = np.empty(1, np.int64), scratch.tables
    decode_run(
        data, np.zeros(1, np.int64), np.array([len(data)]), data[: header.num_bytes], header.height, header.width,
        header.quant, tables.lookup, tables.long_codes, tables.at,
        np.array([[0, header.height, 0, header.width]]), scratch.planes, status,
    )  # fmt: skip
    if status[0] != OK:
        return False
    paint_whole(scratch.planes, out[np.newaxis])
    return True


def _decode_full(data: NDArray[np.uint8], header: JpegHeader, scratch: Scratch, out: NDArray[np.uint8]) -> bool:
    if len(scratch.bits) < len(data) + SPARE_BYTES:
        scratch.bits = np.empty(2 * len(data) + SPARE_BYTES, np.uint8)
    tables = scratch.tables
    is_whole: bool = _full_rows(
        data, header.num_bytes, header.quant, tables.lookup, tables.long_codes, tables.at,
        scratch.bits, scratch.coefficients, scratch.words, out,
    )  # fmt: skip
    return is_whole


@compiled
def _full_rows(
    data: Any, begin: int, quant: Any, lookup: Any, long_codes: Any, table_at: Any, bits: Any, coefficients: Any,
    words: Any, out: Any,
) -> bool:  # fmt: skip
    height, width = out.shape[0], out.shape[1]
    num_bytes, marker = undo_stuffing(data, begin, len(data), bits)
    mcus, groups = (width + 7) >> 3, (width + _GROUP_WIDTH - 1) // _GROUP_WIDTH
    work, halves, dc = np.empty(GROUP, np.int16), np.empty(2 * LANES, np.uint32), np.zeros(3, np.int64)
    rows, flat, wild = np.empty(3 * ROW, np.uint8), out.reshape(-1), np.int32(0)
    used = coefficients[: 3 * groups * GROUP]
    state = first_state(bits)
    for top in range(0, height, 8):
        used[:] = 0
        for mcu in range(mcus):
            for component in range(3):
                base = np.uint64(((mcu >> 4) + component * groups) * GROUP + (mcu & 15))
                state, place = decode_block(
                    bits, state, lookup, long_codes, table_at, np.uint64(component), dc, used, base
                )
                if not ends_well(place):
                    return False
            if is_beyond(state, num_bytes):
                return False
        for component in range(3):
            for group in range(groups):
                at = (group + component * groups) * GROUP
                to = (group + component * 8 * groups) * LANES
                wild |= transform_group(
                    used[at : at + GROUP], quant[component], work, halves, words, to, groups * LANES
                )
        _paint_rows(words.view(np.uint8), groups * _GROUP_WIDTH, rows, flat, top, min(top + 8, height), width)
    left = bits_left(state, num_bytes)
    return bool(wild == 0 and 0 <= left < 8 and marker == EOI)


@inlined
def _paint_rows(planes: Any, stride: int, rows: Any, flat: Any, top: int, stop: int, width: int) -> None:
    """Rows `top` to `stop - 1` of the picture, from planes of 8 rows."""
    for row in range(stop - top):
        y_at, plane = np.uint64(row * stride), np.uint64(8 * stride)
        convert_row(planes, y_at, planes, y_at + plane, y_at + plane + plane, rows, np.uint64(width))
        put_row(rows, np.uint64(0), flat, np.uint64((top + row) * width * 3), np.uint64(width))
