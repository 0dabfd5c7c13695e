"""Batch buffers that are used again, and never while somebody still holds the batch.

Filling fresh pages costs two to three times as much as filling memory that was written before, so a buffer goes back to
the ring when the last tensor that shares its memory is gone: views, slices and batches that a user keeps all count.
"""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from lmdali.pipeline.errors import MachineError

MAX_SPARE_BUFFERS = 12
"""What a loader has in flight by default, at most 8, and what its consumer and a copy to a GPU hold besides."""


class BufferRing:
    """Arrays of one shape and dtype, handed out as often as they come back.

    Args:
        shape: of every buffer; the first axis is the largest batch.
        dtype: NumPy dtype.
        pinned: page-locked memory, for asynchronous copies to a GPU.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, *, pinned: bool = False) -> None:
        self._shape, self._dtype, self._pinned = shape, np.dtype(dtype), pinned
        # No lock: a buffer can come back from the garbage collector while this thread is in here. A deque is atomic.
        self._spare: deque[NDArray[np.generic]] = deque()
        self._closed = False
        self.num_allocated = 0

    def take(self, count: int) -> tuple[NDArray[np.generic], torch.Tensor]:
        """The first `count` rows of a buffer nobody holds, as an array to write and a tensor to give away.

        The memory returns to the ring when the tensor, everything that shares its storage, and the array are gone.
        """
        try:
            whole = self._spare.pop()
        except IndexError:
            whole = self._allocate()
        # torch keeps the array it was made from alive as long as its storage: the view's end is the batch's end.
        view = whole[:count]
        weakref.finalize(view, self._give_back, whole).atexit = False
        return view, torch.from_numpy(view)

    def close(self) -> None:
        """Free what is spare, and what comes back from now on."""
        self._closed = True
        self._spare.clear()

    def _allocate(self) -> NDArray[np.generic]:
        self.num_allocated += 1
        if self._pinned:
            kind = torch.from_numpy(np.empty(0, self._dtype)).dtype
            pinned: NDArray[np.generic] = torch.empty(self._shape, dtype=kind, pin_memory=True).numpy()
            return pinned
        try:
            return np.empty(self._shape, self._dtype)
        except MemoryError:
            num_bytes = math.prod(self._shape) * self._dtype.itemsize
            raise MachineError(
                f"there is no memory for another batch of {self._shape[0]} images, {num_bytes} bytes: lower batch_size "
                "or prefetch, or keep fewer batches"
            ) from None

    def _give_back(self, whole: NDArray[np.generic]) -> None:
        if not self._closed and len(self._spare) < MAX_SPARE_BUFFERS:
            self._spare.append(whole)
