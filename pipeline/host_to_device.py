"""Small arrays on their way to a device: several in one copy, and nothing waits for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lmdali.pipeline.buffers import BufferRing

_ALIGNMENT = 16
"""Bytes; each array of an upload begins at a multiple of it, and so does whatever follows."""


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of that name."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def upload(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A small array on the device, in the order of its current stream, without waiting for the copy.

    On a GPU the values pass through pinned memory of torch's own, which torch does not use again before the copy is
    done. On the CPU the tensor shares the array's memory.
    """
    return upload_together([array], device)[0]


def upload_together(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[torch.Tensor]:
    """As `upload`, of several arrays in one copy: each costs the same microseconds, however small it is."""
    if device.type != "cuda":
        return [torch.from_numpy(array) for array in arrays]
    packed = np.empty(packed_bytes(arrays), np.uint8)
    pack(arrays, packed)
    return unpack(torch.from_numpy(packed).pin_memory().to(device, non_blocking=True), arrays)


class Uploader:
    """`upload_together` for whoever does it for every batch: through pinned memory of its own, with fewer calls.

    Each of torch's calls lets go of Python's lock, and beside sixteen threads that decode it takes up to 0.2 ms to get
    it back.

    Args:
        device: where the arrays go.
        max_bytes: `packed_bytes` of the largest upload.
    """

    def __init__(self, device: torch.device, max_bytes: int) -> None:
        self._device = device
        self._ring = BufferRing((max_bytes,), np.uint8, pinned=device.type == "cuda")

    def send(self, arrays: Sequence[NDArray[np.generic]]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Start the copy, in the order of the device's current stream.

        Returns:
            The arrays on the device, and the memory that the copy reads: to be held until it is done.
        """
        packed, pinned = self._ring.take(packed_bytes(arrays))
        pack(arrays, packed)
        return unpack(pinned.to(self._device, non_blocking=True), arrays), pinned


def packed_bytes(arrays: Sequence[NDArray[np.generic]]) -> int:
    """What some arrays take side by side."""
    return sum(_room(array) for array in arrays)


def pack(arrays: Sequence[NDArray[np.generic]], out: NDArray[np.generic]) -> None:
    """Write arrays one behind the other as bytes into `(packed_bytes(arrays),)` uint8 `out`."""
    start = 0
    for array in arrays:
        out[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        start += _room(array)


def unpack(packed: torch.Tensor, arrays: Sequence[NDArray[np.generic]]) -> list[torch.Tensor]:
    """What `pack` wrote as tensors of the arrays' shapes and dtypes: views of `packed`."""
    of_dtype: dict[np.dtype[np.generic], torch.Tensor] = {}
    tensors, start = [], 0
    for array in arrays:
        if array.dtype not in of_dtype:
            of_dtype[array.dtype] = packed.view(torch_dtype(array.dtype.name))
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        whole = of_dtype[array.dtype]
        offset = whole.storage_offset() + start // array.itemsize  # of the memory, not of `packed`
        tensors.append(whole.as_strided(array.shape, strides, offset))
        start += _room(array)
    return tensors


def _room(array: NDArray[np.generic]) -> int:
    return -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
