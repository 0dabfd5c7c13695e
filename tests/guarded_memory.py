"""Arrays that end where a page begins that nobody may read: a byte more ends the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import numpy.typing as npt


def guarded(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy of `pixels` in such memory."""
    readable = -(-pixels.size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, readable + mmap.PAGESIZE), np.uint8)
    protect = ctypes.CDLL(None).mprotect
    assert protect(ctypes.c_void_p(memory.ctypes.data + readable), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copy = memory[readable - pixels.size : readable].reshape(pixels.shape)
    copy[:] = pixels
    return copy
