"""The heads of many values at once: where each image lies, and its label, without a step of Python per record.

Only the layout that `records.pack_record` writes is understood here; anything else is left to `records.parse_record`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.crop_kernel import compiled
from lmdali.pipeline.records import TAIL_AFTER_LABEL, pack_record


def head_bytes(image_size: int) -> NDArray[np.uint8]:
    """What every value of a dataset begins with, up to the length of its image: (n,) uint8."""
    value = pack_record(b"", label=0, height=image_size, width=image_size)
    return np.frombuffer(value[: value.index(b"\x22") + 1], np.uint8)


TAIL = np.frombuffer(TAIL_AFTER_LABEL, np.uint8)
"""What follows the label, up to the checksum."""


@compiled
def parse_heads(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    head: NDArray[np.uint8],
    tail: NDArray[np.uint8],
    image_starts: NDArray[np.int64],
    image_stops: NDArray[np.int64],
    labels: NDArray[np.int64],
    crcs: NDArray[np.int64],
) -> int:
    """Find image, label and stored checksum of n values.

    Args:
        data: uint8, all bytes.
        starts: (n,) int64 first byte of each value in `data`.
        stops: (n,) int64 the byte after it.
        head: from `head_bytes`.
        tail: `TAIL`.
        image_starts: (n,) int64, written.
        image_stops: (n,) int64, written.
        labels: (n,) int64, written.
        crcs: (n,) int64, written.

    Returns:
        How many values were parsed before the first of another layout; n if there is none.
    """
    for i in range(len(starts)):
        at, stop = starts[i], stops[i]
        if stop - at < len(head) + len(tail) + 7:
            return i
        for k in range(len(head)):
            if data[at + k] != head[k]:
                return i
        at += len(head)
        size, at = _varint(data, at, stop)
        if size < 0 or size > stop - at:
            return i
        image_starts[i], image_stops[i] = at, at + size
        at += size
        if at >= stop or data[at] != 0x28:
            return i
        label, at = _varint(data, at + 1, stop)
        if label < 0 or stop - at != len(tail) + 4:
            return i
        for k in range(len(tail)):
            if data[at + k] != tail[k]:
                return i
        at += len(tail)
        labels[i] = label
        crcs[i] = (
            np.int64(data[at])
            | np.int64(data[at + 1]) << 8
            | np.int64(data[at + 2]) << 16
            | np.int64(data[at + 3]) << 24
        )
    return len(starts)


@compiled
def first_unlike(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    header: NDArray[np.uint8],
    num_bytes: int,
) -> int:
    """Which of n image files is the first that is not `header` and `num_bytes` bytes after it; n if there is none.

    Args:
        data: uint8, all bytes.
        starts: (n,) int64 first byte of each file in `data`.
        stops: (n,) int64 the byte after it.
        header: uint8.
        num_bytes: of pixels.
    """
    for i in range(len(starts)):
        if stops[i] - starts[i] != len(header) + num_bytes:
            return i
        for k in range(len(header)):
            if data[starts[i] + k] != header[k]:
                return i
    return len(starts)


@compiled
def _varint(data: NDArray[np.uint8], at: Any, stop: Any) -> tuple[np.int64, Any]:
    """A protobuf varint below 2**35 and the byte after it; -1 where there is none."""
    number = np.int64(0)
    for k in range(5):
        if at + k >= stop:
            return np.int64(-1), at
        byte = np.int64(data[at + k])
        number |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return number, at + k + 1
    return np.int64(-1), at
