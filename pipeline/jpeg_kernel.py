"""JPEG records to Y, Cb and Cr planes, compiled: entropy decoding and inverse DCT of what a crop needs, and no more.

For records of one known layout this beats libjpeg-turbo by doing less: no header to parse, no rows below the crop, and
one inverse DCT of sixteen blocks at a time, coefficient by coefficient, which the compiler vectorises across blocks.
The result is libjpeg-turbo's accurate decode (JDCT_ISLOW) bit for bit, in whose 16-bit SIMD arithmetic it is written.
"""

from __future__ import annotations

from typing import Any

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
from lmdali.pipeline.idct_kernel import transform_group
from lmdali.pipeline.idct_vectors import GROUP, LANES
from lmdali.pipeline.jpeg_layout import JpegLayout

OK, HEAD_DIFFERS, BAD_CODE, OUT_OF_DATA, BAD_RUN, MISSING_EOI, OUT_OF_RANGE = range(7)
"""What `decode_run` says of a record. Anything but OK: let libjpeg-turbo decode it, which names the damage.

OUT_OF_RANGE is no damage: coefficients that no image has, on which the ways to compute the same transform disagree.
"""


def new_planes(count: int, size: int) -> NDArray[np.uint64]:
    """Room for the planes of `count` square images."""
    return np.empty((count, plane_words(size, size)), np.uint64)


def plane_words(height: int, width: int) -> int:
    """How much that is for one image, uint64: Y, Cb, Cr as bytes, rows and columns padded."""
    mcus = -(-width // 16)
    luma, chroma = -(-2 * mcus // LANES), -(-mcus // LANES)
    return -(-height // 16) * 8 * LANES * (2 * luma + 2 * chroma)


def view_windows(crop_yx: NDArray[np.int64], num_views: int, crop_size: int) -> NDArray[np.int64]:
    """(k * V, 2) corners of V views per image -> (k, 4): first and past-last row, then column, of them all."""
    first = last = crop_yx
    if num_views > 1:
        corners = crop_yx.reshape(-1, num_views, 2)
        first, last = corners.min(axis=1), corners.max(axis=1)
    windows = np.empty((len(first), 4), np.int64)
    windows[:, 0::2], windows[:, 1::2] = first, last + crop_size
    return windows


LayoutArrays = tuple[
    NDArray[np.uint8], int, int, NDArray[np.int16], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64]
]


def layout_arrays(layout: JpegLayout) -> LayoutArrays:
    """The arguments of `decode_run` between `stops` and `windows`."""
    tables = layout.tables
    return layout.head, layout.size, layout.size, layout.quant, tables.lookup, tables.long_codes, tables.at


@compiled
def decode_run(
    shards: NDArray[np.uint8],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    head: NDArray[np.uint8],
    height: int,
    width: int,
    quant: NDArray[np.int16],
    lookup: NDArray[np.uint32],
    long_codes: NDArray[np.uint32],
    table_at: NDArray[np.uint64],
    windows: NDArray[np.int64],
    planes: NDArray[np.uint64],
    status: NDArray[np.int64],
) -> None:
    """Decode k records of one layout into planes.

    Args:
        shards: flat uint8; record i is `shards[starts[i]:stops[i]]`, which must lie inside.
        starts: (k,) int64.
        stops: (k,) int64.
        head: see `layout_arrays`, which gives these seven.
        height: of the images, pixels.
        width: of the images, pixels.
        quant: (3, 64) int16.
        lookup: of `HuffmanTables`, as the next two.
        long_codes: flat uint32.
        table_at: (2, 6) uint64.
        windows: (k, 4) int64, rows then columns of the image needed; the rest of the planes is left undefined.
        planes: (k, ...) of `new_planes`.
        status: (k,) int64, filled with what was found.
    """
    longest = np.int64(0)
    for i in range(len(starts)):  # (stops - starts).max() would be a second of compiling
        longest = max(longest, stops[i] - starts[i])
    # Zeros: what is wrong with a record that ends early does not depend on what this memory held before.
    bits = np.zeros(longest + SPARE_BYTES, np.uint8)
    mcus = (width + 15) >> 4
    groups = 2 * ((2 * mcus + LANES - 1) // LANES) + 2 * ((mcus + LANES - 1) // LANES)
    coefficients, work = np.empty(groups * GROUP, np.int16), np.empty(GROUP, np.int16)
    halves, dc = np.empty(2 * LANES, np.uint32), np.empty(3, np.int64)
    for i in range(len(starts)):
        start, stop = starts[i], stops[i]
        status[i] = HEAD_DIFFERS
        if stop - start <= len(head) or start < 0 or stop > len(shards):
            continue
        differences = np.int64(0)
        for n in range(len(head)):
            differences |= np.int64(shards[start + n] ^ head[n])
        if differences == 0:
            num_bytes, marker = undo_stuffing(shards, start + len(head), stop, bits)
            status[i] = _decode_rows(
                bits,
                num_bytes,
                marker,
                height,
                width,
                quant,
                lookup,
                long_codes,
                table_at,
                windows[i],
                coefficients,
                work,
                halves,
                dc,
                planes[i],
            )


@inlined
def _decode_rows(
    bits: Any, num_bytes: Any, marker: int, height: int, width: int, quant: Any, lookup: Any, long_codes: Any,
    table_at: Any, window: Any, coefficients: Any, work: Any, halves: Any, dc: Any, planes: Any,
) -> int:  # fmt: skip
    """All MCU rows that the window needs."""
    rows, mcus = (height + 15) >> 4, (width + 15) >> 4
    luma_groups, chroma_groups = (2 * mcus + LANES - 1) // LANES, (mcus + LANES - 1) // LANES
    chroma_last = min(((window[1] - 1) >> 1) + 1, (height - 1) >> 1)
    row_stop = min(max((window[1] + 15) >> 4, (chroma_last >> 3) + 1), rows)
    state = first_state(bits)
    dc[:] = 0
    wild = np.int32(0)
    for row in range(row_stop):
        coefficients[:] = 0
        for mcu in range(mcus):
            for block in range(6):
                if block < 4:
                    lane = 2 * mcu + (block & 1) + (block >> 1) * luma_groups * LANES
                else:
                    lane = mcu + (2 * luma_groups + (block - 4) * chroma_groups) * LANES
                base = np.uint64((lane >> 4) * GROUP + (lane & 15))
                component = np.uint64(max(block - 3, 0))
                state, place = decode_block(
                    bits, state, lookup, long_codes, table_at, component, dc, coefficients, base
                )
                if not ends_well(place):
                    return BAD_CODE if place == 0 else BAD_RUN
            if is_beyond(state, num_bytes):
                return OUT_OF_DATA
        wild |= _transform_row(coefficients, quant, work, halves, planes, window, row, rows, luma_groups, chroma_groups)
    left = bits_left(state, num_bytes)
    if left < 0:
        return OUT_OF_DATA
    if row_stop == rows and (left > 7 or marker != EOI):
        return MISSING_EOI
    return OUT_OF_RANGE if wild != 0 else OK


@inlined
def _transform_row(
    coefficients: Any, quant: Any, work: Any, halves: Any, planes: Any, window: Any, row: int, rows: int,
    luma_groups: int, chroma_groups: int,
) -> Any:  # fmt: skip
    """Inverse DCT of those groups of an MCU row that the window touches; not zero if a coefficient was out of range."""
    stride = luma_groups * LANES
    wild = np.int32(0)
    first, stop = max(window[2] >> 7, 0), min((window[3] + 127) >> 7, luma_groups)
    for half in range(2):
        top = 16 * row + 8 * half
        if top < window[1] and top + 8 > window[0]:
            for group in range(first, stop):
                at = (half * luma_groups + group) * GROUP
                part = coefficients[at : at + GROUP]
                wild |= transform_group(part, quant[0], work, halves, planes, top * stride + group * LANES, stride)
    # Upsampling takes one sample more on each side.
    stride = chroma_groups * LANES
    top = 8 * row
    if top <= ((window[1] - 1) >> 1) + 1 and top + 8 >= (window[0] >> 1):
        first, stop = max((window[2] >> 1) - 1, 0) >> 7, min(((((window[3] - 1) >> 1) + 1) >> 7) + 1, chroma_groups)
        for component in range(1, 3):
            plane = rows * 16 * luma_groups * LANES + (component - 1) * rows * 8 * stride
            for group in range(first, stop):
                at = (2 * luma_groups + (component - 1) * chroma_groups + group) * GROUP
                part = coefficients[at : at + GROUP]
                wild |= transform_group(
                    part, quant[component], work, halves, planes, plane + top * stride + group * LANES, stride
                )
    return wild
