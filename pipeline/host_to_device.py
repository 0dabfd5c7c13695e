"""Small arrays on their way to a device: several in one copy, and nothing waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT = 16
"""Bytes; each array of an upload begins at a multiple of it."""


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
    packed, starts = pack(arrays)
    there = torch.from_numpy(packed).pin_memory().to(device, non_blocking=True)
    return [unpack(there, start, array) for start, array in zip(starts, arrays, strict=True)]


def pack(arrays: Sequence[NDArray[np.generic]]) -> tuple[NDArray[np.uint8], list[int]]:
    """Arrays one behind the other as bytes, and where each begins."""
    starts, end = [], 0
    for array in arrays:
        starts.append(end)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    packed = np.empty(end, np.uint8)
    for start, array in zip(starts, arrays, strict=True):
        packed[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    return packed, starts


def unpack(packed: torch.Tensor, start: int, array: NDArray[np.generic]) -> torch.Tensor:
    """The bytes from `start` on as a tensor of the array's shape and dtype; a view."""
    dtype = torch_dtype(array.dtype.name)
    return packed[start : start + array.nbytes].view(dtype).view(array.shape)
