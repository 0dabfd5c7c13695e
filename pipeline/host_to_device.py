"""Small arrays on their way to a device: several in one copy, and nothing waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

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
    packed = np.empty(packed_words(arrays), np.int64)
    pack(arrays, packed)
    return unpack(torch.from_numpy(packed).pin_memory().to(device, non_blocking=True), arrays)


class Uploader:
    """`upload_together` for whoever does it for every batch: through pinned memory of its own, with fewer calls.

    Each of torch's calls lets go of Python's lock, and beside sixteen threads that decode it takes up to 0.2 ms to get
    it back.

    Args:
        device: where the arrays go.
        max_words: `packed_words` of the largest upload.
    """

    def __init__(self, device: torch.device, max_words: int) -> None:
        self._device = device
        self._ring = BufferRing((max_words,), np.int64, pinned=device.type == "cuda")

    def send(self, arrays: Sequence[NDArray[np.generic]]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Start the copy, in the order of the device's current stream.

        Returns:
            The arrays on the device, and the memory that the copy reads: to be held until it is done.
        """
        packed, pinned = self._ring.take(packed_words(arrays))
        pack(arrays, packed)
        return unpack(pinned.to(self._device, non_blocking=True), arrays), pinned


def packed_words(arrays: Sequence[NDArray[np.generic]]) -> int:
    """What some arrays take side by side, in words of 8 bytes."""
    return sum(_room(array) for array in arrays)


def pack(arrays: Sequence[NDArray[np.generic]], out: NDArray[np.generic]) -> None:
    """Write arrays one behind the other into `(packed_words(arrays),)` int64 `out`."""
    begin, memory = 0, out.view(np.uint8)
    for array in arrays:
        place = memory[8 * begin : 8 * begin + array.nbytes]
        place.view(array.dtype).reshape(array.shape)[...] = array
        begin += _room(array)


def unpack(packed: torch.Tensor, arrays: Sequence[NDArray[np.generic]]) -> list[torch.Tensor]:
    """What `pack` wrote as tensors of the arrays' shapes and dtypes: views of `packed`."""
    words = [-(-array.nbytes // 8) for array in arrays]
    rooms = [part for array, own in zip(arrays, words, strict=True) for part in (own, _room(array) - own)]
    return [_formed(part, array) for part, array in zip(packed.split_with_sizes(rooms)[::2], arrays, strict=True)]


def _formed(words: torch.Tensor, array: NDArray[np.generic]) -> torch.Tensor:
    """Some words as a tensor of the array's shape and dtype, with no call that is not needed for that."""
    tensor = words if array.dtype == np.int64 else words.view(_dtype_of(array.dtype))
    if len(tensor) > array.size:  # half a word is left
        tensor = tensor[: array.size]
    return tensor if array.ndim == 1 else tensor.view(array.shape)


@cache
def _dtype_of(dtype: np.dtype[np.generic]) -> torch.dtype:
    return torch_dtype(dtype.name)  # NumPy takes microseconds to make the name


def _room(array: NDArray[np.generic]) -> int:
    """Words of an array and of what is empty behind it."""
    return -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT // 8
